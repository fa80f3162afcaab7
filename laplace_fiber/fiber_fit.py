"""What a fit of FiberLaplace leaves behind, and samples drawn from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laplace_fiber.latent import LatentLines
from laplace_fiber.paths import Curves, PositionLaw, PosteriorForm, StraightLines, WalkCurves, shuffled_rows
from laplace_fiber.subspace import Subspace

REACH_TOLERANCE = 0.05
"""A prior wider than the walked one by less than this share is not worth another walk; nor is a narrower one."""


JOINED_BYTES = 2**26
"""The decoder's last layer and the basis are joined into one matrix of at most this size …"""

JOINED_COST = 0.75
"""… where products with it take at most this share of the products with both."""


@dataclass(frozen=True)
class Drawn:
    """Weight samples that may still have to be decoded.

    Attributes
    ----------
    space, coordinates
        The different weight vectors among them, as points of a space; without one they are decoded: weights.
    of_sample
        Which of them each sample is.
    """

    space: Subspace | None
    coordinates: Float[Tensor, "d _"]
    of_sample: Int[Tensor, " s"]

    def decoded(self) -> Drawn:
        """The same with weights."""
        return self if self.space is None else Drawn(None, self.space.to_weights(self.coordinates), self.of_sample)

    def weights(self, size: int) -> Iterator[Float[Tensor, "g p"]]:
        """The different weight vectors, ``size`` at a time."""
        yield from self._groups(self.coordinates, size)

    def samples(self, size: int) -> Iterator[Float[Tensor, "g p"]]:
        """Copies of all samples, ``size`` at a time."""
        yield from self._groups(self.coordinates[self.of_sample], size)

    def _groups(self, rows: Float[Tensor, "k _"], size: int) -> Iterator[Float[Tensor, "g p"]]:
        return iter(rows.split(size)) if self.space is None else self.space.weight_groups(rows, size)


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
    sigma_noise, temperature
        Of the walk's objective.
    low_at_states_only
        Whether the walk is at low loss at its states alone, and not between them.
    n_own
        Particles, whose trajectories come first; others are the same with further ends. ``None``: there are no others.
    """

    subspace: Subspace
    states: Float[Tensor, "n t r"]
    lines: LatentLines
    prior_precision: Float[Tensor, " p"]
    sigma_noise: Tensor
    temperature: float
    low_at_states_only: bool = False
    n_own: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return FiberFit, tuple(getattr(self, field.name) for field in fields(self))

    @cached_property
    def decoded_space(self) -> Subspace | None:
        """The decoder's last layer and the basis as one: a space whose coordinates are the decoder's features.

        ``None`` where decoding in two steps takes less work or memory. Made at the first use.
        """
        basis, origin = self.subspace.basis, self.subspace.origin
        layer, bias = self.lines.last_layer()
        (units, rank), p = layer.shape, basis.shape[1]
        both = units * rank + (0 if self.subspace.is_identity else rank * p)
        affordable = units * p * origin.itemsize <= JOINED_BYTES
        worth_it = self.subspace.is_identity or units * p <= JOINED_COST * both
        if not (affordable and worth_it and origin.dtype == layer.dtype):
            return None
        return Subspace(self.subspace.to_weights(bias[None])[0], self.subspace.directions(layer))

    def share_for(self, prior_precision: Float[Tensor, " p"]) -> float:
        """Share ρ ≤ 1 of the walk for another prior: its radius √(Σ 1/τ) over that of the walk.

        That of the nearest state, the first drift's or a later one, where only states are at low loss.
        """
        share, n_steps = min(1.0, self.relative_radius(prior_precision)), self.states.shape[1] - 1
        return max(round(share * n_steps), 1) / n_steps if self.low_at_states_only else share

    def relative_radius(self, prior_precision: Float[Tensor, " p"]) -> float:
        """The radius of another prior over that of the walk's."""
        radii = [(1 / tau.double()).sum().sqrt() for tau in (prior_precision.detach(), self.prior_precision)]
        return float(radii[0] / radii[1])

    @property
    def has_one_state(self) -> bool:
        """Whether each trajectory has one state only, so that another prior has no share of the walk."""
        return self.low_at_states_only and self.states.shape[1] == 2

    def narrower(self, prior_precision: Float[Tensor, " p"]) -> bool:
        """Whether another prior is narrower than the walked one, by more than what is not worth another walk."""
        return self.relative_radius(prior_precision) < 1 / (1 + REACH_TOLERANCE)

    def missing_reach(self, prior_precision: Float[Tensor, " p"]) -> float:
        """How many times wider than the walked one another prior is, where it is widest; 1 if it is nowhere."""
        wider = float((self.prior_precision / prior_precision.detach()).max().sqrt())
        return wider if wider > 1 + REACH_TOLERANCE else 1.0

    def changes(self, sigma_noise: Tensor, temperature: float) -> list[str]:
        """Names of what has changed in the objective since the walk."""
        same_noise = bool(torch.allclose(sigma_noise, self.sigma_noise, rtol=1e-5))
        same = {"sigma_noise": same_noise, "temperature": math.isclose(temperature, self.temperature, rel_tol=1e-5)}
        return [name for name, kept in same.items() if not kept]

    def draw(
        self, form: PosteriorForm, law: PositionLaw, upto: float, n_samples: int, generator: torch.Generator
    ) -> Drawn:
        """Samples in the space that is fastest to decode from, with positions from the law shortened to [0, upto].

        Every trajectory is drawn as often as any other, or once more: first each particle's own, then those with
        further ends.
        """
        every = torch.arange(n_samples, device=self.states.device)
        if form == "gaussian":
            return Drawn(self.subspace, self._draw_gaussian(law, upto, n_samples, generator), every)
        trajectory, s = self._positions(law, upto, n_samples, generator)
        if bool((s == s[0]).all()):  # of each trajectory only one point
            trajectory, every = trajectory.unique(return_inverse=True)
            s = s[: len(trajectory)]
        space = self.decoded_space if form == "latent" else None
        if space is None:
            return Drawn(self.subspace, self._curves(form).coordinates(trajectory, s), every)
        return Drawn(space, self.lines.features(trajectory, s), every)

    def _positions(
        self, law: PositionLaw, upto: float, n_samples: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " s"], Float[Tensor, " s"]]:
        trajectory = shuffled_rows(len(self.states), n_samples, generator, self.n_own)
        u = torch.rand(n_samples, generator=generator, device=generator.device)
        return trajectory, (upto * law.quantile(u)).to(self.states)

    def points(self, form: PosteriorForm, law: PositionLaw, upto: float) -> Float[Tensor, "k r"]:
        """Coordinates that stand for the posterior in sums over it: every trajectory at the law's t mid-quantiles."""
        n, t, _ = self.states.shape
        u = (torch.arange(t, device=self.states.device, dtype=self.states.dtype) + 0.5) / t
        trajectory = torch.arange(n, device=self.states.device).repeat_interleave(t)
        return self._curves(form).coordinates(trajectory, (upto * law.quantile(u)).repeat(n))

    def spread_factor(self, form: PosteriorForm, law: PositionLaw, upto: float) -> Float[Tensor, "k p"]:
        """L with Lᵀ L the posterior's second moment of the weights about the MAP, exact up to quadrature in s."""
        points = self.points(form, law, upto)
        if len(points) > points.shape[1]:
            points = torch.linalg.qr(points, mode="r").R * (points.shape[1] / len(points)) ** 0.5
        return self.subspace.directions(points / len(points) ** 0.5)

    def _draw_gaussian(
        self, law: PositionLaw, upto: float, n_samples: int, generator: torch.Generator
    ) -> Float[Tensor, "s r"]:
        points = self.points("gaussian", law, upto)
        mean = points.mean(0)
        mixing = torch.randn(n_samples, len(points), generator=generator, device=points.device, dtype=points.dtype)
        return mean + mixing @ (points - mean) / (len(points) - 1) ** 0.5

    def _curves(self, form: PosteriorForm) -> Curves:
        # The Gaussian has the moments of the walk's states.
        curves: dict[str, Curves] = {"latent": self.lines, "line": StraightLines(self.states)}
        return curves.get(form, WalkCurves(self.states))

    def to_state(self) -> dict[str, Any]:
        """As tensors, lists of them and numbers; the origin is left to the owner."""
        return {
            "basis": self.subspace.own_basis(),
            "states": self.states,
            "lines": self.lines.tensors(),
            "straightness": self.lines.straightness,
            "fitted_prior_precision": self.prior_precision,
            "fitted_sigma_noise": self.sigma_noise,
            "fitted_temperature": self.temperature,
            "low_at_states_only": self.low_at_states_only,
            "n_own": self.n_own,
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
            state["fitted_sigma_noise"].to(device),
            state["fitted_temperature"],
            state["low_at_states_only"],
            state.get("n_own"),  # earlier states have none
        )
