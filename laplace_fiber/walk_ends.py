"""How a walk ends: with Hamiltonian moves, or by settling on many batches; and how far from the minimum of J."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from laplace_fiber.data import FULL_BATCH_LIMIT, TrainingData
from laplace_fiber.draws import normal
from laplace_fiber.gradients import evaluation_group
from laplace_fiber.refinement import Refinement, RefineToTypicalSet
from laplace_fiber.settling import Settling
from laplace_fiber.stochastic import StochasticRefinement
from laplace_fiber.thermal import Heat, Thermalisation
from laplace_fiber.typical_set import Arrival

if TYPE_CHECKING:
    from laplace_fiber.walk import Walk


def exact_moves(
    thermal: Thermalisation | None, refinement: Refinement | StochasticRefinement, data: TrainingData
) -> Thermalisation | None:
    """The Hamiltonian moves that a walk on these data can end with; says so where it cannot.

    They need all data at once, also where refinement takes batches one after another.
    """
    among_batches = isinstance(refinement, StochasticRefinement) and data.n_data <= FULL_BATCH_LIMIT
    if thermal is None or data.full or among_batches:
        return thermal
    warnings.warn(
        "thermal: expected batch='full', got batches of a loader, whose gradients are not exact; the walk's ends are "
        f"left as they are. Set thermal=None, or batch='full'; with StochasticRefinement, up to {FULL_BATCH_LIMIT:,} "
        "points are taken at once by themselves.",
        stacklevel=3,
    )
    return None


def thermalise(walk: Walk, thermal: Thermalisation, bar: tqdm[Any]) -> float:
    """Move the particles at the walk's end, and note the states to keep; the acceptance of the last trajectory."""
    n, batch, size, acceptance = walk.n_particles, walk.data.everything(), walk.theta.shape[1] + 2, math.nan
    heat = Heat(thermal, walk.joint, batch, walk.recorder, walk.sharpness)
    group = walk.group
    if not walk.data.full:  # it was found for smaller batches
        group = min(group, walk.settings.chunk_size or evaluation_group(walk.joint, walk.theta, batch))
    accepted = torch.full_like(walk.value, math.nan)

    def mean() -> float:
        nonlocal acceptance
        acceptance = float(walk.ranks.gather(accepted, n).nanmean())
        return acceptance

    for k in heat.rounds(mean):
        for rows in walk.alive(group):
            particles = (walk.own.start + rows).tolist()
            draws = torch.stack([normal(size, walk.settings.seed, i, k) for i in particles])
            state, probability = heat.moved(walk.theta[rows], draws.to(walk.theta))
            walk.theta[rows], walk.value[rows] = state.theta, state.value / walk.joint.n_data
            accepted[rows] = probability.to(accepted)
            walk.descent.counts.evaluated += len(rows) * (thermal.n_leapfrog + 1)
        if thermal.n_trajectories - thermal.n_kept < k < thermal.n_trajectories:
            walk.further_ends.append(walk.basis.append(walk.displacements()))
        bar.update()
    return acceptance


def settle(walk: Walk, dimension: float) -> tuple[float, float]:
    """Bring particles that were refined on single batches to their levels on all data; mean excess and its error."""
    refinement = walk.settings.refinement
    assert isinstance(refinement, RefineToTypicalSet)
    # Where a drift ended with shorter steps than at the MAP, curvature is higher.
    step_size = walk.eta.clamp(max=walk.settings.step_size or 1.0 / walk.sharpness)
    settling = Settling(walk.joint, walk.recorder, refinement, walk.theta, step_size, dimension)
    for _ in settling.rounds():
        level = walk.level(walk.data.next_batch())
        for rows in walk.alive():
            walk.theta[rows], stepped = settling.settled(rows, walk.theta[rows], walk.normal[rows], level)
            walk.descent.counts.evaluated += stepped
    for rows in walk.alive():
        energy = walk.joint.prior_energy(walk.theta[rows])
        walk.value[rows] = (walk.joint.data_term(walk.theta[rows], level.batch) + energy) / walk.joint.n_data
    alive = walk.lost_at > walk.settings.n_steps
    figures = (settling.excess[alive], settling.errors[alive].square())
    *sums, count = walk.ranks.sum(*(float(f.sum()) for f in figures), float(alive.sum()))
    return sums[0] / max(count, 1), (sums[1] / max(count, 1)) ** 0.5


def mean_excess(walk: Walk) -> float:
    """Mean over the particles, on the walk's last batch if they have not settled on many."""
    if walk.settled:
        return walk.settled[0]
    level = walk.level(walk.data.next_batch())
    terms = [walk.joint.data_term(walk.theta[rows], level.batch) for rows in walk.alive()]
    mine = torch.cat(terms) - level.data_term if terms else walk.value[:0]
    total, count = walk.ranks.sum(float(mine.sum()), len(mine))
    return total / max(count, 1)


def arrival(walk: Walk, excess: float) -> Arrival | None:
    """Where the particles of a walk to the typical set are, from their mean excess, and where they should be."""
    if walk.typical is None:
        return None
    alive = walk.theta[walk.lost_at > walk.settings.n_steps]
    distances = (alive - walk.typical.centre).norm(dim=1)
    total, count, shares = walk.ranks.sum(float(distances.sum()), len(alive), float(walk.share.sum()))
    error, moved = walk.settled[1] if walk.settled else 0.0, walk.thermal is not None
    return walk.typical.arrival(
        walk.joint, excess, error, total / max(count, 1), moved, drift_share=shares / walk.n_particles
    )
