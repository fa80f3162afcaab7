"""A drift of a walk's particles and the refinement after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from laplace_fiber.descent import Descent

if TYPE_CHECKING:
    from laplace_fiber.walk import Walk

HALVINGS = 6
"""Drifts that particles do not come back from are halved, so often at most."""


def drift_and_refine(walk: Walk, descent: Descent) -> None:
    """Move all particles that are not lost on to the next batch's low loss.

    In a walk to the typical set, whose drifts are as long as the prior is wide, those that do not come back start again
    from where they were: half as far, and so in all later drifts. After the last attempt they stay there. Lost are
    those whose objective was not finite then.
    """
    level, progress = walk.level(walk.data.next_batch()), walk.t / walk.settings.n_steps
    dimension = walk.typical.dimension.at(progress) if walk.typical else None

    def moved(rows: Int[Tensor, " k"]) -> Int[Tensor, " l"]:
        """Try once; the particles that have not come back."""
        drifted = walk.theta[rows].addcmul_(walk.share[rows, None], walk.drift[rows])
        new = descent.refine(level, progress, drifted, walk.eta[rows], walk.normal[rows], dimension, rows)
        back = new.finite
        if walk.typical:
            back = back & walk.typical.is_back(new.data_term - level.data_term, walk.normal[rows])
        kept = rows[back]
        walk.theta[kept], walk.value[kept], walk.eta[kept] = new.theta[back], new.value[back], new.eta[back]
        walk.lost_at[rows] = torch.where(new.finite, walk.settings.n_steps + 1, walk.t)
        return rows[~back]

    for rows in walk.alive():
        missing = moved(rows)
        for _ in range(HALVINGS if walk.typical else 0):
            if len(missing) == 0:
                break
            walk.share[missing] /= 2
            missing = moved(missing)
