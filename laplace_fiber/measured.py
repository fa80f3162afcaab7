"""Objective, loss and averaged prediction at points of a walk's subspace."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laplace_fiber.data import Batch
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder
from laplace_fiber.subspace import Subspace


class Measured:
    """Objective, loss and its data term at each of some points of a subspace, and the averaged prediction of the first
    block by those that count.

    One recorder for each block of the batch: layers below the moving weights run once.
    """

    def __init__(
        self,
        joint: LogJoint,
        subspace: Subspace,
        coordinates: Float[Tensor, "k r"],
        batch: Batch,
        recorders: Sequence[Recorder],
        counts: Bool[Tensor, " k"],
    ) -> None:
        def outputs_of(moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return (joint.network.many(moving[0], fixed[0]),)

        objective, nll, data_terms = [], [], []
        total: Tensor = torch.zeros((), device=coordinates.device)
        scale = joint.n_data / (joint.temperature * batch.size)
        size = joint.chunk_size or len(coordinates)
        for theta, counted in zip(subspace.weight_groups(coordinates, size), counts.split(size), strict=True):
            data_term = theta.new_zeros(len(theta))
            for i, (recorder, (x, y)) in enumerate(zip(recorders, batch.blocks, strict=True)):
                with torch.no_grad():
                    if isinstance(x, Tensor):
                        outputs = recorder("outputs", outputs_of, [theta], [x])[0]
                    else:
                        outputs = joint.network.many(theta, x)
                data_term += scale * joint.loss_of(outputs, y)
                if i == 0:
                    predictions = outputs if joint.likelihood == "regression" else outputs.softmax(-1)
                    total = total + predictions[counted].sum(0)
            objective.append((data_term + joint.prior_energy(theta)) / joint.n_data)
            nll.append(joint.nll_of(data_term, batch))
            data_terms.append(data_term)
        self.objective, self.nll, self.data_term = torch.cat(objective), torch.cat(nll), torch.cat(data_terms)
        self.prediction = total / counts.sum()
