"""The loss as a function of the network's outputs, and its curvature there."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.log_joint import LogJoint


class OutputLoss:
    """ℓ(y, f)/temperature as a function of the outputs f: derivatives, and the metric of its Fisher information.

    Outputs have a last dimension for classes, or for what is regressed.
    """

    def __init__(self, joint: LogJoint) -> None:
        self.classes, self.temperature = joint.likelihood != "regression", joint.temperature
        like = joint.prior_precision  # a noise given as a number takes the weights' precision
        self.variance = torch.as_tensor(joint.sigma_noise, dtype=like.dtype, device=like.device).square()

    def slope(self, f: Float[Tensor, "*n c"], y: Tensor) -> Float[Tensor, "*n c"]:
        """∂ℓ/∂f."""
        if not self.classes:
            return (f - y) / (self.variance * self.temperature)
        probabilities = f.softmax(-1)
        hits = torch.nn.functional.one_hot(y, f.shape[-1]).to(f)
        return (probabilities - hits) / self.temperature

    def bent(self, f: Float[Tensor, "*n c"], u: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """Λ u with Λ = ∂²ℓ/∂f², which is the Fisher information of the outputs."""
        if not self.classes:
            return u / (self.variance * self.temperature)
        probabilities = f.softmax(-1)
        return probabilities * (u - (probabilities * u).sum(-1, keepdim=True)) / self.temperature

    def twist(self, f: Float[Tensor, "*n c"], u: Float[Tensor, "*n c"]) -> Float[Tensor, "*n c"]:
        """½ ∂³ℓ/∂f³ [u, u]: the Christoffel symbols of the metric Λ, with a lowered index, along u."""
        if not self.classes:
            return torch.zeros_like(u)
        probabilities = f.softmax(-1)
        squared = (u - (probabilities * u).sum(-1, keepdim=True)).square()
        spread = (probabilities * squared).sum(-1, keepdim=True)
        return 0.5 * probabilities * (squared - spread) / self.temperature

    def root(self, f: Float[Tensor, "*n c"], jacobian: Float[Tensor, "*n c p"]) -> Float[Tensor, "*n c p"]:
        """S J with Sᵀ S = Λ."""
        if not self.classes:
            return jacobian / (self.variance * self.temperature).sqrt().expand(f.shape)[..., None]
        probabilities = (f.softmax(-1) / self.temperature)[..., None]
        mean = self.temperature * (probabilities * jacobian).sum(-2, keepdim=True)
        return probabilities.sqrt() * (jacobian - mean)
