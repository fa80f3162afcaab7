"""From weight samples to predictions: function samples, class probabilities, mean and variance."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.engines import in_groups
from laplace_fiber.recording import Recorder
from laplace_fiber.weights import Inputs, NetworkFunction

RECORD_AFTER = 32
"""Groups of the same shape before their evaluation is recorded."""

WORTH_SETTING_APART = 0.02
"""Seconds that a group of samples must take before the layers below the moving weights are set apart."""


def function_samples(
    network: NetworkFunction,
    thetas: Float[Tensor, "s p"],
    x: Inputs,
    chunk_size: int | None = None,
    keep_graph: bool = False,
    **model_kwargs: Any,
) -> Float[Tensor, "s b *c"]:
    """f(θ, x) for each weight sample, in eval mode.

    Parameters
    ----------
    chunk_size
        At most this many samples are evaluated together; ``None`` takes all.
    keep_graph
        Leave the result differentiable with respect to ``x``.
    """
    with network.evaluation(), torch.set_grad_enabled(keep_graph):
        chunks = thetas.split(chunk_size or len(thetas))
        return torch.cat([network.many(rows, x, **model_kwargs) for rows in chunks])


def sampled_outputs(
    network: NetworkFunction,
    groups: Iterable[Float[Tensor, "_ p"]],
    x: Inputs,
    recorder: Recorder,
    keep_graph: bool = False,
    inputs_together: int | None = None,
    **model_kwargs: Any,
) -> Float[Tensor, "s b *c"]:
    """:func:`function_samples` of one group of weight samples after another, in as little memory as there is.

    Groups go through ``recorder``; where the first of them takes long, layers below the moving weights are run once.
    Inputs go through the network ``inputs_together`` at a time, if that is given and no graph is kept.
    """
    parts = x.split(inputs_together or len(x)) if isinstance(x, Tensor) else ()

    def outputs(moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (network.many(moving[0], fixed[0]),)

    head, fixed_state = Recorder(after=0), network.fixed_state()
    seconds = 0.0  # that the first group took

    def evaluate(thetas: Tensor) -> Tensor:
        nonlocal seconds
        if keep_graph or model_kwargs or not isinstance(x, Tensor):
            return function_samples(network, thetas, x, None, keep_graph, **model_kwargs)
        with torch.no_grad():
            if network.is_part and seconds > WORTH_SETTING_APART:
                return torch.cat([head("head", outputs, [theta], [x])[0] for theta in thetas.split(1)])
            start = time.perf_counter()
            results = [recorder(fixed_state, outputs, [thetas], [part])[0] for part in parts]
            result = results[0] if len(results) == 1 else torch.cat(results, 1)
            seconds = seconds or time.perf_counter() - start
            return result

    with network.evaluation():
        return torch.cat(list(in_groups(groups, evaluate)))


def class_probabilities(samples: Float[Tensor, "s b *c"]) -> Float[Tensor, "b *c"]:
    """Softmax of each function sample, averaged: the Bayesian model average."""
    # Over a leading dimension: the softmax over a short last one is ten times as slow on a CPU.
    return samples.movedim(-1, 0).contiguous().softmax(0).mean(1).movedim(0, -1).contiguous()


def mean_and_variance(samples: Float[Tensor, "s b *c"]) -> tuple[Float[Tensor, "b *c"], Float[Tensor, "b *c"]]:
    """Mean and (unbiased) variance of the function over samples; as in laplace-torch, without observation noise."""
    if len(samples) < 2:
        return samples.mean(0), torch.zeros_like(samples[0])
    return samples.mean(0), samples.var(0)


def negative_log_likelihood(
    samples: Float[Tensor, "s b *c"], y: Tensor, likelihood: str, sigma_noise: Tensor | float = 1.0
) -> Float[Tensor, ""]:
    """−log of the averaged predictive density of y, mean over points (regression: a mixture of Gaussians)."""
    if likelihood == "regression":
        terms = torch.distributions.Normal(samples, sigma_noise).log_prob(y).flatten(2).sum(-1)
    else:
        logits = samples.log_softmax(-1).flatten(1, -2)
        terms = logits.gather(-1, y.flatten().expand(len(samples), -1)[..., None])[..., 0]
    log_mean = terms.logsumexp(0) - torch.log(torch.tensor(float(len(samples))))
    return -log_mean.mean()


def negative_log_density(
    prediction: Tensor | tuple[Tensor, Tensor], y: Tensor, sigma_noise: Tensor | float = 1.0
) -> Float[Tensor, ""]:
    """−log p(y), mean over points, of class probabilities or of a Gaussian's mean and (co)variance, noise added."""
    if isinstance(prediction, Tensor):
        return torch.nn.functional.nll_loss(prediction.flatten(0, -2).clamp(min=1e-38).log(), y.flatten())
    mean, variance = prediction
    if variance.ndim > mean.ndim:
        variance = variance.diagonal(dim1=-2, dim2=-1)
    noisy = torch.distributions.Normal(mean, (variance + sigma_noise**2).sqrt())
    return -noisy.log_prob(y).flatten(1).sum(-1).mean()
