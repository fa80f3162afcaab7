"""Newtonian motion in the objective, and its exact correction: the moves of Hamiltonian Monte Carlo.

Source: Neal (2011), *MCMC using Hamiltonian dynamics*, sections 2 and 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

DIVERGED = 1000.0
"""Error in the energy beyond which a trajectory counts as divergent."""


class State(NamedTuple):
    """Positions of the chains, with J and ∇J there."""

    theta: Float[Tensor, "c p"]
    value: Float[Tensor, " c"]
    gradient: Float[Tensor, "c p"]


class Outcome(NamedTuple):
    """What one trajectory of each chain came to."""

    state: State
    probability: Float[Tensor, " c"]
    divergent: Bool[Tensor, " c"]


class Hamiltonian(ABC):
    """Motion in J with the prior's precision τ as mass, so that v ~ N(0, 1/τ) moves in the prior's units.

    The energy is H(θ, v) = J(θ) + ½ vᵀ diag(τ) v. Abstract: users define :meth:`at`.
    """

    def __init__(self, precision: Float[Tensor, " #p"]) -> None:
        self.precision = precision

    @abstractmethod
    def at(self, theta: Float[Tensor, "c p"]) -> State:
        """J and its gradient."""

    def energy(self, state: State, velocity: Float[Tensor, "c p"]) -> Float[Tensor, " c"]:
        """H, in float64: its differences are small."""
        return state.value.double() + 0.5 * (velocity.double().square() * self.precision).sum(-1)

    def leapfrog(
        self, state: State, velocity: Float[Tensor, "c p"], step: float | Float[Tensor, "c 1"], n_steps: int
    ) -> tuple[State, Float[Tensor, "c p"]]:
        """Half a kick, then drifts and kicks in turn, half a kick; reversible and volume-preserving."""
        for _ in range(n_steps):
            velocity = velocity - 0.5 * step * state.gradient / self.precision
            state = self.at(state.theta + step * velocity)
            velocity = velocity - 0.5 * step * state.gradient / self.precision
        return state, velocity

    def move(
        self,
        state: State,
        velocity: Float[Tensor, "c p"],
        uniform: Float[Tensor, " c"],
        step: float | Float[Tensor, "c 1"],
        n_steps: int,
    ) -> Outcome:
        """A trajectory, accepted by the rule of Metropolis and Hastings in each chain."""
        proposal, last = self.leapfrog(state, velocity, step, n_steps)
        gained = self.energy(state, velocity) - self.energy(proposal, last)
        probability = gained.clamp(max=0).exp().nan_to_num(0)
        accepted = uniform < probability
        new = State(*(torch.where(_rows(accepted, b), b, a) for a, b in zip(state, proposal, strict=True)))
        return Outcome(new, probability, ~(gained > -DIVERGED))


def _rows(chosen: Bool[Tensor, " c"], like: Tensor) -> Bool[Tensor, "c *_"]:
    return chosen.view(-1, *[1] * (like.ndim - 1))
