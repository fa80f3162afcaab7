"""A drift of a walk's particles and the refinement after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from laplace_fiber.descent import Descent

if TYPE_CHECKING:
    from laplace_fiber.walk import Walk

HALVINGS = 6
"""A drift to the typical set that refinement does not come back from is halved, so often at most."""


def drift_and_refine(walk: Walk, descent: Descent) -> None:
    """Move all particles that are not lost on to the next batch's low loss.

    In a walk to the typical set, whose drifts are as long as the prior is wide, those that do not come back to about
    the expected loss start again from where they were: half as far, and so in all later drifts. After the last attempt
    they stay there.
    """
    level, progress = walk.level(walk.data.next_batch()), walk.t / walk.settings.n_steps
    typical = walk.typical
    dimension = typical.dimension.at(progress) if typical else None

    def moved(rows: Int[Tensor, " k"]) -> Int[Tensor, " l"]:
        """Try once; the particles that are to try again."""
        drifted = walk.theta[rows].add_(walk.share[rows, None] * walk.drift[rows])
        new = descent.refine(level, progress, drifted, walk.eta[rows], walk.normal[rows], dimension, rows)
        back = new.finite
        if typical:
            back = back & typical.is_back(new.data_term - level.data_term, progress)
        kept = rows[back]
        walk.theta[kept], walk.value[kept], walk.eta[kept] = new.theta[back], new.value[back], new.eta[back]
        return rows[~back]

    for rows in walk.alive():
        missing = moved(rows)
        for _ in range(HALVINGS if typical else 0):
            if len(missing) == 0:
                break
            walk.share[missing] /= 2
            missing = moved(missing)
        if not typical:
            walk.lost_at[missing] = walk.t
