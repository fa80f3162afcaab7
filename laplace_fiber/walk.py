"""The walk itself: drifts, refinement, and what is kept of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import astuple, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from laplace_fiber.balance import checked_start
from laplace_fiber.batch_norm import moves_batch_norm
from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.descent import Counts, Descent, Level
from laplace_fiber.distributed import Ranks, on_same_terms
from laplace_fiber.draws import normal
from laplace_fiber.drifts import drift_and_refine
from laplace_fiber.gradients import RECORD_AFTER, evaluation_group
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.quasi_newton import memory_to_keep
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import RefineToTypicalSet
from laplace_fiber.sharpness import sharpness
from laplace_fiber.stochastic import StochasticDescent, StochasticRefinement
from laplace_fiber.subspace import StreamingBasis
from laplace_fiber.trace import TraceNotes
from laplace_fiber.typical_set import TypicalSet
from laplace_fiber.walk_ends import arrival, exact_moves, mean_excess, settle, thermalise

if TYPE_CHECKING:
    from laplace_fiber.trajectories import TrajectorySampler

LEVELS = -1
"""Part of a particle's stream that its level is drawn from; 0 is its direction, and 1, 2, … its last trajectories."""

WORTH_COMPILING = 600.0
"""Seconds that a walk must be expected to take before ``compile=None`` compiles it."""

IMMATERIAL = ("chunk_size", "compile", "basis", "checkpoint", "distributed")
"""Settings that change no result beyond rounding: a checkpoint may be resumed under others."""

COLUMNS = ("theta", "value", "eta", "lost_at", "share")
"""What a checkpoint holds of each particle."""


class Walk:
    """One walk under way: the particles of this process, and the basis and coordinates of all.

    Parameters
    ----------
    settings
        The sampler.
    joint, origin, data
        The objective, θ_MAP and the data.
    near
        Weights that the minimum of J is sought from; ``None`` takes θ_MAP.
    """

    def __init__(
        self,
        settings: TrajectorySampler,
        joint: LogJoint,
        origin: Float[Tensor, " p"],
        data: TrainingData,
        near: Float[Tensor, " p"] | None = None,
    ) -> None:
        self.settings, self.origin, self.data = settings, origin, data
        self.ranks = Ranks(settings.distributed)
        self.n_particles = n = settings.particle_count
        self.own = self.ranks.rows(n)
        precision = joint.prior_precision.expand(origin.numel())
        self.reach = settings.length(precision, origin, moves_batch_norm(joint.network))
        data.restart()
        batch = data.next_batch()
        value, self.gradient = checked_start(joint, origin, batch)
        self.sharpness = sharpness(joint, origin, data.next_batch(), settings.seed)
        eta = settings.step_size or 1.0 / self.sharpness
        self.drift = settings.directions(precision, self.own).mul_(self.reach / settings.n_steps)
        own = len(self.drift)
        self.theta, self.value = origin.repeat(own, 1), value.repeat(own)
        self.eta, self.share = origin.new_full((own,), eta), origin.new_ones(own)
        self.lost_at = torch.full((own,), settings.n_steps + 1, device=origin.device)
        self.thermal = exact_moves(settings.thermal, settings.refinement, data)
        n_states = settings.n_steps + (self.thermal.n_kept - 1 if self.thermal else 0)
        self.basis = StreamingBasis(origin, n * n_states, settings.basis)
        self.coordinates, self.further_ends = list[Float[Tensor, "n _"]](), list[Float[Tensor, "n _"]]()
        self.t = 0
        # At once where steps are to be compiled, or layers below the moving ones are to be run only once.
        at_once = bool(settings.compile) or joint.network.is_part
        self.recorder = Recorder(0 if at_once else RECORD_AFTER, bool(settings.compile))
        self.joint = joint
        self.trace = TraceNotes(joint, data)
        self.trace.add(value.repeat(n), self.trace.nll_of(value[None], origin[None]).repeat(n), Counts())
        self.descent = self._descent()
        self.acceptance = math.nan
        self.settled: tuple[float, float] | None = None
        self.normal = origin.new_tensor([float(normal(1, settings.seed, i, LEVELS)) for i in range(n)[self.own]])
        self.typical: TypicalSet | None = None
        if isinstance(settings.refinement, RefineToTypicalSet):
            self.typical = TypicalSet.near(origin if near is None else near, joint, data, batch, settings.seed)
        self.identity = {
            "settings": [f"{f.name}={getattr(settings, f.name)}" for f in fields(settings) if f.name not in IMMATERIAL],
            "n_data": data.n_data,
            "weights": on_same_terms(origin),
            "prior_precision": on_same_terms(joint.prior_precision),
            "loss": f"{float(value):.5g}",
            "version": 10,  # of saved walks
        }
        self.ranks.check_same(**self.identity)
        self.group = settings.chunk_size or joint.chunk_size or 0
        self._load()
        self.group = max(1, min(self.group or evaluation_group(joint, self.theta, batch), own))
        self._level_of: Level | None = None

    def run(self, progress_bar: bool) -> dict[str, Any]:
        """Walk to the end; the fields of :class:`~laplace_fiber.walk_result.Trajectories`."""
        n_steps, started, hidden = self.settings.n_steps, time.monotonic(), not (progress_bar and self.ranks.first)
        thermal = self.thermal
        total = n_steps + (thermal.n_trajectories if thermal else 0)
        with tqdm(total=total, initial=self.t, desc="walk", disable=hidden, leave=None) as bar:
            while self.t < n_steps:
                self.t += 1
                self._drift()
                if self.t == n_steps and thermal:
                    self.acceptance = thermalise(self, thermal, bar)
                elif self.t == n_steps and self.typical and not self.data.full:
                    self.settled = settle(self, self.typical.dimension.total)
                self._keep()
                self._save()
                expected = (time.monotonic() - started) * (n_steps - 1)
                may_compile = self.settings.compile is None and self.joint.network.resolved_engine() == "vmap"
                if may_compile and self.t == 1 < self.group and expected > WORTH_COMPILING:
                    self.recorder = self.descent.recorder = Recorder(after=0, compiled=True)
                bar.update()
                bar.set_postfix(
                    objective=f"{float(self.trace.objective[-1].mean()):.4g}",
                    rejected=f"{self.descent.counts.rejected_share:.0%}",
                    basis=self.basis.rank,
                )
        return self._result()

    def _descent(self) -> Descent | StochasticDescent:
        settings, refinement = self.settings, self.settings.refinement
        if isinstance(refinement, StochasticRefinement):
            steps, rates = refinement.n_steps(self.data), refinement.rates_for(self.origin)
            return StochasticDescent(self.joint, self.recorder, steps, rates)
        memory = memory_to_keep(self.theta, self.n_particles) if settings.descent == "quasi-newton" else None
        return Descent(self.joint, refinement, settings.descent, self.recorder, memory)

    def _drift(self) -> None:
        """Drift and refine the particles that are not lost."""
        if isinstance(self.descent, StochasticDescent):
            self._drift_among_batches(self.descent)
            return
        drift_and_refine(self, self.descent)

    def _drift_among_batches(self, descent: StochasticDescent) -> None:
        if self.t == 1:
            self._try_out(descent)
        before = self.theta.clone()
        for rows in self.alive():
            self.theta[rows] += self.drift[rows]
        for _ in descent.steps(self.theta):
            batch = self.data.next_batch()
            for rows in self.alive():
                self.lost_at[rows[~descent.look(rows, self.theta, self.value, batch)]] = self.t
        lost = self.lost_at <= self.settings.n_steps
        self.theta[lost] = before[lost]

    def _try_out(self, descent: StochasticDescent) -> None:
        """Find rate and length by the first particle, on the first process; the data begin again afterwards."""
        trial = (
            descent.trial(self.origin, self.drift[0], self.data.next_batch, self.group) if self.ranks.first else (0, 0)
        )
        found = self.origin.new_tensor(trial)
        self.ranks.share_first([found])
        descent.rate, share = found.tolist()
        self.eta.fill_(descent.rate)
        self._shorten(share * self.reach)
        self.data.restart()

    def _shorten(self, reach: float) -> None:
        self.drift *= reach / self.reach
        self.reach = reach

    def alive(self, size: int | None = None) -> Iterator[Tensor]:
        """Groups of the particles that are not lost, of ``size`` or as many as are evaluated together."""
        alive = (self.lost_at > self.settings.n_steps).nonzero().flatten()
        yield from alive.split(size or self.group) if len(alive) else ()

    def _keep(self) -> None:
        """Add everyone's states to the basis."""
        n = self.n_particles
        nll = self.ranks.gather(self.trace.nll_of(self.value, self.theta), n)
        self.trace.add(self.ranks.gather(self.value, n), nll, self._counts())
        lost = self.ranks.gather(self.lost_at, n) <= self.settings.n_steps
        if bool(lost.all()):
            raise RuntimeError(
                f"walk: expected a finite objective, but all {n} particles were lost by step {self.t} of "
                f"{self.settings.n_steps} (reach {self.reach:.3g}); use a smaller reach, a larger prior_precision, or "
                "a float64 model."
            )
        self.coordinates.append(self.basis.append(self.displacements()))

    def displacements(self) -> Float[Tensor, "n p"]:
        """Everyone's, from θ_MAP."""
        return self.ranks.gather(self.theta - self.origin, self.n_particles)

    def level(self, batch: Batch) -> Level:
        """From which excess is counted on a batch."""
        # The whole data set is one and the same batch at every drift.
        if self._level_of is None or self._level_of.batch is not batch:
            centre = self.typical.centre if self.typical else self.origin
            self._level_of = Level.of(self.joint, batch, centre)
        return self._level_of

    def _save(self) -> None:
        checkpoint, n = self.settings.checkpoint, self.n_particles
        if checkpoint is None or (self.t % checkpoint.every and self.t < self.settings.n_steps):
            return
        state = {
            **{name: self.ranks.gather(getattr(self, name), n) for name in COLUMNS},
            "memory": [self.ranks.gather(column, n) for column in self.descent.columns],
            "walk": self.identity,
            "t": self.t,
            "group": self.group,
            "reach": self.reach,
            "position": self.data.position,
            "coordinates": self.coordinates,
            "further_ends": self.further_ends,
            "trace": self.trace.to_state(),
            "acceptance": self.acceptance,
            "settled": self.settled,
            "counts": list(astuple(self._counts())),
            "calls": list(self.recorder.calls.items()),
        }
        if self.ranks.first:
            checkpoint.save(state, self.basis)

    def _load(self) -> None:
        """Take over a saved walk, if there is one."""
        checkpoint = self.settings.checkpoint
        state = checkpoint.load(self.identity, self.basis, self.origin.device) if checkpoint else None
        self.ranks.check_same(resumed_at=state["t"] if state else 0)
        if state is None:
            return
        for name in COLUMNS:
            getattr(self, name).copy_(state[name][self.own])
        for column, saved in zip(self.descent.columns, state["memory"], strict=True):
            column.copy_(saved[self.own])
        self.t, self.coordinates, self.further_ends = (state[k] for k in ("t", "coordinates", "further_ends"))
        self.trace.restore(state["trace"])
        self.group, self.acceptance, self.settled = state["group"], state["acceptance"], state["settled"]
        self._shorten(state["reach"])
        self.recorder.calls = dict(state["calls"])
        if isinstance(self.descent, StochasticDescent):
            self.descent.rate = float(state["eta"][0])
        if self.ranks.first:
            self.descent.counts = Counts(*state["counts"])
        self.data.skip_to(*state["position"])

    def _counts(self) -> Counts:
        """Of all ranks."""
        return Counts(*map(int, self.ranks.sum(*astuple(self.descent.counts))))

    def _result(self) -> dict[str, Any]:
        n, counts, excess = self.n_particles, self._counts(), mean_excess(self)
        coordinates = self.basis.together(self.coordinates)
        ends = self.basis.together(self.further_ends)[:, 1:] if self.further_ends else coordinates[:, :0]
        return {
            "subspace": self.basis.finished(),
            "coordinates": coordinates,
            "further_ends": ends,
            "trace": self.trace.finished(coordinates),
            "lost_at": self.ranks.gather(self.lost_at, n),
            "step_sizes": self.ranks.gather(self.eta, n),
            "rejected_share": counts.rejected_share,
            "gradient_evaluations": counts.evaluated / n,
            "reach": self.reach,
            "gradient_norm": self.joint.n_data * float(self.gradient.norm()),
            "group_size": self.group,
            "acceptance": self.acceptance,
            "excess": excess,
            "common_displacement": float(coordinates[:, -1].mean(0).norm()) / self.reach,
            "arrival": arrival(self, excess),
        }
