"""Predictive bands in one dimension."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from laplace_fiber.metrics import Prediction, TargetDistribution, moments
from laplace_fiber.plots.canvas import axes_for, numbers, on_cpu, plain
from laplace_fiber.plots.style import label, mark

FUNCTION, TARGET = 0.35, 0.2
"""Opacity of the two bands."""


def bands(
    x: Tensor,
    prediction: Prediction,
    *,
    sigma_noise: float | Tensor | None = None,
    data: tuple[Tensor, Tensor] | None = None,
    draws: int = 0,
    method: str = "fiber",
    ax: Axes | None = None,
) -> Axes:
    """Mean and bands of two standard deviations of a regression with one input and one output.

    The dark band is that of the function f, the light one that of a target y = f + noise.

    Parameters
    ----------
    x
        Inputs (b,) or (b, 1), in any order.
    prediction
        Function samples (s, b, 1), mean and variance of the function, or a
        :class:`~laplace_fiber.metrics.TargetDistribution`, which has a light band only.
    sigma_noise
        σ of the targets; without it there is no light band.
    data
        Inputs and targets to be drawn as dots.
    draws
        So many of the function samples are drawn one by one in the place of the dark band.
    method
        Whose colour and name to take.

    Raises
    ------
    ValueError
        More than one input or output, or ``draws`` without samples.
    """
    if draws and not isinstance(prediction, Tensor):
        raise ValueError("bands: expected function samples (s, b, 1) for draws=, got a closed form; pass draws=0.")
    inputs = _one_column(x, len(x), "x")
    shown = on_cpu(prediction)
    mean, variance = moments(shown)
    if len(mean) != len(inputs):
        shapes = [tuple(part.shape) for part in ([shown] if isinstance(shown, Tensor) else shown)]
        raise ValueError(
            f"bands: expected one output for each of {len(inputs)} inputs, got {shapes}; pick one, as in f[..., :1]."
        )
    order = inputs.argsort()
    of_targets = isinstance(prediction, TargetDistribution)
    noise = None if sigma_noise is None else float(torch.as_tensor(sigma_noise))
    sigma = 0.0 if of_targets else noise  # theirs is in the variance
    axis, colour = axes_for(ax), mark(method)["color"]
    curves = mean[order], variance[order]
    draw_bands(axis, inputs[order], curves, sigma, colour, function=not (draws or of_targets))
    for index, curve in enumerate(shown[:draws] if draws else ()):
        name = f"{draws} draws of f" if index == 0 else None
        axis.plot(inputs[order], curve.flatten()[order], color=colour, lw=0.6, alpha=0.5, label=name)
    if data is not None:
        points = (_one_column(part, len(part), "data") for part in data)
        axis.plot(*points, "o", ms=3.5, color="0.3", mec="none", zorder=3, label="data")
    plain(axis, "x", "y")
    axis.set_title(label(method))
    axis.legend(fontsize="small", framealpha=0.9)
    return axis


def draw_bands(
    axis: Axes,
    x: Float[Tensor, " b"],
    curve: tuple[Float[Tensor, " b"], Float[Tensor, " b"]],
    sigma: float | None,
    colour: str,
    function: bool = True,
) -> None:
    """Two standard deviations of f (dark) and of y = f + noise (light) around the mean.

    ``curve`` is mean and variance of f. Without ``sigma`` there is no band of y; without ``function`` none of f.
    """
    mean, variance = curve
    shown: list[tuple[Any, float, str]] = []
    if sigma is not None:
        shown.append(((variance + sigma**2).sqrt(), TARGET, "y"))
    if function:
        shown.append((variance.sqrt(), FUNCTION, "f"))
    for deviation, alpha, name in shown:
        low, high = mean - 2 * deviation, mean + 2 * deviation
        axis.fill_between(x, low, high, color=colour, alpha=alpha, lw=0, label=f"{name}, two sigma")
    axis.plot(x, mean, color=colour, lw=1.8, label="mean")


def _one_column(values: Tensor, length: int, name: str) -> Float[Tensor, " b"]:
    if values.numel() != length:
        raise ValueError(f"bands: expected {name} of shape (b,) or (b, 1), got {tuple(values.shape)}; pick one column.")
    return numbers(values).flatten()
