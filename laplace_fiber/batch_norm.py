"""Batch-norm statistics of weight samples: a weight vector carries none, and those of other weights do not fit it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laplace_fiber.weights import Inputs, NetworkFunction

Buffers: TypeAlias = dict[str, Tensor]
"""Values of a network's buffers by name, one row for each weight vector."""


def tracking_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers that keep running statistics, by name."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    return {name: layer for name, layer in found.items() if layer.running_mean is not None}


def moves_batch_norm(network: NetworkFunction) -> bool:
    """Whether weights of batch-norm layers are among those that move."""
    layers = tracking_layers(network.model)
    return any(name.rpartition(".")[0] in layers for name in network.names)


def recomputed_statistics(
    network: NetworkFunction, thetas: Float[Tensor, "s p"], batches: Iterable[tuple[Inputs, Tensor]]
) -> Buffers:
    """Means and variances over the data at each weight vector: the average of those of the batches.

    What ``torch.optim.swa_utils.update_bn`` computes, without writing to the model; only batch norm runs in training
    mode. All weight vectors share one pass over the batches. A single point has no variance: such batches are left out.

    Raises
    ------
    RuntimeError
        No batch has two points.
    """
    rows = [_blank(network.model) for _ in thetas]
    used = False
    with torch.no_grad(), network.evaluation(), _averaging(network.model):
        for x, _ in (batch for batch in batches if len(batch[1]) > 1):
            used = True
            for theta, buffers in zip(thetas, rows, strict=True):
                network.run({**network.named(theta), **buffers}, x, {})
    if rows[0] and not used:
        raise RuntimeError("batch norm: expected batches of at least two points, got single ones; enlarge batch_size.")
    names = [name for name in rows[0] if not name.endswith("num_batches_tracked")]
    return {name: torch.stack([buffers[name] for buffers in rows]) for name in names}


def outputs_with_buffers(
    network: NetworkFunction,
    thetas: Float[Tensor, "s p"],
    buffers: Buffers,
    x: Inputs,
    keep_graph: bool = False,
    **model_kwargs: Any,
) -> Float[Tensor, "s b *c"]:
    """The network in eval mode under each weight vector and its own buffers."""
    outputs: list[Tensor] = []
    with network.evaluation(), torch.set_grad_enabled(keep_graph):
        for i, theta in enumerate(thetas):
            named = {**network.named(theta), **{name: rows[i] for name, rows in buffers.items()}}
            outputs.append(network.run(named, x, model_kwargs))
    return torch.stack(outputs)


def own_buffers(model: nn.Module, networks: Sequence[nn.Module]) -> Buffers:
    """The floating-point buffers of several networks that differ from the model's, or from one another's."""
    rows = [dict(network.named_buffers()) for network in networks]
    return {
        name: torch.stack([row[name].detach().to(value) for row in rows])
        for name, value in model.named_buffers()
        if value.is_floating_point() and not all(torch.equal(row[name].to(value), value) for row in rows)
    }


def _blank(model: nn.Module) -> dict[str, Tensor]:
    """Statistics before any data."""
    buffers: dict[str, Tensor] = {}
    for name, layer in tracking_layers(model).items():
        prefix = f"{name}." if name else ""
        for own, value in layer.named_buffers(recurse=False):
            buffers[prefix + own] = torch.ones_like(value) if own == "running_var" else torch.zeros_like(value)
    return buffers


@contextmanager
def _averaging(model: nn.Module) -> Iterator[None]:
    """Batch norm in training mode, every batch with the same weight. Inside evaluation, which restores the mode."""
    layers = list(tracking_layers(model).values())
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.momentum = True, None  # torch's sign for the plain average
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.training, layer.momentum = False, momentum
