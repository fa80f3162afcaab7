"""Scores along an axis of shift: corruptions, rotations, depth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from laplace_fiber.plots.canvas import axes_for, not_empty, plain
from laplace_fiber.plots.style import in_order, label, marks

LINE: dict[str, Any] = {"lw": 1.3, "ms": 5.0, "capsize": 2.0, "elinewidth": 0.8}


def shift_curves(
    scores: Mapping[str, Mapping[float, float | Sequence[float]]],
    x_label: str = "severity",
    y_label: str = "NLL",
    ax: Axes | None = None,
) -> Axes:
    """A score of several methods against the size of a shift, such as a corruption's severity or a rotation's angle.

    Parameters
    ----------
    scores
        Of each method by name: at each size of the shift one score, or those of several seeds, which become mean and
        standard error.
    x_label, y_label
        Names of the axes, with units.

    Raises
    ------
    ValueError
        No scores.
    """
    axis, styles = axes_for(ax), marks(in_order(not_empty(scores, "shift_curves")))
    for name, style in styles.items():
        points = {size: [v] if isinstance(v, (int, float)) else list(v) for size, v in scores[name].items()}
        error_line(axis, points, label=label(name), **style)
    plain(axis, x_label, y_label)
    axis.legend(fontsize="small", frameon=False)
    return axis


def error_line(axis: Axes, points: Mapping[float, Sequence[float]], **options: Any) -> None:
    """Means and standard errors at each position, joined."""
    places = sorted(points)
    pairs = [summary(points[place]) for place in places]
    means, errors = zip(*pairs, strict=True)
    axis.errorbar(places, means, errors, **LINE, **options)


def summary(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard error; the latter 0 for one value, or where one is not finite."""
    numbers = list(values)
    mean = statistics.fmean(numbers)
    spread = statistics.stdev(numbers) if len(numbers) > 1 and math.isfinite(mean) else 0.0
    return mean, spread / math.sqrt(len(numbers))
