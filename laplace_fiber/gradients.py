"""Objective and gradient of many weight vectors at once: grouped as they fit, recorded when called often, counted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch
from laplace_fiber.engines import TRIAL_ROWS, group_size
from laplace_fiber.log_joint import Evaluation, LogJoint
from laplace_fiber.recording import Recorder

RECORD_AFTER = 32
"""Evaluations of the same shape before one is recorded."""


class Gradients:
    """J(θ)/n_data and its gradient for rows of weights.

    Parameters
    ----------
    joint
        The objective; its ``chunk_size``, if given, is the size of the groups.
    thetas, batch
        Weights and data like those of the calls to come, to find the size of the groups with.
    recorder
        ``None`` records after some calls of the same shapes.

    Attributes
    ----------
    evaluations
        Rows evaluated so far.
    """

    def __init__(
        self, joint: LogJoint, thetas: Float[Tensor, "n p"], batch: Batch, recorder: Recorder | None = None
    ) -> None:
        self.joint, self.evaluations = joint, 0
        self.recorder = recorder or Recorder(0 if joint.network.is_part else RECORD_AFTER)
        self.group = joint.chunk_size or evaluation_group(joint, thetas, batch)

    def __call__(self, thetas: Float[Tensor, "n p"], batch: Batch) -> Evaluation:
        """Objective, gradient and data term of each row."""
        self.evaluations += len(thetas)
        groups = [recorded_evaluation(self.joint, self.recorder, rows, batch) for rows in thetas.split(self.group)]
        return groups[0] if len(groups) == 1 else Evaluation(*map(torch.cat, zip(*groups, strict=True)))


def recorded_evaluation(joint: LogJoint, recorder: Recorder, thetas: Float[Tensor, "n p"], batch: Batch) -> Evaluation:
    """``joint.evaluate``, through a recorder."""

    def evaluate(moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(joint.evaluate(moving[0], batch.with_tensors(fixed)))

    fixed = batch.tensors()
    if fixed is None:
        return joint.evaluate(thetas, batch)
    return Evaluation(*recorder.by_rows("evaluate", evaluate, (thetas,), fixed))


def evaluation_group(joint: LogJoint, thetas: Float[Tensor, "n p"], batch: Batch) -> int:
    """How many of the rows are best evaluated together, found on the batch's first block.

    Convolutions on a CPU, one at a time by rule, are tried as they will be recorded: that helps groups most.
    """
    block = Batch(batch.blocks[:1], len(batch.blocks[0][1]))
    trial, n = thetas[:TRIAL_ROWS], len(thetas)
    recorders: defaultdict[int, Recorder] = defaultdict(lambda: Recorder(0))

    def run(rows: Tensor) -> Evaluation:
        if joint.network.resolved_engine() == "loop":
            return recorded_evaluation(joint, recorders[len(rows)], rows, block)
        return joint.evaluate(rows, block)

    return group_size(joint.network, trial, n, block.blocks[0][0], run)
