"""Figures of a comparison."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from laplace_fiber.comparison.rows import Row
from laplace_fiber.plots.calibration import draw_reliability
from laplace_fiber.plots.costs import cost
from laplace_fiber.plots.style import marks

if TYPE_CHECKING:
    from laplace_fiber.comparison.table import Comparison

PANELS_A_ROW = 6
PANEL_INCHES = 2.0
TITLE_WIDTH = 24


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
            groups.setdefault(row["method"], []).append(row)
    if not groups:
        raise ValueError("plot: expected at least one method that finished, got none; see .rows for their errors.")
    n_rows = math.ceil(len(groups) / PANELS_A_ROW)
    cost_inches = max(3.6, 0.2 * len(groups) + 1.0)
    height = cost_inches + n_rows * (PANEL_INCHES + 0.3) + 0.4
    result = Figure(figsize=(PANELS_A_ROW * PANEL_INCHES, height), layout="constrained")
    parts: Any = result.subfigures(2, 1, height_ratios=[cost_inches, height - cost_inches])
    above, below = parts
    points = {name: [(row["fit_seconds"], row["nll"]) for row in rows] for name, rows in groups.items()}
    cost(points, {name: rows[0]["label"] for name, rows in groups.items()}, above.subplots())
    panels = below.subplots(n_rows, PANELS_A_ROW, sharex=True, sharey=True, squeeze=False)
    _reliability(panels, groups)
    first = next(iter(groups.values()))[0]
    classes = "share" in first["reliability"]
    below.supxlabel("confidence" if classes else "nominal coverage of central intervals", fontsize="medium")
    below.supylabel("accuracy" if classes else "empirical coverage", fontsize="medium")
    return result


def _reliability(panels: Sequence[Sequence[Axes]], groups: dict[str, list[Row]]) -> None:
    flat = list(itertools.chain.from_iterable(panels))
    for axes in flat[len(groups) :]:
        axes.remove()
    styles = marks(groups)
    for axes, (name, rows) in zip(flat, groups.items(), strict=False):
        axes.plot([0, 1], [0, 1], color="#7F7F7F", lw=0.8, ls="--")
        for row in rows:
            draw_reliability(axes, row["reliability"], **styles[name])
        axes.set_title(textwrap.fill(rows[0]["label"], TITLE_WIDTH), fontsize="small")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.tick_params(labelsize="small")
