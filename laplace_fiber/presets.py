"""Walks for a purpose: settings of the trajectory sampler that belong together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from laplace_fiber.data import TrainingData, are_few
from laplace_fiber.refinement import RefineToTypicalSet
from laplace_fiber.stochastic import StochasticRefinement
from laplace_fiber.thermal import Thermalisation
from laplace_fiber.trajectories import TrajectorySampler


def automatic_walk(data: TrainingData) -> TrajectorySampler:
    """The walk of a posterior that was given none: the plain one where a step sees all (few) data, else among batches.

    On few data the stochastic walk is better, too, but each prior precision that is tried needs another one.
    """
    return TrajectorySampler() if data.full else stochastic_walk()


def typical_set_walk(**settings: Any) -> TrajectorySampler:
    """The walk whose settings follow from the posterior: it ends in the typical set of exp(−J).

    Trajectories have lengths of the prior, are refined to the losses that the effective number of parameters implies,
    and end with a few Hamiltonian moves, after the last three of which the states are samples. ``settings`` override
    those of this preset.
    """
    preset: dict[str, Any] = {
        "n_particles": 128,
        "n_steps": 10,
        "lengths": "prior",
        "refinement": RefineToTypicalSet(),
        "descent": "quasi-newton",
        "thermal": Thermalisation(n_kept=3),
    }
    return TrajectorySampler(**preset | settings)


def stochastic_walk(
    loader: Iterable[Any] | None = None, *, dict_key_y: str = "labels", **settings: Any
) -> TrajectorySampler:
    """The walk for data that come in batches, and for networks that are trained so: one far drift, then some epochs of
    Adam.

    Samples lie where these end. Drifts have half the lengths of the prior, but at most five times that of the trained
    weights: from further away so few steps do not come back to low loss. There are 4 particles, or 16 where these take
    little longer (small networks without convolutions); more are better, in proportion to their cost.

    Parameters
    ----------
    loader
        The training data, if the walk shall follow their number. Few data (inputs of at most 2¹⁶ numbers in all) leave
        more of the weights undetermined, and cost little: there are 32 particles, and a few Hamiltonian moves on all
        data end the walk, since Adam alone fits such data too closely.
    dict_key_y
        Of dict-like batches: the targets' key.
    settings
        Override those of this preset.
    """
    few = loader is not None and are_few(loader, dict_key_y)
    preset: dict[str, Any] = {
        "n_particles": 32 if few else None,
        "n_steps": 1,
        "radius_share": 0.5,
        "norm_share": 5.0,
        "lengths": "prior",
        "refinement": StochasticRefinement(),
        "thermal": Thermalisation() if few else None,
    }
    return TrajectorySampler(**preset | settings)
