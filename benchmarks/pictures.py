"""What the paper's Figures 2, 3, 8, 9 and 12 show, computed once: bands on Snelson, surfaces and weights on Banana.

Every posterior has prior precision 1 and is not tuned: the figures compare approximations of one and the same
posterior. Arrays are rounded to what a figure can show.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import models, tabular
from benchmarks.datasets import Dataset, snelson_grid
from benchmarks.methods import Effort, split_loader
from benchmarks.runs import Run
from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler, comparison, typical_set_walk
from laplace_fiber.baselines import HMC
from laplace_fiber.comparison.task import Task
from laplace_fiber.metrics import Prediction, moments
from laplace_fiber.paths import PosteriorForm

PRIOR_PRECISION = 1.0
FORMS: tuple[PosteriorForm, ...] = ("latent", "states", "gaussian")
SURFACE_POINTS = 33
"""Grid points of a class surface on each axis."""

SURFACE_MARGIN = 1.0
"""How far the surface goes beyond the training data, in their standard deviations."""

SHOWN_POINTS = 300
"""Training points of Banana that a figure shows."""

DECIMALS = 3
HMC_EFFORT: dict[str, Any] = {"n_warmup": 30, "n_kept": 200, "max_leapfrog": 100}
QUICK_HMC: dict[str, Any] = {"n_chains": 2, "n_warmup": 3, "n_kept": 10, "max_leapfrog": 5}
COMPONENT_STEPS = (10, 20, 40, 80)
"""Drifts of the walks whose samples Figure 12 shows beside the walk to the typical set, all of the default's length."""


@dataclass(frozen=True)
class Change:
    """A walk that differs from the default in one of the paper's parameters, by ``factor``.

    ``alpha`` is the length of a drift: T drifts reach α T, so that a change of ``n_steps`` changes the reach with it.
    """

    axis: str
    value: float
    factor: float


DEFAULTS = {"alpha": 1.0, "n_steps": float(TrajectorySampler().n_steps), "n_particles": 32.0}
AXES = {"alpha": (0.25, 0.5, 2.0), "n_steps": (10.0, 20.0, 80.0), "n_particles": (2.0, 8.0, 64.0)}
CHANGES = {
    f"{axis.removeprefix('n_')}-{value:g}": Change(axis, value, value / DEFAULTS[axis])
    for axis, values in AXES.items()
    for value in values
}
POSTERIORS = ("laplace", "linearised", "hmc")
COMPONENTS = "components"
METHODS = (*POSTERIORS, "fiber", "fiber_typical", *CHANGES, COMPONENTS)


def applies(dataset: str, method: str) -> bool:
    """Weights are shown for Banana only."""
    return method != COMPONENTS or dataset == "banana"


def measure(run: Run) -> dict[str, Any]:
    """The arrays of one picture, under ``"picture"``."""
    dataset, model = tabular.problem(run)
    task = _task(run, dataset, model)
    start = time.perf_counter()
    picture = _components(run, task) if run.method == COMPONENTS else _functions(run, task, dataset)
    settings = {"prior_precision": PRIOR_PRECISION, "sigma_noise": task.sigma_noise}
    return {"picture": picture, "fit_seconds": time.perf_counter() - start, "settings": settings}


def _task(run: Run, dataset: Dataset, model: nn.Module) -> Task:
    loaders = split_loader(dataset.train), split_loader(dataset.val)
    return Task((model,), dataset.likelihood, *loaders, models.noise_scale(model, dataset), run.effort.n_samples)


def _functions(run: Run, task: Task, dataset: Dataset) -> dict[str, Any]:
    """Mean and standard deviation of the function, or of the class probability, on a grid, for each posterior form."""
    predictors = _predictors(run, task)
    if dataset.likelihood == "regression":
        grid = snelson_grid()[::2]
        place: dict[str, Any] = {"x": _rounded(grid.flatten())}
    else:
        grid, place = _surface(dataset)
    forms = {}
    for form, predict in predictors.items():
        mean, variance = moments(_of_last_class(predict(dataset.scale(grid)), task.classes))
        forms[form] = {"mean": _rounded(mean), "deviation": _rounded(variance.sqrt())}
    return {**place, "forms": forms}


def _predictors(run: Run, task: Task) -> dict[str, Callable[[Tensor], Prediction]]:
    """What to evaluate, by the form of the posterior (``"samples"`` where a method has one form)."""
    if run.method in POSTERIORS:
        options: dict[str, Any] = {"prior_precision": PRIOR_PRECISION}
        if run.method == "hmc":
            options |= QUICK_HMC if run.quick else HMC_EFFORT
        return {"samples": comparison.method(run.method).fit(task, run.seed, options, False).predict}
    la = _fiber(task, run.seed, run.effort, _sampler(run, task))

    def predict(x: Tensor, form: PosteriorForm) -> Tensor:
        la.posterior = form
        return la.predictive_samples(x, n_samples=task.n_samples)

    forms = ("states",) if run.method in CHANGES else FORMS
    return {form: functools.partial(predict, form=form) for form in forms}


def _fiber(task: Task, seed: int, effort: Effort, sampler: TrajectorySampler) -> FiberLaplace:
    autoencoder = LatentAutoencoder(**{"seed": seed, **effort.autoencoder})
    la = FiberLaplace(
        task.model,
        task.likelihood,
        sigma_noise=task.sigma_noise,
        prior_precision=PRIOR_PRECISION,
        sampler=sampler,
        autoencoder=autoencoder,
    )
    la.fit(task.train_loader)
    return la


def _sampler(run: Run, task: Task) -> TrajectorySampler:
    """The walk of a run: one of the two presets, or the default with one parameter changed."""
    if run.method == "fiber_typical":
        return typical_set_walk(seed=run.seed, **run.effort.walk)
    sampler = TrajectorySampler(seed=run.seed, **run.effort.walk)
    if run.method not in CHANGES:
        return sampler
    change = CHANGES[run.method]
    if change.axis == "n_particles":
        return replace(sampler, n_particles=max(1, round(sampler.particle_count * change.factor)))
    reach = change.factor * math.sqrt(task.n_params / PRIOR_PRECISION)
    steps = max(1, round(sampler.n_steps * (change.factor if change.axis == "n_steps" else 1)))
    return replace(sampler, reach=reach, n_steps=steps)


def _surface(dataset: Dataset) -> tuple[Tensor, dict[str, Any]]:
    """A grid around the training data (g, 2) in the data's own unit, with the axes' ticks and some of the data."""
    x, y = dataset.train
    ticks = []
    for column in range(2):
        low, high = float(x[:, column].min()) - SURFACE_MARGIN, float(x[:, column].max()) + SURFACE_MARGIN
        scaled = torch.linspace(low, high, SURFACE_POINTS)
        ticks.append(scaled * dataset.x_scale[column] + dataset.x_shift[column])
    raw = (x * dataset.x_scale + dataset.x_shift)[:SHOWN_POINTS]
    points = {"x": _rounded(raw[:, 0]), "y": _rounded(raw[:, 1]), "class": y[:SHOWN_POINTS].tolist()}
    across, up = torch.meshgrid(*ticks, indexing="xy")
    grid = torch.stack([across.flatten(), up.flatten()], dim=1)
    return grid, {"across": _rounded(ticks[0]), "up": _rounded(ticks[1]), "data": points}


def _of_last_class(prediction: Prediction, classes: bool) -> Prediction:
    """Samples (s, b, 1) of the last class's probability; what is no class stays as it is."""
    if not classes:
        return prediction
    if not isinstance(prediction, Tensor):
        raise TypeError(f"Expected class probabilities as one tensor; got {type(prediction).__name__}.")
    samples = prediction if prediction.ndim == 3 else prediction[None]
    return samples[..., -1:]


def _components(run: Run, task: Task) -> dict[str, Any]:
    """Samples of HMC and of several walks on the first two principal components of them all.

    Weights are counted from the trained ones. Every posterior gives the same number of samples.
    """
    chains = HMC(task.model, task.likelihood, seed=run.seed, **(QUICK_HMC if run.quick else HMC_EFFORT))
    chains.fit(task.train_loader)
    samples = {"hmc": chains.sample(task.n_samples)}
    for n_steps in (2, 4) if run.quick else COMPONENT_STEPS:
        sampler = replace(TrajectorySampler(seed=run.seed, **run.effort.walk), n_steps=n_steps)
        reach = math.sqrt(task.n_params / PRIOR_PRECISION) * n_steps / TrajectorySampler().n_steps
        la = _fiber(task, run.seed, run.effort, replace(sampler, reach=reach))
        samples[f"steps-{n_steps}"] = la.sample(task.n_samples)
    typical = typical_set_walk(seed=run.seed, **run.effort.walk)
    samples["typical"] = _fiber(task, run.seed, run.effort, typical).sample(task.n_samples)
    origin = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    stacked = (torch.cat(list(samples.values())) - origin).double()
    _, spectrum, axes = torch.linalg.svd(stacked - stacked.mean(0), full_matrices=False)
    signs = axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True)).sign()  # else they depend on the library
    points = (stacked @ (signs * axes[:2]).T).split([len(s) for s in samples.values()])
    shares = (spectrum.square() / spectrum.square().sum())[:2]
    return {
        "explained": _rounded(shares),
        "points": {name: [_rounded(column) for column in part.T] for name, part in zip(samples, points, strict=True)},
    }


def _rounded(values: Tensor | Sequence[float]) -> list[float]:
    numbers = values.tolist() if isinstance(values, Tensor) else values
    return [round(value, DECIMALS) for value in numbers]
