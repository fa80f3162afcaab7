"""The methods: each takes a problem, with its prior and noise, and has nothing to tune.

Another method is one more entry of ``METHODS``.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from laplace import FullLaplace
from torch import Tensor

from benchmarks.fidelity.problems import Problem
from benchmarks.fidelity.training import trained
from benchmarks.methods import FULL, QUICK, member_seeds, split_loader
from laplace_fiber import (
    FiberLaplace,
    FixedRefinement,
    LatentAutoencoder,
    SampledPosterior,
    Thermalisation,
    TrajectorySampler,
    stochastic_walk,
    typical_set_walk,
)
from laplace_fiber.baselines import SGLD, SWAG, LaplaceDiffusion, RiemannianLaplace
from laplace_fiber.linearised import linearised_samples
from laplace_fiber.predictive import function_samples

N_SAMPLES, QUICK_SAMPLES = 1000, 50


@dataclass(frozen=True)
class Sampler:
    """What a method fitted.

    Attributes
    ----------
    functions
        Maps inputs (b, d) to outputs of sampled functions (s, b, c), logits for classes; the same functions at each
        call.
    thetas
        The weights of these functions, where the network itself gives them their outputs.
    fit_seconds
        Of the fit, and of drawing the samples.
    info
        What else should be known of the fit.
    """

    functions: Callable[[Float[Tensor, "b d"]], Float[Tensor, "s b c"]]
    thetas: Float[Tensor, "s p"] | None
    fit_seconds: float = 0.0
    info: dict[str, Any] = field(default_factory=dict)


Method: TypeAlias = Callable[[Problem], Sampler]


def of_weights(problem: Problem, thetas: Float[Tensor, "s p"], fit_seconds: float = 0.0, **info: Any) -> Sampler:
    """The network under weight samples."""

    def functions(x: Tensor) -> Tensor:
        return function_samples(problem.joint.network, thetas, x, chunk_size=100)

    return Sampler(functions, thetas, fit_seconds, info)


def fit_map(problem: Problem) -> Sampler:
    """The mode by itself."""
    return of_weights(problem, problem.theta[None])


def fit_ensemble(problem: Problem) -> Sampler:
    """Networks trained to modes of the same J from other initial weights."""
    seeds = member_seeds(problem.spec.seed, QUICK if problem.spec.quick else FULL)
    members, seconds = zip(*(trained(problem.spec, problem.data, seed) for seed in seeds), strict=True)
    thetas = torch.stack([torch.nn.utils.parameters_to_vector(m.parameters()).detach() for m in members])
    return of_weights(problem, thetas, sum(seconds))


def fit_laplace(problem: Problem, *, linearised: bool) -> Sampler:
    """laplace-torch's full Gauss-Newton posterior: its weights in the network, or in the linearised network."""
    start = time.perf_counter()
    la = FullLaplace(copy.deepcopy(problem.model), **_conditions(problem))
    la.fit(split_loader(problem.data.train))
    thetas = la.sample(n_samples(problem), torch.Generator().manual_seed(problem.spec.seed)).detach()
    seconds = time.perf_counter() - start
    if not linearised:
        return of_weights(problem, thetas, seconds)

    def functions(x: Tensor) -> Tensor:
        return linearised_samples(problem.joint.network, problem.theta, thetas, x)

    return Sampler(functions, None, seconds)


def fit_sampled(problem: Problem, *, build: Callable[..., SampledPosterior]) -> Sampler:
    """A posterior of this package; ``build`` takes the problem before the constructor's usual arguments."""
    start = time.perf_counter()
    la = build(problem, copy.deepcopy(problem.model), **_conditions(problem))
    la.fit(split_loader(problem.data.train))
    thetas = la.sample(n_samples(problem))
    seconds = time.perf_counter() - start
    return of_weights(problem, thetas, seconds, diagnostics=dict(la.diagnostics), warnings=list(la.fit_warnings()))


def n_samples(problem: Problem) -> int:
    """Functions that every sampling method draws."""
    return QUICK_SAMPLES if problem.spec.quick else N_SAMPLES


def _conditions(problem: Problem) -> dict[str, Any]:
    data = problem.data
    return {"likelihood": data.likelihood, "sigma_noise": data.sigma, "prior_precision": problem.spec.tau}


def _baseline(
    posterior: Callable[..., SampledPosterior],
    options: dict[str, Any] | None = None,
    quick: dict[str, Any] | None = None,
) -> Method:
    """A baseline with its default settings but for ``options``, and for ``quick`` ones in quick runs."""

    def build(problem: Problem, *args: Any, **kwargs: Any) -> SampledPosterior:
        chosen = {**(options or {}), **((quick or {}) if problem.spec.quick else {})}
        return posterior(*args, seed=problem.spec.seed, **chosen, **kwargs)

    return functools.partial(fit_sampled, build=build)


def _fiber(preset: Callable[..., TrajectorySampler] = TrajectorySampler, *, sized: bool = False, **walk: Any) -> Method:
    """FiberLaplace with the default settings of a walk but for those given; ``sized`` ones are told the data."""

    def build(problem: Problem, *args: Any, **kwargs: Any) -> SampledPosterior:
        seed, effort = problem.spec.seed, QUICK if problem.spec.quick else FULL
        data = (split_loader(problem.data.train),) if sized else ()
        sampler = preset(*data, **{"seed": seed, **walk, **effort.walk})
        return FiberLaplace(
            *args, sampler=sampler, autoencoder=LatentAutoencoder(**{"seed": seed, **effort.autoencoder}), **kwargs
        )

    return functools.partial(fit_sampled, build=build)


METHODS: dict[str, Method] = {
    "map": fit_map,
    "linearised": functools.partial(fit_laplace, linearised=True),
    "laplace": functools.partial(fit_laplace, linearised=False),
    "ensemble": fit_ensemble,
    "swag": _baseline(SWAG),
    "riemannian": _baseline(RiemannianLaplace, {"n_samples_fit": 20}, {"n_samples_fit": 2}),
    "diffusion": _baseline(LaplaceDiffusion, {"n_samples_fit": 10}, {"n_samples_fit": 2}),
    "sgld": _baseline(SGLD, quick={"n_steps": 100}),
    "fiber": _fiber(),
    "fiber-paper": _fiber(refinement=FixedRefinement(5)),
    "fiber-steps-20": _fiber(refinement=FixedRefinement(20)),
    "fiber-typical": _fiber(typical_set_walk),
    "fiber-typical-48": _fiber(typical_set_walk, n_particles=48, thermal=Thermalisation(n_kept=3)),
    "fiber-typical-cold": _fiber(typical_set_walk, thermal=None),
    "fiber-stochastic": _fiber(stochastic_walk, sized=True),
}
