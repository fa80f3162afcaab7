"""A fit of FiberLaplace from inside: its walk, its latent space, and the loss along its lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from laplace_fiber.data import TrainingData
from laplace_fiber.fiber import FiberLaplace
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.paths import Curves, StraightLines, WalkCurves
from laplace_fiber.plots.canvas import axes_for, new_axes, numbers, plain
from laplace_fiber.plots.style import COLOURS, label

MIDDLE = 0.1, 0.9
"""Quantiles between which a band lies."""

PANELS = 4


def walk(la: FiberLaplace, ax: Sequence[Axes] | None = None) -> list[Axes]:
    """The walk of a fit: objective, training NLL, distance from the MAP and rejected share against the drift t.

    Single particles are thin, their mean is thick. Losses are on the batch of their drift; t = 0 is the MAP.

    Parameters
    ----------
    la
        Fitted in this process: a state that was loaded has no record of its walk.
    ax
        Four axes.

    Raises
    ------
    ValueError
        ``ax`` that are not four.
    RuntimeError
        ``la`` was not fitted here.
    """
    trace = None if la.report is None else la.report.trace
    if trace is None:
        raise RuntimeError("walk: expected a FiberLaplace fitted in this process, got none; call fit(train_loader).")
    axes = new_axes(PANELS, (12.0, 3.1)) if ax is None else list(ax)
    if len(axes) != PANELS:
        raise ValueError(f"walk: expected {PANELS} axes, got {len(axes)}; pass those of pyplot.subplots(1, {PANELS}).")
    particles = {"objective J / n": trace.objective, "training NLL": trace.nll, "distance from the MAP": trace.distance}
    for axis, (name, values) in zip(axes, particles.items(), strict=False):
        _draw_particles(axis, numbers(values))
        plain(axis, "drift t", name)
    share = 100 * numbers(trace.rejected_share)[1:]
    axes[-1].plot(range(1, len(share) + 1), share, color=COLOURS["fiber"], marker="o", ms=3, lw=1.2)
    axes[-1].set_ylim(0, max(5.0, 1.1 * float(share.max())))
    plain(axes[-1], "drift t", "rejected steps (%)")
    axes[0].legend(fontsize="small", frameon=False)
    return axes


def _draw_particles(axis: Axes, values: Float[Tensor, "n t"]) -> None:
    drifts = range(values.shape[1])
    for index, row in enumerate(values):
        axis.plot(drifts, row, color=COLOURS["fiber"], lw=0.5, alpha=0.3, label="a particle" if index == 0 else None)
    axis.plot(drifts, values.mean(0), color="black", lw=1.8, label="mean")


def latent_space(la: FiberLaplace, ax: Axes | None = None) -> Axes:
    """Latent positions of the walk's states, and the latent lines that samples are decoded from.

    Shown are the first two principal components of all states about the MAP.

    Parameters
    ----------
    la
        Fitted in this process: a state that was loaded has the lines, but not the states' latent positions.

    Raises
    ------
    RuntimeError
        ``la`` was not fitted here.
    ValueError
        Its latent space has one dimension.
    """
    lines = la.fitted.lines
    if lines.path is None:
        raise RuntimeError("latent_space: expected a FiberLaplace fitted in this process; call fit(train_loader).")
    path = numbers(lines.path) - numbers(lines.start)
    if path.shape[-1] < 2:
        raise ValueError("latent_space: expected a latent space of two dimensions or more, got one; raise latent_size.")
    _, spectrum, directions = torch.linalg.svd(path.flatten(0, 1), full_matrices=False)
    shares = 100 * spectrum.square() / spectrum.square().sum()
    flat: Float[Tensor, "n t 2"] = path @ directions[:2].T
    axis = axes_for(ax)
    chords = torch.stack([flat[:, 0], flat[:, -1]], 1)
    axis.add_collection(LineCollection(list(chords.numpy()), colors="0.6", lw=0.8, ls="--", label="latent line"))
    axis.add_collection(LineCollection(list(flat.numpy()), colors=COLOURS["fiber"], lw=0.7, alpha=0.5))
    t = torch.arange(flat.shape[1]).repeat(len(flat))
    across, up = flat.flatten(0, 1).T
    drawn = axis.scatter(across, up, c=t, s=8, lw=0, cmap="viridis", zorder=2, label="state of the walk")
    axis.plot(0, 0, "*", color=COLOURS["map"], ms=13, mec="white", ls="none", zorder=3, label=label("map"))
    axis.figure.colorbar(drawn, ax=axis, label="drift t", ticks=MaxNLocator(integer=True))
    plain(axis, f"first component ({shares[0]:.0f} % of the states' spread)", _second(shares))
    axis.set_title(f"straightness {lines.straightness:.3f}", fontsize="medium")
    axis.legend(fontsize="small", framealpha=0.9)
    return axis


def _second(shares: Tensor) -> str:
    return f"second component ({shares[1]:.0f} %)"


def line_losses(
    la: FiberLaplace, loader: Iterable[Any], n_lines: int = 16, n_points: int = 21, ax: Axes | None = None
) -> Axes:
    """Loss along decoded latent lines, along straight lines in weight space, and along the walk they stand for.

    Lines are means over trajectories, bands go from their 10 % to their 90 % quantile.

    Parameters
    ----------
    la
        Fitted.
    loader
        Data that the NLL is measured on, such as the training loader.
    n_lines, n_points
        Trajectories, and points on each.

    Raises
    ------
    ValueError
        Fewer than one line or two points.
    """
    if n_lines < 1 or n_points < 2:
        raise ValueError(f"line_losses: expected n_lines >= 1 and n_points >= 2, got {n_lines} and {n_points}.")
    fitted = la.fitted
    n = min(n_lines, len(fitted.states))
    s = torch.linspace(0, 1, n_points)
    curves: dict[str, Curves] = {
        "fiber-line": StraightLines(fitted.states),
        "fiber-latent": fitted.lines,
        "fiber-states": WalkCurves(fitted.states),
    }
    axis = axes_for(ax)
    for name, curve in curves.items():
        losses = _losses(la, loader, curve, n, s)
        axis.fill_between(s, *_quantiles(losses), color=COLOURS[name], alpha=0.2, lw=0)
        # The walk comes last and dashed, so that the decoded line is seen beneath it.
        style, width = ("--", 1.4) if name == "fiber-states" else ("-", 2.2)
        axis.plot(s, losses.mean(0), color=COLOURS[name], label=label(name), ls=style, lw=width)
    plain(axis, "position s on the line (0: MAP, 1: last state)", "NLL per data point")
    axis.legend(fontsize="small", frameon=False)
    return axis


def _losses(
    la: FiberLaplace, loader: Iterable[Any], curve: Curves, n: int, s: Float[Tensor, " k"]
) -> Float[Tensor, "n k"]:
    """Mean NLL over the loader at the points s of the first n curves."""
    fitted, device = la.fitted, la.fitted.states.device
    trajectory = torch.arange(n, device=device).repeat_interleave(len(s))
    points = curve.coordinates(trajectory, s.to(fitted.states).repeat(n))
    data = TrainingData(loader, device, dict_key_y=la.dict_key_y)
    kind = "regression" if la.likelihood == "regression" else "classification"
    joint = LogJoint(
        la.network, kind, data.n_data, fitted.prior_precision, torch.as_tensor(la.prior_mean), la.sigma_noise.detach()
    )
    total = torch.zeros(len(points), dtype=torch.float64)
    with la.network.evaluation():
        for batch in data.epoch():
            groups = fitted.subspace.weight_groups(points, la.chunk_size or n)
            losses = torch.cat([joint.nll(theta, batch) for theta in groups])
            total += numbers(losses) * batch.size / data.n_data
    return total.view(n, len(s))


def _quantiles(losses: Float[Tensor, "n k"]) -> Float[Tensor, "2 k"]:
    return losses.quantile(torch.tensor(MIDDLE, dtype=losses.dtype), dim=0)
