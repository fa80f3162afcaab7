"""Thermalisation: Hamiltonian moves that take particles from low loss into the posterior's typical set.

Refinement ends at the right loss, but leaves particles where gradients lead: stiff directions have no noise, and soft
ones have been pulled back. A few accepted or rejected trajectories leave the posterior as it is, and give both back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch
from laplace_fiber.gradients import recorded_evaluation
from laplace_fiber.hamiltonian import Hamiltonian, State
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorder


@dataclass(frozen=True)
class Thermalisation:
    """Settings of the Hamiltonian moves at a walk's end.

    Parameters
    ----------
    n_trajectories, n_leapfrog
        Trajectories of each particle, and steps of each.
    target_acceptance
        Mean acceptance, to which the step size is brought from one trajectory to the next.
    jitter
        Each particle's step is drawn anew for each trajectory, within this share around the common one.
    n_kept
        The states after so many of the last trajectories are all kept as ends of the walk: further samples at no cost.
    """

    n_trajectories: int = 5
    n_leapfrog: int = 40
    target_acceptance: float = 0.75
    jitter: float = 0.5
    n_kept: int = 1

    def __post_init__(self) -> None:
        for name in ("n_trajectories", "n_leapfrog"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 1 <= self.n_kept <= self.n_trajectories:
            raise ValueError(f"n_kept: expected 1 to n_trajectories ({self.n_trajectories}), got {self.n_kept}.")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(f"target_acceptance: expected a share in (0, 1), got {self.target_acceptance}.")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter: expected a share in [0, 1), got {self.jitter}.")

    @property
    def evaluations(self) -> int:
        """Gradients of each particle."""
        return self.n_trajectories * (self.n_leapfrog + 1)


class Heat(Hamiltonian):
    """Motion of particles in J, on one batch that holds all data.

    Parameters
    ----------
    settings
        The moves.
    joint, batch, recorder
        The objective, the data, and how evaluations are called.
    sharpness
        Largest eigenvalue of ∇²J/n_data at the MAP, from which the first step size follows.
    """

    def __init__(
        self, settings: Thermalisation, joint: LogJoint, batch: Batch, recorder: Recorder, sharpness: float
    ) -> None:
        super().__init__(joint.prior_precision)
        self.settings, self.joint, self.batch, self.recorder = settings, joint, batch, recorder
        stiffest = joint.n_data * sharpness / float(joint.prior_precision.min())
        self.step = 0.5 / math.sqrt(1 + stiffest)

    def at(self, theta: Float[Tensor, "c p"]) -> State:
        """J and its gradient."""
        value, gradient, _ = recorded_evaluation(self.joint, self.recorder, theta, self.batch)
        return State(theta, self.joint.n_data * value, self.joint.n_data * gradient)

    def moved(self, theta: Float[Tensor, "c p"], normal: Float[Tensor, "c q"]) -> tuple[State, Float[Tensor, " c"]]:
        """States after one trajectory of each particle, and its acceptance, from q = p + 2 normal numbers for each."""
        uniform = torch.special.ndtr(normal[:, -2:].double())
        velocity = normal[:, :-2].to(theta) / self.precision.sqrt()
        step = self.step * (1 + self.settings.jitter * (2 * uniform[:, 1:] - 1)).to(theta)
        outcome = self.move(self.at(theta), velocity, uniform[:, 0], step, self.settings.n_leapfrog)
        return outcome.state, outcome.probability

    def rounds(self, mean: Callable[[], float]) -> Iterator[int]:
        """Number the trajectories from 1; after each, ``mean`` tells its acceptance, and the step size follows."""
        for k in range(1, self.settings.n_trajectories + 1):
            yield k
            self.step *= math.exp(mean() - self.settings.target_acceptance)
