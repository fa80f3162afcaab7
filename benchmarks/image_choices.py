"""What the methods may spend on image sets, and their settings that differ from the defaults."""

from __future__ import annotations

from typing import Any

from laplace.curvature import BackPackGGN
from torch import nn

from benchmarks.compared import Choice
from laplace_fiber import TrajectorySampler, comparison, typical_set_walk
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


def image_method(name: str, model: nn.Module) -> comparison.Method:
    """A method with its settings for a network."""
    base = name.removesuffix(TEMPERATURE)
    options = dict(OPTIONS.get(base, {}))
    if base in ("laplace", "linearised") and sum(p.numel() for p in model.parameters()) <= FULL_LAPLACE_LIMIT:
        # The full curvature takes 7 GiB for 200 images of MNIST by laplace-torch's default backend, and 1 GiB for all
        # of them by BackPACK's Jacobians: the same matrix.
        options["backend"] = BackPackGGN
    return comparison.method(name, **options)


def image_choice(name: str) -> Choice:
    """What the choice of a method's settings may cost, and its minibatches."""
    return Choice(BUDGET, WALK_BATCH if name.startswith("fiber") else BATCH)
