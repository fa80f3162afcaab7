"""From weight samples to predictions: function samples, class probabilities, mean and variance."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.weights import Inputs, NetworkFunction


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


def class_probabilities(samples: Float[Tensor, "s b *c"]) -> Float[Tensor, "b *c"]:
    """Softmax of each function sample, averaged: the Bayesian model average."""
    return samples.softmax(-1).mean(0)


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
