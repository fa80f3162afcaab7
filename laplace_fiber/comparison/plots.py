"""Figures of a comparison."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laplace_fiber.comparison.rows import Row

if TYPE_CHECKING:
    from laplace_fiber.comparison.table import Comparison

# The palette of Okabe and Ito, which stays distinct under colour blindness; its yellow is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
OUTLYING = 5.0
PANELS_A_ROW = 6
PANEL_INCHES = 2.0
TITLE_WIDTH = 24
LEAST_SECONDS = 1e-2
"""Fits that take less (the trained network takes none) stand at this place of the logarithmic axis."""


def figure(comparison: Comparison) -> Figure:
    """Cost against NLL above, a reliability diagram for each method below; single seeds are drawn pale.

    Raises
    ------
    ValueError
        No method has finished.
    """
    groups: dict[str, list[Row]] = {}
    for row in comparison.rows:
        if "error" not in row:
            groups.setdefault(row["label"], []).append(row)
    if not groups:
        raise ValueError("plot: expected at least one method that finished, got none; see .rows for their errors.")
    n_rows = math.ceil(len(groups) / PANELS_A_ROW)
    cost_inches = max(3.6, 0.2 * len(groups) + 1.0)
    height = cost_inches + n_rows * (PANEL_INCHES + 0.3) + 0.4
    result = Figure(figsize=(PANELS_A_ROW * PANEL_INCHES, height), layout="constrained")
    parts: Any = result.subfigures(2, 1, height_ratios=[cost_inches, height - cost_inches])
    above, below = parts
    _cost(above.subplots(), groups)
    panels = below.subplots(n_rows, PANELS_A_ROW, sharex=True, sharey=True, squeeze=False)
    _reliability(panels, groups)
    first = next(iter(groups.values()))[0]
    classes = "share" in first["reliability"]
    below.supxlabel("confidence" if classes else "nominal coverage of central intervals", fontsize="medium")
    below.supylabel("accuracy" if classes else "empirical coverage", fontsize="medium")
    return result


def _cost(axes: Axes, groups: dict[str, list[Row]]) -> None:
    """Seconds of the fit against NLL; methods are numbered from the lowest NLL, in the figure and its legend."""
    points = {label: _mean_point(rows) for label, rows in groups.items()}
    top = _top([loss for _, loss in points.values()])
    ordered = sorted(groups, key=lambda label: points[label][1])
    styles = itertools.cycle((marker, colour) for marker in MARKERS for colour in COLOURS)
    for number, (label, (marker, colour)) in enumerate(zip(ordered, styles, strict=False), start=1):
        for row in groups[label] if len(groups[label]) > 1 else []:
            if row["nll"] <= top:
                axes.plot(max(row["fit_seconds"], LEAST_SECONDS), row["nll"], marker, color=colour, alpha=0.25, ms=4)
        seconds, loss = points[label]
        above = f", NLL {loss:.3g}" if loss > top else ""
        place = seconds, min(loss, top)
        axes.plot(*place, marker, color=colour, ms=7, ls="none", label=f"{number}  {label}{above}")
        mark = f"{number} ↑" if above else str(number)
        axes.annotate(mark, place, (5, 4), textcoords="offset points", fontsize="small", color=colour)
    axes.set_xscale("log")
    if not any(seconds > LEAST_SECONDS for seconds, _ in points.values()):
        axes.set_xlim(LEAST_SECONDS / 2, 1.0)
    axes.set(xlabel="seconds of the fit", ylabel="test NLL of the averaged predictive")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize="small")


def _top(losses: Sequence[float]) -> float:
    """The highest NLL that is drawn in its place: one method that fails badly shall not flatten all others."""
    lowest, middle = min(losses), statistics.median(losses)
    return max(loss for loss in losses if loss <= middle + OUTLYING * (middle - lowest) + 1e-9)


def _mean_point(rows: Sequence[Row]) -> tuple[float, float]:
    seconds = statistics.fmean(row["fit_seconds"] for row in rows)
    return max(seconds, LEAST_SECONDS), statistics.fmean(row["nll"] for row in rows)


def _reliability(panels: Sequence[Sequence[Axes]], groups: dict[str, list[Row]]) -> None:
    flat = list(itertools.chain.from_iterable(panels))
    for axes in flat[len(groups) :]:
        axes.remove()
    for axes, (label, rows) in zip(flat, groups.items(), strict=False):
        axes.plot([0, 1], [0, 1], color="#7F7F7F", lw=0.8, ls="--")
        for row in rows:
            diagram = row["reliability"]
            axes.plot(diagram["expected"], diagram["observed"], "-", color=COLOURS[0], lw=1.2, alpha=0.7)
            # The area of a mark tells the bin's share of the data.
            share = diagram.get("share", [0.1] * len(diagram["expected"]))
            sizes = [100 * value + 4 for value in share]
            axes.scatter(diagram["expected"], diagram["observed"], sizes, color=COLOURS[0], alpha=0.7, lw=0)
        axes.set_title(textwrap.fill(label, TITLE_WIDTH), fontsize="small")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelsize="small")
