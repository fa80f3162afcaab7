"""The methods that can be compared, by name: how each is built, and which settings are worth trying."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from laplace_fiber import baselines
from laplace_fiber.baselines.riemannian import FISHER_LIMIT
from laplace_fiber.comparison.fits import (
    PRIOR_PRECISION,
    Fit,
    Settings,
    all_weights,
    fit_baseline,
    fit_fiber,
    fit_laplace,
    fit_map,
    last_layer,
    most_evident_precision,
)
from laplace_fiber.comparison.task import Task
from laplace_fiber.curvature import low_rank_laplace
from laplace_fiber.presets import stochastic_walk, typical_set_walk
from laplace_fiber.trajectories import TrajectorySampler

TEMPERATURE = "+temperature"


@dataclass(frozen=True)
class Method:
    """A method of a comparison.

    Attributes
    ----------
    name, label
        In code and files; in tables and figures.
    fit
        Fits it.
    axes
        Values worth trying for its own settings, the default first.
    has_prior
        Whether the prior precision is one of its settings.
    starts_from_evidence
        Whether prior precisions are multiples of the one with the highest evidence of a Gaussian approximation.
    options
        Settings that stay as they are.
    calibrated
        Whether temperature scaling (in regression: a factor of the variance) on validation data follows.
    applies
        Whether it belongs in a comparison that names no methods.
    """

    name: str
    label: str
    fit: Fit
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    has_prior: bool = True
    starts_from_evidence: bool = False
    options: Settings = field(default_factory=dict)
    calibrated: bool = False
    applies: Callable[[Task], bool] = lambda task: True

    def candidates(self, task: Task, prior_precisions: tuple[float, ...]) -> dict[str, tuple[Any, ...]]:
        """All settings to be tried, each with its values, the default first."""
        axes = {name: values for name, values in self.axes.items() if name not in self.options}
        if self.has_prior and PRIOR_PRECISION not in self.options:
            unit = _evident(task) if self.starts_from_evidence else 1.0
            axes[PRIOR_PRECISION] = tuple(unit * value for value in prior_precisions)
        return axes


def _evident(task: Task) -> float:
    """The prior precision of the evidence, or 1 where laplace-torch cannot tell it."""
    try:
        return most_evident_precision(task)
    except Exception as error:  # a layer that it has no curvature for, say
        warnings.warn(f"The search starts without the evidence of a Gaussian: {error}", stacklevel=2)
        return 1.0


def method(name: str, rename: str | None = None, **options: Any) -> Method:
    """The registered method of this name, or ``"<name>+temperature"``, with settings of its own.

    Parameters
    ----------
    name
        One of ``METHODS``, perhaps followed by ``"+temperature"``.
    rename
        Another name for it, so that it can stand beside the one with default settings.
    options
        Settings passed to its constructor. They are not tuned.

    Raises
    ------
    ValueError
        No method of this name.
    """
    base = METHODS.get(name) or METHODS.get(name.removesuffix(TEMPERATURE))
    if base is None:
        raise ValueError(f"methods: expected names among {sorted(METHODS)}, or one with {TEMPERATURE!r}, got {name!r}.")
    if name not in METHODS:
        base = replace(base, name=name, label=f"{base.label}, temperature scaling", calibrated=True)
    return replace(base, name=rename or base.name, label=rename or base.label, options={**base.options, **options})


def default_methods(task: Task) -> list[Method]:
    """Those that a comparison takes when none are named."""
    chosen = [*METHODS, f"fiber{TEMPERATURE}"]
    return [m for m in map(method, chosen) if m.applies(task)]


def _of_laplace_torch(name: str, label: str, build: Callable[..., Any], linearised: bool = False) -> Method:
    return Method(name, label, functools.partial(fit_laplace, build=build, linearised=linearised))


def _of_fiber(name: str, label: str, walk: Callable[[Task], TrajectorySampler]) -> Method:
    return Method(name, label, functools.partial(fit_fiber, walk=walk))


def _of_baseline(posterior: Any) -> Method:
    name = posterior._key[1]
    fit = functools.partial(fit_baseline, posterior=posterior)
    applies = _CONDITIONS.get(name, lambda task: True)
    defaults = posterior.settings_class()
    axes = {axis: _first(getattr(defaults, axis), values) for axis, values in posterior.tunable.items()}
    label, evident = LABELS.get(name, posterior.__name__), name in FROM_EVIDENCE
    return Method(name, label, fit, axes, starts_from_evidence=evident, applies=applies)


def _first(default: Any, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values, the default before all others."""
    return (default, *(value for value in values if value != default))


LABELS = {
    "riemannian": "Riemannian Laplace",
    "riemannian_linearised": "Riemannian Laplace, linearised",
    "riemannian_fisher": "Riemannian Laplace, Fisher metric",
    "hmc": "HMC",
    "sgld": "SGLD",
    "sghmc": "SGHMC",
    "csghmc": "Cyclical SGHMC",
    "ensemble": "Deep ensemble",
    "swag": "SWAG",
    "multiswag": "Multi-SWAG",
    "espro": "ESPRO",
    "vi": "Mean-field variational",
    "mc_dropout": "MC dropout",
    "mixture": "Laplace mixture",
    "diffusion": "Laplace diffusion",
    "diffusion_kernel": "Laplace diffusion, kernel",
}

FROM_EVIDENCE = frozenset({"riemannian", "riemannian_linearised", "riemannian_fisher", "diffusion", "diffusion_kernel"})
"""Methods that begin with a Laplace approximation, slow where its prior is weak. (Bergamin et al. 2023 choose the prior
in this way, too.)"""

_CONDITIONS: dict[str, Callable[[Task], bool]] = {
    "mixture": lambda task: len(task.models) > 1,
    "riemannian_fisher": lambda task: task.n_params <= FISHER_LIMIT,
}

_POINT = Method("map", "MAP", fit_map, has_prior=False)

METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        _POINT,
        replace(_POINT, name="temperature", label="MAP, temperature scaling", calibrated=True),
        _of_laplace_torch("laplace", "Laplace, sampled", all_weights),
        _of_laplace_torch("linearised", "Laplace, linearised", all_weights, linearised=True),
        _of_laplace_torch("low_rank", "Laplace, low rank", low_rank_laplace),
        _of_laplace_torch("last_layer", "Bayesian last layer", last_layer),
        _of_fiber("fiber", "Fiber", lambda task: TrajectorySampler()),
        _of_fiber("fiber_typical", "Fiber, typical set", lambda task: typical_set_walk()),
        _of_fiber("fiber_stochastic", "Fiber, stochastic", lambda task: stochastic_walk(task.train_loader)),
        *(_of_baseline(posterior) for posterior in baselines.METHODS),
    )
}
"""All methods by name; ``"<name>+temperature"`` is understood, too."""
