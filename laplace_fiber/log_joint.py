"""The unnormalised log posterior −J(θ): the only place that knows n_data, σ, τ and the temperature.

J(θ) = Σᵢ ℓ(yᵢ, f(θ, xᵢ)) / temperature + ½ (θ − μ₀)ᵀ diag(τ) (θ − μ₀), with ℓ the cross-entropy for classification and
½‖(y − f)/σ‖² for regression: laplace-torch's own convention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.data import Batch
from laplace_fiber.weights import Inputs, NetworkFunction, difference_step

WHOLE_ELEMENTS, BLOCK_ELEMENTS = 2**20, 2**17
"""Above the first, weights meet their prior in blocks of the second, which stay in the cache."""


class Evaluation(NamedTuple):
    """The objective at each weight vector."""

    value: Float[Tensor, " n"]
    """J(θ)/n_data."""
    grad: Float[Tensor, "n p"]
    """Its gradient."""
    data_term: Float[Tensor, " n"]
    """H Σ ℓ over all data, estimated from the batch."""


@dataclass(frozen=True)
class LogJoint:
    """J(θ)/n_data, its gradient and its curvature, for many weight vectors at once.

    Parameters
    ----------
    network
        f(θ, x).
    likelihood
        ``"classification"`` (also for reward modelling, whose fit compares two scores) or ``"regression"``.
    n_data
        Number of training points; a batch of b points stands for all of them by the factor n_data / b.
    prior_precision, prior_mean
        τ and μ₀, one value or one per weight.
    sigma_noise, temperature
        Observation noise (regression; one value or one per output) and likelihood temperature.
    chunk_size
        At most this many weight vectors are evaluated together (memory); ``None`` takes all.
    autocast
        Lower precision for the network's forward and backward passes (``torch.autocast``); losses stay in full.
    """

    network: NetworkFunction
    likelihood: str
    n_data: int
    prior_precision: Float[Tensor, " #p"]
    prior_mean: Float[Tensor, " #p"]
    sigma_noise: Float[Tensor, ""] | Float[Tensor, " c"] | float = 1.0
    temperature: float = 1.0
    chunk_size: int | None = None
    autocast: torch.dtype | None = None

    def losses(self, thetas: Float[Tensor, "n p"], batch: Batch) -> Float[Tensor, " n"]:
        """Σ ℓ over the batch for each θ. Differentiable."""
        totals = []
        for x, y in batch.blocks:
            with self._precision():
                outputs = self.network.many(thetas, self._laid_out(x, len(thetas)))
            totals.append(self.loss_of(outputs.to(thetas.dtype), y))
        return totals[0] if len(totals) == 1 else torch.stack(totals).sum(0)

    def loss_of(self, outputs: Float[Tensor, "n b *c"], y: Tensor) -> Float[Tensor, " n"]:
        """Σ ℓ for each of n outputs of the network. Differentiable."""
        if len(outputs) == 1:
            return summed_loss(outputs[0], y, self.likelihood, self.sigma_noise)[None]
        return vmap(lambda f: summed_loss(f, y, self.likelihood, self.sigma_noise))(outputs)

    def prior_energy(self, thetas: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
        """½ (θ − μ₀)ᵀ diag(τ) (θ − μ₀)."""
        if thetas.requires_grad:  # derivatives of slices are as large as the whole
            return 0.5 * ((thetas - self.prior_mean).square() * self.prior_precision).sum(-1)
        return 0.5 * _total([(offset * pull).sum(-1) for _, offset, pull in self._offsets(thetas)])

    def _offsets(self, thetas: Float[Tensor, "n p"]) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """θ − μ₀ and diag(τ)(θ − μ₀), some columns at a time: large temporary memory takes longer than the sums."""
        n, p = thetas.shape
        width = p if n * p <= WHOLE_ELEMENTS else max(1, BLOCK_ELEMENTS // n)
        for start in range(0, p, width):
            columns = slice(start, start + width)
            mean, precision = (v if v.numel() == 1 else v[columns] for v in (self.prior_mean, self.prior_precision))
            offset = thetas[:, columns] - mean
            yield columns, offset, offset * precision

    def objective(self, thetas: Float[Tensor, "n p"], batch: Batch) -> Float[Tensor, " n"]:
        """J(θ)/n_data, the data term estimated from ``batch``. Differentiable."""
        data_term = self.losses(thetas, batch) / (self.temperature * batch.size)
        return data_term + self.prior_energy(thetas) / self.n_data

    def evaluate(self, thetas: Float[Tensor, "n p"], batch: Batch) -> Evaluation:
        """Objective, gradient and data term per θ: one backward pass through the sum, since the rows do not interact.

        All rows together, whatever ``chunk_size``.
        """
        rows = thetas.detach().requires_grad_()
        with torch.enable_grad():
            loss = self.losses(rows, batch) / (self.temperature * batch.size)
            (grad,) = torch.autograd.grad(loss.sum(), rows)
        loss, energies = loss.detach(), []
        whole = thetas.numel() <= WHOLE_ELEMENTS
        for columns, offset, pull in self._offsets(thetas):
            energies.append((offset * pull).sum(-1))
            if whole:
                grad = torch.add(grad, pull, alpha=1 / self.n_data)
            else:
                grad[:, columns].add_(pull, alpha=1 / self.n_data)
        energy = 0.5 * _total(energies)
        return Evaluation(loss + energy / self.n_data, grad, loss * self.n_data)

    def value_and_grad(
        self, thetas: Float[Tensor, "n p"], batch: Batch
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n p"]]:
        """J(θ)/n_data and its gradient per θ, ``chunk_size`` rows at a time."""
        values, grads, _ = zip(*(self.evaluate(rows, batch) for rows in self._chunks(thetas)), strict=True)
        return torch.cat(values), torch.cat(grads)

    def data_term(self, thetas: Float[Tensor, "n p"], batch: Batch) -> Float[Tensor, " n"]:
        """H Σ ℓ over all data, estimated from the batch."""
        with torch.no_grad():
            losses = torch.cat([self.losses(rows, batch) for rows in self._chunks(thetas)])
        return losses * (self.n_data / (self.temperature * batch.size))

    def nll(self, thetas: Float[Tensor, "n p"], batch: Batch) -> Float[Tensor, " n"]:
        """−log p(y | x, θ) per data point (σ's normalising constant included, temperature left out)."""
        return self.nll_of(self.data_term(thetas, batch), batch)

    def nll_of(self, data_term: Float[Tensor, " n"], batch: Batch) -> Float[Tensor, " n"]:
        """:meth:`nll` from :meth:`data_term`."""
        losses = data_term * (self.temperature / self.n_data)
        if self.likelihood != "regression":
            return losses
        return losses + log_normaliser(self.sigma_noise, batch.blocks[0][1]).to(losses)

    def unit_losses(self, theta: Float[Tensor, " p"], data: Iterable[Batch]) -> Float[Tensor, " c"]:
        """Σ ℓ over all data at one θ with σ = 1, per output for regression (one number for classification)."""
        total: Tensor = torch.zeros((), dtype=theta.dtype, device=theta.device)
        with torch.no_grad():
            for x, y in (block for batch in data for block in batch.blocks):
                outputs = self.network.one(theta, x)
                if self.likelihood == "regression":
                    total = total + 0.5 * (outputs - y).square().sum(0).flatten()
                else:
                    total = total + summed_loss(outputs, y, self.likelihood)[None]
        return total

    def hessian_product(
        self, theta: Float[Tensor, " p"], batch: Batch
    ) -> Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]]:
        """v ↦ ∇²J(θ) v / n_data for unit v, by differentiating the gradient once more.

        Where a layer of the network has no second derivative, by central differences of the gradient.
        """
        rows = theta.detach()[None].requires_grad_()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            (grad,) = torch.autograd.grad(self.objective(rows, batch).sum(), rows, create_graph=True)

        def exact(v: Tensor) -> Tensor:
            (result,) = torch.autograd.grad(grad, rows, v[None], retain_graph=True)
            return result[0]

        def by_differences(v: Tensor) -> Tensor:
            step = difference_step(theta)
            _, gradients = self.value_and_grad(torch.cat([rows.detach() + step * v, rows.detach() - step * v]), batch)
            return (gradients[0] - gradients[1]) / (2 * step)

        try:
            exact(torch.zeros_like(theta))
        except (NotImplementedError, RuntimeError):
            return by_differences
        return exact

    def _precision(self) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.network.tensors[0].device.type, self.autocast)

    def _laid_out(self, x: Inputs, n_rows: int) -> Inputs:
        """Images channels last, as convolutions in lower precision on a GPU want them; layers follow their input."""
        one_by_one = n_rows == 1 or not self.network.batches
        if self.autocast is None or not one_by_one or not isinstance(x, Tensor) or not x.is_cuda or x.ndim != 4:
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def _chunks(self, thetas: Tensor) -> tuple[Tensor, ...]:
        # A loop gains nothing from rows evaluated together, and would keep all their graphs alive.
        size = 1 if self.network.resolved_engine() == "loop" else self.chunk_size or len(thetas)
        return thetas.split(size)


def _total(parts: list[Float[Tensor, " n"]]) -> Float[Tensor, " n"]:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def summed_loss(
    outputs: Float[Tensor, "b *c"], y: Tensor, likelihood: str, sigma_noise: Tensor | float = 1.0
) -> Float[Tensor, ""]:
    """Σ ℓ over a batch: cross-entropy, or half the squared error in units of the noise."""
    if likelihood == "regression":
        return 0.5 * ((outputs - y) / sigma_noise).square().sum()
    log_probabilities = functional.log_softmax(outputs, -1)
    return -log_probabilities.gather(-1, y[..., None]).sum()


def log_normaliser(sigma_noise: Tensor | float, y: Tensor) -> Float[Tensor, ""]:
    """Σ over one point's outputs of log(σ √2π)."""
    per_output = torch.as_tensor(sigma_noise, dtype=y.dtype, device=y.device).log() + 0.5 * math.log(2 * math.pi)
    return per_output.expand(y[0].shape).sum()


def check_shapes(outputs: Float[Tensor, "b *c"], y: Tensor, likelihood: str) -> None:
    """Refuse outputs and targets that do not fit the likelihood, before any long work.

    Raises
    ------
    ValueError
        Regression targets of another shape than the outputs; class labels that are not integers, outside [0, C), or
        a single output for classification.
    """
    if likelihood == "regression":
        if outputs.shape != y.shape:
            raise ValueError(
                f"regression: expected targets shaped like the outputs {tuple(outputs.shape)}, got {tuple(y.shape)}; "
                "reshape y (for one output, y[:, None])."
            )
        return
    n_classes = outputs.shape[-1]
    if outputs.ndim < 2 or n_classes < 2:
        raise ValueError(
            f"{likelihood}: expected logits of shape (batch, classes >= 2), got {tuple(outputs.shape)}; "
            "give a binary classifier two logits, e.g. (0, z)."
        )
    if y.is_floating_point() or y.shape != outputs.shape[:-1]:
        raise ValueError(
            f"{likelihood}: expected integer labels of shape {tuple(outputs.shape[:-1])}, "
            f"got {y.dtype} of shape {tuple(y.shape)}; use class indices, not one-hot vectors."
        )
    if int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(
            f"{likelihood}: expected labels in [0, {n_classes}), got {int(y.min())} to {int(y.max())}; renumber them."
        )
