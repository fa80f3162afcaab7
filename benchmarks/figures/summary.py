"""All methods over all data sets: NLL against the trained network's, and against cost."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.collected import WITHOUT_FIT, Collected, Scores
from benchmarks.figures.common import Picture, legend_of, new_figure, panels
from benchmarks.style import COMPARED, in_order, label, mark
from laplace_fiber.plots.shifts import summary

EXPERIMENTS = ("snelson", "banana", "uci", "mnist", "fashion", "cifar10", "cifar10-resnet18")
"""Those that every method takes part in, but for UCI with raw inputs."""

SHOWN_LOSS = 1.0
"""A method that is worse than the MAP by more than this share of the gain of the best is drawn at the edge."""

ROW_HEIGHT = 0.22
MOST_COLUMNS = 5

SHORT_LIST = (
    "temperature",
    "laplace",
    "linearised",
    "low_rank",
    "last_layer",
    "riemannian",
    "vi",
    "espro",
    "swag",
    "ensemble",
    "sgld",
    "sghmc",
    "hmc",
    "fiber",
    "fiber_typical",
    "fiber_stochastic",
)
"""Methods that the README shows, beside the MAP: one of each kind."""


def scores_of_all(results: Collected) -> list[Scores]:
    """Every data set with finished runs, in the order of the experiments."""
    return [results.scores(name, dataset) for name in EXPERIMENTS for dataset in results.datasets(name)]


def _against_map(results: Collected, methods: Sequence[str]) -> Figure:
    """A panel for each data set, a row for each method: paired difference of NLL to the MAP, with standard error."""
    every = [s for s in scores_of_all(results) if "map" in s.by_method]
    methods = [m for m in in_order({m for s in every for m in s.by_method}) if m in methods]
    columns, rows = _grid(len(every))
    figure = new_figure(2.6 + 1.8 * columns, (1.0 + ROW_HEIGHT * len(methods)) * rows)
    axes = panels(figure, len(every), columns, "NLL − NLL of the MAP", "")
    for place, (axis, scores) in enumerate(zip(axes, every, strict=True)):
        _differences(axis, scores, methods)
        axis.set_yticks(range(len(methods)), [label(m) for m in methods] if place % columns == 0 else [])
        axis.set_ylim(len(methods) - 0.5, -0.5)
    return figure


def _grid(n: int) -> tuple[int, int]:
    """Columns and rows for n panels, with few places left empty."""
    rows = -(-n // MOST_COLUMNS)
    return -(-n // rows), rows


def _differences(axis: Axes, scores: Scores, methods: Sequence[str]) -> None:
    found = {m: scores.difference(m, "map") for m in methods}
    gaps = {m: gap for m, gap in found.items() if gap is not None}
    gain = max((-gap.mean for gap in gaps.values()), default=0.0) or 1.0
    gain = max(gain, 1e-3)
    edge = SHOWN_LOSS * gain
    for row, method in enumerate(methods):
        if method not in gaps:
            continue
        gap = gaps[method]
        if gap.mean > edge:
            axis.plot(edge, row, marker=">", color=mark(method)["color"], ms=5)
            continue
        axis.errorbar(gap.mean, row, xerr=gap.error or 0.0, **mark(method), ms=5, capsize=2, elinewidth=1.0)
    axis.axvline(0.0, color="0.4", lw=0.8)
    lowest = min((gap.mean - (gap.error or 0.0) for gap in gaps.values()), default=0.0)
    axis.set_xlim(min(1.1 * lowest, -0.2 * gain), 1.12 * edge)
    axis.set_title(scores.dataset, fontsize=9)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(axis="y", color="0.9", lw=0.6)
    axis.set_axisbelow(True)


def _cost(results: Collected) -> Figure:
    """Seconds of the fit against NLL, a panel for each data set."""
    every = scores_of_all(results)
    columns, rows = _grid(len(every))
    figure = new_figure(2.3 * columns, 2.3 * rows + 1.2)
    axes = panels(figure, len(every), columns, "seconds of the fit", "NLL")
    for axis, scores in zip(axes, every, strict=True):
        _costs(axis, scores)
    legend_of(figure, axes, 5)
    return figure


def _costs(axis: Axes, scores: Scores) -> None:
    points = {m: (summary(scores.values(m, "fit_seconds"))[0], scores.mean(m)) for m in in_order(scores.complete())}
    losses = sorted(loss for _, loss in points.values() if loss is not None)
    worst = losses[0] + 2.5 * (losses[len(losses) // 2] - losses[0]) if losses else 1.0  # others would flatten the rest
    for method, (seconds, loss) in points.items():
        if method in WITHOUT_FIT or loss is None:
            continue
        axis.plot(seconds, min(loss, worst), ls="", ms=6, label=label(method), **mark(method))
    if "map" in points:
        axis.axhline(scores.mean("map") or 0.0, color="0.4", lw=0.8, ls="--", label="MAP")
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())  # labels between decades overlap in small panels
    axis.set_ylim(top=worst + 0.06 * (worst - losses[0]))
    axis.set_title(scores.dataset, fontsize=9)


def _any(results: Collected) -> bool:
    return any("map" in scores.by_method for scores in scores_of_all(results))


def _of(name: str, which: str, methods: Sequence[str]) -> Picture:
    caption = (
        f"NLL of the averaged predictive on test data minus that of the trained network by itself, {which}: mean and "
        "standard error of the difference, paired over seeds; left is better. Triangles lie further right."
    )
    return Picture(
        name,
        "snelson",
        f"NLL against the MAP's, {which}",
        caption,
        _any,
        functools.partial(_against_map, methods=methods),
    )


PICTURES = (
    _of("nll-against-map", "all methods", [m for m in COMPARED if m != "map"]),
    _of("nll-against-map-short", "one method of each kind", SHORT_LIST),
    Picture(
        "cost",
        "snelson",
        "Seconds against NLL",
        "Seconds of the fit against NLL, means over seeds. The dashed line is the trained network by itself; points at "
        "the upper edge lie beyond it.",
        _any,
        _cost,
    ),
)
