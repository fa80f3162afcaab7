"""The network linearised at the MAP, f(θ_MAP, x) + J(x) (θ − θ_MAP): laplace-torch's ``pred_type="glm"``."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.curvature import subspace_jacobian
from laplace_fiber.weights import Inputs, NetworkFunction


def linearised_samples(
    network: NetworkFunction,
    origin: Float[Tensor, " p"],
    thetas: Float[Tensor, "s p"],
    x: Inputs,
    keep_graph: bool = False,
    **model_kwargs: Any,
) -> Float[Tensor, "s b *c"]:
    """The linearised network under each weight sample: one Jacobian-vector product a sample, whatever the inputs."""
    tangents, outputs = subspace_jacobian(network, origin, thetas - origin, x, keep_graph=keep_graph, **model_kwargs)
    return outputs + tangents.movedim(-1, 0)


def output_variance(jacobian: Float[Tensor, "b c k"]) -> Float[Tensor, "b c c"]:
    """J C Jᵀ per input, from J Lᵀ with C = Lᵀ L."""
    return torch.einsum("bck,bdk->bcd", jacobian, jacobian)


def output_covariance(jacobian: Float[Tensor, "b c k"]) -> Float[Tensor, "bc bc"]:
    """J C Jᵀ over all inputs and outputs together, inputs outermost, from J Lᵀ with C = Lᵀ L."""
    rows = jacobian.flatten(0, 1)
    return rows @ rows.T
