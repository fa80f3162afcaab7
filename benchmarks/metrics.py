"""Scores of predictive distributions.

Every score comes in two conventions: of the averaged predictive (``nll``, the Bayesian one) and as the mean over
single posterior samples (``nll_per_sample``). Axis letters: s samples, b inputs, c classes. All sums run in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Prediction = Tensor | tuple[Tensor, Tensor]
"""Samples (s, b, c): class probabilities, or function values; or mean and variance (b, 1) of Gaussian function values.

A closed-form class predictive counts as one sample.
"""

N_BINS = 10
LEVELS = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)


def evaluate(prediction: Prediction, y: Tensor, sigma: float) -> dict[str, float]:
    """All scores of a prediction; classes (b,) are integers, targets (b, 1) floats with noise ``sigma``."""
    if isinstance(prediction, tuple):
        return gaussian(*prediction, y, sigma)
    if y.is_floating_point():
        return regression(prediction, y, sigma)
    return classification(prediction, y)


def classification(probs: Tensor, y: Tensor) -> dict[str, float]:
    """Scores of sampled class probabilities ``probs`` (s, b, c) for classes ``y`` (b,)."""
    probs = probs.double()
    averaged = _class_scores(probs.mean(dim=0, keepdim=True), y)
    single = _class_scores(probs, y)
    return _as_floats(averaged, single)


def regression(f: Tensor, y: Tensor, sigma: float) -> dict[str, float]:
    """Scores of sampled function values ``f`` (s, b, 1) for targets ``y`` (b, 1) with Gaussian noise ``sigma``.

    The averaged predictive is the mixture of the Gaussians N(f_s, sigma^2).
    """
    f, y = f.double().flatten(1), y.double().flatten()
    z = (y - f) / sigma
    log_density = -0.5 * z.square() - math.log(sigma * math.sqrt(2 * math.pi))
    averaged = {
        "nll": -(log_density.logsumexp(dim=0) - math.log(len(f))).mean(),
        "rmse": (y - f.mean(dim=0)).square().mean().sqrt(),
        "calibration_error": coverage_error(torch.special.ndtr(z).mean(dim=0)),
    }
    single = {"nll": -log_density.mean(dim=1), "rmse": (y - f).square().mean(dim=1).sqrt()}
    return _as_floats(averaged, single)


def gaussian(mean: Tensor, variance: Tensor, y: Tensor, sigma: float) -> dict[str, float]:
    """Scores of Gaussian function values N(mean, variance), both (b, 1), for targets ``y`` with noise ``sigma``.

    ``nll_per_sample`` is the expectation over the function values, that of the mean plus variance / (2 sigma^2).
    """
    mean, variance, y = (t.double().flatten() for t in (mean, variance, y))
    total = variance + sigma**2
    error = (y - mean).square()
    averaged = {
        "nll": 0.5 * (error / total + (2 * math.pi * total).log()).mean(),
        "rmse": error.mean().sqrt(),
        "calibration_error": coverage_error(torch.special.ndtr((y - mean) / total.sqrt())),
    }
    single = {"nll": 0.5 * ((error + variance) / sigma**2 + math.log(2 * math.pi * sigma**2))}
    return _as_floats(averaged, single)


def coverage_error(pit: Tensor) -> Tensor:
    """Mean absolute difference, in percent, between nominal and empirical coverage of central intervals.

    ``pit`` (b,) is the predictive distribution function at the targets; the nominal levels are 0.1, 0.2, ..., 0.9.
    """
    inside = (2 * pit - 1).abs() <= LEVELS.unsqueeze(1)
    return 100 * (inside.double().mean(dim=1) - LEVELS).abs().mean()


def bin_gaps(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Equal-width bins of the confidence: share of the inputs and |accuracy - confidence|, both (s, bins).

    A bin is open below and closed above; an empty one has share and gap 0.
    """
    index = (confidence * N_BINS).ceil().long().clamp(1, N_BINS) - 1
    zeros = confidence.new_zeros(len(confidence), N_BINS)
    count = zeros.scatter_add(1, index, torch.ones_like(confidence))
    surplus = zeros.scatter_add(1, index, correct - confidence)
    return count / confidence.shape[1], surplus.abs() / count.clamp(min=1)


def _class_scores(probs: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Scores (s,) of every sample by itself; ECE and MCE of the top label, in percent."""
    # A float32 softmax can underflow to 0; the smallest normal number bounds the loss at 87.
    chosen = probs[:, torch.arange(len(y)), y].clamp(min=torch.finfo(torch.float32).tiny)
    confidence, label = probs.max(dim=-1)
    correct = (label == y).double()
    share, gap = bin_gaps(confidence, correct)
    one_hot = torch.nn.functional.one_hot(y, probs.shape[-1])
    return {
        "nll": -chosen.log().mean(dim=1),
        "accuracy": correct.mean(dim=1),
        "brier": (probs - one_hot).square().sum(dim=-1).mean(dim=1),
        "ece": 100 * (share * gap).sum(dim=1),
        "mce": 100 * gap.amax(dim=1),
    }


def _as_floats(averaged: dict[str, Tensor], single: dict[str, Tensor]) -> dict[str, float]:
    scores = {name: value.item() for name, value in averaged.items()}
    return scores | {f"{name}_per_sample": value.mean().item() for name, value in single.items()}
