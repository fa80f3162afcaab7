"""What refinement has learnt of the curvature: L-BFGS for many particles at once.

Source: Byrd, Nocedal and Schnabel (1994), *Representations of quasi-Newton matrices and their use in limited memory
methods*, theorem 2.2.
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
    moved, turned, held
        Pairs of s and y, each particle's in a ring of its own, and which places of the ring hold one.
    across, among
        sᵀy of each displacement with the changes that are not older than it, and yᵀy.
    known, taken
        Pairs that each particle has taken in, ever, and steps that it has proposed since the last drift.
    share
        Share of the next step that is tried: below 1 after steps that were taken back.
    """

    def __init__(self, theta: Float[Tensor, "n p"]) -> None:
        n, p = theta.shape
        self.moved, self.turned = theta.new_zeros(n, PAIRS, p), theta.new_zeros(n, PAIRS, p)
        self.held = theta.new_zeros(n, PAIRS, dtype=torch.bool)
        self.across, self.among = theta.new_zeros((2, n, PAIRS, PAIRS), dtype=torch.float64)
        self.share = theta.new_ones(n)
        self.known, self.taken = theta.new_zeros((2, n), dtype=torch.int64)

    @property
    def columns(self) -> list[Tensor]:
        """All of it that outlasts a drift, one row for each particle."""
        return [self.moved, self.turned, self.held, self.across, self.among, self.known, self.taken]

    def begin(self, rows: Int[Tensor, " k"]) -> None:
        """These particles have drifted: those that needed few steps the last time forget what they know."""
        self.held[rows[self.taken[rows] <= KEPT_AFTER]] = False
        self.taken[rows], self.share[rows] = 0, 1.0

    def direction(
        self, rows: Int[Tensor, " k"], grad: Float[Tensor, "k p"], scale: Float[Tensor, " k"]
    ) -> Float[Tensor, "k p"]:
        """H g for the particles of these rows, H being ``scale`` times the identity before it has seen a pair.

        As products with all pairs at once, which pass over them twice: with S and Y from the oldest pair to the newest,
        R the upper triangle of SᵀY and D its diagonal,
        H g = γ (g − Y a) + S R⁻ᵀ ((D + γ YᵀY) a − γ Yᵀ g), a = R⁻¹ Sᵀ g.
        """
        moved, turned = self._pairs(rows)
        order = (self.known[rows, None] + torch.arange(PAIRS, device=rows.device)) % PAIRS
        held = self.held[rows].gather(1, order)
        gamma = scale.double()[:, None]

        def in_order(products: Float[Tensor, "k a"]) -> Float[Tensor, "k a"]:
            return products.double().gather(1, order) * held

        def square(products: Float[Tensor, "n a a"]) -> Float[Tensor, "k a a"]:
            by_row = products[rows].gather(1, order[:, :, None].expand(-1, -1, PAIRS))
            return by_row.gather(2, order[:, None].expand(-1, PAIRS, -1)) * (held[:, :, None] & held[:, None])

        across = square(self.across)
        # Places without a pair have ones on the diagonal, and take no part.
        upper = across.triu() + torch.diag_embed((~held).double())
        a = _solved(upper, in_order(_products(moved, grad)), upper=True)
        among_a = (square(self.among) @ a[:, :, None])[:, :, 0]
        inner = across.diagonal(dim1=1, dim2=2) * a + gamma * (among_a - in_order(_products(turned, grad)))
        b = _solved(upper.mT, inner, upper=False)
        of_moved, of_turned = (torch.zeros_like(c).scatter(1, order, c).to(grad) for c in (b, gamma * a))
        result = torch.baddbmm(scale[:, None, None] * grad[:, None], of_moved[:, None], moved)
        return torch.baddbmm(result, of_turned[:, None], turned, alpha=-1)[:, 0]

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
        taught, turn = rows[bent], turned[bent]
        slots = self.known[taught] % PAIRS
        self.moved[taught, slots], self.turned[taught, slots] = moved[bent], turn
        all_moved, all_turned = self._pairs(taught)
        self.across[taught, :, slots] = _products(all_moved, turn).double()
        self.among[taught, :, slots] = self.among[taught, slots] = _products(all_turned, turn).double()
        self.held[taught, slots] = True
        self.known[taught] += 1
        self.taken[rows] += 1
        return bent, curvature / change

    def _pairs(self, rows: Int[Tensor, " k"]) -> tuple[Float[Tensor, "k a p"], Float[Tensor, "k a p"]]:
        """Of these particles, in ascending order; without a copy if they follow each other."""
        if len(rows) == 0 or int(rows[-1] - rows[0]) + 1 > len(rows):
            return self.moved[rows], self.turned[rows]
        together = slice(int(rows[0]), int(rows[-1]) + 1)
        return self.moved[together], self.turned[together]


def _products(pairs: Float[Tensor, "k a p"], v: Float[Tensor, "k p"]) -> Float[Tensor, "k a"]:
    # A row from the left: a column from the right takes fifteen times as long on a CPU.
    return (v[:, None] @ pairs.mT)[:, 0]


def _solved(triangle: Float[Tensor, "k a a"], right: Float[Tensor, "k a"], upper: bool) -> Float[Tensor, "k a"]:
    return torch.linalg.solve_triangular(triangle, right[:, :, None], upper=upper)[:, :, 0]


def memory_to_keep(theta: Float[Tensor, "n p"], n_everywhere: int) -> CurvatureMemory | None:
    """A memory of all these particles, unless that of those on all processes would be large."""
    return CurvatureMemory(theta) if 2 * PAIRS * n_everywhere * theta.shape[1] <= KEPT_NUMBERS else None
