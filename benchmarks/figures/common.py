"""What all figures share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.collected import Collected, Record
from benchmarks.style import COMPARED, in_order, label, mark
from laplace_fiber.plots.shifts import error_line


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes
    ----------
    name
        Of its file.
    experiment
        Whose results it shows.
    title
        A few words in the place of the picture.
    caption
        One or two sentences: what it shows, and which figure of the paper it is.
    has_results
        Whether there is anything to draw.
    draw
        Draws it.
    """

    name: str
    experiment: str
    title: str
    caption: str
    has_results: Callable[[Collected], bool]
    draw: Callable[[Collected], Figure]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(figure: Figure, n: int, columns: int, x_label: str, y_label: str) -> list[Axes]:
    """The first ``n`` axes of a grid, the others empty; names below the lowest of each column and left of each row."""
    rows = -(-n // columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.set_visible(place < n)
        if place + columns >= n:
            axis.set_xlabel(x_label, fontsize=8)
        if place % columns == 0:
            axis.set_ylabel(y_label, fontsize=8)
        axis.tick_params(labelsize=7)
    return list(axes.flat)[:n]


def method_line(axis: Axes, method: str, points: Mapping[float, Sequence[float]]) -> None:
    """Means and standard errors at each position, joined, in the method's colour."""
    error_line(axis, points, label=label(method), **mark(method))


def legend_of(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """One legend for the lines of several panels, each named once."""
    named: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    order = {label(m): position for position, m in enumerate(COMPARED)}
    names = sorted(named, key=lambda name: order.get(name, len(order)))
    handles = [named[name] for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def methods_of(records: Iterable[Record]) -> list[str]:
    """Their methods, in the order of all tables."""
    return in_order(r["method"] for r in records)
