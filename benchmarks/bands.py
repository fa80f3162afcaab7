"""Data and limits of one-dimensional regression drawn as bands: shared by the demonstration and the figures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor

from benchmarks.datasets import Dataset


def draw_data(axis: Axes, dataset: Dataset) -> None:
    """Training data dark, test data white."""
    for (x, y), face, name in ((dataset.train, "0.35", "training data"), (dataset.test, "white", "test data")):
        raw = x * dataset.x_scale + dataset.x_shift
        axis.scatter(raw, y, s=9, facecolor=face, edgecolor="0.35", lw=0.6, zorder=3, label=name)


def limits_around(values: Sequence[Tensor], margin: float) -> tuple[float, float]:
    """The range of all values, widened by ``margin`` on both sides."""
    together = torch.cat([v.flatten() for v in values])
    return float(together.min()) - margin, float(together.max()) + margin
