"""Ordinary differential equations for many initial values at once, each with step sizes of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

VectorField: TypeAlias = Callable[[Float[Tensor, "k q"], Int[Tensor, " k"]], Float[Tensor, "k q"]]
"""dy/dt at some of the rows; the second argument says which rows these are."""

FINISHED, TOO_MANY_EVALUATIONS, STEP_UNDERFLOW, NOT_FINITE = range(4)
STATUSES = ("finished", "too many evaluations", "step underflow", "not finite")
"""What became of a row."""

_RUNNING = -1

# Dormand and Prince (1980): the last stage of a step is the first one of the next.
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_EVALUATIONS_OF_A_STEP = 6
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """When a step is good enough, and when to give up.

    Parameters
    ----------
    rtol, atol
        A step is taken if the root mean square of its error over atol + rtol |y| is at most 1.
    max_evaluations
        Of the vector field, for each row.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    max_evaluations: int = 5000

    def scaled(self, error: Float[Tensor, "k q"], size: Float[Tensor, "k q"]) -> Float[Tensor, " k"]:
        """Root mean square of the error in units of what is tolerated."""
        return (error / (self.atol + self.rtol * size)).square().mean(-1).sqrt().double()


@dataclass(frozen=True)
class Solution:
    """Where the rows have come.

    Attributes
    ----------
    states
        At the end, or at the last good step before a failure.
    times
        Reached.
    status
        Indices into :data:`STATUSES`.
    evaluations
        Of the vector field, for each row.
    """

    states: Float[Tensor, "s q"]
    times: Float[Tensor, " s"]
    status: Int[Tensor, " s"]
    evaluations: Int[Tensor, " s"]

    @property
    def finished(self) -> Bool[Tensor, " s"]:
        """Which rows came to the end."""
        return self.status == FINISHED


def integrate(
    field: VectorField,
    initial: Float[Tensor, "s q"],
    tolerance: Tolerance,
    duration: float = 1.0,
    report: Callable[[Solution], None] | None = None,
) -> Solution:
    """Follow dy/dt = field(y) from each row of ``initial``.

    Dormand and Prince's method of orders 5 and 4. Every row has its own step size and error control; rows that have
    ended are not evaluated any more, so that a stiff one costs the others nothing.

    Parameters
    ----------
    report
        Called after every step with the present solution (status -1: still running).
    """
    y, everyone = initial.clone(), torch.arange(len(initial), device=initial.device)
    slope = field(y, everyone)
    step = _first_steps(field, y, slope, tolerance, duration)
    time, rejected = torch.zeros_like(step), torch.zeros_like(step, dtype=torch.bool)
    evaluations = torch.full_like(everyone, 2)
    status = torch.where(_finite(slope) & _finite(y), _RUNNING, NOT_FINITE)
    smallest = 16 * torch.finfo(y.dtype).eps * duration
    while len(rows := (status == _RUNNING).nonzero().flatten()):
        remaining = duration - time[rows]
        h = torch.minimum(step[rows], remaining)
        new, new_slope, error = _trial(field, y[rows], slope[rows], h, rows, tolerance)
        good = error <= 1  # false where the error is not a number
        taken = rows[good]
        y[taken], slope[taken] = new[good], new_slope[good]
        time[taken] += h[good]
        step[rows] = h * _step_factor(error, rejected[rows] | ~good)
        rejected[rows] = ~good
        evaluations[rows] += _EVALUATIONS_OF_A_STEP
        out_of_steps = torch.where(error.isfinite(), STEP_UNDERFLOW, NOT_FINITE)
        now = torch.full_like(rows, _RUNNING)
        now[evaluations[rows] + _EVALUATIONS_OF_A_STEP > tolerance.max_evaluations] = TOO_MANY_EVALUATIONS
        now = torch.where(~good & (step[rows] < smallest), out_of_steps, now)
        status[rows] = torch.where(good & (h >= remaining), FINISHED, now)
        if report is not None:
            report(Solution(y, time, status, evaluations))
    return Solution(y, time, status, evaluations)


def _trial(
    field: VectorField,
    y: Float[Tensor, "k q"],
    slope: Float[Tensor, "k q"],
    h: Float[Tensor, " k"],
    rows: Int[Tensor, " k"],
    tolerance: Tolerance,
) -> tuple[Float[Tensor, "k q"], Float[Tensor, "k q"], Float[Tensor, " k"]]:
    """One step: where it leads, the slope there, and its error."""
    lengths, slopes, new = h.to(y)[:, None], [slope], y
    for weights in _STAGES:
        new = y + lengths * _combined(weights, slopes)
        slopes.append(field(new, rows))
    error = lengths * _combined(_ERROR, slopes)
    scaled = tolerance.scaled(error, torch.maximum(y.abs(), new.abs()))
    # The last slope may be infinite where its share of the error is not seen.
    return new, slopes[-1], torch.where(_finite(slopes[-1]) & _finite(new), scaled, torch.nan)


def _combined(weights: tuple[float, ...], slopes: list[Float[Tensor, "k q"]]) -> Float[Tensor, "k q"]:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=True):
        if weight:
            total = torch.add(total, slope, alpha=weight)
    return total


def _step_factor(error: Float[Tensor, " k"], cautious: Bool[Tensor, " k"]) -> Float[Tensor, " k"]:
    """By how much the step changes: not up after a failure, and far down where the error is not a number."""
    wished = torch.nan_to_num(_SAFETY * error.clamp(min=1e-10) ** -0.2, nan=_SHRINK)
    return wished.clamp(_SHRINK, _GROW).clamp(max=torch.where(cautious, 1.0, _GROW))


def _first_steps(
    field: VectorField,
    y: Float[Tensor, "s q"],
    slope: Float[Tensor, "s q"],
    tolerance: Tolerance,
    duration: float,
) -> Float[Tensor, " s"]:
    """Hairer, Nørsett and Wanner (1993), section II.4: from the sizes of y, y' and an estimate of y''."""
    size, rows = y.abs(), torch.arange(len(y), device=y.device)
    d0, d1 = tolerance.scaled(y, size), tolerance.scaled(slope, size)
    h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6, 0.01 * d0 / d1).clamp(max=duration)
    h0 = torch.nan_to_num(h0, nan=1e-6)
    change = field(y + h0.to(y)[:, None] * slope, rows) - slope
    d2 = tolerance.scaled(change, size) / h0
    largest = torch.maximum(d1, d2)
    h1 = torch.where(largest <= 1e-15, (1e-3 * h0).clamp(min=1e-6), (0.01 / largest) ** 0.2)
    return torch.minimum(100 * h0, torch.nan_to_num(h1, nan=1e-6)).clamp(max=duration)


def _finite(values: Float[Tensor, "k q"]) -> Bool[Tensor, " k"]:
    return values.isfinite().all(-1)
