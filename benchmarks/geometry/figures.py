"""The figures of ``docs/geometry.md``, from the results on record."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.bands import draw_data
from benchmarks.datasets import load
from benchmarks.figures.common import new_figure
from benchmarks.style import COLOURS, label
from laplace_fiber.plots.bands import draw_bands

DPI = 130
INK, MUTED = "#222222", "#7F7F7F"
LOSS_ABOVE = (1.0, 3.0, 10.0)
"""Contours of the training NLL, in nats per point above the trained network's."""

WIDEST = 1.8
"""Largest α of the tangent that is shown; beyond 2, the outgoing weight has another sign."""

CURVES = {
    "straight": (COLOURS["la-gn"], "-", "straight"),
    "straight, scaling removed": (COLOURS["la-lowrank"], "--", "straight, scaling removed"),
    "straight, matched": (COLOURS["fiber-gaussian"], "-.", "straight, units matched"),
    "along the walk, through its start": (COLOURS["fiber-states"], "-", "along the walk, through its start"),
    "through the latent space": (COLOURS["fiber-latent"], "--", "through the latent space"),
}


def draw(results: Path, docs: Path) -> list[Path]:
    """Write the figures of all parts on record; returns their files."""
    docs.mkdir(parents=True, exist_ok=True)
    written = []
    for part, picture in FIGURES.items():
        path = results / f"{part}.json"
        if path.is_file():
            target = docs / f"{part.replace('_', '-')}.png"
            picture(json.loads(path.read_text())).savefig(target, dpi=DPI, facecolor="white")
            written.append(target)
    return written


def _two_units(result: dict[str, Any]) -> Figure:
    """Two output weights, before and after symmetries are taken away."""
    figure = new_figure(10.5, 3.9)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for axis, (name, points) in zip(axes, result["output_weights"].items(), strict=True):
        first, second = torch.tensor(points).T
        axis.axline((0, 0), slope=1, color=MUTED, lw=0.8, ls=":")
        axis.scatter(first, second, s=6, color=COLOURS["hmc"], alpha=0.4, lw=0)
        axis.set_title({"posterior": "as sampled"}.get(name, name), fontsize=10)
        axis.set_xlabel("first output weight v₁", fontsize=9)
        axis.grid(color="0.92", lw=0.6)
        axis.set_axisbelow(True)
    axes[0].set_ylabel("second output weight v₂", fontsize=9)
    return figure


def _regression(result: dict[str, Any]) -> Figure:
    """Bands of sampled and linearised Laplace, of the same weight samples, and of the walk."""
    figure = new_figure(10.5, 3.6)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    dataset, x = load("snelson", 0), torch.tensor(result["x"])
    for axis, (name, curve) in zip(axes, result["curves"].items(), strict=True):
        mean, deviation = torch.tensor(curve["mean"]), torch.tensor(curve["deviation"])
        draw_bands(axis, x, (mean, deviation.square()), result["sigma"], COLOURS[name])
        draw_data(axis, dataset)
        axis.set_title(label(name), color=INK, fontsize=10)
        axis.set_xlabel("x", fontsize=9)
        axis.set_ylim(-5, 5)
    axes[0].set_ylabel("y", fontsize=9)
    return figure


def _underfit(result: dict[str, Any]) -> Figure:
    """Training NLL above the trained network's, and the kernel's share, over training-set sizes."""
    figure = new_figure(10.5, 3.8)
    left, right = figure.subplots(1, 2)
    rows = result["rows"]
    sizes = sorted({row["size"] for row in rows})
    lines = {
        "sampled_nll": ("sampled Laplace", COLOURS["laplace"], "s", "-"),
        "sampled_kernel_nll": ("its kernel part alone", COLOURS["la-lowrank"], "v", "--"),
        "sampled_image_nll": ("its image part alone", COLOURS["fiber-states"], "^", "--"),
        "linearised_nll": ("linearised, the same samples", COLOURS["linearised"], "D", "-"),
    }
    for key, (name, colour, marker, style) in lines.items():
        values = [[row[key] - row["trained_nll"] for row in rows if row["size"] == n] for n in sizes]
        left.plot(sizes, [statistics.fmean(v) for v in values], style, color=colour, marker=marker, ms=5, label=name)
        for n, points in zip(sizes, values, strict=True):
            left.plot([n] * len(points), points, ".", color=colour, ms=3, alpha=0.6)
    left.set(xscale="log", yscale="log", xlabel="training points N", ylabel="training NLL above the trained network's")
    left.set_xticks(sizes, [str(n) for n in sizes])
    left.minorticks_off()
    left.legend(fontsize=8, frameon=False)
    share = [statistics.fmean(row["kernel_share"] for row in rows if row["size"] == n) for n in sizes]
    rank = [statistics.fmean(row["rank"] for row in rows if row["size"] == n) for n in sizes]
    weights = rows[0]["n_weights"]
    right.plot(
        sizes, share, "-o", color=COLOURS["la-lowrank"], ms=5, label="share of the samples' spread in the kernel"
    )
    right.plot(
        sizes,
        [1 - r / weights for r in rank],
        "--",
        color=MUTED,
        label=f"share of all {weights} directions in the kernel",
    )
    for n, s, r in zip(sizes, share, rank, strict=True):
        right.annotate(f"rank {r:.0f}", (n, s), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=7)
    right.set(xscale="log", xlabel="training points N", ylim=(0, 1.08))
    right.set_xticks(sizes, [str(n) for n in sizes])
    right.minorticks_off()
    right.legend(fontsize=8, frameon=False, loc="upper right")
    return figure


def _orbit(result: dict[str, Any]) -> Figure:
    """The plane of a unit's incoming and outgoing weights: the orbit of one function, and samples of Laplace."""
    figure = new_figure(10.5, 4.2)
    left, right = figure.subplots(1, 2)
    grid, nll = torch.tensor(result["grid"]), torch.tensor(result["nll"])
    alpha, orbit, tangent = (torch.tensor(result[name]) for name in ("alpha", "orbit_nll", "tangent_nll"))
    inside, outside = result["norms"]
    trained = float(orbit[len(orbit) // 2])
    left.contour(grid * inside, grid * outside, (nll - trained).T, LOSS_ABOVE, colors=MUTED, linewidths=0.8)
    left.plot([], [], color=MUTED, lw=0.8, label="training NLL 1, 3 and 10 above")
    samples = torch.tensor(result["samples"])
    left.scatter(
        *(samples * torch.tensor([inside, outside])).T,
        s=6,
        color=COLOURS["laplace"],
        alpha=0.5,
        lw=0,
        label="samples of Laplace",
    )
    left.plot(alpha * inside, outside / alpha, color=COLOURS["fiber"], lw=2.2, label="the same function")
    left.plot(
        alpha * inside,
        (2 - alpha) * outside,
        color=COLOURS["fiber-gaussian"],
        lw=1.6,
        ls="--",
        label="its tangent, in the kernel",
    )
    left.plot(inside, outside, "*", color=INK, ms=11, label="trained weights")
    smallest = result["smallest"]
    left.plot(smallest * inside, outside / smallest, "o", mfc="white", mec=INK, ms=6, label="smallest norm")
    left.set_xlim(0, 3 * inside)
    left.set_ylim(0, 3 * outside)
    left.set(xlabel="length of the incoming weights", ylabel="length of the outgoing weight")
    left.legend(fontsize=8, loc="upper right")
    right.plot(alpha, orbit - trained, color=COLOURS["fiber"], lw=2.2, label="along the curve")
    right.plot(alpha, tangent - trained, color=COLOURS["fiber-gaussian"], lw=1.6, ls="--", label="along the tangent")
    right.set(xlabel="incoming weights times α", ylabel="training NLL above the trained network's")
    right.set(xlim=(0.25, WIDEST), ylim=(-2, float((tangent - trained)[alpha <= WIDEST].max())))
    right.legend(fontsize=8, frameon=False)
    return figure


def _connectivity(result: dict[str, Any]) -> Figure:
    """Losses on curves between trajectories and between networks."""
    figure = new_figure(10.5, 3.9)
    axes = figure.subplots(1, 3, sharey=True)
    titles = {
        "plain walk": "trajectories of a plain walk",
        "walk to the typical set": "of a walk to the typical set",
        "networks": "independently trained networks",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        _curves(axis, result[name])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("position between the ends", fontsize=9)
    axes[0].set_yscale("symlog", linthresh=1)
    axes[0].set_ylabel("training NLL per point", fontsize=9)
    named: dict[str, Any] = {}
    for axis in axes:
        named |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _curves(axis: Axes, record: dict[str, Any]) -> None:
    for kind, losses in record["curves"].items():
        colour, style, name = CURVES[kind]
        rows: Tensor = torch.tensor(losses)
        axis.plot(record["positions"], rows.T, style, color=colour, lw=0.6, alpha=0.35)
        axis.plot(record["positions"], rows.mean(0), style, color=colour, lw=2, label=name)


FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "two_units": _two_units,
    "regression": _regression,
    "underfit": _underfit,
    "orbit": _orbit,
    "connectivity": _connectivity,
}
"""By the part whose results they show."""
