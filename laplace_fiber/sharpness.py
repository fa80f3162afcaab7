"""The largest curvature of the objective, from which first step sizes follow."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch
from laplace_fiber.draws import normal
from laplace_fiber.log_joint import LogJoint

POWER_ITERATIONS, POWER_TOLERANCE = 20, 1e-2
"""Hessian products that the sharpness may take, and the relative change from one to the next that ends them."""


def sharpness(joint: LogJoint, theta: Float[Tensor, " p"], batch: Batch, seed: int = 0) -> float:
    """λ_max(∇²J(θ)/n_data) in absolute value, by power iteration with Hessian-vector products."""
    product = joint.hessian_product(theta, batch)
    v = normal(theta.numel(), seed, -1).to(theta)
    length = 0.0
    for _ in range(POWER_ITERATIONS):
        v = product(v / v.norm())
        before, length = length, float(v.norm())
        if length == 0.0 or not math.isfinite(length):
            return 1.0  # a flat objective has no scale of its own, and no gradient to scale
        if abs(length - before) < POWER_TOLERANCE * length:
            break
    return length
