"""Gauss-Newton curvature without p × p matrices: restricted to a subspace, and its largest eigenpairs."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from curvlinops import GGNLinearOperator
from jaxtyping import Float
from laplace.baselaplace import LowRankLaplace, ParametricLaplace
from laplace.curvature import CurvlinopsGGN
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.columns import column_blocks
from laplace_fiber.data import Batch
from laplace_fiber.weights import Inputs, NetworkFunction, difference_step

EIGENVALUE_FLOOR = 1e-6
"""Curvature below this is rounding; laplace-torch's low-rank flavour takes logarithms of what is kept."""


def subspace_jacobian(
    network: NetworkFunction,
    theta: Float[Tensor, " p"],
    directions: Float[Tensor, "r p"],
    x: Inputs,
    chunk_size: int = 64,
    keep_graph: bool = False,
    **model_kwargs: Any,
) -> tuple[Float[Tensor, "b *c r"], Float[Tensor, "b *c"]]:
    """J(x) Vᵀ and f(θ, x): one Jacobian-vector product per row of V, ``chunk_size`` of them at a time.

    Where a layer has no forward-mode derivative, central differences take the products' place. ``keep_graph`` leaves
    both results differentiable with respect to ``x``.
    """

    def outputs_at(t: Tensor) -> Tensor:
        return network.one(t, x, **model_kwargs)

    def exact(v: Tensor) -> Tensor:
        tangent: Tensor = jvp(outputs_at, (theta,), (v.to(theta),))[1]
        return tangent

    def by_differences(v: Tensor) -> Tensor:
        v = v.to(theta)
        step = difference_step(theta) / v.norm().clamp(min=torch.finfo(v.dtype).tiny)
        return (outputs_at(theta + step * v) - outputs_at(theta - step * v)) / (2 * step)

    # Fused attention has no forward-mode derivative.
    with torch.set_grad_enabled(keep_graph), network.evaluation(), sdpa_kernel(SDPBackend.MATH):
        outputs = outputs_at(theta)
        try:
            exact(torch.zeros_like(theta))
        except NotImplementedError:
            return torch.stack([by_differences(v) for v in directions], -1), outputs
        if network.resolved_engine() == "loop":
            return torch.stack([exact(v) for v in directions], -1), outputs
        return vmap(exact, chunk_size=chunk_size)(directions).movedim(0, -1), outputs


def subspace_ggn(
    network: NetworkFunction,
    theta: Float[Tensor, " p"],
    basis: Float[Tensor, "r p"],
    data: Iterable[Batch],
    likelihood: str,
    per_output: bool = False,
) -> Float[Tensor, "o r r"]:
    """V G Vᵀ in float64, G = Σ Jᵀ (∂²ℓ/∂f²) J the Gauss-Newton matrix of Σ ℓ at σ = 1 and temperature 1.

    Regression adds over outputs; ``per_output`` leaves their terms apart, for outputs of different noise.
    """
    total: Tensor = torch.zeros((), dtype=torch.float64, device=theta.device)
    for x, _ in (block for batch in data for block in batch.blocks):
        jacobian, outputs = subspace_jacobian(network, theta, basis, x)
        rows = jacobian.flatten(0, -3) if jacobian.ndim > 3 else jacobian
        if likelihood != "regression":
            rows = _softmax_hessian_root(outputs.flatten(0, -2)).mT @ rows
        grouped = rows.flatten(0, -3).movedim(1, 0) if per_output else rows.flatten(0, -2)[None]
        total = total + grouped.double().mT @ grouped.double()
    return total


@dataclass(frozen=True)
class SubspaceCurvature:
    """The Gauss-Newton matrix in a subspace, and determinants with it.

    Attributes
    ----------
    ggn
        V G Vᵀ, the sum of all outputs' terms (o = 1) or each output's.
    basis
        V.
    """

    ggn: Float[Tensor, "o r r"]
    basis: Float[Tensor, "r p"]

    def log_determinant_ratio(
        self, prior_precision: Float[Tensor, " p"], factor: Float[Tensor, " #o"]
    ) -> Float[Tensor, ""]:
        """log det(H V G Vᵀ + V diag(τ) Vᵀ) − log det(V diag(τ) Vᵀ), which is log det(I + H V G Vᵀ/τ) for one τ.

        H is the factor, one value or one per output. Differentiable in both arguments.
        """
        tau, factor = prior_precision.double(), factor.double()
        if self._is_diagonal(tau):
            return torch.log1p(factor * self._eigenvalues / tau.mean()).sum()
        scaled, prior = self._scaled(factor), self._prior(tau)
        return torch.logdet(scaled + prior) - torch.logdet(prior)

    def effective_dimension(
        self, prior_precision: Float[Tensor, " p"], factor: Float[Tensor, " #o"]
    ) -> Float[Tensor, ""]:
        """tr[H V G Vᵀ (H V G Vᵀ + V diag(τ) Vᵀ)⁻¹], the effective number of parameters of a posterior in the subspace.

        For one τ it is Σ λ/(λ + τ) over the eigenvalues of H V G Vᵀ. Differentiable in both arguments.
        """
        tau, factor = prior_precision.double(), factor.double()
        if self._is_diagonal(tau):
            curvature = factor * self._eigenvalues
            return (curvature / (curvature + tau.mean())).sum()
        scaled = self._scaled(factor)
        return torch.linalg.solve(scaled + self._prior(tau), scaled).trace()

    def _is_diagonal(self, tau: Float[Tensor, " p"]) -> bool:
        """Whether the eigenvectors of V G Vᵀ are those of the posterior's precision."""
        return len(self.ggn) == 1 and bool((tau == tau[0]).all())

    def _scaled(self, factor: Float[Tensor, " #o"]) -> Float[Tensor, "r r"]:
        return (factor[:, None, None] * self.ggn).sum(0)

    def _prior(self, tau: Float[Tensor, " p"]) -> Float[Tensor, "r r"]:
        if bool((tau == tau[0]).all()):
            return tau.mean() * torch.eye(len(self.basis), dtype=tau.dtype, device=tau.device)
        total = torch.zeros(len(self.basis), len(self.basis), dtype=torch.float64, device=tau.device)
        for columns, block in column_blocks(self.basis, torch.float64):
            total += (block * tau[columns]) @ block.T
        return total

    @functools.cached_property
    def _eigenvalues(self) -> Float[Tensor, " r"]:
        return torch.linalg.eigvalsh(self.ggn[0]).clamp(min=0)


class LanczosGGN(CurvlinopsGGN):  # type: ignore[misc]
    """A backend for laplace-torch whose ``eig_lowrank`` finds the largest eigenpairs of the Gauss-Newton matrix.

    Gauss-Newton products come from curvlinops, the implicitly restarted Lanczos method from SciPy (ARPACK).

    Parameters
    ----------
    rank
        Number of eigenpairs, at most one less than the number of weights.
    seed
        Of the Lanczos start vector.
    """

    def __init__(
        self, model: nn.Module, likelihood: str, *args: Any, rank: int = 50, seed: int = 0, **kwargs: Any
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank: expected at least 1 eigenpair, got {rank}.")
        super().__init__(model, likelihood, *args, **kwargs)
        self.rank, self.seed = rank, seed

    def eig_lowrank(self, data_loader: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvectors (p, k), eigenvalues (k,) of Σ Jᵀ (∂²ℓ/∂f²) J and the loss Σ ℓ over the loader."""
        parameter = self.params[0]
        data = [(x.to(parameter.device), y.to(parameter.device)) for x, y in data_loader]
        operator = GGNLinearOperator(self.model, self.lossfunc, self.params, data, check_deterministic=False)
        size = operator.shape[0]
        start = np.random.default_rng(self.seed).standard_normal(size)
        values, vectors = eigsh(operator.to_scipy(), k=min(self.rank, size - 1), which="LA", v0=start)
        kept = np.flatnonzero(self.factor * values > EIGENVALUE_FLOOR)[::-1]
        with torch.no_grad():
            loss = torch.stack([self.lossfunc(self.model(x), y) for x, y in data]).sum()
        return (
            torch.as_tensor(vectors[:, kept].copy()).to(parameter),
            self.factor * torch.as_tensor(values[kept].copy()).to(parameter),
            self.factor * loss,
        )


def low_rank_laplace(
    model: nn.Module, likelihood: str, *, rank: int = 50, backend_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> LowRankLaplace:
    """laplace-torch's own ``LowRankLaplace``, running on :class:`LanczosGGN`.

    Its constructor refuses to run without a package that exists only as an unpublished fork, even when given another
    backend; this one builds the same object past that check.

    Parameters
    ----------
    model, likelihood
        As in ``Laplace(model, likelihood, "all", "lowrank")``.
    rank
        Number of eigenpairs of the Gauss-Newton matrix.
    backend_kwargs, **kwargs
        Further arguments of the backend and of ``LowRankLaplace``.
    """
    laplace = LowRankLaplace.__new__(LowRankLaplace)
    options = {"rank": rank, **(backend_kwargs or {})}
    ParametricLaplace.__init__(laplace, model, likelihood, backend=LanczosGGN, backend_kwargs=options, **kwargs)
    return laplace


def _softmax_hessian_root(logits: Float[Tensor, "b c"]) -> Float[Tensor, "b c c"]:
    """S with S Sᵀ = diag(π) − π πᵀ, the cross-entropy's Hessian: S = diag(√π) − π √πᵀ."""
    probabilities = logits.softmax(-1)
    root = probabilities.sqrt()
    return torch.diag_embed(root) - probabilities[:, :, None] * root[:, None, :]
