"""Distances between two predictive distributions that are known by samples.

Axis letters: s and m samples, b inputs, c outputs or class probabilities. A function's values at all inputs form one
sample, so that the marginals at single inputs and the law of whole functions are both at hand. All sums run in float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def wasserstein(first: Float[Tensor, "s b c"], second: Float[Tensor, "m b c"]) -> float:
    """1-Wasserstein distance of the marginals, averaged over inputs and outputs; in the values' unit.

    The integral of |F⁻¹ − G⁻¹| over (0, 1), exact for any two numbers of samples: both quantile functions are steps.
    """
    a, b = (values.double().flatten(1).sort(0).values for values in (first, second))
    ends = torch.cat([torch.arange(1, len(t) + 1, dtype=torch.float64) / len(t) for t in (a, b)]).unique()
    widths = ends.diff(prepend=ends.new_zeros(1))
    middles = ends - 0.5 * widths
    quantiles = [t[(middles * len(t)).long().clamp(max=len(t) - 1)] for t in (a, b)]
    gaps = (quantiles[0] - quantiles[1]).abs()
    return float((widths[:, None] * gaps).sum(0).mean())


def spread_ratio(first: Float[Tensor, "s b c"], second: Float[Tensor, "m b c"]) -> float:
    """Mean standard deviation of the first over that of the second; means over inputs and outputs."""
    spreads = [float(values.double().std(0, correction=0).mean()) for values in (first, second)]
    return spreads[0] / spreads[1]


def mean_difference(first: Float[Tensor, "s b c"], second: Float[Tensor, "m b c"]) -> float:
    """Mean absolute difference of the mean predictions."""
    return float((first.double().mean(0) - second.double().mean(0)).abs().mean())


def total_variation(first: Float[Tensor, "s b c"], second: Float[Tensor, "m b c"]) -> float:
    """Total variation ½ Σ |p − q| of averaged class probabilities, averaged over inputs."""
    return 0.5 * float((first.double().mean(0) - second.double().mean(0)).abs().sum(-1).mean())


def agreement(first: Float[Tensor, "s b c"], second: Float[Tensor, "m b c"]) -> float:
    """Share of inputs at which both averaged class probabilities have the same most likely class."""
    labels = [values.double().mean(0).argmax(-1) for values in (first, second)]
    return float((labels[0] == labels[1]).double().mean())


def discrepancy(first: Float[Tensor, "s b c"], second: Float[Tensor, "m b c"]) -> float:
    """Maximum mean discrepancy of whole functions: √(E k(f, f') + E k(g, g') − 2 E k(f, g)), in [0, √2].

    The kernel is exp(−‖f − g‖²/(2 h²)) with h the median distance between two of the second samples; all pairs count,
    those of a sample with itself, too, which makes this a distance of the two empirical distributions.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), *A kernel two-sample test*, equation 5.
    """
    f, g = (values.double().flatten(1) for values in (first, second))
    distances = torch.cdist(g, g)
    pairs = distances[torch.ones_like(distances).triu(1).bool()]
    width = pairs.median()

    def kernel(squares: Tensor) -> float:
        return float((-0.5 * squares / width.square()).exp().mean())

    squared = kernel(torch.cdist(f, f).square()) + kernel(distances.square()) - 2 * kernel(torch.cdist(f, g).square())
    return float(max(squared, 0.0) ** 0.5)
