"""The demonstration: one-dimensional regression on Snelson's data, in the manner of the paper's Figures 2 and 3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks import environment
from benchmarks.bands import draw_data, limits_around
from benchmarks.datasets import Dataset, load, snelson_grid
from benchmarks.methods import METHODS, Effort
from benchmarks.models import noise_scale, train
from benchmarks.report import markdown_table
from benchmarks.style import COLOURS, MEASURES, label
from benchmarks.tabular import scores_and_times
from laplace_fiber.metrics import Prediction, moments
from laplace_fiber.plots.bands import draw_bands

SEED = 0
PANELS = ("la-gn", "la-lowrank", "lla", "fiber-gaussian", "fiber-latent", "fiber-states")
DRAWN_AS_CURVES = "fiber-states"
N_CURVES = 30
# 22 validation points inside the data say nothing about the bands outside: the training data choose the precision.
BY_EVIDENCE = Effort(tuning="marglik")
MARGIN = 1.2  # of the y axis around the data; a band may leave the panel


def main(out: Path) -> None:
    """Fit every method of the figure to one network; print a table, write it as JSON, draw the figure to ``out``."""
    dataset = load("snelson", SEED)
    model = train(dataset, SEED)
    sigma = noise_scale(model, dataset)
    grid = snelson_grid()
    rows, curves = {}, {}
    for method in tqdm(("map", *PANELS), desc="methods"):
        fitted = METHODS[method](model, dataset, sigma, SEED, BY_EVIDENCE)
        rows[method] = {**scores_and_times(fitted, dataset, sigma), "settings": fitted.info}
        curves[method] = fitted.predict(dataset.scale(grid))
        rows[method]["spread_ratio"] = _spread_ratio(grid, dataset, curves[method])
    print(_table(rows))
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {"seed": SEED, "sigma_noise": sigma, "environment": environment.describe(), "methods": rows}
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    _figure(dataset, sigma, grid, curves, out)
    print(f"\nFigure: {out}")


def _table(rows: dict[str, dict[str, Any]]) -> str:
    """Scores on the test data, and times."""
    columns = ("nll", "nll_per_sample", "rmse", "calibration_error", "spread_ratio", "fit_seconds", "predict_seconds")
    body = [
        [label(method), *(f"{row['metrics']['test'].get(c, row.get(c)):.3f}" for c in columns)]
        for method, row in rows.items()
    ]
    return markdown_table(["method", *(MEASURES[c] for c in columns)], body)


def _spread_ratio(grid: Tensor, dataset: Dataset, prediction: Prediction) -> float:
    """Mean standard deviation of the function outside the range of the data over that inside."""
    x, deviation = dataset.scale(grid).flatten(), moments(prediction)[1].sqrt()
    inside = (x >= dataset.train[0].min()) & (x <= dataset.train[0].max())
    return float(deviation[~inside].mean() / deviation[inside].mean())


def _figure(dataset: Dataset, sigma: float, grid: Tensor, curves: dict[str, Prediction], out: Path) -> None:
    """One panel per method on shared axes: data, MAP, mean and two-sigma bands, or single functions."""
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    x = grid.flatten()
    for method, axis in zip(PANELS, axes.flat, strict=True):
        if method == DRAWN_AS_CURVES:
            _draw_curves(axis, x, curves[method], COLOURS[method])
        else:
            draw_bands(axis, x, moments(curves[method]), sigma, COLOURS[method])
        axis.plot(x, curves["map"][0].flatten(), color=COLOURS["map"], lw=1.2, ls="--", label=label("map"))
        draw_data(axis, dataset)
        axis.set_title(label(method), color=COLOURS[method], fontweight="bold")
        if method in (PANELS[0], DRAWN_AS_CURVES):  # the others show the same things in their own colour
            axis.legend(loc="lower right", fontsize=8, framealpha=0.9)
    axes[0, 0].set_ylim(*limits_around([dataset.train[1], dataset.test[1]], MARGIN))
    axes[0, 0].set_xlim(float(x.min()), float(x.max()))
    figure.supxlabel("x")
    figure.supylabel("y")
    figure.savefig(out, dpi=150)


def _draw_curves(axis: Axes, x: Tensor, prediction: Prediction, colour: str) -> None:
    """The first functions drawn from the posterior, one by one."""
    if isinstance(prediction, tuple):
        raise TypeError("Expected sampled functions; got a closed form, which has no single functions to draw.")
    for index, function in enumerate(prediction[:N_CURVES]):
        name = f"{N_CURVES} draws of f" if index == 0 else None
        axis.plot(x, function.flatten(), color=colour, lw=0.7, alpha=0.6, label=name)
