"""What refinement has learnt of the curvature: L-BFGS for many particles at once.

Source: Nocedal and Wright (2006), *Numerical optimization*, algorithm 7.4.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PAIRS = 8
"""Last displacements and changes of gradient that are remembered."""

KEPT_AFTER = 4
"""Steps after a drift, beyond which a particle still knows its curvature at the next drift: that saves a third of the
gradients on stiff regressions. Where fewer do, such steps go past the level (on Ionosphere to an excess of 18 nats
instead of 22)."""

KEPT_NUMBERS = 2**25
"""Memory that is kept from drift to drift has at most this many numbers."""


class CurvatureMemory:
    """Displacements s and changes of gradient y of each particle's last steps, with positive curvature sᵀy only.

    Attributes
    ----------
    moved, turned, inverse
        Pairs of s and y, each particle's in a ring of its own, and 1/sᵀy, zero where there is no pair.
    known, taken
        Pairs that each particle has taken in, ever, and steps that it has proposed since the last drift.
    share
        Share of the next step that is tried: below 1 after steps that were taken back.
    """

    def __init__(self, theta: Float[Tensor, "n p"]) -> None:
        n, p = theta.shape
        self.moved, self.turned = theta.new_zeros(n, PAIRS, p), theta.new_zeros(n, PAIRS, p)
        self.inverse, self.share = theta.new_zeros(n, PAIRS), theta.new_ones(n)
        self.known, self.taken = theta.new_zeros((2, n), dtype=torch.int64)

    @property
    def columns(self) -> list[Tensor]:
        """All of it that outlasts a drift, one row for each particle."""
        return [self.moved, self.turned, self.inverse, self.known, self.taken]

    def begin(self, rows: Int[Tensor, " k"]) -> None:
        """These particles have drifted: those that needed few steps the last time forget what they know."""
        self.inverse[rows[self.taken[rows] <= KEPT_AFTER]] = 0
        self.taken[rows], self.share[rows] = 0, 1.0

    def direction(
        self, rows: Int[Tensor, " k"], grad: Float[Tensor, "k p"], scale: Float[Tensor, " k"]
    ) -> Float[Tensor, "k p"]:
        """H g for the particles of these rows, H being ``scale`` times the identity before it has seen a pair."""
        known = self.known[rows]
        slots = [(known - 1 - j) % PAIRS for j in range(min(int(known.max()), PAIRS))]
        result, weights = grad, list[Tensor]()
        pairs = [(self.moved[rows, s], self.turned[rows, s], self.inverse[rows, s]) for s in slots]
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
        finite: Bool[Tensor, " k"],
    ) -> tuple[Bool[Tensor, " k"], Float[Tensor, " k"]]:
        """Take in a step of these particles where it is finite; whether its curvature is positive, and sᵀy/yᵀy."""
        curvature, change = (moved * turned).sum(1), turned.square().sum(1)
        bent = finite & (curvature > 1e-10 * moved.norm(dim=1) * change.sqrt())
        taught = rows[bent]
        slots = self.known[taught] % PAIRS
        self.moved[taught, slots], self.turned[taught, slots] = moved[bent], turned[bent]
        self.inverse[taught, slots] = 1 / curvature[bent]
        self.known[taught] += 1
        self.taken[rows] += 1
        return bent, curvature / change


def memory_to_keep(theta: Float[Tensor, "n p"], n_everywhere: int) -> CurvatureMemory | None:
    """A memory of all these particles, unless that of those on all processes would be large."""
    return CurvatureMemory(theta) if 2 * PAIRS * n_everywhere * theta.shape[1] <= KEPT_NUMBERS else None
