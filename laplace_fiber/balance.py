"""How far weights are from a minimum of J."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch
from laplace_fiber.log_joint import LogJoint


class Balance(NamedTuple):
    """The gradient's two parts, that of the data and that of the prior, against each other."""

    imbalance: float
    """‖∇J‖ over the sum of the norms of its parts: 0 at a minimum, 1 far from it."""
    best: float | None
    """The factor of the prior's part that balances both best; None if no positive one does."""


def balance(joint: LogJoint, theta: Float[Tensor, " p"], batch: Batch) -> Balance:
    """At θ, on a batch that stands for all data."""
    gradient = torch.zeros_like(theta)
    for block in batch.blocks:
        part = Batch([block], len(block[1]))
        gradient += joint.value_and_grad(theta[None], part)[1][0] * (joint.n_data * part.size / batch.size)
    offset = theta - joint.prior_mean
    prior = joint.prior_precision * offset
    likelihood = gradient - prior
    imbalance = gradient.norm() / (likelihood.norm() + prior.norm()).clamp(min=1e-30)
    best = -(likelihood @ offset) / offset.square().sum().clamp(min=1e-30)
    return Balance(float(imbalance), float(best) if best > 0 else None)
