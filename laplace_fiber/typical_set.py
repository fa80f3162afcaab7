"""Where samples of the posterior lie: how far above the loss of which weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from laplace_fiber.balance import balance
from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Descent, Level
from laplace_fiber.effective_dimension import EffectiveDimension, effective_dimension
from laplace_fiber.gradients import RECORD_AFTER
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import FixedRefinement

CENTRING_STEPS = 300
"""Descent steps from the trained weights to the minimum of J that excess is counted from."""


SATURATED = 0.9
"""Share of data points, or of weights, above which the effective number of parameters counts as nearly all of them."""

AT_MINIMUM = 0.1
"""Imbalance of data and prior gradient up to which weights count as a minimum of J."""


@dataclass(frozen=True)
class TypicalSet:
    """The weights whose loss excess is counted from, and the curvature there.

    Attributes
    ----------
    centre
        A minimum of J near the trained weights: these themselves if they are one, or if a step does not see all data.
    dimension
        Effective number of parameters at the centre.
    imbalance
        Of data and prior gradient at the centre: 0 at a minimum of J, 1 far from it. NaN where a step does not see all
        data.
    """

    centre: Float[Tensor, " p"]
    dimension: EffectiveDimension
    imbalance: float

    @staticmethod
    def near(
        origin: Float[Tensor, " p"], joint: LogJoint, data: TrainingData, batch: Batch, step_size: float, seed: int
    ) -> TypicalSet:
        """By descent from the trained weights on the whole data, beginning with the given step size."""
        centre = minimum_near(origin, joint, batch, step_size) if data.full else origin
        dimension = effective_dimension(joint, centre, data, seed)
        data.restart()
        return TypicalSet(centre, dimension, balance(joint, centre, batch).imbalance if data.full else math.nan)


def minimum_near(theta: Float[Tensor, " p"], joint: LogJoint, batch: Batch, step_size: float) -> Float[Tensor, " p"]:
    """Weights after a descent in J on a batch that holds all data."""
    descent = Descent(joint, FixedRefinement(CENTRING_STEPS), "spectral", Recorder(RECORD_AFTER))
    first = theta.new_full((1,), step_size)
    return descent.refine(Level(joint, batch, theta), 1.0, theta[None], first).theta[0]


@dataclass(frozen=True)
class Arrival:
    """Whether particles have arrived where samples of the posterior lie; ``print`` it.

    Attributes
    ----------
    effective_dimension
        d_eff at the minimum of J that excess is counted from.
    imbalance
        Of data and prior gradient there: 0 at a minimum of J, 1 far from it; NaN where a step does not see all data.
    excess
        Mean excess of the negative log-likelihood at the walk's end over that at the minimum, in nats.
    distance, expected_distance
        Mean distance of the last states from that minimum, and that of a Gaussian posterior, √((1 − d_eff/p) Σ 1/τ):
        exact for one prior precision.
    n_data, n_params
        Size of the data and number of moving weights p.
    exact_moves
        Whether Hamiltonian moves ended the walk.
    """

    effective_dimension: float
    imbalance: float
    excess: float
    distance: float
    expected_distance: float
    n_data: int
    n_params: int
    exact_moves: bool

    @property
    def expected_excess(self) -> float:
        """Half the effective number of parameters."""
        return 0.5 * self.effective_dimension

    def warnings(self) -> Iterator[str]:
        """One sentence for each assumption that does not hold, and each figure that is far from what it should be."""
        d = self.effective_dimension
        if self.imbalance > AT_MINIMUM:
            yield (
                f"The weights that excess is counted from are not at a minimum of J (imbalance {self.imbalance:.2f} "
                f"after {CENTRING_STEPS} steps): particles stop too high; train longer with this prior_precision."
            )
        if d > SATURATED * self.n_data:
            yield (
                f"The data determine {d:.4g} parameters, about as many as there are data points ({self.n_data}): their "
                "loss has no room for the excess that is expected; use a higher prior_precision, or evidence=True."
            )
        if d > SATURATED * self.n_params:
            yield (
                f"The data determine {d:.4g} of {self.n_params} weights: there is no free direction to walk in, and a "
                "Gaussian posterior (Laplace) serves as well."
            )
        if self.excess > 2 * max(self.expected_excess, 1.0):
            yield (
                f"The walk ends {self.excess:.3g} nats above the minimum of J, where {self.expected_excess:.3g} are "
                "expected: allow more refinement steps or drifts, or more trajectories (thermal)."
            )
        if self.excess < 0.3 * self.expected_excess - 1.0:
            yield (
                f"The walk ends {self.excess:.3g} nats above the minimum of J, where {self.expected_excess:.3g} are "
                "expected: curvature falls along the walk, or the network has a lower minimum nearby; train longer."
            )
        if not 0.5 < self.distance / max(self.expected_distance, 1e-30) < 2 and d < SATURATED * self.n_params:
            yield (
                f"Particles end {self.distance:.3g} from the minimum of J, where {self.expected_distance:.3g} is "
                "expected: the posterior is far from the theory's Gaussian; check it against another prior_precision."
            )

    def __str__(self) -> str:
        moves = "" if self.exact_moves else "; no Hamiltonian moves"
        return (
            f"effective parameters {self.effective_dimension:.3g}: training loss at the walk's end {self.excess:.3g} "
            f"nats above the minimum of J, {self.expected_excess:.3g} expected; distance from it {self.distance:.3g}, "
            f"{self.expected_distance:.3g} expected{moves}"
        )
