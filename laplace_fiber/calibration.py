"""Calibration after training: one number, fitted to validation data, that makes predictions bolder or more careful.

Source: Guo, Pleiss, Sun and Weinberger (2017), *On calibration of modern neural networks*, section 4.2 (classes), and
its counterpart for Gaussian predictions: Levi, Gispan, Giladi and Fetaya (2022), *Evaluating and calibrating
uncertainty prediction in regression tasks*, section 4.
"""

from __future__ import annotations

import math
import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laplace_fiber.metrics import Prediction, TargetDistribution

TEMPERATURES = (0.05, 20.0)
"""Range of temperatures: validation data that are all classified right would ask for 0."""

HALVINGS = 60
TINY = torch.finfo(torch.float32).tiny


def fit_temperature(logits: Float[Tensor, "b c"], y: Int[Tensor, " b"]) -> float:
    """The temperature T of softmax(logits / T) with the lowest mean NLL, by bisection in log T.

    The NLL is convex in β = 1/T, with derivative E_softmax(β z)[z] − z_y, so that bisection finds its only minimum. The
    logits may be logarithms of averaged class probabilities.

    Raises
    ------
    ValueError
        Logits that are not finite, or no data.
    """
    z = logits.detach().double()
    if len(z) == 0 or not bool(z.isfinite().all()):
        raise ValueError(f"fit_temperature: expected finite logits of at least one point, got shape {tuple(z.shape)}.")
    chosen = z.gather(1, y[:, None]).mean()

    def slope(log_temperature: float) -> float:
        weights = (z * math.exp(-log_temperature)).softmax(dim=1)
        return float((weights * z).sum(dim=1).mean() - chosen)

    low, high = (math.log(t) for t in TEMPERATURES)
    bound = low if slope(low) <= 0 else high if slope(high) >= 0 else None
    if bound is not None and slope(low) != slope(high):
        warnings.warn(
            f"The temperature with the lowest validation NLL lies beyond {math.exp(bound):g}, which is taken: the "
            "validation data are too few, or all classified alike.",
            stacklevel=2,
        )
        return math.exp(bound)
    if bound is not None:  # equal logits: no temperature changes anything
        return 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) < 0 else (middle, high)
    return math.exp((low + high) / 2)


def fit_variance_factor(mean: Float[Tensor, "b c"], variance: Float[Tensor, "b c"], y: Float[Tensor, "b c"]) -> float:
    """The factor κ of the predictive variance (noise included) with the highest likelihood: mean (y − μ)² / variance.

    Raises
    ------
    ValueError
        No data, or predictions without an error.
    """
    factor = float(((y.double() - mean.double()).square() / variance.double()).mean())
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(
            f"fit_variance_factor: expected predictions with finite errors and variances, got the factor {factor}."
        )
    return factor


class Calibration:
    """A prediction's calibration: temperature of the averaged classes, or factor of the predictive variance.

    The order of the classes, and so the accuracy, and the mean of the targets stay as they are. Calibrated predictions
    are averaged ones: they have no scores per sample.

    Parameters
    ----------
    prediction, y
        Prediction and truth on validation data.
    sigma
        Noise of the targets (regression).

    Attributes
    ----------
    value
        The temperature (classes) or the factor of the variance (regression).
    """

    def __init__(self, prediction: Prediction, y: Tensor, sigma: float | Tensor = 1.0) -> None:
        self.classes, self.sigma = not y.is_floating_point(), sigma
        if self.classes:
            self.value = fit_temperature(log_probabilities(prediction), y)
        else:
            targets = target_moments(prediction, sigma)
            self.value = fit_variance_factor(*(part.reshape(len(y), -1) for part in (*targets, y)))

    def __call__(self, prediction: Prediction) -> Prediction:
        """The calibrated prediction: class probabilities (b, c), or Gaussian targets."""
        if self.classes:
            return (log_probabilities(prediction) / self.value).softmax(dim=-1)
        mean, variance = target_moments(prediction, self.sigma)
        return TargetDistribution(mean, self.value * variance)


def log_probabilities(prediction: Prediction) -> Float[Tensor, "b c"]:
    """Logarithms of the averaged class probabilities, in float64."""
    if not isinstance(prediction, Tensor):
        raise TypeError("log_probabilities: expected class probabilities, got a mean and a variance.")
    averaged = prediction.double() if prediction.ndim == 2 else prediction.double().mean(dim=0)
    return averaged.clamp(min=TINY).log()


def target_moments(prediction: Prediction, sigma: float | Tensor) -> TargetDistribution:
    """Mean and variance of the targets, noise included (of sampled functions: of the mixture)."""
    if isinstance(prediction, TargetDistribution):
        return prediction
    noise = torch.as_tensor(sigma).detach().double().cpu().square()
    if isinstance(prediction, tuple):
        return TargetDistribution(prediction[0].double(), prediction[1].double() + noise)
    samples = prediction.double()
    return TargetDistribution(samples.mean(dim=0), samples.var(dim=0, correction=0) + noise)
