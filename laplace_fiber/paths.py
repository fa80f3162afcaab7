"""Posteriors over a walk: which curves its samples lie on, and where along them.

Every posterior draws a trajectory i uniformly and a position s from a law, and takes the point c(i, s) of its curves;
the Gaussian keeps only the mean and covariance of such points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laplace_fiber.latent import LatentLines
from laplace_fiber.subspace import Subspace

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


@dataclass(frozen=True)
class FiberFit:
    """What a fit leaves behind: everything that samples are drawn from.

    Attributes
    ----------
    subspace
        The span of the walk.
    states
        Coordinates of its states; ``states[:, 0]`` is the MAP.
    lines
        The latent lines.
    prior_precision
        τ per weight during the walk, whose radius set its reach.
    """

    subspace: Subspace
    states: Float[Tensor, "n t r"]
    lines: LatentLines
    prior_precision: Float[Tensor, " p"]

    def draw(
        self, form: PosteriorForm, law: PositionLaw, upto: float, n_samples: int, generator: torch.Generator
    ) -> Float[Tensor, "s r"]:
        """Coordinates of independent samples, with positions from the law shortened to [0, upto]."""
        if form == "gaussian":
            return self._draw_gaussian(law, upto, n_samples, generator)
        curves: dict[str, Curves] = {
            "latent": self.lines,
            "states": WalkCurves(self.states),
            "line": StraightLines(self.states),
        }
        device = generator.device
        trajectory = torch.randint(len(self.states), (n_samples,), generator=generator, device=device)
        s = upto * law.quantile(torch.rand(n_samples, generator=generator, device=device))
        return curves[form].coordinates(trajectory, s.to(self.states))

    def _draw_gaussian(
        self, law: PositionLaw, upto: float, n_samples: int, generator: torch.Generator
    ) -> Float[Tensor, "s r"]:
        # The walk's points at as many quantiles of the law as it has states stand for the posterior over "states".
        n, t, _ = self.states.shape
        u = (torch.arange(t, device=self.states.device, dtype=self.states.dtype) + 0.5) / t
        trajectory = torch.arange(n, device=self.states.device).repeat_interleave(t)
        points = WalkCurves(self.states).coordinates(trajectory, (upto * law.quantile(u)).repeat(n))
        mean = points.mean(0)
        mixing = torch.randn(n_samples, n * t, generator=generator, device=generator.device, dtype=self.states.dtype)
        return mean + mixing @ (points - mean) / (n * t - 1) ** 0.5

    def to_state(self) -> dict[str, Any]:
        """As tensors, lists of them and numbers; the origin is left to the owner."""
        return {
            "basis": self.subspace.basis,
            "states": self.states,
            "lines": self.lines.tensors(),
            "straightness": self.lines.straightness,
            "fitted_prior_precision": self.prior_precision,
        }

    @staticmethod
    def from_state(state: dict[str, Any], origin: Float[Tensor, " p"]) -> FiberFit:
        """The inverse of :meth:`to_state`, on the origin's device."""
        device = origin.device
        return FiberFit(
            Subspace(origin, state["basis"].to(device)),
            state["states"].to(device),
            LatentLines.from_tensors([t.to(device) for t in state["lines"]], state["straightness"]),
            state["fitted_prior_precision"].to(device),
        )
