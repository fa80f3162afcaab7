"""The end of a walk to the typical set on batches: small steps until a running mean of each particle's excess is right.

Refinement after a drift fits one batch, whose loss then says little about all data: the excess there may be right
where that over all data is many times as large. Here each particle takes one step on each batch, and is judged on
batches that it has not been fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laplace_fiber.descent import Level
from laplace_fiber.gradients import recorded_evaluation
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import Refinement, Refining

BATCHES, SLOWING, NEWEST = 100, 20, 0.1
"""Batches that particles settle on; those after which the step size is halved (as 1/(1 + k/20)); and the weight of the
newest batch in the running mean, at least."""


class Settling:
    """Particles that take one step on each batch while a running mean says that they are above their level.

    With e_b(θ) the excess on batch b, over the loss of the same weights for all on it, a particle's mean follows it
    from state to state: m(x_k) = e_b(x_k) + (1 − a) (m(x_{k−1}) − e_b(x_{k−1})). Neither state has seen the batch, so
    that m is unbiased; near states differ with little noise, and the rest is averaged over about 2/a − 1 batches.

    Source: the estimator of Cutkosky and Orabona (2019), *Momentum-based variance reduction in non-convex SGD*, applied
    to values instead of gradients.

    Parameters
    ----------
    joint, recorder, refinement
        The objective, how evaluations are called, and who goes on.
    theta
        The particles.
    step_size
        Of each particle on the first batch, for J/n_data.
    dimension
        Effective number of parameters.
    """

    def __init__(
        self,
        joint: LogJoint,
        recorder: Recorder,
        refinement: Refinement,
        theta: Float[Tensor, "n p"],
        step_size: Float[Tensor, " n"],
        dimension: float,
    ) -> None:
        self.joint, self.recorder, self.refinement = joint, recorder, refinement
        self.step_size, self.dimension = step_size, dimension
        self.last, self.k = theta.clone(), 0
        self.excess, self.missed = theta.new_zeros(len(theta)), theta.new_zeros(len(theta))

    def rounds(self) -> Iterator[int]:
        """Number the batches from 0; on the last one particles are only looked at."""
        for self.k in range(BATCHES + 1):
            yield self.k

    def settled(
        self, rows: Int[Tensor, " k"], theta: Float[Tensor, "k p"], normal: Float[Tensor, " k"], level: Level
    ) -> tuple[Float[Tensor, "k p"], int]:
        """Weights of the particles of these rows after a batch, and how many have taken a step."""
        self._look(rows, theta, level)
        if self.k == BATCHES:
            return theta, 0
        at = Refining(self.k, self.excess[rows], 1.0, self.joint.n_data, theta.shape[1], normal, self.dimension)
        going = self.refinement.wants_more(at).nonzero().flatten()
        if len(going) == 0:
            return theta, 0
        found = recorded_evaluation(self.joint, self.recorder, theta[going], level.batch)
        step = self.step_size[rows[going]] / (1 + self.k / SLOWING)
        moved = theta[going] - step[:, None] * found.grad
        sound = torch.isfinite(moved).all(1) & torch.isfinite(found.value)
        return theta.index_copy(0, going, torch.where(sound[:, None], moved, theta[going])), len(going)

    @property
    def errors(self) -> Float[Tensor, " n"]:
        """Standard errors of the running means, in nats: what batches have told otherwise than expected, averaged."""
        return (self.missed * (NEWEST / 2)).sqrt()

    def _look(self, rows: Tensor, theta: Tensor, level: Level) -> None:
        here, before = (
            self.joint.data_term(states, level.batch) - level.data_term for states in (theta, self.last[rows])
        )
        newest = max(1 / (self.k + 1), NEWEST)
        surprise = before - self.excess[rows] if self.k else torch.zeros_like(before)
        since = max(1 / self.k, NEWEST) if self.k else 0.0
        self.missed[rows] += since * (surprise.square() - self.missed[rows])
        self.excess[rows] = here + (1 - newest) * (self.excess[rows] - before)
        self.last[rows] = theta
