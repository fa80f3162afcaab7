"""Refinement on a stream of batches: after each drift, Adam with a step size that falls to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Counts
from laplace_fiber.drifts import HALVINGS
from laplace_fiber.gradients import recorded_evaluation
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.particles import finite_rows
from laplace_fiber.recording import Recorder

RELATIVE_RATES, LEAST_RATE = (0.1, 0.03, 0.01, 0.003), 1e-5
"""Learning rates to try, as shares of the root mean square of the trained weights, and the least of them all."""

TRIAL_STEPS, FIFTH = 100, 5
"""Of each learning rate. Where no rate comes back in so few, which small batches make likely, further trials have a
fifth of the walk's own steps, if that is more. The last fifth of a trial decides by its loss."""

MOST_STEPS, FULL_BATCH = 2000, 64
"""Steps after a drift at most, on batches of so many points or more; smaller ones have more, for as many points."""

NEARLY_AS_FAR = 0.2
"""The largest rate is taken that recovers at most this much less than the best: in more steps than the trial's, larger
rates end lower. Multilayer and small convolutional networks take the largest of all, a residual network the third."""

RECOVERED = 0.5
"""Drifts are halved until some rate recovers this share of what training has gained over weights of zero. From drifts
of the usual length trials mostly recover 0.7 and more; those of deep networks under a wide prior lose hundreds of times
as much, and do not come back."""

NEAR_ZERO = 1e-3
"""Share of the trained weights that stands for weights of zero where a network has no outputs at these, as one that
divides by norms of its weights."""


@dataclass(frozen=True)
class StochasticRefinement:
    """Refine by Adam, one step on each batch, for some passes over the data after each drift.

    No step is taken back, and none asks whether the loss is low enough: a batch that weights were just fitted to cannot
    tell. Instead the learning rate falls to zero along half a cosine, so that every drift ends at low loss; only the
    states there are good samples, not points between them.

    Sources: Kingma and Ba (2015), *Adam*; Loshchilov and Hutter (2017), *SGDR*, for the learning rate; Huang et al.
    (2017), *Snapshot ensembles*, for the use of the states where it is zero.

    Parameters
    ----------
    epochs, min_steps, max_steps
        Passes over the data after each drift, and the least and largest number of steps that they shall amount to.
        ``None`` takes at most 2000, or on batches of fewer than 64 points as many steps as see 128,000.
    learning_rate
        At the beginning of each. ``None`` tries a tenth, 0.03, 0.01 and 0.003 of the root mean square of the trained
        weights for a hundred steps after the first drift, and takes the largest by which the loss falls about as far as
        by any. If none recovers half of what training has gained, all drifts are halved, and the rates tried again for
        longer.
    """

    epochs: float = 25.0
    min_steps: int = 500
    max_steps: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "min_steps", "max_steps", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number, got {value}.")
        if self.max_steps is not None and self.max_steps < self.min_steps:
            raise ValueError(f"max_steps: expected at least min_steps ({self.min_steps}), got {self.max_steps}.")

    def n_steps(self, data: TrainingData) -> int:
        """Steps after each drift."""
        most = self.max_steps or math.ceil(MOST_STEPS * max(FULL_BATCH / data.batch_size, 1))
        return max(min(math.ceil(self.epochs * data.steps_per_epoch), most), self.min_steps)

    def rates_for(self, origin: Float[Tensor, " p"]) -> list[float]:
        """The first learning rates to choose from for a network with these trained weights."""
        size = float(origin.square().mean().sqrt())
        return [self.learning_rate] if self.learning_rate else [max(r * size, LEAST_RATE) for r in RELATIVE_RATES]


class StochasticDescent:
    """Moves particles by Adam on one batch after another, anew after each drift.

    Adam works on each number by itself, so that one optimizer serves all particles.

    Parameters
    ----------
    joint, recorder
        The objective, and how it is called.
    n_steps, rates
        Steps after each drift, and the learning rates of the first to choose from.

    Attributes
    ----------
    rate
        The learning rate that is taken, to be set before the first step.
    columns
        What the next drifts depend on, one row for each particle: nothing.
    """

    rate: float
    columns: Sequence[Tensor] = ()

    def __init__(self, joint: LogJoint, recorder: Recorder, n_steps: int, rates: Sequence[float]) -> None:
        self.joint, self.recorder, self.n_steps, self.rates = joint, recorder, n_steps, rates
        self.counts = Counts()

    def trial(
        self, origin: Float[Tensor, " p"], drift: Float[Tensor, " p"], next_batch: Callable[[], Batch], group: int
    ) -> tuple[float, float]:
        """The learning rate to take after drifts from the trained weights like this one, and their share to go."""
        if len(self.rates) == 1:
            return self.rates[0], 1.0
        n_steps = min(TRIAL_STEPS, self.n_steps)
        for halvings in range(HALVINGS + 1):
            share = 0.5**halvings
            recovered = self._recovered(origin, share * drift, next_batch, group, n_steps)
            if max(recovered) >= RECOVERED:
                break
            n_steps = max(n_steps, self.n_steps // FIFTH)
        enough = max(recovered) - NEARLY_AS_FAR
        return next(rate for rate, own in zip(self.rates, recovered, strict=True) if own >= enough), share

    def _recovered(
        self,
        origin: Float[Tensor, " p"],
        drift: Float[Tensor, " p"],
        next_batch: Callable[[], Batch],
        group: int,
        n_steps: int,
    ) -> list[float]:
        """By so many steps of each rate: 1 for the loss of the trained weights, 0 for that of weights of zero."""
        theta = (origin + drift).repeat(len(self.rates), 1)
        known = torch.stack([origin, torch.zeros_like(origin), NEAR_ZERO * origin])
        value, ends, bounds = theta.new_zeros(len(theta)), theta.new_zeros(len(theta)), theta.new_zeros(len(known))
        for step in self._steps(theta, self.rates, n_steps):
            batch = next_batch()
            for rows in torch.arange(len(theta), device=theta.device).split(group):
                finite = self.look(rows, theta, value, batch)
                value[rows[~finite]] = math.inf
            if step >= n_steps - max(n_steps // FIFTH, 1):
                ends += value * self.joint.n_data - self.joint.prior_energy(theta)
                bounds += self.joint.data_term(known, batch)
        trained, *of_none = bounds.tolist()
        ignorant = next(filter(math.isfinite, of_none), trained + self.joint.n_data)  # else a nat for each data point
        return [(ignorant - end) / max(ignorant - trained, 1e-30) for end in ends.nan_to_num(math.inf).tolist()]

    def steps(self, theta: Float[Tensor, "n p"]) -> Iterator[int]:
        """Number the steps after a drift; at the end of each, ``theta`` moves in place by the gradients left there."""
        return self._steps(theta, [self.rate], self.n_steps)

    def _steps(self, theta: Float[Tensor, "n p"], rates: Sequence[float], n_steps: int) -> Iterator[int]:
        """As :meth:`steps`, with one learning rate for all rows, or one for each."""
        self.grad = torch.zeros_like(theta)
        parts, grads = ([theta], [self.grad]) if len(rates) == 1 else (theta.unbind(), self.grad.unbind())
        for part, grad in zip(parts, grads, strict=True):
            part.grad = grad
        adam = torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(parts, rates, strict=True)], fused=True)
        schedule = CosineAnnealingLR(adam, n_steps)
        for step in range(n_steps):
            yield step
            adam.step()
            schedule.step()
        for part in parts:
            part.grad = None

    def look(
        self, rows: Int[Tensor, " k"], theta: Float[Tensor, "n p"], value: Float[Tensor, " n"], batch: Batch
    ) -> Bool[Tensor, " k"]:
        """Leave the gradients of the particles of these rows, and write their J/n_data by the batch to ``value``.

        Returns whether both are finite; where they are not, the gradient is zero and the value stays.
        """
        found = recorded_evaluation(self.joint, self.recorder, theta[rows], batch)
        finite = finite_rows(found.value, found.grad)
        self.grad[rows] = torch.where(finite[:, None], found.grad, 0.0)
        value[rows] = torch.where(finite, found.value, value[rows])
        self.counts.evaluated += len(rows)
        self.counts.proposed += len(rows)
        return finite
