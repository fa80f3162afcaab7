"""Selective prediction: the error among inputs that a method is sure of.

Source: El-Yaniv and Wiener (2010), *On the foundations of noise-free selective classification*; the area is that of
Geifman, Uziel and El-Yaniv (2019), *Bias-reduced uncertainty estimation for deep neural classifiers*.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from laplace_fiber.metrics import Prediction, moments, uncertainty


def risk_coverage_curve(prediction: Prediction, y: Tensor) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Coverage k/b for k = 1 … b, and the risk of the k inputs with the least uncertainty.

    The risk is the share of wrong classes, or in regression the root mean square error over inputs and outputs.
    Uncertainty is that of :func:`laplace_fiber.metrics.uncertainty`. Inputs of equal uncertainty count as one another's
    mean, so that their order does not matter.
    """
    classes = not y.is_floating_point()
    if classes:
        probabilities = prediction if isinstance(prediction, Tensor) else prediction[0]
        averaged = probabilities if probabilities.ndim == 2 else probabilities.mean(0)
        losses = (averaged.argmax(-1) != y).double()
    else:
        mean = moments(prediction)[0].double()
        losses = (mean - y.flatten()).square().view(len(y), -1).mean(1)
    doubt = uncertainty(prediction, classes)
    # Ties share their mean loss.
    _, place, counts = doubt.unique(return_inverse=True, return_counts=True)
    shared = losses.new_zeros(len(counts)).scatter_add(0, place, losses) / counts
    ordered = shared[place[doubt.argsort()]]
    kept = ordered.new_ones(len(y)).cumsum(0)
    risk = ordered.cumsum(0) / kept
    return kept / len(y), risk if classes else risk.sqrt()


def area(coverage: Float[Tensor, " b"], risk: Float[Tensor, " b"]) -> float:
    """Area under the curve: the mean risk over all coverages k/b."""
    if coverage.shape != risk.shape or len(risk) == 0:
        raise ValueError(f"area: expected as many coverages as risks, got {len(coverage)} and {len(risk)}.")
    return float(risk.mean())
