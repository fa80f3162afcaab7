"""Scores of predictive distributions that torchmetrics lacks.

Scores come in two conventions: of the averaged predictive (``nll``, the Bayesian one) and as the mean over single
posterior samples (``nll_per_sample``). Axis letters: s samples, b inputs, c classes or outputs. All sums run in
float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

N_BINS = 10
LEVELS = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
PAIRS_AT_ONCE = 2**22


class TargetDistribution(NamedTuple):
    """Gaussian targets: mean and variance (b, c), observation noise included."""

    mean: Tensor
    variance: Tensor


Prediction: TypeAlias = Tensor | tuple[Tensor, Tensor] | TargetDistribution
"""What a method predicts, in one of these forms.

Samples (s, b, c): class probabilities, or function values. Averaged class probabilities (b, c), which have no scores
per sample. Mean and variance (b, c) of Gaussian function values, or of Gaussian targets. A closed-form class
predictive may also count as one sample, (1, b, c).
"""


def evaluate(prediction: Prediction, y: Tensor, sigma: float | Tensor = 1.0) -> dict[str, float]:
    """All scores of a prediction; classes (b,) are integers, targets (b, c) floats with noise ``sigma``."""
    if isinstance(prediction, TargetDistribution):
        mean, variance = (_columns(part, y) for part in prediction)
        return _as_floats(_target_scores(mean, variance, _columns(y, y)), {})
    if isinstance(prediction, tuple):
        return gaussian(*prediction, y, sigma)
    if y.is_floating_point():
        return regression(prediction, y, sigma)
    if prediction.ndim == 2:
        return _as_floats(_class_scores(prediction.double()[None], y), {})
    return classification(prediction, y)


def negative_log_likelihood(prediction: Prediction, y: Tensor, sigma: float | Tensor = 1.0) -> float:
    """That of the averaged predictive, alone."""
    if isinstance(prediction, tuple):
        return evaluate(prediction, y, sigma)["nll"]
    if not y.is_floating_point():
        averaged = prediction if prediction.ndim == 2 else prediction.double().mean(dim=0)
        return _log_loss(averaged.double()[None], y).item()
    return _mixture_nll(_log_density(_columns(prediction, y), _columns(y, y), _scale(sigma))).item()


def classification(probs: Float[Tensor, "s b c"], y: Int[Tensor, " b"]) -> dict[str, float]:
    """Scores of sampled class probabilities for classes."""
    probs = probs.double()
    averaged = _class_scores(probs.mean(dim=0, keepdim=True), y)
    single = _class_scores(probs, y)
    return _as_floats(averaged, single)


def regression(
    f: Float[Tensor, "s b *c"], y: Float[Tensor, "b *c"], sigma: float | Float[Tensor, "*o"]
) -> dict[str, float]:
    """Scores of sampled function values for targets with Gaussian noise ``sigma``, one value or one per output.

    The averaged predictive is the mixture of the Gaussians N(f_s, sigma²). The NLL adds over outputs, all other scores
    are means over them.
    """
    f, y, noise = _columns(f, y), _columns(y, y), _scale(sigma)
    log_density = _log_density(f, y, noise)
    averaged = {
        "nll": _mixture_nll(log_density),
        "rmse": (y - f.mean(dim=0)).square().mean().sqrt(),
        "crps": mixture_crps(f, noise.expand(f.shape[-1]), y).mean(),
        "calibration_error": coverage_error(torch.special.ndtr((y - f) / noise).mean(dim=0).flatten()),
    }
    single = {
        "nll": -log_density.mean(dim=1),
        "rmse": (y - f).square().flatten(1).mean(dim=1).sqrt(),
        "crps": gaussian_crps(y - f, noise).flatten(1).mean(dim=1),
    }
    return _as_floats(averaged, single)


def gaussian(
    mean: Float[Tensor, "b *c"],
    variance: Float[Tensor, "b *c"],
    y: Float[Tensor, "b *c"],
    sigma: float | Float[Tensor, "*o"],
) -> dict[str, float]:
    """Scores of Gaussian function values N(mean, variance) for targets ``y`` with noise ``sigma``.

    ``nll_per_sample`` and ``crps_per_sample`` are expectations over the function values: the NLL of the mean plus
    variance / (2 sigma²), and the CRPS's first term under the widened Gaussian with its second term under the noise.
    """
    mean, variance, y = (_columns(t, y) for t in (mean, variance, y))
    noise = _scale(sigma)
    total = variance + noise.square()
    error = (y - mean).square()
    nll = 0.5 * ((error + variance) / noise.square() + (2 * math.pi * noise.square()).log())
    crps = mean_distance(y - mean, total.sqrt()) - 0.5 * mean_distance(torch.zeros_like(mean), noise * math.sqrt(2))
    return _as_floats(_target_scores(mean, total, y), {"nll": nll.sum(dim=1), "crps": crps})


def mean_distance(offset: Float[Tensor, "*n"], scale: Float[Tensor, "*m"]) -> Float[Tensor, "*k"]:
    """E|X| of X ~ N(offset, scale²): 2 s φ(m/s) + m (2 Φ(m/s) − 1)."""
    z = offset / scale
    density = (-0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    return 2 * scale * density + offset * (2 * torch.special.ndtr(z) - 1)


def gaussian_crps(error: Float[Tensor, "*n"], scale: Float[Tensor, "*m"]) -> Float[Tensor, "*k"]:
    """Continuous ranked probability score E|X − y| − ½ E|X − X'| of a Gaussian, given y minus its mean."""
    return mean_distance(error, scale) - scale / math.sqrt(math.pi)


def mixture_crps(
    means: Float[Tensor, "s b c"], scale: Float[Tensor, " c"], y: Float[Tensor, "b c"]
) -> Float[Tensor, "b c"]:
    """The score E|X − y| − ½ E|X − X'| of equally weighted Gaussians N(means, scale²), exact in all pairs of them.

    Source: Grimit, Gneiting, Berrocal and Johnson (2006), *The continuous ranked probability score for circular
    variables and its application to mesoscale forecast ensemble verification*, equation 5.
    """
    accuracy = mean_distance(y - means, scale).mean(dim=0)
    rows = max(1, PAIRS_AT_ONCE // max(1, means.numel()))
    spread = torch.zeros_like(accuracy)
    for block in means.split(rows):
        spread += mean_distance(block[:, None] - means, scale * math.sqrt(2)).sum(dim=(0, 1))
    return accuracy - 0.5 * spread / len(means) ** 2


def coverage(pit: Float[Tensor, " b"]) -> Float[Tensor, " levels"]:
    """Share of targets inside the central intervals of the nominal ``LEVELS``.

    ``pit`` is the predictive distribution function at the targets.
    """
    return ((2 * pit.double() - 1).abs() <= LEVELS.unsqueeze(1)).double().mean(dim=1)


def coverage_error(pit: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean absolute difference, in percent, between nominal and empirical coverage of central intervals."""
    return 100 * (coverage(pit) - LEVELS).abs().mean()


def bin_gaps(
    confidence: Float[Tensor, "s b"], correct: Float[Tensor, "s b"]
) -> tuple[Float[Tensor, "s bins"], Float[Tensor, "s bins"]]:
    """Equal-width bins of the confidence: share of the inputs and distance of accuracy from confidence.

    A bin is open below and closed above; an empty one has share and gap 0.
    """
    count, confidences, accuracies = _binned(confidence, correct)
    return count / confidence.shape[1], (accuracies - confidences).abs()


def reliability(prediction: Prediction, y: Tensor, sigma: float | Tensor = 1.0) -> dict[str, list[float]]:
    """What a reliability diagram of the averaged predictive shows.

    Classification: ``expected`` (mean confidence) and ``observed`` (accuracy) of the top label in each bin, with the
    bins' ``share`` of the inputs; empty bins are left out. Regression: nominal and empirical coverage of central
    intervals.
    """
    if y.is_floating_point():
        observed = coverage(_distribution_at(prediction, y, sigma).flatten())
        return {"expected": LEVELS.tolist(), "observed": observed.tolist()}
    probs = prediction.double() if isinstance(prediction, Tensor) else prediction[0].double()
    probs = probs if probs.ndim == 2 else probs.mean(dim=0)
    confidence, label = probs.max(dim=-1)
    count, confidences, accuracies = (t[0] for t in _binned(confidence[None], (label == y).double()[None]))
    filled = count > 0
    return {
        "expected": confidences[filled].tolist(),
        "observed": accuracies[filled].tolist(),
        "share": (count / len(y))[filled].tolist(),
    }


def uncertainty(prediction: Prediction, classes: bool) -> Float[Tensor, " b"]:
    """Entropy of the averaged class probabilities, or the summed predictive variance (without constant noise)."""
    if isinstance(prediction, tuple):
        return prediction[1].double().flatten(1).sum(dim=1)
    if classes:
        averaged = prediction.double() if prediction.ndim == 2 else prediction.double().mean(dim=0)
        return -torch.special.xlogy(averaged, averaged).sum(dim=-1)
    return prediction.double().var(dim=0, correction=0).flatten(1).sum(dim=1)


def moments(prediction: Prediction) -> tuple[Float[Tensor, " bc"], Float[Tensor, " bc"]]:
    """Mean and variance at each input and output, of samples (s, b, c) or of a closed form."""
    if isinstance(prediction, tuple):
        mean, variance = prediction
    elif len(prediction) == 1:
        mean, variance = prediction[0], torch.zeros_like(prediction[0])
    else:
        variance, mean = torch.var_mean(prediction, dim=0)
    return mean.flatten(), variance.flatten()


def detection_auroc(inside: Float[Tensor, " n"], outside: Float[Tensor, " m"]) -> float:
    """P(outside > inside) + ½ P(outside = inside): area under the ROC curve when large values mean "outside".

    torchmetrics squeezes values beyond [0, 1] through a sigmoid, where large ones become equal.
    """
    ordered = inside.double().sort().values
    below, up_to = (torch.searchsorted(ordered, outside.double(), side=side) for side in ("left", "right"))
    return ((below + up_to).double().mean() / (2 * len(ordered))).item()


def _columns(values: Tensor, y: Tensor) -> Tensor:
    """Float64 with one last axis of outputs: (b, c), or (s, b, c) where there is one axis more than in ``y``."""
    return values.double().flatten(values.ndim - y.ndim + 1) if y.ndim > 1 else values.double()[..., None]


def _scale(sigma: float | Tensor) -> Float[Tensor, " #c"]:
    return torch.as_tensor(sigma).detach().double().cpu().reshape(-1)


def _log_density(
    f: Float[Tensor, "s b c"], y: Float[Tensor, "b c"], noise: Float[Tensor, " #c"]
) -> Float[Tensor, "s b"]:
    return (-0.5 * ((y - f) / noise).square() - (noise * math.sqrt(2 * math.pi)).log()).sum(dim=-1)


def _mixture_nll(log_density: Float[Tensor, "s b"]) -> Float[Tensor, ""]:
    return -(log_density.logsumexp(dim=0) - math.log(len(log_density))).mean()


def _target_scores(
    mean: Float[Tensor, "b c"], total: Float[Tensor, "b c"], y: Float[Tensor, "b c"]
) -> dict[str, Tensor]:
    error = y - mean
    return {
        "nll": 0.5 * (error.square() / total + (2 * math.pi * total).log()).sum(dim=1).mean(),
        "rmse": error.square().mean().sqrt(),
        "crps": gaussian_crps(error, total.sqrt()).mean(),
        "calibration_error": coverage_error(torch.special.ndtr(error / total.sqrt()).flatten()),
    }


def _distribution_at(prediction: Prediction, y: Tensor, sigma: float | Tensor) -> Float[Tensor, "b c"]:
    """The predictive distribution function at the targets."""
    if isinstance(prediction, Tensor):
        z = (_columns(y, y) - _columns(prediction, y)) / _scale(sigma)
        return torch.special.ndtr(z).mean(dim=0)
    mean, variance = (_columns(part, y) for part in prediction)
    noise = 0.0 if isinstance(prediction, TargetDistribution) else _scale(sigma).square()
    return torch.special.ndtr((_columns(y, y) - mean) / (variance + noise).sqrt())


def _binned(
    confidence: Float[Tensor, "s b"], correct: Float[Tensor, "s b"]
) -> tuple[Float[Tensor, "s bins"], Float[Tensor, "s bins"], Float[Tensor, "s bins"]]:
    """Number of inputs, mean confidence and accuracy in each bin; 0 in empty ones."""
    index = (confidence * N_BINS).ceil().long().clamp(1, N_BINS) - 1
    zeros = confidence.new_zeros(len(confidence), N_BINS)
    count = zeros.scatter_add(1, index, torch.ones_like(confidence))
    sums = (zeros.scatter_add(1, index, values) for values in (confidence, correct))
    confidences, accuracies = (total / count.clamp(min=1) for total in sums)
    return count, confidences, accuracies


def _log_loss(probs: Float[Tensor, "s b c"], y: Int[Tensor, " b"]) -> Float[Tensor, " s"]:
    # A float32 softmax can underflow to 0; the smallest normal number bounds the loss at 87.
    return -probs[:, torch.arange(len(y)), y].clamp(min=torch.finfo(torch.float32).tiny).log().mean(dim=1)


def _class_scores(probs: Float[Tensor, "s b c"], y: Int[Tensor, " b"]) -> dict[str, Tensor]:
    """Scores (s,) of every sample by itself; ECE and MCE of the top label, in percent."""
    confidence, label = probs.max(dim=-1)
    correct: Bool[Tensor, "s b"] = label == y
    share, gap = bin_gaps(confidence, correct.double())
    one_hot = torch.nn.functional.one_hot(y, probs.shape[-1])
    return {
        "nll": _log_loss(probs, y),
        "accuracy": correct.double().mean(dim=1),
        "brier": (probs - one_hot).square().sum(dim=-1).mean(dim=1),
        "ece": 100 * (share * gap).sum(dim=1),
        "mce": 100 * gap.amax(dim=1),
    }


def _as_floats(averaged: Mapping[str, Tensor], single: Mapping[str, Any]) -> dict[str, float]:
    scores = {name: value.item() for name, value in averaged.items()}
    return scores | {f"{name}_per_sample": value.mean().item() for name, value in single.items()}
