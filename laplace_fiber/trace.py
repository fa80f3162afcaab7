"""What a walk notes after each drift: objective, training loss and refinement steps, from t = 0, the MAP."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Counts
from laplace_fiber.log_joint import LogJoint


@dataclass(frozen=True)
class WalkTrace:
    """The course of a finished walk, drift by drift.

    Attributes
    ----------
    objective, nll
        J(θ)/n_data and training negative log-likelihood per data point of every particle after each drift and its
        refinement, on the batch of that drift; t = 0 is the MAP.
    distance
        ‖θ − θ_MAP‖.
    rejected_share
        Share of all particles' refinement steps after drift t that were taken back; 0 where there were none.
    """

    objective: Float[Tensor, "n t"]
    nll: Float[Tensor, "n t"]
    distance: Float[Tensor, "n t"]
    rejected_share: Float[Tensor, " t"]


class TraceNotes:
    """The notes of a walk under way.

    Parameters
    ----------
    joint, data
        The walk's objective and data.
    """

    def __init__(self, joint: LogJoint, data: TrainingData) -> None:
        self.joint, self._shaped = joint, Batch([data.first], len(data.first[1]))
        self.objective: list[Float[Tensor, " n"]] = []
        self.nll: list[Float[Tensor, " n"]] = []
        self.counts: list[Counts] = []

    def nll_of(self, objective: Float[Tensor, " k"], theta: Float[Tensor, "k p"]) -> Float[Tensor, " k"]:
        """Training loss per point, on whatever batch the objective J/n_data is from."""
        data_term = objective * self.joint.n_data - self.joint.prior_energy(theta)
        return self.joint.nll_of(data_term, self._shaped)  # which looks at the shape of the targets alone

    def add(self, objective: Float[Tensor, " n"], nll: Float[Tensor, " n"], counts: Counts) -> None:
        """One more state of every particle; counts are those since the walk's start."""
        self.objective.append(objective.clone())
        self.nll.append(nll.clone())
        self.counts.append(counts)

    def to_state(self) -> dict[str, Any]:
        """As lists of tensors and numbers, for a checkpoint."""
        return {"objective": self.objective, "nll": self.nll, "counts": [list(astuple(c)) for c in self.counts]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`to_state` gave."""
        self.objective, self.nll = state["objective"], state["nll"]
        self.counts = [Counts(*c) for c in state["counts"]]

    def finished(self, coordinates: Float[Tensor, "n t r"]) -> WalkTrace:
        """The notes together, with the distances of the states' coordinates."""
        totals = torch.tensor([[c.rejected, c.proposed] for c in self.counts])
        rejected, proposed = totals.diff(dim=0, prepend=totals[:1]).T
        objective, nll = (torch.stack(columns, 1).cpu() for columns in (self.objective, self.nll))
        return WalkTrace(objective, nll, coordinates.norm(dim=-1).cpu(), rejected / proposed.clamp(min=1))
