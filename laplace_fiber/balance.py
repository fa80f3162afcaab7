"""J's gradient at weights: whether it is finite, and how far they are from a minimum."""

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


def checked_start(
    joint: LogJoint, origin: Float[Tensor, " p"], batch: Batch
) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
    """J/n_data and its gradient at the trained weights.

    Raises
    ------
    ValueError
        One of them is not finite.
    """
    value, gradient = joint.value_and_grad(origin[None], batch)
    if not (torch.isfinite(value).all() and torch.isfinite(gradient).all()):
        raise ValueError(
            f"fit: expected a finite loss at the trained weights, got an objective of {float(value):.4g} per data "
            "point (or a gradient that is not finite); check the data for NaN and the network for divergence."
        )
    return value[0], gradient[0]
