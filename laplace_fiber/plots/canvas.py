"""What all pictures share: axes to draw into, and tensors as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from matplotlib.axes import Axes
from torch import Tensor

from laplace_fiber.metrics import Prediction, TargetDistribution

T = TypeVar("T")

SIZE = (5.4, 3.9)
"""Inches of a new figure."""


def axes_for(ax: Axes | None, size: tuple[float, float] = SIZE) -> Axes:
    """The given axes, or those of a new figure of pyplot."""
    return ax if ax is not None else new_axes(1, size)[0]


def new_axes(columns: int, size: tuple[float, float]) -> list[Axes]:
    """Axes side by side in a new figure of pyplot."""
    from matplotlib import pyplot  # chooses a backend: only where a figure is asked for

    _, axes = pyplot.subplots(1, columns, figsize=size, layout="constrained", squeeze=False)
    return list(axes.flat)


def plain(ax: Axes, x_label: str, y_label: str) -> None:
    """Axis names, a pale grid, and no frame above and to the right."""
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.grid(color="0.92", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def numbers(values: Any) -> Tensor:
    """Values as a tensor of doubles on the CPU, without a graph."""
    return torch.as_tensor(values).detach().cpu().double()


def on_cpu(prediction: Prediction) -> Prediction:
    """A prediction as doubles on the CPU; of a covariance of outputs (b, c, c), the variances."""
    if isinstance(prediction, Tensor):
        return numbers(prediction)
    mean, variance = (numbers(part) for part in prediction)
    if variance.ndim > mean.ndim:
        variance = variance.diagonal(dim1=-2, dim2=-1)
    return TargetDistribution(mean, variance) if isinstance(prediction, TargetDistribution) else (mean, variance)


def not_empty(named: Mapping[str, T], function: str) -> Mapping[str, T]:
    """What is to be drawn; ``ValueError`` where it is nothing."""
    if not named:
        raise ValueError(f"{function}: expected at least one method, got an empty mapping; pass {{name: values}}.")
    return named
