"""When a particle stops refining after a drift: the rules that a trajectory sampler can be given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Refining(NamedTuple):
    """What a rule may look at to decide whether a particle goes on refining.

    Attributes
    ----------
    step
        Refinement steps done since the drift.
    excess
        H Σ ℓ at each particle minus that at the MAP, over all data, in nats.
    progress
        Share of the walk's drifts done, t/T.
    n_data, n_params
        Size of the data and number of moving weights.
    normal
        One standard normal number per particle, the same at every drift.
    effective_dimension
        Effective number of parameters of the posterior whose prior has the share t/T of the walk's reach; only given to
        :class:`RefineToTypicalSet` and its subclasses.
    """

    step: int
    excess: Float[Tensor, " n"]
    progress: float
    n_data: int
    n_params: int
    normal: Float[Tensor, " n"] | float = 0.0
    effective_dimension: float | None = None


@runtime_checkable
class Refinement(Protocol):
    """Decides, per particle, when the refinement after a drift ends."""

    @property
    def max_steps(self) -> int:
        """No particle gets more refinement steps per drift than this."""
        ...

    def wants_more(self, at: Refining) -> Bool[Tensor, " n"]:
        """Which particles take another step; asked while ``at.step < max_steps``."""
        ...


@runtime_checkable
class LevelRefinement(Refinement, Protocol):
    """A refinement that ends at a level: a quasi-Newton step that goes far below it is shortened to end there."""

    def level_at(self, at: Refining) -> Float[Tensor, " n"]:
        """The excess, in nats, that each particle is to end at."""
        ...


@dataclass(frozen=True)
class FixedRefinement:
    """The same number of refinement steps for every particle and drift (the paper's M)."""

    max_steps: int = 5

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps: expected 0 or more refinement steps, got {self.max_steps}.")

    def wants_more(self, at: Refining) -> Bool[Tensor, " n"]:
        """All of them."""
        return torch.ones_like(at.excess, dtype=torch.bool)


@dataclass(frozen=True)
class RefineToLevel:
    """Refine until the training loss is back below a level that grows along the walk.

    Posterior samples sit above the MAP's loss by half the effective number of parameters, which is at most
    min(n_data, n_params). The level is ``nats_per_parameter`` times that bound times t/T: at the share s of the walk a
    particle has the excess that a posterior of s² to s times the variance allows.

    Parameters
    ----------
    nats_per_parameter
        Excess of the negative log-likelihood allowed at the walk's end, per unit of min(n_data, n_params).
    min_steps, max_steps
        Refinement steps per drift that every particle gets, and that none exceeds.
    """

    nats_per_parameter: float = 0.2
    min_steps: int = 0
    max_steps: int = 60

    def __post_init__(self) -> None:
        if not (self.nats_per_parameter > 0 and 0 <= self.min_steps <= self.max_steps):
            raise ValueError(f"expected nats_per_parameter > 0 and 0 <= min_steps <= max_steps, got {self}.")

    def wants_more(self, at: Refining) -> Bool[Tensor, " n"]:
        """Those above the level, and all during the first ``min_steps``."""
        return (at.excess > self.level_at(at)) | (at.step < self.min_steps)

    def level_at(self, at: Refining) -> Float[Tensor, " n"]:
        """The same for all particles."""
        level = self.nats_per_parameter * min(at.n_data, at.n_params) * at.progress
        return torch.full_like(at.excess, level)


@dataclass(frozen=True)
class RefineToTypicalSet:
    """Refine until the training loss is back where samples of the posterior have it.

    Under a Gaussian posterior with effective number of parameters d, twice the excess of the negative log-likelihood
    over its value at the minimum of J is a draw of χ²(d), to first order. Each particle has its own draw, by Wilson and
    Hilferty's (1931) transformation of one normal number; after the share s of the walk d is that of the prior with
    s times the reach, Σ λ/(λ + τ/s²).

    Parameters
    ----------
    max_steps
        Refinement steps per drift that no particle exceeds.
    """

    max_steps: int = 60

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ValueError(f"max_steps: expected 0 or more refinement steps, got {self.max_steps}.")

    def wants_more(self, at: Refining) -> Bool[Tensor, " n"]:
        """Those above their level."""
        return at.excess > self.level_at(at)

    def level_at(self, at: Refining) -> Float[Tensor, " n"]:
        """Each particle's own draw at this share of the walk."""
        if at.effective_dimension is None:
            raise ValueError("RefineToTypicalSet: expected at.effective_dimension, got None; a walk computes it.")
        return self.level(at.effective_dimension, at.normal)

    @staticmethod
    def level(dimension: float, normal: Float[Tensor, " n"] | float) -> Float[Tensor, " n"]:
        """½ χ² with ``dimension`` degrees of freedom at the quantile of the given normal numbers, in nats."""
        spread = 2 / (9 * max(dimension, 1e-6))
        root = 1 - spread + torch.as_tensor(normal) * spread**0.5
        return 0.5 * dimension * root.clamp(min=0) ** 3
