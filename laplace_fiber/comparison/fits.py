"""How each kind of method is fitted, and how it then predicts."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from laplace import KronLaplace, Laplace
from torch import nn

from laplace_fiber.baselines.baseline import Baseline
from laplace_fiber.comparison.task import Predict, Task, as_samples, joined, network_outputs
from laplace_fiber.fiber import FiberLaplace
from laplace_fiber.jacobian_rows import pieces
from laplace_fiber.latent import LatentAutoencoder
from laplace_fiber.metrics import Prediction
from laplace_fiber.paths import UniformPosition
from laplace_fiber.posterior import SampledPosterior
from laplace_fiber.trajectories import TrajectorySampler
from laplace_fiber.weights import Inputs

PRIOR_PRECISION = "prior_precision"

FULL_LAPLACE_LIMIT = 4000
"""Weights up to which laplace-torch's full covariance is taken; Kronecker factors beyond."""

JACOBIAN_NUMBERS = 2**24
"""Numbers of a Jacobian that linearised predictions are made from at once: those of convolutions take some fifty times
its memory on the way."""

OF_SEVERAL_NETWORKS = frozenset({"ensemble", "espro", "mixture", "multiswag"})
"""Methods that take all networks where several are given."""

Settings = dict[str, Any]


def _refit(value: float) -> bool:
    """What ``Fitted.follow`` is for methods that are fitted anew for every setting."""
    return False


@dataclass
class Fitted:
    """A fitted method.

    Attributes
    ----------
    predict
        Maps inputs to a prediction, the same one at each call.
    follow
        Takes over another prior precision without a new fit, and tells whether it could.
    gradient_evaluations
        Of the loss on one batch, for one weight vector; None where the method does not count them.
    """

    predict: Predict
    follow: Callable[[float], bool] = _refit
    gradient_evaluations: float | None = None


class Fit(Protocol):
    """Fits a method with settings, from a seed; the task's networks stay as they are."""

    def __call__(self, task: Task, seed: int, settings: Settings, progress_bar: bool) -> Fitted:
        """Fit."""
        ...


def fit_map(task: Task, seed: int, settings: Settings, progress_bar: bool) -> Fitted:
    """The trained network by itself."""

    def predict(x: Inputs) -> Prediction:
        outputs = as_samples(network_outputs([task.model], x), task.classes)
        return outputs.softmax(dim=-1) if task.classes else outputs

    return Fitted(predict, gradient_evaluations=0.0)


def fit_laplace(
    task: Task, seed: int, settings: Settings, progress_bar: bool, *, build: Callable[..., Any], linearised: bool
) -> Fitted:
    """A Gaussian of laplace-torch over a copy of the network: sampled, or with its linearised closed form."""
    la = build(copy.deepcopy(task.model), task.likelihood, sigma_noise=task.sigma_noise, **settings)
    la.fit(task.train_loader, progress_bar=progress_bar)
    predict = functools.partial(_linearised if linearised else _sampled_laplace, la, task, seed)

    def follow(prior_precision: float) -> bool:
        la.prior_precision = prior_precision
        return True

    return Fitted(predict, follow)


def fit_fiber(
    task: Task,
    seed: int,
    settings: Settings,
    progress_bar: bool,
    *,
    walk: Callable[[Task], TrajectorySampler],
) -> Fitted:
    """FiberLaplace; ``settings`` may hold its sampler, else that of ``walk``, and autoencoder: seeds are replaced."""
    parts = {"sampler": settings.get("sampler") or walk(task), "autoencoder": LatentAutoencoder(), **settings}
    seeded = {name: replace(parts[name], seed=seed) for name in ("sampler", "autoencoder")}
    la = FiberLaplace(task.model, task.likelihood, sigma_noise=task.sigma_noise, **{**parts, **seeded})
    la.fit(task.train_loader, progress_bar=progress_bar)
    walked = settings.get(PRIOR_PRECISION, 1.0)

    def follow(prior_precision: float) -> bool:
        # A lower precision asks for a longer walk; and where samples lie at the walk's end, any other for another one.
        if prior_precision < walked or not isinstance(la.position, UniformPosition):
            return False
        la.prior_precision = prior_precision
        return True

    return Fitted(_sampler(la, task), follow, la.diagnostics["gradient_evaluations"])


def fit_baseline(
    task: Task, seed: int, settings: Settings, progress_bar: bool, *, posterior: type[Baseline[Any, Any]]
) -> Fitted:
    """One of ``laplace_fiber.baselines``; those made for several networks get all of them."""
    several = posterior._key[1] in OF_SEVERAL_NETWORKS and len(task.models) > 1
    networks: Any = task.models if several else task.model
    la = posterior(networks, task.likelihood, sigma_noise=task.sigma_noise, seed=seed, **settings)
    la.fit(task.train_loader, progress_bar=progress_bar)
    return Fitted(_sampler(la, task), gradient_evaluations=la.diagnostics["gradient_evaluations"])


def _sampler(la: SampledPosterior, task: Task) -> Predict:
    def predict(x: Inputs) -> Prediction:
        return as_samples(la.predictive_samples(x, n_samples=task.n_samples), task.classes)

    return predict


def _sampled_laplace(la: Any, task: Task, seed: int, x: Inputs) -> Prediction:
    generator = torch.Generator(task.device).manual_seed(seed)
    with torch.no_grad():
        samples = la.predictive_samples(x, pred_type="nn", n_samples=task.n_samples, generator=generator)
    return as_samples(samples, task.classes)


def _linearised(la: Any, task: Task, seed: int, x: Inputs) -> Prediction:
    """Probit class probabilities (b, c), or mean and variance of the function."""
    size = max(1, JACOBIAN_NUMBERS // (la.n_params * la.n_outputs))
    return joined([_linearised_piece(la, task, piece) for piece in pieces(x, size)])


def _linearised_piece(la: Any, task: Task, x: Inputs) -> Prediction:
    if task.classes:
        return as_samples(la(x, pred_type="glm", link_approx="probit")[None], classes=True)[0]
    mean, covariance = (part.detach().cpu() for part in la(x, pred_type="glm"))
    return mean, covariance.diagonal(dim1=-2, dim2=-1)


def all_weights(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """laplace-torch's Gaussian over all weights, with the full covariance where it is small."""
    n_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
    structure = "full" if n_params <= FULL_LAPLACE_LIMIT else "kron"
    return Laplace(model, *args, subset_of_weights="all", hessian_structure=structure, **kwargs)


def last_layer(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """laplace-torch's Gaussian over the last layer's weights."""
    sizes = [sum(p.numel() for p in m.parameters(recurse=False)) for m in model.modules()]
    structure = "full" if ([s for s in sizes if s] or [0])[-1] <= FULL_LAPLACE_LIMIT else "kron"
    return Laplace(model, *args, subset_of_weights="last_layer", hessian_structure=structure, **kwargs)


def most_evident_precision(task: Task) -> float:
    """The prior precision with the highest evidence of laplace-torch's Kronecker-factored Gaussian, the cheap one."""
    la = KronLaplace(copy.deepcopy(task.model), task.likelihood, sigma_noise=task.sigma_noise)
    la.fit(task.train_loader)
    with warnings.catch_warnings():  # about a default that is not used
        warnings.filterwarnings("ignore", message="By default `link_approx`")
        la.optimize_prior_precision(method="marglik", pred_type="glm")
    return float(la.prior_precision.mean())
