"""Posteriors over a walk: which curves its samples lie on, and where along them.

Every posterior draws a trajectory i uniformly and a position s from a law, and takes the point c(i, s) of its curves;
the Gaussian keeps only the mean and covariance of such points.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

PosteriorForm: TypeAlias = Literal["latent", "states", "line", "gaussian"]
"""Curves of the posterior: decoded latent lines (the paper's), the walk's own states joined linearly, straight lines
from the MAP to the last states, or a Gaussian with the states' mean and covariance."""


FORMS: tuple[PosteriorForm, ...] = ("latent", "states", "line", "gaussian")


@runtime_checkable
class PositionLaw(Protocol):
    """How far along its trajectory a posterior sample lies: a law on s ∈ [0, 1], given by its quantile function."""

    def quantile(self, u: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """s for u ∈ [0, 1], nondecreasing."""
        ...


@dataclass(frozen=True)
class UniformPosition:
    """s ~ U(0, 1): equation 10 of the paper."""

    def quantile(self, u: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """u itself."""
        return u


@dataclass(frozen=True)
class EndPosition:
    """s = 1: the trajectories' ends, for walks whose lengths follow the prior and which end in the typical set."""

    def quantile(self, u: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
        """1 everywhere."""
        return torch.ones_like(u)


@runtime_checkable
class Curves(Protocol):
    """Curves c(i, s) in the walk's subspace, one per trajectory."""

    def coordinates(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s r"]:
        """The points at position s of the given trajectories."""
        ...


@dataclass(frozen=True)
class WalkCurves:
    """The walk's own states, joined linearly."""

    states: Float[Tensor, "n t r"]

    def coordinates(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s r"]:
        """Linear interpolation between the states before and after s."""
        last = self.states.shape[1] - 1
        place = s.clamp(0, 1) * last
        before = place.floor().long().clamp(max=last - 1)
        weight = (place - before).to(self.states)[:, None]
        return torch.lerp(self.states[trajectory, before], self.states[trajectory, before + 1], weight)


@dataclass(frozen=True)
class StraightLines:
    """Straight lines in weight space, from the MAP to each trajectory's last state."""

    states: Float[Tensor, "n t r"]

    def coordinates(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s r"]:
        """The share s of the way (the MAP has coordinates zero)."""
        return s.to(self.states)[:, None] * self.states[trajectory, -1]


def shuffled_rows(k: int, n: int, generator: torch.Generator, block: int | None = None) -> Int[Tensor, " n"]:
    """n indices below k, each as often as any other, or once more; those below ``block``, if given, come first."""
    block = block or k
    starts = itertools.islice(itertools.cycle(range(0, k, block)), -(-n // block))
    passes = [i + torch.randperm(block, generator=generator, device=generator.device) for i in starts]
    return torch.cat(passes)[:n]
