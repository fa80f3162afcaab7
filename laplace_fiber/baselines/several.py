"""Several trained networks of one architecture, for methods with one component around each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.weights import NetworkFunction


def first_and_others(model: nn.Module | Sequence[nn.Module]) -> tuple[nn.Module, list[nn.Module]]:
    """The network that a posterior is built on, and the further ones (none where a single network is given).

    Raises
    ------
    ValueError
        An empty sequence.
    """
    if isinstance(model, nn.Module):
        return model, []
    models = list(model)
    if not models:
        raise ValueError("model: expected a network or several, got an empty sequence.")
    return models[0], models[1:]


def weights_of(network: NetworkFunction, others: Sequence[nn.Module]) -> Float[Tensor, "m p"]:
    """The moving weights of the network itself and of others like it, one row each.

    Raises
    ------
    ValueError
        A network of another architecture, or with other values in the weights that do not move.
    """
    rows, own = [network.theta()], dict(network.model.named_parameters())
    for number, other in enumerate(others, start=2):
        named = dict(other.named_parameters())
        if {n: p.shape for n, p in named.items()} != {n: p.shape for n, p in own.items()}:
            raise ValueError(
                f"model: expected networks of one architecture, got other weight tensors in network {number}."
            )
        fixed = [n for n in own if n not in network.names]
        if any(not torch.equal(named[n], own[n]) for n in fixed):
            raise ValueError(
                f"model: expected networks that share the weights outside of the subset, got others in network "
                f"{number}; let all weights move."
            )
        flat = torch.cat([named[name].detach().reshape(-1) for name in network.names]).to(rows[0])
        rows.append(flat if network.index is None else flat[network.index.to(flat.device)])
    return torch.stack(rows)
