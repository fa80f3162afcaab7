"""The Gauss-Newton matrix over all data, by its rows and by products with vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.jacobian_rows import gauss_newton_rows, outputs_per_point
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.memory import available_bytes
from laplace_fiber.output_loss import OutputLoss


class ScaledGGN:
    """D G D with G = Σ Jᵀ (∂²ℓ/∂f²) J / temperature over all data at θ, σ included.

    Parameters
    ----------
    joint
        The objective: its likelihood, noise and temperature make G.
    theta
        θ.
    data
        Batches that are passed over, again for each product. Fewer than ``joint.n_data`` points stand for all.
    scale
        The diagonal D: units that weights are measured in.

    Attributes
    ----------
    n_rows
        m, data points times outputs: at least the rank of G.
    evaluations
        Backward passes over a batch so far.
    """

    def __init__(
        self,
        joint: LogJoint,
        theta: Float[Tensor, " p"],
        data: Sequence[Batch] | TrainingData,
        scale: Float[Tensor, " p"] | float = 1.0,
    ) -> None:
        self.theta = theta
        self._joint, self._data, self._scale = joint, data, scale
        size = data.n_data if isinstance(data, TrainingData) else sum(batch.size for batch in data)
        self._share = joint.n_data / size
        self._n_outputs = outputs_per_point(joint.network, theta, next(iter(self._batches())).blocks[0][0])
        self.n_rows, self.evaluations = size * self._n_outputs, 0.0

    def decomposable(self, limit: int) -> bool:
        """Whether the smaller of p and m is within the limit, and what a decomposition needs within the memory."""
        smaller = min(self.n_rows, len(self.theta))
        return smaller <= limit and 3 * 8 * smaller * len(self.theta) < available_bytes(self.theta.device) / 2

    def rows(self) -> Iterator[Float[Tensor, "k p"]]:
        """R in float64, some points' rows at a time, with D G D = Rᵀ R."""
        self.evaluations += self._n_outputs * sum(1 for _ in self._batches())
        factor = self._scale * self._share**0.5
        return ((r * factor).double() for r in gauss_newton_rows(self._joint, self.theta, self._batches()))

    def product(self, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """D G D v, by differentiating once backwards, that derivative backwards again (which is J v), and back."""
        scaled, total = v * self._scale, torch.zeros_like(v)
        for x, _ in (block for batch in self._batches() for block in batch.blocks):
            rows = self.theta.detach().requires_grad_()
            with torch.enable_grad(), self._joint.network.evaluation(), sdpa_kernel(SDPBackend.MATH):
                outputs = self._joint.network.one(rows, x)
                probe = torch.zeros_like(outputs, requires_grad=True)
                (pulled,) = torch.autograd.grad(outputs, rows, probe, create_graph=True)
                (tangent,) = torch.autograd.grad(pulled, probe, scaled, retain_graph=True)
                weighted = OutputLoss(self._joint).bent(outputs.detach(), tangent)
                (back,) = torch.autograd.grad(outputs, rows, weighted)
            total, self.evaluations = total + back, self.evaluations + 3
        return total * self._scale * self._share

    def _batches(self) -> Iterable[Batch]:
        return self._data.epoch() if isinstance(self._data, TrainingData) else self._data
