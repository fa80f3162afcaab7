"""What refinement has learnt of the curvature since a drift: L-BFGS for many particles at once.

Source: Nocedal and Wright (2006), *Numerical optimization*, algorithm 7.4.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

PAIRS = 8
"""Last displacements and changes of gradient that are remembered."""


class CurvatureMemory:
    """Displacements s and changes of gradient y of each particle's last steps, with positive curvature sᵀy only.

    Attributes
    ----------
    share
        Share of the next step that is tried: below 1 after steps that were taken back.
    """

    def __init__(self, theta: Float[Tensor, "n p"]) -> None:
        n, p = theta.shape
        self.moved, self.turned = theta.new_zeros(PAIRS, n, p), theta.new_zeros(PAIRS, n, p)
        self.inverse = theta.new_zeros(PAIRS, n)
        """1/sᵀy, zero where there is no pair."""
        self.share = theta.new_ones(n)
        self.steps = 0

    def direction(
        self, rows: Int[Tensor, " k"], grad: Float[Tensor, "k p"], scale: Float[Tensor, " k"]
    ) -> Float[Tensor, "k p"]:
        """H g for the particles of these rows, H being ``scale`` times the identity before it has seen a pair."""
        slots = [(self.steps - 1 - j) % PAIRS for j in range(min(self.steps, PAIRS))]
        result, weights = grad, list[Tensor]()
        pairs = [(self.moved[j, rows], self.turned[j, rows], self.inverse[j, rows]) for j in slots]
        for moved, turned, inverse in pairs:
            weights.append(inverse * (moved * result).sum(1))
            result = result - weights[-1][:, None] * turned
        result = scale[:, None] * result
        for (moved, turned, inverse), weight in zip(reversed(pairs), reversed(weights), strict=True):
            result = result + (weight - inverse * (turned * result).sum(1))[:, None] * moved
        return result

    def add(
        self,
        rows: Int[Tensor, " k"],
        moved: Float[Tensor, "k p"],
        turned: Float[Tensor, "k p"],
        known: Bool[Tensor, " k"],
    ) -> tuple[Bool[Tensor, " k"], Float[Tensor, " k"]]:
        """Take in a step of these particles where it is known; whether its curvature is positive, and sᵀy/yᵀy."""
        curvature, change = (moved * turned).sum(1), turned.square().sum(1)
        bent = known & (curvature > 1e-10 * moved.norm(dim=1) * change.sqrt())
        slot = self.steps % PAIRS
        self.moved[slot, rows], self.turned[slot, rows] = moved, turned
        self.inverse[slot] = 0
        self.inverse[slot, rows[bent]] = 1 / curvature[bent]
        self.moved[slot, rows[~bent]] = 0  # may not be finite
        self.turned[slot, rows[~bent]] = 0
        self.steps += 1
        return bent, curvature / change
