"""What the methods may spend on image sets, and their settings that differ from the defaults."""

from __future__ import annotations

from typing import Any

import torch
from laplace.curvature import BackPackGGN
from torch import nn

from benchmarks.compared import Choice
from benchmarks.models import AugmentedTraining, Training
from laplace_fiber import TrajectorySampler, comparison, stochastic_walk, typical_set_walk
from laplace_fiber.comparison.fits import FULL_LAPLACE_LIMIT
from laplace_fiber.comparison.methods import TEMPERATURE
from laplace_fiber.comparison.tuning import Budget

BUDGET = Budget(n_settings=6, seconds=60.0)
"""Of the choice of settings in one run, beyond the first that works."""

BATCH = 128
"""Size of minibatches, for all methods that take them, walks excepted."""

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

WALK_PRECISIONS = (100.0, 30.0, 1000.0, 300.0, 10.0)
"""Prior precisions for plain walks, in this order. A walk for precision 1 begins with steps that leave MNIST's low-loss
set at once, whatever share of it is used afterwards: of ten steps, the precision 1000 that validation prefers uses a
third of the first (averaged validation NLL 0.205; the trained network 0.166). Walks for 30 and 100 give 0.155 and 0.154
in a fraction of the time. The evidence of a Gaussian posterior, 4661, is no guide here (0.168)."""

TYPICAL_PRECISIONS = (10.0, 3.0, 30.0)
"""Prior precisions for walks to the typical set, which go all the way that the prior asks for: with 8 particles the
averaged validation NLL (seed 0) is 0.145 for 10, 0.183 for 3, 0.233 for 1 and 0.391 for 100 on MNIST, whose network has
0.166, and 0.505 for 10, 0.529 for 3 and 0.545 for 30 on FashionMNIST (0.520)."""

STOCHASTIC_BATCH = 64
"""Images behind each step of a stochastic walk. Smaller batches mean more and cheaper steps, which serve a network this
small down to a point: the averaged validation NLL on FashionMNIST (seed 0, prior precision 3) is 0.463 for batches of
128 with 30 epochs, 0.458 for 64 with 25 and 0.499 for 32 with 20, which take 29, 19 and 18 seconds."""

STOCHASTIC_PRECISIONS = (3.0, 1.0, 10.0)
"""Prior precisions for stochastic walks. With eight particles, 26 epochs and a tenth of the weights' size as learning
rate the averaged validation NLL (seed 0) is 0.090 for 3 and 0.111 for 10 on MNIST, whose network has 0.166, and 0.448
and 0.475 on FashionMNIST (0.520)."""


GOING_ON = ("fiber_stochastic", "mc_dropout", "sgld", "sghmc", "csghmc", "swag", "multiswag")
"""Methods that go on with the training, step by step on batches. Where it had augmented images, so have they, in its
batches: a trained network fits the images as they are far better, and such steps soon too closely. (ResNet-18, last two
layers, features of plain images: validation NLL 0.380 of the stochastic walk and 0.344 of SGLD, 0.317 of the network.)
"""


def image_method(name: str, model: nn.Module, training: Training) -> comparison.Method:
    """A method with its settings for a network that was trained like this."""
    base = name.removesuffix(TEMPERATURE)
    options = dict(OPTIONS.get(base, {}))
    mixed = isinstance(training, AugmentedTraining) and training.mixed_precision
    if base == "fiber_stochastic" and mixed and next(model.parameters()).is_cuda:
        options["sampler"] = stochastic_walk(autocast=torch.bfloat16)
    if base in ("laplace", "linearised") and sum(p.numel() for p in model.parameters()) <= FULL_LAPLACE_LIMIT:
        # The full curvature takes 7 GiB for 200 images of MNIST by laplace-torch's default backend, and 1 GiB for all
        # of them by BackPACK's Jacobians: the same matrix.
        options["backend"] = BackPackGGN
    return comparison.method(name, **options)


def image_choice(name: str) -> Choice:
    """What the choice of a method's settings may cost, and its minibatches."""
    if name.startswith("fiber_stochastic"):
        return Choice(BUDGET, STOCHASTIC_BATCH, STOCHASTIC_PRECISIONS)
    if name.startswith("fiber_typical"):
        return Choice(BUDGET, WALK_BATCH, TYPICAL_PRECISIONS)
    if name.startswith("fiber"):
        return Choice(BUDGET, WALK_BATCH, WALK_PRECISIONS)
    return Choice(BUDGET, BATCH)


def goes_on(name: str) -> bool:
    """Whether the method goes on with the training."""
    return name.removesuffix(TEMPERATURE) in GOING_ON
