"""A network and its training data as laplace-torch's own posteriors take them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, MutableMapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.data import TrainingData, batches_of, pairs
from laplace_fiber.weights import NetworkFunction


class HostLoader:
    """The user's batches, which may be any iterable, without a trace in the global random state."""

    def __init__(self, data: TrainingData) -> None:
        self.data, self.dataset = data, range(data.n_data)

    def __iter__(self) -> Iterator[Any]:
        batches = batches_of(self.data.loader, self.data.seed)
        for x, y in pairs(batches, self.data.device, self.data.dict_key_y):
            yield x if isinstance(x, MutableMapping) else (x, y)


def host_model(network: NetworkFunction, theta: Float[Tensor, " p"]) -> nn.Module:
    """A copy of the model at θ, in which only tensors with moving weights have gradients."""
    model, moving = copy.deepcopy(network.model).eval(), network.named(theta)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in moving)
        parameter.data = moving.get(name, parameter.data).clone()
    return model
