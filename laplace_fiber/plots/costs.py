"""What methods cost, and what they are worth."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from laplace_fiber.plots.canvas import axes_for, not_empty, plain
from laplace_fiber.plots.style import label, marks

OUTLYING = 5.0
LEAST_SECONDS = 1e-2
"""Fits that take less (the trained network takes none) stand at this place of the logarithmic axis."""


def cost(
    points: Mapping[str, Sequence[tuple[float, float]]],
    labels: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Seconds of the fit against NLL; methods are numbered from the lowest NLL, in the picture and its legend.

    Single seeds are pale, means full. A method that fails badly is drawn at the upper edge with an arrow, and its NLL
    stands in the legend: it shall not flatten all others. Fits of less than a hundredth of a second stand at that.

    Parameters
    ----------
    points
        Of each method by name: seconds and NLL of each seed.
    labels
        Names in the legend, where they differ from those of all figures.

    Raises
    ------
    ValueError
        No methods, or one without points.
    """
    for name, pairs in not_empty(points, "cost").items():
        if not pairs:
            raise ValueError(f"cost: expected (seconds, NLL) of at least one seed of {name}, got none; leave it out.")
    names = {name: (labels or {}).get(name, label(name)) for name in points}
    means = {name: _mean(pairs) for name, pairs in points.items()}
    worst = _worst([loss for _, loss in means.values()])
    top = max(loss for name, (_, mean) in means.items() if mean <= worst for _, loss in points[name])
    axis, styles = axes_for(ax, (7.5, 3.9)), marks(points)
    for number, name in enumerate(sorted(points, key=lambda name: means[name][1]), start=1):
        style = styles[name]
        for seconds, loss in points[name] if len(points[name]) > 1 else ():
            if loss <= top:
                axis.plot(max(seconds, LEAST_SECONDS), loss, alpha=0.25, ms=4, ls="none", **style)
        seconds, loss = means[name]
        above = f", NLL {loss:.3g}" if loss > top else ""
        place = seconds, min(loss, top)
        axis.plot(*place, ms=7, ls="none", label=f"{number}  {names[name]}{above}", **style)
        text = f"{number} ↑" if above else str(number)
        axis.annotate(text, place, (5, 4), textcoords="offset points", fontsize="small", color=style["color"])
    axis.set_xscale("log")
    if not any(seconds > LEAST_SECONDS for seconds, _ in means.values()):
        axis.set_xlim(LEAST_SECONDS / 2, 1.0)
    plain(axis, "seconds of the fit", "test NLL of the averaged predictive")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")
    return axis


def _worst(losses: Sequence[float]) -> float:
    """The highest mean NLL that the axis is made for."""
    lowest, middle = min(losses), statistics.median(losses)
    return max(loss for loss in losses if loss <= middle + OUTLYING * (middle - lowest) + 1e-9)


def _mean(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    seconds, losses = zip(*pairs, strict=True)
    return max(statistics.fmean(seconds), LEAST_SECONDS), statistics.fmean(losses)
