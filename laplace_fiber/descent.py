"""Refinement: gradient steps that take drifted particles back to low loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from laplace_fiber.data import Batch
from laplace_fiber.gradients import recorded_evaluation
from laplace_fiber.log_joint import WHOLE_ELEMENTS, Evaluation, LogJoint
from laplace_fiber.particles import Particles, Side, finite_rows, padded, padding, put
from laplace_fiber.quasi_newton import CurvatureMemory
from laplace_fiber.recording import Function, Recorder
from laplace_fiber.refinement import LevelRefinement, Refinement, Refining

DescentKind: TypeAlias = Literal["plain", "monotone", "spectral", "quasi-newton"]

STEP_GROWTH = 1.1
STEP_SHRINKAGE = {"monotone": 0.5, "spectral": 0.25}

RETURNS, NEAR = 3, 0.1
"""Points along a quasi-Newton step that are tried at most where it ends below the level that refinement ends at by more
than this share of it. Curvature that was learnt before a drift makes some steps too long, and lower is not better: such
particles sit where the training data are fitted too closely."""


@dataclass
class Counts:
    """Gradient evaluations, proposed steps and those taken back, over all particles."""

    evaluated: int = 0
    proposed: int = 0
    rejected: int = 0

    @property
    def rejected_share(self) -> float:
        """Share of the proposed steps that were taken back."""
        return self.rejected / max(self.proposed, 1)


class Level(NamedTuple):
    """A drift's batch with H Σ ℓ on it from which excess is counted, for all particles or each."""

    batch: Batch
    data_term: Float[Tensor, " #n"]

    @staticmethod
    def of(joint: LogJoint, batch: Batch, theta: Float[Tensor, " p"]) -> Level:
        """That of some weights: the MAP, or a minimum near it."""
        return Level(batch, joint.data_term(theta[None], batch))


class Descent:
    """Refines groups of particles on one batch after another.

    Parameters
    ----------
    joint
        The objective.
    refinement
        When a particle is done.
    kind
        Which steps are taken back, and how step sizes change: see
        :class:`~laplace_fiber.trajectories.TrajectorySampler`.
    recorder
        How evaluations and steps are called.
    memory
        What quasi-Newton steps know of all particles' curvature, from one drift to the next; ``None`` begins anew after
        each.
    """

    def __init__(
        self,
        joint: LogJoint,
        refinement: Refinement,
        kind: DescentKind,
        recorder: Recorder,
        memory: CurvatureMemory | None = None,
    ) -> None:
        self.joint, self.refinement, self.kind, self.recorder, self.memory = joint, refinement, kind, recorder, memory
        self.counts = Counts()
        self._spare: list[Float[Tensor, "n p"]] = []
        """Memory for the next proposal, where weights are many: new memory takes as long as some passes over it."""

    @property
    def columns(self) -> list[Tensor]:
        """What the next drifts depend on, one row for each particle."""
        return self.memory.columns if self.memory else []

    def refine(
        self,
        level: Level,
        progress: float,
        theta: Float[Tensor, "n p"],
        eta: Float[Tensor, " n"],
        normal: Float[Tensor, " n"] | float = 0.0,
        effective_dimension: float | None = None,
        rows: Int[Tensor, " n"] | None = None,
    ) -> Particles:
        """Descend from drifted weights until the refinement asks for no more; arguments as in ``Refining``.

        ``theta`` is used as working memory; ``rows`` says which particles these are of those in ``memory``.
        """
        first = self._evaluated(level.batch, theta, len(theta))
        finite = finite_rows(first.value, first.grad)
        now = Particles(theta, first.value, first.data_term, first.grad, eta, finite)
        self._spare = [torch.empty_like(theta)] if theta.numel() > WHOLE_ELEMENTS else []
        memory, own = self._memory_of(theta, rows)
        parities = [torch.tensor(short, device=theta.device) for short in (True, False)]
        for step in range(self.refinement.max_steps):
            excess = now.data_term - level.data_term
            at = Refining(step, excess, progress, self.joint.n_data, theta.shape[1], normal, effective_dimension)
            active = now.finite & self.refinement.wants_more(at)
            n_active = int(active.sum())
            if n_active == 0:
                break
            if memory:
                moving = active.nonzero().flatten()
                above = Side(self._step_by_memory(level.batch, now, moving, memory, own[active]), excess[moving])
                if isinstance(self.refinement, LevelRefinement):
                    self._return(level, now, moving, above, self.refinement.level_at(at).expand_as(excess)[moving])
            else:
                now = self._stepped(level.batch, now, active, n_active, parities[step % 2])
        return now

    def _memory_of(self, theta: Tensor, rows: Tensor | None) -> tuple[CurvatureMemory | None, Tensor]:
        """What quasi-Newton steps know, and where these particles stand in it."""
        own = torch.arange(len(theta), device=theta.device) if self.memory is None or rows is None else rows
        if self.kind != "quasi-newton":
            return None, own
        memory = self.memory or CurvatureMemory(theta)
        memory.begin(own)
        return memory, own

    def _evaluated(self, batch: Batch, theta: Float[Tensor, "k p"], n: int) -> Evaluation:
        """Of k of n particles."""
        more = padding(len(theta), n)
        whole = torch.cat([theta, theta[:1].expand(more, -1)]) if more else theta
        self.counts.evaluated += len(theta)
        return Evaluation(*(c[: len(theta)] for c in recorded_evaluation(self.joint, self.recorder, whole, batch)))

    def _step_by_memory(
        self, batch: Batch, now: Particles, rows: Tensor, memory: CurvatureMemory, own: Tensor
    ) -> Float[Tensor, "k p"]:
        """A quasi-Newton step of the particles of these rows, in place, and where they were.

        ``own`` are their rows of the memory.
        """
        theta, value, grad, eta = now.theta[rows], now.value[rows], now.grad[rows], now.eta[rows]
        share = memory.share[own]
        proposal = theta - share[:, None] * memory.direction(own, grad, eta)
        found = self._evaluated(batch, proposal, len(now.theta))
        sound = finite_rows(found.value, found.grad)
        accepted = sound & (found.value <= value)
        bent, scale = memory.add(own, proposal - theta, found.grad - grad, sound)
        now.eta[rows] = torch.where(bent, scale, eta)
        # A step that was taken back has mostly told more of the curvature.
        memory.share[own] = torch.where(accepted, 1.0, share / torch.where(bent, 2, 4))
        put(now, rows, proposal, found, accepted)
        self.counts.proposed += len(rows)
        self.counts.rejected += len(rows) - int(accepted.sum())
        return theta

    def _return(self, level: Level, now: Particles, rows: Tensor, above: Side, target: Tensor) -> None:
        """Where a step has gone far below the target, back along it to about there, by false position; in place."""
        zero = level.data_term.expand_as(now.data_term)[rows]
        for _ in range(RETURNS):
            below = now.data_term[rows] - zero
            far = (above.excess > target) & (below < (1 - NEAR) * target)
            if not bool(far.any()):
                break
            rows, zero, target, below = rows[far], zero[far], target[far], below[far]
            above = Side(above.theta[far], above.excess[far])
            share = (above.excess - target) / (above.excess - below)
            theta = torch.lerp(above.theta, now.theta[rows], share[:, None])
            found = self._evaluated(level.batch, theta, len(now.theta))
            excess = found.data_term - zero
            low = finite_rows(found.value, found.grad) & (excess <= target)
            put(now, rows, theta, found, low)
            above = Side(torch.where(low[:, None], above.theta, theta), torch.where(low, above.excess, excess))

    def _stepped(self, batch: Batch, now: Particles, active: Tensor, n_active: int, short: Tensor) -> Particles:
        """One step of the active particles."""
        rows = padded(active, n_active)
        part = now if rows is None else Particles(*(column[rows] for column in now))
        moves = active if rows is None else torch.arange(len(rows), device=rows.device) < n_active
        spare = self._spare if rows is None else []

        def take(moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
            columns, (moves, short, *room) = moving[: len(now)], moving[len(now) :]
            return self._take(Particles(*columns), moves, short, batch.with_tensors(fixed), *room)

        *columns, accepted = self._call("step", take, (*part, moves, short, *spare), batch)
        new, n_accepted = Particles(*columns), int(accepted.sum())
        self.counts.evaluated += n_active
        self.counts.proposed += n_active
        self.counts.rejected += n_active - n_accepted
        if n_accepted == 0:
            new = new._replace(theta=part.theta, grad=part.grad)
        elif n_accepted < len(accepted):  # not inside the step: most steps need no such copies
            kept = accepted[:, None]
            theta, grad = torch.where(kept, new.theta, part.theta), torch.where(kept, new.grad, part.grad)
            new = new._replace(theta=theta, grad=grad)
        if rows is None:
            if spare and n_accepted == len(accepted):
                self._spare = [part.theta]
            return new
        for whole, column in zip(now, new, strict=True):
            whole[rows[:n_active]] = column[:n_active]
        return now

    def _take(
        self, now: Particles, moves: Tensor, short: Tensor, batch: Batch, room: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One step of those that move, and whose step is kept; weights and gradients are the proposed ones of all.

        Weights are written to ``room``, if there is any.
        """
        proposal = torch.addcmul(now.theta, now.eta[:, None], now.grad, value=-1, out=room)
        value, grad, data_term = self.joint.evaluate(proposal, batch)
        sound = finite_rows(value, grad)
        accepted = moves & sound
        eta, finite = now.eta, now.finite
        if self.kind == "plain":
            finite = finite & (sound | ~moves)
        else:
            accepted = accepted & (value <= now.value)
            longer = eta * STEP_GROWTH
            if self.kind == "spectral":
                longer = _spectral_step(proposal - now.theta, grad - now.grad, longer, short)
            changed = torch.where(accepted, longer, eta * STEP_SHRINKAGE[self.kind])
            eta = torch.where(moves, changed, eta)
        value = torch.where(accepted, value, now.value)
        data_term = torch.where(accepted, data_term, now.data_term)
        return proposal, value, data_term, grad, eta, finite, accepted

    def _call(self, name: str, function: Function, moving: Sequence[Tensor], batch: Batch) -> tuple[Tensor, ...]:
        fixed = batch.tensors()
        return function(moving, ()) if fixed is None else self.recorder.by_rows(name, function, moving, fixed)


def _spectral_step(
    moved: Float[Tensor, "n p"], turned: Float[Tensor, "n p"], otherwise: Float[Tensor, " n"], short: Bool[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Barzilai and Borwein's step from the last displacement and change of gradient, where curvature is positive."""
    curvature = (moved * turned).sum(1)
    step = torch.where(short, curvature / turned.square().sum(1), moved.square().sum(1) / curvature)
    return torch.where((curvature > 0) & torch.isfinite(step), step, otherwise)
