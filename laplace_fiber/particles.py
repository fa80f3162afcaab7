"""Particles under refinement, in columns: some of them taken out, and put back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from laplace_fiber.log_joint import Evaluation


class Particles(NamedTuple):
    """Particles under refinement, one row each."""

    theta: Float[Tensor, "n p"]
    value: Float[Tensor, " n"]
    """J(θ)/n_data."""
    data_term: Float[Tensor, " n"]
    """H Σ ℓ over all data."""
    grad: Float[Tensor, "n p"]
    eta: Float[Tensor, " n"]
    finite: Bool[Tensor, " n"]
    """Whether the objective has been finite so far."""


class Side(NamedTuple):
    """Ends of particles' steps on one side of a level, with their excess."""

    theta: Float[Tensor, "k p"]
    excess: Float[Tensor, " k"]


def put(now: Particles, rows: Int[Tensor, " k"], theta: Tensor, found: Evaluation, chosen: Bool[Tensor, " k"]) -> None:
    """Set the chosen ones of these rows to weights and what was found there."""
    kept = rows[chosen]
    for whole, column in ((now.theta, theta), (now.value, found.value), (now.grad, found.grad)):
        whole[kept] = column[chosen]
    now.data_term[kept] = found.data_term[chosen]


def padded(active: Bool[Tensor, " n"], n_active: int) -> Tensor | None:
    """Indices of the active rows, the first one repeated up to one of eight sizes; None where that is all of them.

    Recorded steps have fixed shapes: a few sizes keep their number small.
    """
    more = padding(n_active, len(active))
    if n_active + more >= len(active):
        return None
    rows = active.nonzero().flatten()
    return torch.cat([rows, rows[:1].expand(more)])


def padding(n_active: int, n: int) -> int:
    """Rows up to the next of eight sizes, at most n."""
    unit = max(1, n // 8)
    return min(-(-n_active // unit) * unit, n) - n_active


def finite_rows(value: Float[Tensor, " n"], grad: Float[Tensor, "n p"]) -> Bool[Tensor, " n"]:
    """Whether objective and gradient of each row are finite."""
    # One pass over the gradient, and nothing that is not finite is zero after taking it from itself.
    total = value + grad.sum(1)
    return total - total == 0
