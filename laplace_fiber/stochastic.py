"""Refinement on a stream of batches: after each drift, Adam with a step size that falls to zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Counts, finite_rows
from laplace_fiber.gradients import recorded_evaluation
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder

RELATIVE_RATE, LEAST_RATE = 0.05, 1e-5
"""Default learning rate as a share of the root mean square of the trained weights, and its lower bound."""


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
    epochs, min_steps
        Passes over the data after each drift, and the least number of steps that they shall amount to.
    learning_rate
        At the beginning of each; ``None`` takes 0.05 times the root mean square of the trained weights.
    """

    epochs: float = 5.0
    min_steps: int = 150
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "min_steps", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number, got {value}.")

    def n_steps(self, data: TrainingData) -> int:
        """Steps after each drift."""
        batches = 1 if data.full else math.ceil(data.n_data / len(data.first[1]))
        return max(math.ceil(self.epochs * batches), self.min_steps)

    def rate_for(self, origin: Float[Tensor, " p"]) -> float:
        """The first learning rate for a network with these trained weights."""
        return self.learning_rate or max(RELATIVE_RATE * float(origin.square().mean().sqrt()), LEAST_RATE)


class StochasticDescent:
    """Moves particles by Adam on one batch after another, anew after each drift.

    Adam works on each number by itself, so that one optimizer serves all particles.

    Parameters
    ----------
    joint, recorder
        The objective, and how it is called.
    n_steps, rate
        Steps after each drift, and the learning rate of the first.
    """

    def __init__(self, joint: LogJoint, recorder: Recorder, n_steps: int, rate: float) -> None:
        self.joint, self.recorder, self.n_steps, self.rate = joint, recorder, n_steps, rate
        self.counts = Counts()

    def steps(self, theta: Float[Tensor, "n p"]) -> Iterator[int]:
        """Number the steps after a drift; at the end of each, ``theta`` moves in place by the gradients left there."""
        theta.grad = torch.zeros_like(theta)
        adam = torch.optim.Adam([theta], lr=self.rate)
        rates = CosineAnnealingLR(adam, self.n_steps)
        for step in range(self.n_steps):
            yield step
            adam.step()
            rates.step()
        theta.grad = None

    def look(
        self, rows: Int[Tensor, " k"], theta: Float[Tensor, "n p"], value: Float[Tensor, " n"], batch: Batch
    ) -> Bool[Tensor, " k"]:
        """Leave the gradients of the particles of these rows, and write their J/n_data by the batch to ``value``.

        Returns whether both are finite; where they are not, the gradient is zero and the value stays.
        """
        found = recorded_evaluation(self.joint, self.recorder, theta[rows], batch)
        finite = finite_rows(found.value, found.grad)
        assert theta.grad is not None  # made by steps
        theta.grad[rows] = torch.where(finite[:, None], found.grad, 0.0)
        value[rows] = torch.where(finite, found.value, value[rows])
        self.counts.evaluated += len(rows)
        self.counts.proposed += len(rows)
        return finite
