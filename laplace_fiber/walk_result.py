"""What a walk leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.evidence import EvidenceChoice
from laplace_fiber.subspace import Subspace
from laplace_fiber.trace import WalkTrace
from laplace_fiber.typical_set import Arrival


@dataclass(frozen=True)
class Trajectories:
    """What a walk leaves behind.

    Attributes
    ----------
    subspace
        The span of all states.
    coordinates
        Of θ after each drift and its refinement in that subspace; t = 0, the MAP, is zero.
    further_ends
        Of the other states that :class:`Thermalisation` keeps of each particle.
    trace
        Objective, loss, distance and rejected steps, drift by drift.
    lost_at
        The step t at which a particle's objective was no longer finite (its later states repeat its last good one);
        T + 1 for a particle that arrived.
    step_sizes
        η of each particle at the end; for :class:`StochasticRefinement` the first learning rate.
    rejected_share
        Share of refinement steps that were taken back.
    gradient_evaluations
        Per particle, over the whole walk.
    reach
        Total drift length α·T, in units of the weights.
    gradient_norm
        ‖∇J(θ_MAP)‖.
    group_size
        How many particles were evaluated together.
    acceptance
        Of the last trajectory of the thermalisation, mean over particles; NaN without one.
    excess
        Mean of H Σ ℓ at the walk's end over that at the MAP (for :class:`RefineToTypicalSet`: at the minimum of J near
        it), in nats; on the batch that follows the last one.
    common_displacement
        Length of the mean displacement of all particles at the walk's end, as a share of the reach. Independent drifts
        leave about 1/√n; more is a pull that all particles share, such as that of a network not at a minimum of J.
    arrival
        For :class:`RefineToTypicalSet`: where the particles are, and where they should be. None otherwise.
    evidence
        What ``evidence=True`` has chosen: the walk's objective is that with these factors. None without it.
    """

    subspace: Subspace
    coordinates: Float[Tensor, "n t r"]
    further_ends: Float[Tensor, "n k r"]
    trace: WalkTrace
    lost_at: Float[Tensor, " n"]
    step_sizes: Float[Tensor, " n"]
    rejected_share: float
    gradient_evaluations: float
    reach: float
    gradient_norm: float
    group_size: int
    acceptance: float
    excess: float
    common_displacement: float
    arrival: Arrival | None
    evidence: EvidenceChoice | None = None

    @property
    def states(self) -> Float[Tensor, "n t p"]:
        """θ of every particle and step; n · (T + 1) · p numbers, for small networks."""
        return self.subspace.to_weights(self.coordinates.flatten(0, 1)).unflatten(0, self.coordinates.shape[:2])

    @cached_property
    def paths(self) -> Float[Tensor, "m t r"]:
        """The trajectories of all particles, then the same with each of the further ends in place of the last state."""
        ends = self.further_ends.unbind(1)
        return torch.cat([self.coordinates, *(torch.cat([self.coordinates[:, :-1], e[:, None]], 1) for e in ends)])

    def cost(self) -> dict[str, float]:
        """Gradient evaluations of all particles together, and the share of steps that were taken back."""
        evaluations = self.gradient_evaluations * len(self.coordinates)
        return {"gradient_evaluations": evaluations, "rejected_share": self.rejected_share}
