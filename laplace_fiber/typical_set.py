"""Where samples of the posterior lie: how far above the loss of which weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laplace_fiber.balance import balance
from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.effective_dimension import EffectiveDimension, effective_dimension
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.refinement import RefineToTypicalSet

CENTRING_STEPS, MEMORY, FLAT = 300, 20, 1e-7
"""Gradients on the way from the trained weights to the minimum of J that excess is counted from, those that L-BFGS
remembers, and the largest entry of ∇J/n_data that ends it."""

SATURATED = 0.9
"""Share of data points, or of weights, above which the effective number of parameters counts as nearly all of them."""

AT_MINIMUM = 0.1
"""Imbalance of data and prior gradient up to which weights count as a minimum of J."""

TOLERANCE = 0.1
"""A particle that is above the level that it is to end at by no more than this share has come back from a drift."""


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
    def near(origin: Float[Tensor, " p"], joint: LogJoint, data: TrainingData, batch: Batch, seed: int) -> TypicalSet:
        """By descent from the trained weights on the whole data."""
        centre = minimum_near(origin, joint, batch) if data.full else origin
        dimension = effective_dimension(joint, centre, data, seed)
        data.restart()
        return TypicalSet(centre, dimension, balance(joint, centre, batch).imbalance if data.full else math.nan)

    def is_back(self, excess: Float[Tensor, " n"], normal: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which particles refinement has brought back from a drift, to about the levels they are to end at.

        Not to those of the walk so far: these rise from zero, and the first ones may be out of reach without any harm.
        """
        return excess <= (1 + TOLERANCE) * RefineToTypicalSet.level(self.dimension.total, normal)

    def arrival(
        self, joint: LogJoint, excess: float, error: float, distance: float, moved: bool, drift_share: float
    ) -> Arrival:
        """How particles with this mean excess (and its error), distance and share of drifts have arrived."""
        radius = float((1 / joint.prior_precision.expand(len(self.centre))).sum().sqrt())
        return Arrival(
            effective_dimension=self.dimension.total,
            imbalance=self.imbalance,
            excess=excess,
            excess_error=error,
            distance=distance,
            expected_distance=radius * max(1 - self.dimension.total / len(self.centre), 0.0) ** 0.5,
            n_data=joint.n_data,
            n_params=len(self.centre),
            exact_moves=moved,
            drift_share=drift_share,
        )


def minimum_near(theta: Float[Tensor, " p"], joint: LogJoint, batch: Batch) -> Float[Tensor, " p"]:
    """Weights of lower J, after L-BFGS on a batch that holds all data; θ itself where it finds none."""
    rows = theta.clone()[None].requires_grad_()
    method = torch.optim.LBFGS(
        [rows],
        max_iter=CENTRING_STEPS,
        max_eval=CENTRING_STEPS,
        tolerance_grad=FLAT,
        tolerance_change=0.0,
        history_size=MEMORY,
        line_search_fn="strong_wolfe",
    )

    def value() -> Tensor:
        found, rows.grad = joint.value_and_grad(rows.detach(), batch)
        return found[0]

    before = float(value())
    method.step(value)
    return rows.detach()[0] if float(value()) < before else theta


@dataclass(frozen=True)
class Arrival:
    """Whether particles have arrived where samples of the posterior lie; ``print`` it.

    Attributes
    ----------
    effective_dimension
        d_eff at the minimum of J that excess is counted from.
    imbalance
        Of data and prior gradient there: 0 at a minimum of J, 1 far from it; NaN where a step does not see all data.
    excess, excess_error
        Mean excess of the negative log-likelihood at the walk's end over that at the minimum, in nats, and its standard
        error: on batches, that of one particle's running mean, which the mean over particles does not exceed; else 0.
    distance, expected_distance
        Mean distance of the last states from that minimum, and that of a Gaussian posterior, √((1 − d_eff/p) Σ 1/τ):
        exact for one prior precision.
    n_data, n_params
        Size of the data and number of moving weights p.
    exact_moves
        Whether Hamiltonian moves ended the walk.
    drift_share
        Length of the last drifts over that of the first, mean over particles: below 1 where refinement did not come
        back to low loss, and drifts were halved.
    """

    effective_dimension: float
    imbalance: float
    excess: float
    excess_error: float
    distance: float
    expected_distance: float
    n_data: int
    n_params: int
    exact_moves: bool
    drift_share: float = 1.0

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
        if self.excess - 2 * self.excess_error > 2 * max(self.expected_excess, 1.0):
            on_batches = "take larger batches, or all data at once (batch='full')"
            on_all = "allow more refinement steps or drifts, or more trajectories (thermal)"
            yield (
                f"The walk ends {self.excess:.3g} nats above the minimum of J, where {self.expected_excess:.3g} are "
                f"expected: {on_batches if self.excess_error else on_all}."
            )
        if self.excess + 2 * self.excess_error < 0.3 * self.expected_excess - 1.0:
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
        error = f" ± {self.excess_error:.2g}" if self.excess_error else ""
        moves = "" if self.exact_moves else "; no Hamiltonian moves"
        cut = f"; drifts cut to {self.drift_share:.2g} of their length" if self.drift_share < 1 else ""
        return (
            f"effective parameters {self.effective_dimension:.3g}: training loss at the walk's end "
            f"{self.excess:.3g}{error} nats above the minimum of J, {self.expected_excess:.3g} expected; "
            f"distance from it {self.distance:.3g}, {self.expected_distance:.3g} expected{moves}{cut}"
        )
