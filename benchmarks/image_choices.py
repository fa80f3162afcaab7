"""What the methods may spend on image sets, and their settings that differ from the defaults."""

from __future__ import annotations

from typing import Any

from laplace.curvature import BackPackGGN
from torch import nn

from benchmarks.compared import QUICK_BUDGET, Choice
from laplace_fiber import LatentAutoencoder, TrajectorySampler, typical_set_walk
from laplace_fiber.comparison.fits import FULL_LAPLACE_LIMIT
from laplace_fiber.comparison.methods import TEMPERATURE
from laplace_fiber.comparison.tuning import Budget

BUDGET = Budget(n_settings=6, seconds=60.0)
"""Of the choice of settings in one run, beyond the first that works."""

BATCH = 128
"""Size of minibatches, for all methods that take them."""

WALK_BATCH = 1024
"""Images behind each refinement of a walk. All of them make a gradient four to five times as long; on minibatches of
128 walks end at higher losses (MNIST, seed 0, 8 particles, 10 steps, prior precision 10: the averaged validation NLL is
0.218, against 0.161)."""

OPTIONS: dict[str, dict[str, Any]] = {
    "fiber": {"sampler": TrajectorySampler(n_particles=16, n_steps=10, batch="loader")},
    "fiber_typical": {"sampler": typical_set_walk(n_particles=16, thermal=None, batch="loader")},
    "riemannian": {"data": "subset", "n_samples_fit": 10},
    "riemannian_linearised": {"data": "subset", "n_samples_fit": 10},
    "diffusion": {"n_samples_fit": 10},
    "diffusion_kernel": {"n_samples_fit": 10},
}
"""Fewer samples where each takes seconds, geodesics on a part of the data, as their authors have them, and fewer and
shorter walks: a gradient of the whole training data takes 0.3 seconds of one core. Hamiltonian moves at a walk's end
need such gradients, and are left out."""

_MEMBERS = {"n_members": 2, "n_epochs": 1, "min_steps": 5}
_CHAIN = {"n_chains": 2, "n_steps": 20, "n_kept": 4}
_WALK: dict[str, Any] = {"n_particles": 2, "n_steps": 2}
_GEODESICS = {"n_samples_fit": 2, "rtol": 0.5, "atol": 0.5, "max_evaluations": 300}
_LATENT = LatentAutoencoder(n_steps=5)
QUICK_OPTIONS: dict[str, dict[str, Any]] = {
    "fiber": {"sampler": TrajectorySampler(**_WALK), "autoencoder": _LATENT},
    "fiber_typical": {"sampler": typical_set_walk(**_WALK, thermal=None), "autoencoder": _LATENT},
    "riemannian": {**_GEODESICS, "data": "subset", "subset_size": 20},
    "riemannian_linearised": {**_GEODESICS, "data": "subset", "subset_size": 20},
    "diffusion": {"n_samples_fit": 2, "n_steps": 2},
    "diffusion_kernel": {"n_samples_fit": 2, "n_steps": 2},
    "vi": {"n_steps": 10},
    "mc_dropout": {"insert": 0.1, "n_epochs": 1, "min_steps": 5},
    "espro": {"n_vertices": 2, "n_epochs": 1, "min_steps": 5},
    "hmc": {"n_warmup": 2, "n_kept": 4, "max_leapfrog": 3, "step_size": 1e-3},
    "sgld": _CHAIN,
    "sghmc": _CHAIN,
    "csghmc": _CHAIN,
    "ensemble": _MEMBERS,
    "swag": {"n_collected": 3, "n_skipped": 1, "min_interval": 2, "max_rank": 2},
    "multiswag": {**_MEMBERS, "n_collected": 3, "n_skipped": 1, "min_interval": 2, "max_rank": 2},
}
"""For trials of the machinery: a second or two each."""


def choice_for(method: str, model: nn.Module, quick: bool) -> Choice:
    """What a method may spend on a network, and its settings."""
    base = method.removesuffix(TEMPERATURE)
    options = {**OPTIONS.get(base, {}), **(QUICK_OPTIONS.get(base, {}) if quick else {})}
    if base in ("laplace", "linearised") and sum(p.numel() for p in model.parameters()) <= FULL_LAPLACE_LIMIT:
        # The full curvature takes 7 GiB for 200 images of MNIST by laplace-torch's default backend, and 1 GiB for all
        # of them by BackPACK's Jacobians: the same matrix.
        options["backend"] = BackPackGGN
    return Choice(QUICK_BUDGET if quick else BUDGET, options, WALK_BATCH if base.startswith("fiber") else BATCH)
