"""FiberLaplace with one setting changed at a time: the evidence behind its defaults, on validation data."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from benchmarks.datasets import Dataset
from benchmarks.methods import FULL, Effort, Fitted, Method, fiber_info, fit_posterior, split_loader, weight_sampler
from laplace_fiber import (
    FiberLaplace,
    FixedRefinement,
    LatentAutoencoder,
    RefineToLevel,
    Thermalisation,
    TrajectorySampler,
    stochastic_walk,
    typical_set_walk,
)
from laplace_fiber.paths import PosteriorForm


@dataclass(frozen=True)
class Variant:
    """What differs from the defaults of a kind of walk; ``reach`` counts prior radii."""

    walk: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)
    prior_precision: float = 1.0
    reach: float | None = None
    posterior: PosteriorForm = "latent"
    kind: Literal["plain", "typical", "stochastic"] = "plain"


_PAPER_DECODER = {"closed_form": False, "n_steps": 1500, "batch_size": 256, "learning_rate": 1e-3}

VARIANTS = {
    "default": Variant(),
    "states": Variant(posterior="states"),
    "level-0.1": Variant({"refinement": RefineToLevel(0.1)}),
    "level-0.4": Variant({"refinement": RefineToLevel(0.4)}),
    "quasi-newton": Variant({"descent": "quasi-newton"}),
    "steps-5-spectral": Variant({"refinement": FixedRefinement(5)}),
    "steps-20-spectral": Variant({"refinement": FixedRefinement(20)}),
    "steps-5-monotone": Variant({"refinement": FixedRefinement(5), "descent": "monotone"}),
    "steps-20-monotone": Variant({"refinement": FixedRefinement(20), "descent": "monotone"}),
    "steps-5-plain": Variant({"refinement": FixedRefinement(5), "descent": "plain"}),
    "reach-half": Variant(reach=0.5),
    "reach-double": Variant(reach=2.0),
    "drifts-20": Variant({"n_steps": 20}),
    "drifts-80": Variant({"n_steps": 80}),
    "particles-8": Variant({"n_particles": 8}),
    "precision-0.1": Variant(prior_precision=0.1),
    "precision-10": Variant(prior_precision=10.0),
    "latent-size-8": Variant(autoencoder={"latent_size": 8}),
    "lambda-minus-0.1": Variant(autoencoder={"lambda_minus": 0.1}),
    "decoder-by-gradients": Variant(autoencoder=_PAPER_DECODER),
    "typical": Variant(kind="typical"),
    "typical-states": Variant(kind="typical", posterior="states"),
    "typical-cold": Variant({"thermal": None}, kind="typical"),
    "evidence": Variant({"evidence": True}),
    "typical-evidence": Variant({"evidence": True}, kind="typical"),
    "typical-precision-0.1": Variant(kind="typical", prior_precision=0.1),
    "typical-precision-10": Variant(kind="typical", prior_precision=10.0),
    "stochastic": Variant(kind="stochastic"),
    "stochastic-kept-4": Variant({"thermal": Thermalisation(10, n_kept=4)}, kind="stochastic"),
    "stochastic-cold": Variant({"thermal": None}, kind="stochastic"),
    "stochastic-particles-4": Variant({"n_particles": 4}, kind="stochastic"),
    "stochastic-particles-32": Variant({"n_particles": 32}, kind="stochastic"),
    "stochastic-precision-0.1": Variant(kind="stochastic", prior_precision=0.1),
    "stochastic-precision-10": Variant(kind="stochastic", prior_precision=10.0),
}


def fit_variant(
    model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL, *, variant: Variant
) -> Fitted:
    """FiberLaplace with the variant's settings, which go before the effort's: nothing is chosen on validation data."""
    n_params = sum(p.numel() for p in model.parameters())
    reach = None if variant.reach is None else variant.reach * math.sqrt(n_params / variant.prior_precision)
    walks: dict[str, Callable[..., TrajectorySampler]] = {
        "plain": TrajectorySampler,
        "typical": typical_set_walk,
        "stochastic": functools.partial(stochastic_walk, split_loader(dataset.train)),
    }
    la = FiberLaplace(
        copy.deepcopy(model),
        dataset.likelihood,
        sigma_noise=sigma,
        prior_precision=variant.prior_precision,
        posterior=variant.posterior,
        sampler=walks[variant.kind](**{"seed": seed, "reach": reach, **effort.walk, **variant.walk}),
        autoencoder=LatentAutoencoder(**{"seed": seed, **effort.autoencoder, **variant.autoencoder}),
    )
    fitted = fit_posterior(la, weight_sampler(la, seed, effort), dataset, choose=lambda: None)
    fitted.info.update(fiber_info(la))
    return replace(fitted, sigma=float(la.sigma_noise)) if la.sampler.evidence else fitted


VARIANT_METHODS: dict[str, Method] = {
    name: functools.partial(fit_variant, variant=variant) for name, variant in VARIANTS.items()
}
