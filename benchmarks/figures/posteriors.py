"""Posteriors by eye: the paper's Figures 2, 3, 8, 9 and 12, from the experiment ``pictures``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bands import draw_data, limits_around
from benchmarks.collected import Collected, Record
from benchmarks.datasets import load
from benchmarks.figures.common import Picture, legend_of, new_figure
from benchmarks.pictures import AXES, DEFAULTS
from benchmarks.style import COLOURS, label
from laplace_fiber.plots.bands import draw_bands
from laplace_fiber.plots.surfaces import draw_classes, draw_surface

SEED = 0
MARGIN = 3.0  # of the y axis around Snelson's targets; a band may leave the panel
FORM_TITLES = {
    "gaussian": "Gaussian, covariance of the states",
    "states": "Fiber, states of the walk",
    "latent": "Fiber, latent posterior",
}
AXIS_NAMES = {"alpha": "α / default", "n_steps": "T", "n_particles": "n"}

Panel = tuple[str, str, str, str]
"""Method, form, title and colour of a panel."""

BAND_PANELS: tuple[Panel, ...] = (
    ("laplace", "samples", label("laplace"), COLOURS["laplace"]),
    ("linearised", "samples", label("linearised"), COLOURS["linearised"]),
    ("hmc", "samples", label("hmc"), COLOURS["hmc"]),
    ("fiber", "states", FORM_TITLES["states"], COLOURS["fiber-states"]),
    ("fiber", "latent", FORM_TITLES["latent"], COLOURS["fiber"]),
    ("fiber_typical", "latent", label("fiber_typical"), COLOURS["fiber_typical"]),
)
FORM_PANELS: tuple[Panel, ...] = (
    ("fiber", "gaussian", FORM_TITLES["gaussian"], COLOURS["fiber-gaussian"]),
    ("fiber", "latent", FORM_TITLES["latent"], COLOURS["fiber"]),
    ("hmc", "samples", label("hmc"), COLOURS["hmc"]),
)


def _bands(results: Collected) -> Figure:
    """Figure 2: the bands of several posteriors on Snelson's data, a panel each."""
    figure = new_figure(10.5, 5.4)
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    for axis, (method, form, title, colour) in zip(axes.flat, BAND_PANELS, strict=True):
        _band(axis, _record(results, "snelson", method), form, colour)
        axis.set_title(title, color=colour, fontsize=10, fontweight="bold")
    figure.supxlabel("x")
    figure.supylabel("y")
    return figure


def _forms(results: Collected) -> Figure:
    """Figure 3: what is lost where a Gaussian takes the place of the latent posterior."""
    figure = new_figure(10.5, 8.0)
    axes = figure.subplots(3, 3, sharey="row")
    for column, (method, form, title, colour) in enumerate(FORM_PANELS):
        _band(axes[0, column], _record(results, "snelson", method), form, colour)
        axes[0, column].set_title(title, color=colour, fontsize=10, fontweight="bold")
        record = _record(results, "banana", method)
        probability = _surface(axes[1, column], record, form, "mean")
        spread = _surface(axes[2, column], record, form, "deviation")
    figure.colorbar(probability, ax=axes[1, :], label="class probability", aspect=14)
    figure.colorbar(spread, ax=axes[2, :], label="its standard deviation", aspect=14)
    return figure


def _varied(results: Collected, dataset: str) -> Figure:
    """Figures 8 and 9: the states of the walk, with one parameter of the paper in each row."""
    figure = new_figure(10.5, 6.6)
    axes = figure.subplots(len(AXES), 4, sharex=True, sharey=True)
    drawn: Any = None
    for row, (name, values) in zip(axes, AXES.items(), strict=True):
        for axis, value in zip(row, sorted((*values, DEFAULTS[name])), strict=True):
            method = "fiber" if value == DEFAULTS[name] else f"{name.removeprefix('n_')}-{value:g}"
            record = _record(results, dataset, method)
            if dataset == "snelson":
                _band(axis, record, "states", COLOURS["fiber"])
            else:
                drawn = _surface(axis, record, "states", "deviation")
            default = ", the default" if method == "fiber" else ""
            axis.set_title(f"{AXIS_NAMES[name]} = {value:g}{default}", fontsize=10)
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, label="standard deviation of the class probability", aspect=40)
    return figure


def _components(results: Collected) -> Figure:
    """Figure 12: HMC's samples, and those of several walks over them."""
    picture = _record(results, "banana", "components")["picture"]
    points, shares = picture["points"], picture["explained"]
    walks = [name for name in points if name != "hmc"]
    figure = new_figure(2.3 * len(walks), 3.1)
    axes = figure.subplots(1, len(walks), sharex=True, sharey=True)
    for axis, name in zip(axes, walks, strict=True):
        axis.scatter(*points["hmc"], s=9, color=COLOURS["hmc"], marker="^", alpha=0.7, lw=0, label=label("hmc"))
        walk = "fiber_typical" if name == "typical" else "fiber"
        axis.scatter(*points[name], s=9, color=COLOURS[walk], alpha=0.7, lw=0, label=label(walk))
        axis.plot(0, 0, "*", color=COLOURS["map"], ms=9, label=label("map"))
        axis.set_title("typical set" if name == "typical" else f"T = {name.removeprefix('steps-')}", fontsize=10)
    axes[len(walks) // 2].set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)", fontsize=9)
    axes[0].set_ylabel(f"second component ({100 * shares[1]:.0f} %)", fontsize=9)
    legend_of(figure, axes, 4)
    return figure


def _record(results: Collected, dataset: str, method: str) -> Record:
    (record,) = _records(results, dataset, method)
    return record


def _records(results: Collected, dataset: str, method: str) -> list[Record]:
    wanted = (dataset, method, SEED)
    return [r for r in results.finished("pictures") if (r["dataset"], r["method"], r["seed"]) == wanted]


def _band(axis: Axes, record: Record, form: str, colour: str) -> None:
    picture, dataset = record["picture"], load("snelson", record["seed"])
    x = torch.tensor(picture["x"])
    mean, deviation = (torch.tensor(picture["forms"][form][key]) for key in ("mean", "deviation"))
    draw_bands(axis, x, (mean, deviation.square()), record["settings"]["sigma_noise"], colour)
    draw_data(axis, dataset)
    axis.set_ylim(*limits_around([dataset.train[1], dataset.test[1]], MARGIN))
    axis.set_xlim(float(x.min()), float(x.max()))
    axis.set_xticks(range(-2, 10, 2))


def _surface(axis: Axes, record: Record, form: str, key: str) -> Any:
    picture = record["picture"]
    across, up, data = picture["across"], picture["up"], picture["data"]
    values = torch.tensor(picture["forms"][form][key])
    drawn = draw_surface(axis, (across, up), values, *(("RdBu_r", 1.0) if key == "mean" else ("viridis", 0.5)))
    points = torch.tensor([data["x"], data["y"]]).T
    draw_classes(axis, points, torch.tensor(data["class"]), size=5)
    return drawn


def _needs(*pairs: tuple[str, str]) -> Callable[[Collected], bool]:
    """Whether there are records for all pairs of data set and method."""
    return lambda results: all(_records(results, *pair) for pair in pairs)


def _of_panels(panels: Sequence[Panel], *datasets: str) -> tuple[tuple[str, str], ...]:
    return tuple((dataset, method) for dataset in datasets for method, *_ in panels)


def _of_changes(dataset: str) -> tuple[tuple[str, str], ...]:
    names = [f"{name.removeprefix('n_')}-{value:g}" for name, values in AXES.items() for value in values]
    return tuple((dataset, method) for method in ("fiber", *names))


PICTURES = (
    Picture(
        "figure-2",
        "pictures",
        "Bands of six posteriors on Snelson's data",
        "Figure 2: posteriors on Snelson's data, all with prior precision 1 and not tuned. Bands are two standard "
        "deviations, of the function (dark) and of the target (light).",
        _needs(*_of_panels(BAND_PANELS, "snelson")),
        _bands,
    ),
    Picture(
        "figure-3",
        "pictures",
        "A Gaussian, the latent posterior and HMC on Snelson and Banana",
        "Figure 3: the Gaussian with the mean and covariance of the walk's states, and the latent posterior over the "
        "same walk, with HMC for comparison. Top: Snelson. Below: Banana, class probability and its deviation.",
        _needs(*_of_panels(FORM_PANELS, "snelson", "banana")),
        _forms,
    ),
    Picture(
        "figure-8",
        "pictures",
        "Bands on Snelson for other α, T and n",
        "Figure 8: the walk's states on Snelson's data for other drift lengths α, numbers of drifts T and of "
        "trajectories n. The reach is α T, so that a longer walk goes further.",
        _needs(*_of_changes("snelson")),
        functools.partial(_varied, dataset="snelson"),
    ),
    Picture(
        "figure-9",
        "pictures",
        "Spread on Banana for other α, T and n",
        "Figure 9: the same on Banana: standard deviation of the class probability.",
        _needs(*_of_changes("banana")),
        functools.partial(_varied, dataset="banana"),
    ),
    Picture(
        "figure-12",
        "pictures",
        "Principal components of posterior samples on Banana",
        "Figure 12: posterior samples on Banana, HMC's and those of walks with T drifts of the default's length and of "
        "the walk to the typical set, on the first two principal components of all of them together. The trained "
        "weights are the origin, where the chains start, too.",
        _needs(("banana", "components")),
        _components,
    ),
)
