"""Distances of all methods from long HMC, over all problems."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.collected import Collected
from benchmarks.fidelity.conditions import PLACES, Conditions, all_conditions, row_name
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.run import REFERENCE
from benchmarks.figures.common import Picture, new_figure, panels
from laplace_fiber.plots.style import PALETTE

NETWORK = "map"
"""Whose distance is one."""

ROW_HEIGHT = 0.3
SPREAD = 0.6
"""Share of a row's height that its dots take."""


def _distances(results: Collected) -> Figure:
    """Two panels, inside and outside the data; a row for each method, a dot for each problem, its mean a line."""
    conditions = all_conditions(results)
    methods = [REFERENCE, *(m for m in METHODS if m != NETWORK)]
    figure = new_figure(9.0, 1.3 + ROW_HEIGHT * len(methods))
    axes = panels(figure, 2, 2, "distance from HMC / the trained network's", "")
    for place, (axis, where) in enumerate(zip(axes, PLACES, strict=True)):
        for row, method in enumerate(methods):
            _row(axis, row, method, f"wasserstein_{where}", conditions)
        axis.set_yticks(range(len(methods)), [row_name(m) for m in methods] if place == 0 else [])
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.set_xscale("log")
        axis.axvline(1.0, color="0.4", lw=0.8)
        axis.grid(axis="x", color="0.92", lw=0.6)
        axis.set_title(f"{where} the data", fontsize=9)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles[: len(conditions)], names[: len(conditions)], loc="outside lower center", ncols=4, fontsize=8)
    return figure


def _row(axis: Axes, row: int, method: str, measure: str, conditions: list[Conditions]) -> None:
    ratios = []
    for k, c in enumerate(conditions):
        height = row + SPREAD * ((k + 0.5) / len(conditions) - 0.5)
        pairs = [(c.mean(p, method, measure), c.mean(p, NETWORK, measure)) for p in c.problems]
        found = [mine / network for mine, network in pairs if mine is not None and network]
        axis.plot(found, [height] * len(found), "o", ms=3.5, color=PALETTE[k], alpha=0.7, mew=0, label=c.title)
        ratios += found
    if ratios:
        middle = statistics.geometric_mean(ratios)
        axis.plot([middle, middle], [row - 0.4, row + 0.4], color="black", lw=1.8)


PICTURES = (
    Picture(
        "distances",
        "fidelity",
        "Distances from long HMC",
        "1-Wasserstein distance of the predictive from long HMC's, over that of the trained network by itself: a dot "
        "for each problem (mean over seeds), a line at their geometric mean; left is better. The first row is what "
        "chance makes.",
        lambda results: bool(all_conditions(results)),
        _distances,
    ),
)
