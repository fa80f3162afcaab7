"""Decisions and their uncertainty over a plane of inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from torch import Tensor

from laplace_fiber.metrics import uncertainty
from laplace_fiber.plots.canvas import axes_for, numbers
from laplace_fiber.plots.style import PALETTE, SPARE_MARKERS

Shown: TypeAlias = Literal["probability", "spread", "entropy"]
LEVELS = 10
"""Steps of colour of a surface."""

TITLES = {
    "probability": "probability of class 1",
    "spread": "standard deviation of the class probability",
    "entropy": "entropy of the predictive (nats)",
}
TWO_FACES = ("white", "0.2")
"""Of the data of two classes; those of more have the colours of their classes."""

PALENESS = 0.5
"""Share of white in the colours of three classes or more, so that the data stand out."""


def decision_surface(
    predict: Callable[[Tensor], Any],
    x: Tensor,
    y: Tensor,
    *,
    show: Shown = "probability",
    margin: float = 0.3,
    points: int = 60,
    colorbar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """What a classifier of two inputs says around its data, or how sure it is.

    Parameters
    ----------
    predict
        From inputs (g, 2) to class probabilities (g, c), such as a fitted posterior, or to samples of them (s, g, c),
        such as its ``predictive_samples``.
    x, y
        Data to draw, (b, 2) and classes (b,); the plane covers them.
    show
        ``"probability"``: of class 1, or for more than two classes the classes' colours mixed by their probabilities.
        ``"spread"``: standard deviation between samples of the probability of the likeliest class. ``"entropy"``: of
        the averaged probabilities.
    margin
        How far the plane goes beyond the data, as a share of their range.
    points
        Of the grid, on each side.
    colorbar
        Draw one beside the axes.

    Raises
    ------
    ValueError
        Inputs that are not two, an unknown ``show``, or ``"spread"`` without samples.
    """
    if x.ndim != 2 or x.shape[1] != 2:
        raise ValueError(f"decision_surface: expected inputs of shape (b, 2), got {tuple(x.shape)}; pick two columns.")
    if show not in TITLES:
        raise ValueError(f"show: expected one of {tuple(TITLES)}, got {show!r}.")
    low, high = x.min(0).values, x.max(0).values
    room = margin * (high - low)
    steps = torch.linspace(0, 1, points, dtype=x.dtype, device=x.device)
    across, up = (a + (b - a) * steps for a, b in zip(low - room, high + room, strict=True))
    grid = torch.stack([part.flatten() for part in torch.meshgrid(across, up, indexing="xy")], 1)
    predicted = numbers(predict(grid))
    if show == "spread" and predicted.ndim != 3:
        raise ValueError(
            f"show='spread': expected samples of class probabilities (s, g, c), got {tuple(predicted.shape)}; pass "
            "la.predictive_samples, or show='entropy'."
        )
    probabilities = predicted.mean(0) if predicted.ndim == 3 else predicted
    axis, ticks = axes_for(ax), (numbers(across), numbers(up))
    if show == "probability" and probabilities.shape[1] > 2:
        _draw_mixture(axis, ticks, probabilities)
    else:
        values = _values(predicted, probabilities, show)
        drawn = draw_surface(axis, ticks, values, *_scale(show, probabilities.shape[1]))
        if colorbar:
            axis.figure.colorbar(drawn, ax=axis, label=TITLES[show], format="%.2f")
    draw_classes(axis, x, y, probabilities.shape[1])
    axis.set(xlabel="first input", ylabel="second input")
    return axis


def draw_surface(axis: Axes, ticks: tuple[Any, Any], values: Float[Tensor, " g"], colours: str, highest: float) -> Any:
    """Filled steps of values from 0 to ``highest`` on a grid; returns what a colour bar needs."""
    across, up = ticks
    levels = torch.linspace(0.0, highest, LEVELS + 1).tolist()
    return axis.contourf(across, up, values.reshape(len(up), len(across)), levels, cmap=colours)


def draw_classes(axis: Axes, x: Tensor, y: Int[Tensor, " b"], n_classes: int = 2, size: float = 14) -> None:
    """Data as dots, with a face and a marker for each class."""
    faces = TWO_FACES if n_classes <= 2 else PALETTE
    for number in y.unique().tolist():
        face, marker = faces[number % len(faces)], SPARE_MARKERS[number % len(SPARE_MARKERS)]
        across, up = numbers(x[y == number]).T
        axis.scatter(across, up, s=size, facecolor=face, edgecolor="0.2", lw=0.4, marker=marker)


def _values(
    predicted: Float[Tensor, "*s g c"], probabilities: Float[Tensor, "g c"], show: Shown
) -> Float[Tensor, " g"]:
    if show == "probability":
        return probabilities[:, 1]
    if show == "entropy":
        return uncertainty(probabilities, classes=True)
    likeliest = probabilities.argmax(1)
    return predicted[:, torch.arange(len(likeliest)), likeliest].std(0, correction=0)


def _scale(show: Shown, classes: int) -> tuple[str, float]:
    """Colours, and the largest value that there can be."""
    if show == "probability":
        return "RdBu_r", 1.0
    return "viridis", 0.5 if show == "spread" else float(torch.tensor(float(classes)).log())


def _draw_mixture(axis: Axes, ticks: tuple[Tensor, Tensor], probabilities: Float[Tensor, "g c"]) -> None:
    """The classes' colours, mixed by probability and lightened."""
    across, up = ticks
    colours = [to_rgb(PALETTE[c % len(PALETTE)]) for c in range(probabilities.shape[1])]
    mixed = PALENESS + (1 - PALENESS) * probabilities @ torch.tensor(colours, dtype=probabilities.dtype)
    edges = (float(across[0]), float(across[-1]), float(up[0]), float(up[-1]))
    axis.imshow(mixed.reshape(len(up), len(across), 3), origin="lower", extent=edges, aspect="auto")
