"""Scores along an axis: the paper's Figures 5 (depth), 6 and 7 (shifted inputs), 10 and 11 (settings)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import paper
from benchmarks.collected import WITHOUT_FIT, Collected, Record, grouped, score_of
from benchmarks.figures.common import Picture, legend_of, method_line, methods_of, new_figure, panels
from benchmarks.style import in_order, label, mark
from laplace_fiber import LatentAutoencoder, RefineToLevel, TrajectorySampler
from laplace_fiber.plots.shifts import error_line

LINES = ("map", *(m for m in paper.METHODS if m != "hmc"), "fiber_typical", "fiber_stochastic")
"""Methods with a line in Figures 6 and 7: more than the paper's would hide each other."""

OFF_SCALE = 2.0
"""NLL of Figure 5 beyond so many times the trained network's, at its worst depth, is off the scale."""

CORRUPTIONS_IN_A_ROW = 5
CORRUPTED = (("cifar10-resnet18", "cifar10"), ("cifar10", "cifar10-small"))
"""Experiment and data set of Figure 6, in the order of preference."""

DEFAULT = "default"
"""Axis of the run of ``sensitivity`` with all settings at their defaults, which belongs to every axis."""

SETTING_NAMES = {
    "reach": "reach / prior radius",
    "alpha": "α / default",
    "n_steps": "drifts T",
    "n_particles": "trajectories n",
    "refinements": "refinements M",
    "level": "level (nats per parameter)",
    "latent_size": "latent size",
    "lambda_plus": "λ₊",
    "lambda_minus": "λ₋",
}
FIGURE_10_AXES = ("reach", "n_steps", "n_particles", "refinements", "level")
"""What the walk depends on; the others follow in Figure 11."""

DEFAULTS: dict[str, float] = {
    "reach": 1.0,
    "n_steps": TrajectorySampler().n_steps,
    "n_particles": TrajectorySampler().particle_count,
    "level": RefineToLevel().nats_per_parameter,
    "latent_size": LatentAutoencoder().latent_size,
    "lambda_plus": LatentAutoencoder().lambda_plus,
    "lambda_minus": LatentAutoencoder().lambda_minus,
}
"""Where the default lies on an axis; on others it is no number, and drawn last."""


# --- Figure 5 --------------------------------------------------------------------------------------------------------


def layers_of(record: Record) -> int:
    """Hidden layers of the network of a run of ``scaling``, whose data sets are named ``layers-1`` to ``layers-9``."""
    return int(record["dataset"].rpartition("-")[2])


def _scaling(results: Collected) -> Figure:
    """Log time and NLL against depth; a cross where a method failed, a triangle where its NLL is off the scale."""
    records = results.all_of("scaling")
    figure = new_figure(9.5, 4.2)
    time_axis, loss_axis = figure.subplots(1, 2)
    losses: dict[str, dict[int, float]] = {}
    for method in methods_of(records):
        mine = [r for r in records if r["method"] == method]
        done = [r for r in mine if r["status"] == "finished"]
        for axis, value in ((time_axis, log_seconds), (loss_axis, score_of)):
            if done and (points := grouped(done, layers_of, value)):
                method_line(axis, method, points)
        losses[method] = {layers: mean(v) for layers, v in grouped(done, layers_of, score_of).items()}
        failed = {layers_of(r) for r in mine} - {layers_of(r) for r in done}
        for axis in (time_axis, loss_axis):
            for layers in sorted(failed):
                _at_edge(axis, layers, method, "x")
    depths = sorted({layers_of(r) for r in records})
    for axis, name in ((time_axis, "log₁₀ seconds of fit and prediction"), (loss_axis, "NLL")):
        axis.set_xticks(depths)
        axis.set_xlabel("hidden layers")
        axis.set_ylabel(name)
        axis.grid(color="0.92", lw=0.6)
    _leave_off_scale(loss_axis, losses)
    legend_of(figure, (time_axis, loss_axis), 4)
    return figure


def _leave_off_scale(axis: Axes, losses: Mapping[str, Mapping[int, float]]) -> None:
    """End the axis where the methods' mean losses are no longer comparable; triangles stand for those beyond."""
    if not losses.get("map"):
        return
    top = OFF_SCALE * max(losses["map"].values())
    shown = [v for of_method in losses.values() for v in of_method.values() if v <= top]
    if len(shown) == sum(map(len, losses.values())):
        return
    axis.set_ylim(min(shown) - 0.1 * (top - min(shown)), top)
    for method, of_method in losses.items():
        for layers, value in of_method.items():
            if value > top:
                _at_edge(axis, layers, method, "^")


def _at_edge(axis: Axes, layers: int, method: str, sign: str) -> None:
    """A sign at the upper edge, in axes' coordinates."""
    axis.plot(layers, 0.97, sign, color=mark(method)["color"], ms=8, transform=axis.get_xaxis_transform())


def log_seconds(record: Record) -> float | None:
    """Base-10 logarithm of the seconds of fit and prediction; None for a method without a fit."""
    seconds = record["fit_seconds"] + record.get("predict_seconds", 0.0)
    return None if record["method"] in WITHOUT_FIT else math.log10(seconds)


# --- Figures 6 and 7 -------------------------------------------------------------------------------------------------


def shifted(records: Sequence[Record], kind: str, measure: str = "nll") -> dict[str, dict[str, list[float]]]:
    """Values under each shift of a kind, by method."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for shift, scores in record.get("shifts", {}).get(kind, {}).items():
            found.setdefault(record["method"], {}).setdefault(shift, []).append(scores[measure])
    return found


def corruption_records(results: Collected) -> list[Record]:
    """Runs on corrupted images with a posterior over the last two layers: of ResNet-18 or else of the small network."""
    for experiment, dataset in CORRUPTED:
        records = [r for r in results.finished(experiment) if r["dataset"] == dataset and "shifts" in r]
        if records:
            return records
    return []


def _rotation(results: Collected) -> Figure:
    """Log-likelihood of rotated digits against the angle."""
    found = shifted(results.finished("mnist"), "rotation")
    figure = new_figure(7.5, 5.0)
    axis = figure.subplots()
    for method in _ordered(found):
        method_line(axis, method, _log_likelihoods(found[method], float))
    axis.set_xlabel("rotation (degrees)")
    axis.set_ylabel("log-likelihood")
    axis.grid(color="0.92", lw=0.6)
    legend_of(figure, [axis], 3)
    return figure


def _corruption(results: Collected) -> Figure:
    """Log-likelihood under each corruption against its severity, a panel each."""
    found = shifted(corruption_records(results), "corruption")
    names = sorted({shift.split("/")[0] for values in found.values() for shift in values})
    figure = new_figure(2.1 * CORRUPTIONS_IN_A_ROW, 1.9 * -(-len(names) // CORRUPTIONS_IN_A_ROW) + 0.9)
    axes = panels(figure, len(names), CORRUPTIONS_IN_A_ROW, "severity", "log-likelihood")
    for axis, name in zip(axes, names, strict=True):
        for method in _ordered(found):
            chosen = {s: v for s, v in found[method].items() if s.startswith(f"{name}/")}
            if chosen:
                method_line(axis, method, _log_likelihoods(chosen, _severity))
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xticks(range(1, 6))
    legend_of(figure, axes, 5)
    return figure


def _severity(shift: str) -> float:
    return float(shift.rpartition("/")[2])


def _log_likelihoods(values: Mapping[str, list[float]], place: Callable[[str], float]) -> dict[float, list[float]]:
    return {place(shift): [-v for v in found] for shift, found in values.items()}


def _ordered(found: Mapping[str, object]) -> list[str]:
    return [m for m in in_order(found) if m in LINES]


# --- Figures 10 and 11 -----------------------------------------------------------------------------------------------


def settings_axes(results: Collected) -> list[str]:
    """Settings that the sensitivity runs vary, those of the walk first."""
    found = {r["settings"]["axis"] for r in results.finished("sensitivity")} - {DEFAULT}
    return sorted(found, key=lambda axis: (axis not in FIGURE_10_AXES, axis))


def on_axis(results: Collected, axis: str) -> list[tuple[float, Record]]:
    """Values and runs of one setting, the default's among them; infinite where the default is no number."""
    found = []
    for record in results.finished("sensitivity"):
        place = record["settings"]["axis"]
        if place == axis:
            found.append((float(record["settings"]["value"]), record))
        elif place == DEFAULT:
            found.append((float(DEFAULTS.get(axis, math.inf)), record))
    return found


def _sensitivity(results: Collected, of_walk: bool) -> Figure:
    """NLL against settings: a row for each data set, a column for each setting."""
    axes_names = [a for a in settings_axes(results) if (a in FIGURE_10_AXES) == of_walk]
    datasets = results.datasets("sensitivity")
    figure = new_figure(2.7 * len(axes_names) + 0.6, 2.1 * len(datasets) + 0.9)
    axes = figure.subplots(len(datasets), len(axes_names), squeeze=False, sharex="col")
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, name in zip(row, axes_names, strict=True):
            _setting(axis, [(value, r) for value, r in on_axis(results, name) if r["dataset"] == dataset])
        row[0].set_ylabel(f"{dataset}\nNLL", fontsize=9)
    for axis, name in zip(axes[-1], axes_names, strict=True):
        axis.set_xlabel(SETTING_NAMES.get(name, name), fontsize=9)
    legend_of(figure, axes.flat, 4)
    return figure


def _setting(axis: Axes, placed: Sequence[tuple[float, Record]]) -> None:
    """Validation dashed, test solid, for each walk; the values evenly spaced, since most are powers."""
    values = sorted({value for value, _ in placed})
    position = {value: float(i) for i, value in enumerate(values)}
    for walk in sorted({walk_of(r) for _, r in placed}):
        mine = [(value, r) for value, r in placed if walk_of(r) == walk]
        for part, style in (("test", "-"), ("validation", "--")):
            losses: dict[float, list[float]] = {}
            for value, record in mine:
                losses.setdefault(position[value], []).append(record["metrics"][part]["nll"])
            error_line(axis, losses, label=f"{label(walk)}, {part}", ls=style, **mark(walk))
    axis.set_xticks(list(position.values()), [f"{v:g}" if math.isfinite(v) else "default" for v in values], fontsize=7)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(color="0.92", lw=0.6)


def walk_of(record: Record) -> str:
    """Which of FiberLaplace's walks a run took."""
    return "fiber_typical" if "typical" in record["method"] else "fiber"


def _has_settings(results: Collected, of_walk: bool) -> bool:
    return any((axis in FIGURE_10_AXES) == of_walk for axis in settings_axes(results))


PICTURES = (
    Picture(
        "figure-5",
        "scaling",
        "Time and NLL against depth",
        "Figure 5: seconds (base-10 logarithm) and NLL against the number of hidden layers of 64 units; crosses at the "
        "upper edge: the method failed; triangles there: its NLL is higher.",
        lambda results: bool(results.finished("scaling")),
        _scaling,
    ),
    Picture(
        "figure-6",
        "cifar10",
        "Log-likelihood under corruptions",
        "Figure 6: log-likelihood of the first test images of CIFAR-10 under 15 corruptions, against severity; the "
        "paper's methods, all others are in the table.",
        lambda results: bool(corruption_records(results)),
        _corruption,
    ),
    Picture(
        "figure-7",
        "mnist",
        "Log-likelihood against rotation",
        "Figure 7: log-likelihood of MNIST's first test images against the angle of their "
        "rotation; the paper's methods, all others are in the table.",
        lambda results: bool(shifted(results.finished("mnist"), "rotation")),
        _rotation,
    ),
    Picture(
        "figure-10",
        "sensitivity",
        "NLL against the settings of the walk",
        "Figure 10: NLL against the settings of the walk; nothing is chosen afterwards.",
        functools.partial(_has_settings, of_walk=True),
        functools.partial(_sensitivity, of_walk=True),
    ),
    Picture(
        "figure-11",
        "sensitivity",
        "NLL against the latent size and other settings",
        "Figure 11: NLL against the latent size and the other settings.",
        functools.partial(_has_settings, of_walk=False),
        functools.partial(_sensitivity, of_walk=False),
    ),
)
