"""Where samples of the posterior lie: how far above the loss of which weights."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Descent, Level
from laplace_fiber.effective_dimension import EffectiveDimension, effective_dimension
from laplace_fiber.gradients import RECORD_AFTER
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import FixedRefinement

CENTRING_STEPS = 300
"""Descent steps from the trained weights to the minimum of J that excess is counted from."""


@dataclass(frozen=True)
class TypicalSet:
    """The weights whose loss excess is counted from, and the curvature there.

    Attributes
    ----------
    centre
        A minimum of J near the trained weights: these themselves if they are one, or if a step does not see all data.
    dimension
        Effective number of parameters at the centre.
    """

    centre: Float[Tensor, " p"]
    dimension: EffectiveDimension

    @staticmethod
    def near(
        origin: Float[Tensor, " p"], joint: LogJoint, data: TrainingData, batch: Batch, step_size: float, seed: int
    ) -> TypicalSet:
        """By descent from the trained weights on the whole data, beginning with the given step size."""
        centre = origin
        if data.full:
            descent = Descent(joint, FixedRefinement(CENTRING_STEPS), "spectral", Recorder(RECORD_AFTER))
            first = origin.new_full((1,), step_size)
            centre = descent.refine(Level(joint, batch, origin), 1.0, origin.clone()[None], first).theta[0]
        dimension = effective_dimension(joint, centre, data, seed)
        data.restart()
        return TypicalSet(centre, dimension)
