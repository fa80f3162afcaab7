"""Jacobians of the network in all its weights, and the rows R of which the Gauss-Newton matrix is Rᵀ R."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.curvature import subspace_jacobian
from laplace_fiber.data import Batch
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.output_loss import OutputLoss
from laplace_fiber.weights import Inputs, NetworkFunction

PIECE_BYTES = 2**26
"""Jacobians are made for so many points at once that they stay below this size."""


def output_jacobian(
    network: NetworkFunction, theta: Float[Tensor, " p"], x: Inputs, keep_graph: bool = False, **model_kwargs: Any
) -> tuple[Float[Tensor, "b *c p"], Float[Tensor, "b *c"]]:
    """∂f/∂θ and f(θ, x), point by point backwards, or forwards in each weight where the network cannot be batched."""

    def single(t: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
        output = network.one(t, point[None], **model_kwargs)[0]
        return output, output

    with torch.set_grad_enabled(keep_graph), network.evaluation(), sdpa_kernel(SDPBackend.MATH):
        if isinstance(x, Tensor) and network.batches:
            try:
                return vmap(jacrev(single, has_aux=True), in_dims=(None, 0))(theta, x)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, NotImplementedError):
                pass
        directions = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
        return subspace_jacobian(network, theta, directions, x, keep_graph=keep_graph, **model_kwargs)


def gauss_newton_rows(
    joint: LogJoint, theta: Float[Tensor, " p"], data: Iterable[Batch]
) -> Iterator[Float[Tensor, "m p"]]:
    """Rows R, some points' at a time, with Σ Rᵀ R = Σ Jᵀ (∂²ℓ/∂f²) J / temperature over the data, σ included."""
    loss = OutputLoss(joint)
    for x, _ in (block for batch in data for block in batch.blocks):
        n_outputs = outputs_per_point(joint.network, theta, x)
        for piece in pieces(x, max(1, PIECE_BYTES // (theta.nbytes * n_outputs))):
            jacobian, outputs = output_jacobian(joint.network, theta, piece)
            yield loss.root(outputs, jacobian).flatten(0, -2)


def outputs_per_point(network: NetworkFunction, theta: Float[Tensor, " p"], x: Inputs) -> int:
    """Numbers that the network returns for one point."""
    with torch.no_grad(), network.evaluation():
        return network.one(theta, x[:1] if isinstance(x, Tensor) else x)[0].numel()


def pieces(x: Inputs, size: int) -> Iterable[Inputs]:
    """So many points at a time, where inputs are a tensor."""
    return x.split(size) if isinstance(x, Tensor) else [x]
