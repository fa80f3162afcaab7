"""Refinement on a stream of batches: after each drift, Adam with a step size that falls to zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Counts
from laplace_fiber.gradients import recorded_evaluation
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder

DECAYS, EPSILON = (0.9, 0.999), 1e-8
"""Adam's, as its authors have them."""

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
            if not (value is None and name == "learning_rate") and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number, got {value}.")

    def n_steps(self, data: TrainingData) -> int:
        """Steps after each drift."""
        batches = 1 if data.full else math.ceil(data.n_data / len(data.first[1]))
        return max(math.ceil(self.epochs * batches), self.min_steps)

    def rate_for(self, origin: Float[Tensor, " p"]) -> float:
        """The first learning rate for a network with these trained weights."""
        return self.learning_rate or max(RELATIVE_RATE * float(origin.square().mean().sqrt()), LEAST_RATE)


class StochasticDescent:
    """Moves particles by Adam on one batch after another; its averages of gradients begin anew at each drift.

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

    def begin(self, theta: Float[Tensor, "n p"]) -> None:
        """Forget the gradients before a drift."""
        self._averages = torch.zeros_like(theta), torch.zeros_like(theta)

    def move(
        self, step: int, rows: Int[Tensor, " k"], theta: Float[Tensor, "n p"], value: Float[Tensor, " n"], batch: Batch
    ) -> Bool[Tensor, " k"]:
        """The step after ``step`` others for the particles of these rows, in place; whether objective and gradient were
        finite.

        ``value`` becomes J/n_data before the step, by the batch.
        """
        found = recorded_evaluation(self.joint, self.recorder, theta[rows], batch)
        finite = torch.isfinite(found.value) & torch.isfinite(found.grad).all(1)
        mean, square = (
            self._averaged(average, rows, news, 1 - decay) / (1 - decay ** (step + 1))
            for average, news, decay in zip(self._averages, (found.grad, found.grad.square()), DECAYS, strict=True)
        )
        rate = self.rate * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
        moved = theta[rows] - rate * mean / (square.sqrt() + EPSILON)
        theta[rows] = torch.where(finite[:, None], moved, theta[rows])
        value[rows] = torch.where(finite, found.value, value[rows])
        self.counts.evaluated += len(rows)
        self.counts.proposed += len(rows)
        return finite

    @staticmethod
    def _averaged(average: Tensor, rows: Tensor, news: Tensor, weight: float) -> Tensor:
        average[rows] = torch.lerp(average[rows], news, weight)
        return average[rows]
