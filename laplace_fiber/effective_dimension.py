"""The effective number of parameters: how many directions of weight space the data determine, against the prior.

d_eff = Σ_k λ_k / (λ_k + 1) over the eigenvalues λ_k of D G D, with G = Σ Jᵀ (∂²ℓ/∂f²) J / temperature the Gauss-Newton
matrix over all data (σ included) and D = diag(τ)^-½; for one prior precision, Σ_k λ_k / (λ_k + τ) over those of G.

Source: MacKay (1992), *A practical Bayesian framework for backpropagation networks*, where it is γ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.gauss_newton import ScaledGGN
from laplace_fiber.lanczos_quadrature import chosen, converged, estimated_tail, shrunk
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.spectrum import EXACT_LIMIT, decomposition, krylov_pairs
from laplace_fiber.weights import NetworkFunction

PROBES = 10
"""Random vectors that the trace of the small eigenvalues is estimated from."""

ROWS_TOGETHER = 64


@dataclass(frozen=True)
class EffectiveDimension:
    """The effective number of parameters; ``print`` it.

    Attributes
    ----------
    total
        d_eff, between 0 and the number of weights.
    error
        Bound on the error of ``total``: twice the standard error of the probes, and what their quadrature and the Ritz
        values may be off. 0 where all eigenvalues are known.
    per_layer
        Each weight tensor's share by its name in the network: the sum of the diagonal of U diag(λ/(λ + 1)) Uᵀ over the
        tensor's coordinates. The shares sum to ``total``.
    values
        Eigenvalues of D G D found, largest first.
    exact
        Whether these are all above 0.
    n_params
        Number of weights that move.
    tail_values, tail_weights
        Where some are not: nodes of a quadrature over the others, and how often each counts.
    in_subspace, subspace_rank
        d_eff of the posterior restricted to the subspace of a walk, and the subspace's dimension; None without a walk.
    """

    total: float
    error: float
    per_layer: dict[str, float]
    values: Float[Tensor, " r"]
    exact: bool
    n_params: int
    tail_values: Float[Tensor, " t"] = field(default_factory=lambda: torch.zeros(0))
    tail_weights: Float[Tensor, " t"] = field(default_factory=lambda: torch.zeros(0))
    in_subspace: float | None = None
    subspace_rank: int | None = None

    def at(self, scale: float) -> float:
        """Σ λ s²/(λ s² + 1): the effective dimension under the prior precision τ/s².

        A walk at the share s of its reach has the distance of samples of that posterior. The error of ``total`` is for
        s = 1; for s < 1 it is smaller in the quadrature.
        """
        known = shrunk(self.values.double() * scale**2).sum()
        return float(known + (self.tail_weights * shrunk(self.tail_values * scale**2)).sum())

    def log_determinant(self, scale: float) -> float:
        """Σ log(1 + λ s²), log det(I + D G D) for the prior precision τ/s²: an estimate where not all λ are known."""
        known = torch.log1p(self.values.double() * scale**2).sum()
        return float(known + (self.tail_weights * torch.log1p(self.tail_values * scale**2)).sum())

    def __str__(self) -> str:
        error = "" if self.exact else f" ± {self.error:.2g}"
        source = "all eigenvalues" if self.exact else f"{len(self.values)} eigenvalues, the rest by random probes"
        lines = [f"effective number of parameters: {self.total:.4g}{error} of {self.n_params} ({source})"]
        if self.in_subspace is not None:
            lines.append(
                f"of these in the walk's subspace: {self.in_subspace:.4g} (in {self.subspace_rank} dimensions)"
            )
        width = max(map(len, self.per_layer))
        lines += [f"  {name:<{width}}  {share:.4g}" for name, share in self.per_layer.items()]
        return "\n".join(lines)


def effective_dimension(
    joint: LogJoint,
    theta: Float[Tensor, " p"],
    data: TrainingData | Sequence[Batch],
    seed: int = 0,
    rank: int | None = None,
    probes: int = PROBES,
    exact_limit: int = EXACT_LIMIT,
) -> EffectiveDimension:
    """The effective number of parameters at θ, from all eigenvalues where p, or data points times outputs, is small.

    Beyond, from the largest ones (Ritz pairs of Lanczos that have converged) and an unbiased estimate of the rest:
    zᵀ f(A) z with f(λ) = λ/(λ + 1) for random signs z in the complement of these pairs, each by Lanczos quadrature.

    Parameters
    ----------
    joint
        The objective: prior precision, likelihood, noise and temperature.
    theta
        θ, the trained weights.
    data
        All training data, or batches that stand for them.
    seed
        Of start vectors and probes.
    rank
        Ritz pairs that are looked for; ``None`` takes 100. More make the error smaller.
    probes
        Random vectors z, at least 2. The error falls with their square root; each takes up to 100 Gauss-Newton
        products (passes over the data), and as many weight vectors of memory.
    exact_limit
        Size of the smaller of p and data points times outputs up to which all eigenvalues are found.

    Raises
    ------
    ValueError
        Fewer than 2 probes, or a rank below 1.
    RuntimeError
        The curvature is not finite.
    """
    theta = theta.detach()
    if probes < 2 or (rank is not None and rank < 1):
        raise ValueError(
            f"expected probes >= 2 (their spread is the error) and rank >= 1 or None, got {probes} and {rank}; the "
            "defaults suit most networks."
        )
    ggn = ScaledGGN(joint, theta, data, joint.prior_precision.detach().rsqrt().to(theta).expand(len(theta)))
    if ggn.decomposable(exact_limit):
        leading, tail = decomposition(ggn), None
        leading = chosen(leading, leading.values > leading.values.max() * leading.rounding)
    else:
        generator = torch.Generator(theta.device).manual_seed(seed)
        leading = converged(krylov_pairs(ggn, generator, rank))
        tail = estimated_tail(ggn.product, leading, generator, probes)
    shares = shrunk(leading.values)
    diagonal = _diagonal(leading.vectors, shares)
    total, error = float(shares.sum()), 0.0
    if tail is not None:
        diagonal, total = diagonal + tail.diagonal, total + tail.total
        # The last term bounds what the coupling of Ritz pairs to the rest changes: see `converged`.
        error = tail.error + 3 * float((leading.residuals.square() / (leading.values + 1)).sum())
    per_layer, nodes = _per_tensor(joint.network, diagonal), () if tail is None else (tail.values, tail.weights)
    return EffectiveDimension(total, error, per_layer, leading.values.flip(0), tail is None, len(theta), *nodes)


def _diagonal(vectors: Float[Tensor, "k p"], shares: Float[Tensor, " k"]) -> Float[Tensor, " p"]:
    """The diagonal of U diag(shares) Uᵀ."""
    total = torch.zeros(vectors.shape[1], dtype=torch.float64, device=vectors.device)
    for rows, weights in zip(vectors.split(ROWS_TOGETHER), shares.split(ROWS_TOGETHER), strict=True):
        total += weights @ rows.double().square()
    return total


def _per_tensor(network: NetworkFunction, diagonal: Float[Tensor, " p"]) -> dict[str, float]:
    ends = torch.tensor(network.sizes).cumsum(0)
    positions = torch.arange(int(ends[-1])) if network.index is None else network.index
    owner = torch.bucketize(positions, ends, right=True).to(diagonal.device)
    sums = torch.zeros(len(ends), dtype=diagonal.dtype, device=diagonal.device).index_add_(0, owner, diagonal)
    return dict(zip(network.names, sums.tolist(), strict=True))
