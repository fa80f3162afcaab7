"""The methods of ``laplace_fiber.comparison`` on the benchmarks' data: each tuned on validation data in one budget."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import environment
from benchmarks.datasets import RAW, Dataset
from benchmarks.methods import FULL, LOADER_BATCH, QUICK, Effort, Fitted, Method, member_seeds, split_loader
from benchmarks.models import AugmentedTraining, train_timed, training_for
from laplace_fiber import (
    LatentAutoencoder,
    StochasticRefinement,
    TrajectorySampler,
    comparison,
    stochastic_walk,
    typical_set_walk,
)
from laplace_fiber.comparison.methods import TEMPERATURE
from laplace_fiber.comparison.task import Task
from laplace_fiber.comparison.tuning import Budget, Search

BUDGET = Budget(n_settings=12, seconds=10.0)
"""Of the choice of settings in one run; the first one that works is fitted whatever it takes."""

QUICK_BUDGET = Budget(n_settings=1, seconds=1.0)

OF_SEVERAL_NETWORKS = ("mixture", "multiswag")
"""These are given several trained networks, whose training counts as part of the fit.

So is the ensemble where networks are trained on augmented images: its own training takes the images as they are.
"""

LARGE_FOR_FISHER = ("snelson", "snelson-gap", "ionosphere")
"""Data sets whose networks have more than the 2,000 weights that a dense metric can take."""

_FEW_GEODESICS = {"n_samples_fit": 2, "max_evaluations": 20, "on_failure": "euclidean"}
_SHORT_DIFFUSION = {"n_samples_fit": 2, "n_steps": 2}
_SHORT_CHAIN = {"n_chains": 2, "n_steps": 40, "n_kept": 10}
_SHORT_SWAG = {"n_collected": 3, "n_skipped": 0, "min_interval": 2}
_SHORT_EPOCHS = {"n_epochs": 1, "min_steps": 10}
_SHORT_AUTOENCODER = LatentAutoencoder(**QUICK.autoencoder)

QUICK_OPTIONS: dict[str, dict[str, Any]] = {
    "fiber": {"sampler": TrajectorySampler(**QUICK.walk), "autoencoder": _SHORT_AUTOENCODER},
    "fiber_typical": {
        "sampler": typical_set_walk(**QUICK.walk, thermal=None),
        "autoencoder": _SHORT_AUTOENCODER,
    },
    "fiber_stochastic": {
        "sampler": stochastic_walk(n_particles=4, n_steps=2, refinement=StochasticRefinement(1.0, 5)),
        "autoencoder": _SHORT_AUTOENCODER,
    },
    "riemannian": _FEW_GEODESICS,
    "riemannian_linearised": _FEW_GEODESICS,
    "riemannian_fisher": {**_FEW_GEODESICS, "max_evaluations": 2},
    "diffusion": _SHORT_DIFFUSION,
    "diffusion_kernel": _SHORT_DIFFUSION,
    "vi": {"n_steps": 20},
    "mc_dropout": {**_SHORT_EPOCHS, "insert": 0.1},
    "espro": {**_SHORT_EPOCHS, "n_vertices": 2},
    "hmc": {"n_chains": 2, "n_warmup": 10, "n_kept": 4, "max_leapfrog": 5},
    "sgld": _SHORT_CHAIN,
    "sghmc": _SHORT_CHAIN,
    "csghmc": {**_SHORT_CHAIN, "n_cycles": 2},
    "ensemble": {**_SHORT_EPOCHS, "n_members": 2},
    "swag": _SHORT_SWAG,
    "multiswag": _SHORT_SWAG,
}
"""Settings of quick runs, which shall take a second or so."""

OPTIONS: dict[str, dict[str, Any]] = {
    "riemannian": {"n_samples_fit": 20},
    "riemannian_fisher": {"n_samples_fit": 20},
    "diffusion": {"n_samples_fit": 10},
    "diffusion_kernel": {"n_samples_fit": 10},
}
"""Settings that differ from the methods' defaults: fewer samples where each takes a second or more."""


@dataclass(frozen=True)
class Choice:
    """What the choice of a method's settings may cost, the size of minibatches, and the prior precisions to try."""

    budget: Budget
    batch_size: int = LOADER_BATCH
    prior_precisions: tuple[float, ...] = comparison.PRIOR_PRECISIONS


def fit_compared(
    model: nn.Module,
    dataset: Dataset,
    sigma: float,
    seed: int,
    effort: Effort = FULL,
    *,
    method: comparison.Method,
    choice: Choice | None = None,
    train_loader: Iterable[Any] | None = None,
) -> Fitted:
    """A method of the registry with its best settings. ``fit_seconds`` is the fit that is kept, without the search.

    ``choice`` None takes that of the small tables, ``train_loader`` None the training data as they are.
    """
    name = method.name.removesuffix(TEMPERATURE)
    choice = choice or Choice(BUDGET)
    if effort == QUICK:
        choice = replace(choice, budget=QUICK_BUDGET)
        method = replace(method, options={**method.options, **QUICK_OPTIONS.get(name, {})})
    training = training_for(dataset.name).shortened(effort.epoch_share)
    models: tuple[nn.Module, ...] = (model,)
    training_seconds = 0.0
    augmented = isinstance(training, AugmentedTraining)
    if name in OF_SEVERAL_NETWORKS or (name == "ensemble" and augmented):
        members = [train_timed(dataset, s, training) for s in member_seeds(seed, effort)]
        models, training_seconds = tuple(m for m, _ in members), sum(seconds for _, seconds in members)
    train_loader = train_loader or split_loader(dataset.train, choice.batch_size)
    task = Task(models, dataset.likelihood, train_loader, split_loader(dataset.val), sigma, effort.n_samples)
    with _random_state_of(seed, task.device), tqdm(desc="settings", total=choice.budget.n_settings) as bar:

        def report(n_settings: int, lowest: float) -> None:
            bar.set_postfix(validation_nll=f"{lowest:.4g}", refresh=False)
            bar.update(n_settings - bar.n)

        search = Search(method, task, seed, choice.budget, progress_bar=True, clock=environment.clock)
        outcome = search.run(choice.prior_precisions, report)
    info = {
        **outcome.settings,
        "tune_seconds": outcome.tune_seconds,
        "n_settings": outcome.n_settings,
        "failed_settings": outcome.failures,
        "options": {key: repr(value) for key, value in method.options.items()},
        "budget": repr(choice.budget),
    }
    if outcome.gradient_evaluations is not None:
        info["gradient_evaluations"] = outcome.gradient_evaluations
    return Fitted(outcome.predict, training_seconds + outcome.fit_seconds, info)


def fits_together(dataset: str, method: str) -> bool:
    """Whether the method can be fitted to the data set's network."""
    return not (method == "riemannian_fisher" and dataset.removesuffix(RAW) in LARGE_FOR_FISHER)


@contextmanager
def _random_state_of(seed: int, device: torch.device) -> Iterator[None]:
    """Start from the seed while inside; the global random state is put back, a GPU's too."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def compared(method: comparison.Method) -> Method:
    """As a method of the benchmarks."""
    return functools.partial(fit_compared, method=method)


COMPARED_METHODS: dict[str, Method] = {
    name: compared(comparison.method(name, **OPTIONS.get(name, {})))
    for name in (*comparison.METHODS, f"fiber{TEMPERATURE}")
}
