"""The trajectory sampler: particles that drift away from the MAP and are refined back to low loss.

Source: *Walking on the Fiber* (arXiv 2512.01500), section 4.1, equations 3 to 5. Beyond the paper, a refinement step
that raises the objective is taken back, step sizes follow the curvature, refinement ends at a level of the training
loss, and the drift's law and length follow the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.refinement import Refinement, RefineToLevel, Refining

STEP_GROWTH = 1.1
STEP_SHRINKAGE = {"monotone": 0.5, "spectral": 0.25}
POWER_ITERATIONS = 20


@dataclass(frozen=True)
class Trajectories:
    """What a walk leaves behind.

    Attributes
    ----------
    states
        θ after each drift and its refinement, t = 0 being the MAP.
    objective
        J(θ)/n_data at the states, each estimated on the batch of its step.
    lost_at
        The step t at which a particle's objective was no longer finite (its later states repeat its last good one);
        T + 1 for a particle that arrived.
    step_sizes
        η of each particle at the end.
    rejected_share
        Share of refinement steps that were taken back.
    gradient_evaluations
        Per particle, over the whole walk.
    reach
        Total drift length α·T, in units of the weights.
    gradient_norm
        ‖∇J(θ_MAP)‖.
    common_displacement
        Length of the mean displacement of all particles at the walk's end, as a share of the reach. Independent drifts
        leave about 1/√n; more is a pull that all particles share, such as that of a network not at a minimum of J.
    """

    states: Float[Tensor, "n t p"]
    objective: Float[Tensor, "n t"]
    lost_at: Float[Tensor, " n"]
    step_sizes: Float[Tensor, " n"]
    rejected_share: float
    gradient_evaluations: float
    reach: float
    gradient_norm: float
    common_displacement: float


@dataclass(frozen=True)
class TrajectorySampler:
    """Settings of the walk.

    Parameters
    ----------
    n_particles
        Number of trajectories (the paper's N).
    n_steps
        Number of drifts per trajectory (the paper's T).
    reach
        Total drift length α·T. ``None`` takes the prior's radius √(Σ 1/τ), so that the free spread follows the prior.
    refinement
        When a particle stops refining after a drift.
    step_size
        First η, on J/n_data. ``None`` takes 1/λ_max(∇²J/n_data) at the MAP.
    descent
        ``"plain"`` keeps η (the paper's descent). ``"monotone"`` takes back steps that raise the objective and halves
        that particle's η, and lengthens η by a tenth after others. ``"spectral"`` also takes back such steps, and sets
        each particle's η by the two formulas of Barzilai and Borwein (1988) in turn, which serves ill-conditioned
        objectives with far fewer steps.
    batch
        Data behind each refinement: ``"full"``, the ``"loader"``'s batches (one per drift, so that a step is judged on
        the batch it was computed on), or ``"auto"``: full up to 10,000 points.
    chunk_size
        At most this many particles are evaluated together; ``None`` takes all. Does not change the result.
    seed
        Particle i draws its direction from ``seed`` and i alone.
    """

    n_particles: int = 32
    n_steps: int = 40
    reach: float | None = None
    refinement: Refinement = field(default_factory=RefineToLevel)
    step_size: float | None = None
    descent: Literal["plain", "monotone", "spectral"] = "spectral"
    batch: Literal["auto", "full", "loader"] = "auto"
    chunk_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("n_particles", 1), ("n_steps", 1)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, got {getattr(self, name)}.")
        for name in ("reach", "step_size", "chunk_size"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number or None, got {value}.")
        for name, choices in (("batch", ("auto", "full", "loader")), ("descent", ("plain", "monotone", "spectral"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}.")

    def directions(self, prior_precision: Float[Tensor, " p"]) -> Float[Tensor, "n p"]:
        """Unit drift directions v ∝ N(0, diag(1/τ)): uniform on the sphere when τ is one number, as in the paper."""
        p, like = prior_precision.numel(), prior_precision
        rows = torch.stack([_normal(p, self.seed, i) for i in range(self.n_particles)])
        rows = rows.to(like.device, like.dtype) / like.sqrt()
        return rows / rows.norm(dim=1, keepdim=True)

    def walk(
        self, joint: LogJoint, origin: Float[Tensor, " p"], data: TrainingData, progress_bar: bool = False
    ) -> Trajectories:
        """Walk all particles from ``origin``.

        Raises
        ------
        ValueError
            The objective at ``origin`` is not finite.
        RuntimeError
            Every particle was lost to a non-finite objective.
        """
        precision = joint.prior_precision.expand(origin.numel())
        reach = self.reach if self.reach is not None else float((1 / precision).sum().sqrt())
        data.restart()
        start, gradient = self._start(joint, origin, data.next_batch())
        eta = self.step_size or 1.0 / sharpness(joint, origin, data.next_batch(), self.seed)
        drift = self.directions(precision) * (reach / self.n_steps)

        n, counts = self.n_particles, _Counts()
        theta, value, etas = origin.repeat(n, 1), start.repeat(n), origin.new_full((n,), eta)
        states, objective = [theta.clone()], [value.clone()]
        lost_at = torch.full((n,), self.n_steps + 1, device=origin.device)
        bar = tqdm(range(1, self.n_steps + 1), desc="walk", disable=not progress_bar)
        for t in bar:
            level = _Level(joint, data.next_batch(), origin, t / self.n_steps)
            rows = (lost_at > self.n_steps).nonzero().flatten()
            new_theta, new_value, new_eta, finite = self._refine(level, theta[rows] + drift[rows], etas[rows], counts)
            kept = rows[finite]
            theta[kept], value[kept], etas[kept] = new_theta[finite], new_value[finite], new_eta[finite]
            lost_at[rows[~finite]] = t
            if kept.numel() == 0:
                raise RuntimeError(
                    f"walk: expected a finite objective, but all {n} particles were lost by step {t} of {self.n_steps} "
                    f"(reach {reach:.3g}); use a smaller reach, a larger prior_precision, or a float64 model."
                )
            states.append(theta.clone())
            objective.append(value.clone())
            bar.set_postfix(objective=f"{float(value.mean()):.4g}", rejected=f"{counts.rejected_share:.0%}")
        return Trajectories(
            states=torch.stack(states, 1),
            objective=torch.stack(objective, 1),
            lost_at=lost_at,
            step_sizes=etas,
            rejected_share=counts.rejected_share,
            gradient_evaluations=counts.evaluated / n,
            reach=reach,
            gradient_norm=joint.n_data * float(gradient.norm()),
            common_displacement=float((theta.mean(0) - origin).norm()) / reach,
        )

    def _start(self, joint: LogJoint, origin: Tensor, batch: Batch) -> tuple[Float[Tensor, ""], Float[Tensor, " p"]]:
        value, gradient = joint.value_and_grad(origin[None], batch)
        if not (torch.isfinite(value).all() and torch.isfinite(gradient).all()):
            raise ValueError(
                f"fit: expected a finite loss at the trained weights, got an objective of {float(value):.4g} per data "
                "point (or a gradient that is not finite); check the data for NaN and the network for divergence."
            )
        return value[0], gradient[0]

    def _refine(
        self, level: _Level, theta: Tensor, eta: Tensor, counts: _Counts
    ) -> tuple[Float[Tensor, "n p"], Float[Tensor, " n"], Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """Descend from drifted weights; the last result says which particles kept a finite objective."""
        value, grad = level.joint.value_and_grad(theta, level.batch)
        counts.evaluated += len(theta)
        finite = torch.isfinite(value) & torch.isfinite(grad).all(1)
        for step in range(self.refinement.max_steps):
            rows = (finite & self.refinement.wants_more(level.refining(step, theta, value))).nonzero().flatten()
            if rows.numel() == 0:
                break
            proposal = theta[rows] - eta[rows, None] * grad[rows]
            new_value, new_grad = level.joint.value_and_grad(proposal, level.batch)
            accepted = torch.isfinite(new_value) & torch.isfinite(new_grad).all(1)
            if self.descent == "plain":
                finite[rows[~accepted]] = False
            else:
                accepted &= new_value <= value[rows]
                longer = eta[rows] * STEP_GROWTH
                if self.descent == "spectral":
                    longer = _spectral_step(proposal - theta[rows], new_grad - grad[rows], longer, short=step % 2 == 0)
                eta[rows] = torch.where(accepted, longer, eta[rows] * STEP_SHRINKAGE[self.descent])
            kept = rows[accepted]
            theta[kept], value[kept], grad[kept] = proposal[accepted], new_value[accepted], new_grad[accepted]
            counts.add(len(rows), len(rows) - len(kept))
        return theta, value, eta, finite


class _Level:
    """A drift's batch with the MAP's loss on it, from which excess is counted."""

    def __init__(self, joint: LogJoint, batch: Batch, origin: Tensor, progress: float) -> None:
        self.joint, self.batch, self.progress = joint, batch, progress
        with torch.no_grad():
            self.data_term = self._data_term(origin[None], joint.objective(origin[None], batch))

    def refining(self, step: int, theta: Tensor, value: Tensor) -> Refining:
        excess = self._data_term(theta, value) - self.data_term
        return Refining(step, excess, self.progress, self.joint.n_data, theta.shape[1])

    def _data_term(self, theta: Tensor, value: Tensor) -> Float[Tensor, " n"]:
        return self.joint.n_data * value - self.joint.prior_energy(theta)


def _spectral_step(
    moved: Float[Tensor, "n p"], turned: Float[Tensor, "n p"], otherwise: Float[Tensor, " n"], short: bool
) -> Float[Tensor, " n"]:
    """Barzilai and Borwein's step from the last displacement and change of gradient, where curvature is positive."""
    curvature = (moved * turned).sum(1)
    step = curvature / turned.square().sum(1) if short else moved.square().sum(1) / curvature
    return torch.where((curvature > 0) & torch.isfinite(step), step, otherwise)


@dataclass
class _Counts:
    proposed: int = 0
    rejected: int = 0
    evaluated: int = 0

    def add(self, proposed: int, rejected: int) -> None:
        self.proposed += proposed
        self.evaluated += proposed
        self.rejected += rejected

    @property
    def rejected_share(self) -> float:
        return self.rejected / max(self.proposed, 1)


def sharpness(joint: LogJoint, theta: Float[Tensor, " p"], batch: Batch, seed: int = 0) -> float:
    """λ_max(∇²J(θ)/n_data) in absolute value, by power iteration with Hessian-vector products."""
    product = joint.hessian_product(theta, batch)
    v = _normal(theta.numel(), seed, -1).to(theta)
    length = 0.0
    for _ in range(POWER_ITERATIONS):
        v = product(v / v.norm())
        length = float(v.norm())
        if length == 0.0 or not math.isfinite(length):
            return 1.0  # a flat objective has no scale of its own, and no gradient to scale
    return length


def _normal(size: int, seed: int, stream: int) -> Float[Tensor, " p"]:
    """Standard normal numbers of stream ``stream``: the same whatever is drawn for the others."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + stream + 1) % 2**63)
    return torch.randn(size, generator=generator, dtype=torch.float64)
