"""What a fit would not notice by itself: probabilities for logits, random outputs, weights that have no gradient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.weights import Inputs, NetworkFunction

POINTS = 32
"""Inputs that are looked at, where they can be taken apart."""

PERTURBATION = 0.1
"""Size of a weight tensor's perturbation, in root mean squares of the tensor (of 1 for zeros)."""

UNCHANGED = 1e-3
"""Outputs that differ by at most this share of their largest are the same: GPUs add in any order."""


def network_warnings(network: NetworkFunction, theta: Float[Tensor, " p"], x: Inputs, likelihood: str) -> Iterator[str]:
    """A sentence for each reason not to trust the network's loss or its gradient at θ. Call inside evaluation."""
    points = x[:POINTS] if isinstance(x, Tensor) else x
    devices = [theta.device] if theta.is_cuda else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        outputs, again = network.one(theta, points), network.one(theta, points)
        if likelihood == "classification" and _are_probabilities(outputs):
            yield (
                "The network's outputs are positive and sum to one: expected logits, of which the softmax is taken "
                "here; leave out the network's own."
            )
        if _differ(outputs, again):
            yield (
                "The network's outputs differ from call to call in eval mode, at the same weights and inputs: it draws "
                "random numbers, whose noise no posterior can tell from that of the weights; draw them in training "
                "mode only."
            )
            return
        if network.index is not None:  # single weights may have no effect on these inputs, such as a rare token's
            return
        gradient = _gradient(network, theta, points)
        detached = _without_gradient(network, theta, points, outputs, gradient)
    if not detached and not bool(gradient.any()):
        yield (
            "The outputs do not depend on the moving weights: is the forward pass cached, or are the weights that it "
            "uses others than the model's parameters?"
        )
    if detached:
        yield (
            f"The outputs depend on {', '.join(detached)}, but have no gradient there (torch.no_grad or detach inside "
            "the network?): nothing would tell how these weights may move. Give them requires_grad_(False), or name "
            "the modules to move with subset=."
        )


def _gradient(network: NetworkFunction, theta: Tensor, x: Inputs) -> Tensor:
    """Of a random combination of the outputs."""
    rows = theta.detach().requires_grad_()
    with torch.enable_grad():
        outputs = network.one(rows, x)
        if not outputs.requires_grad:
            return torch.zeros_like(theta)
        (gradient,) = torch.autograd.grad((outputs * _normal(outputs)).sum(), rows)
    return gradient


def _without_gradient(
    network: NetworkFunction, theta: Tensor, x: Inputs, outputs: Tensor, gradient: Tensor
) -> list[str]:
    """Names of the weight tensors whose gradient is zero although outputs change with them."""
    found: list[str] = []
    ends = itertools.accumulate(network.sizes)
    for name, size, end in zip(network.names, network.sizes, ends, strict=True):
        columns = slice(end - size, end)
        if not bool(gradient[columns].any()):
            changed, part = theta.clone(), theta[columns]
            scale = part.square().mean().sqrt()
            changed[columns] += PERTURBATION * torch.where(scale > 0, scale, 1.0) * _normal(part)
            if _differ(outputs, network.one(changed, x)):
                found.append(name)
    return found


def _normal(like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=torch.float32).to(like)


def _are_probabilities(outputs: Tensor) -> bool:
    total = outputs.sum(-1)
    return len(outputs) > 1 and bool((outputs >= 0).all()) and not _differ(torch.ones_like(total), total)


def _differ(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) > UNCHANGED * float(a.abs().max())
