"""Whether confidence can be relied on: reliability diagrams and risk–coverage curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from torch import Tensor

from laplace_fiber import metrics
from laplace_fiber.metrics import Prediction
from laplace_fiber.plots.canvas import axes_for, not_empty, on_cpu, plain
from laplace_fiber.plots.style import label, marks
from laplace_fiber.selection import area, risk_coverage_curve

SHARE_AREA, LEAST_AREA = 100, 4
"""Area of a mark, in square points: that of a bin with all data, and what every bin has on top."""

FEWEST = 10
"""Inputs in a bin that is drawn."""

MARKS = 8
"""On a risk–coverage curve, about."""

UNSHARED = 0.1
"""Share of the data that a mark without one (coverage of an interval) is drawn with."""


def reliability(
    predictions: Mapping[str, Prediction], y: Tensor, sigma_noise: float | Tensor = 1.0, ax: Axes | None = None
) -> Axes:
    """Confidence against accuracy, or in regression nominal against empirical coverage of central intervals.

    On the diagonal a method is calibrated, below it overconfident. The area of a mark tells its bin's share of the
    data; bins with fewer than ten inputs (a tenth of them all, if that is less) are left out.

    Parameters
    ----------
    predictions
        Of each method by name, for the same inputs: see :data:`laplace_fiber.metrics.Prediction`.
    y
        Classes (b,), or targets (b, c).
    sigma_noise
        Of the targets.

    Raises
    ------
    ValueError
        No predictions.
    """
    axis, styles = axes_for(ax, (4.6, 4.6)), marks(not_empty(predictions, "reliability"))
    axis.plot([0, 1], [0, 1], color="#7F7F7F", lw=0.8, ls="--")
    for name, prediction in predictions.items():
        diagram = metrics.reliability(on_cpu(prediction), y.cpu(), sigma_noise)
        draw_reliability(axis, _of_filled_bins(diagram, len(y)), **styles[name])
        axis.plot([], [], lw=1.2, ms=6, label=label(name), **styles[name])  # for the legend, where areas mean nothing
    if y.is_floating_point():
        plain(axis, "nominal coverage of central intervals", "empirical coverage")
    else:
        plain(axis, "confidence", "accuracy")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axis.legend(fontsize="small", frameon=False, loc="upper left")
    return axis


def _of_filled_bins(diagram: Mapping[str, Sequence[float]], n: int) -> dict[str, list[float]]:
    """The diagram without bins that hold too few of n inputs."""
    least = min(FEWEST, n / metrics.N_BINS) / n
    share = diagram.get("share", [1.0] * len(diagram["expected"]))
    # Shares are quotients: half an input of room for their rounding.
    kept = [index for index, value in enumerate(share) if value >= least - 0.5 / n]
    return {name: [values[index] for index in kept] for name, values in diagram.items()}


def draw_reliability(axis: Axes, diagram: Mapping[str, Sequence[float]], color: str, marker: str = "o") -> None:
    """One diagram of :func:`laplace_fiber.metrics.reliability`."""
    axis.plot(diagram["expected"], diagram["observed"], "-", color=color, lw=1.2, alpha=0.7)
    share = diagram.get("share", [UNSHARED] * len(diagram["expected"]))
    sizes = [SHARE_AREA * value + LEAST_AREA for value in share]
    axis.scatter(diagram["expected"], diagram["observed"], sizes, color=color, marker=marker, alpha=0.7, lw=0)


def risk_coverage(predictions: Mapping[str, Prediction], y: Tensor, ax: Axes | None = None) -> Axes:
    """Error among the inputs that a method is surest of, against the share of inputs that these are.

    The risk is the error rate, or in regression the root mean square error; uncertainty is the entropy of the averaged
    class probabilities, or the variance of the function. Lower is better; a curve that rises from the left tells that
    uncertainty finds the errors. The legend has the area under the curve. Source: El-Yaniv and Wiener (2010), *On the
    foundations of noise-free selective classification*.

    Parameters
    ----------
    predictions
        Of each method by name, for the same inputs: see :data:`laplace_fiber.metrics.Prediction`.
    y
        Classes (b,), or targets (b, c).

    Raises
    ------
    ValueError
        No predictions.
    """
    axis, styles = axes_for(ax), marks(not_empty(predictions, "risk_coverage"))
    for name, prediction in predictions.items():
        coverage, risk = risk_coverage_curve(on_cpu(prediction), y.cpu())
        named = f"{label(name)} (area {area(coverage, risk):.3g})"
        axis.plot(coverage, risk, markevery=max(1, len(risk) // MARKS), ms=5, lw=1.5, label=named, **styles[name])
    plain(axis, "coverage: share of inputs kept, surest first", "RMSE" if y.is_floating_point() else "error rate")
    axis.set(xlim=(0, 1.02))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small", frameon=False)
    return axis
