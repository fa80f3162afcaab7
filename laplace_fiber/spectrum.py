"""Image and kernel of the Gauss-Newton matrix at a weight vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.gauss_newton import ScaledGGN

EXACT_LIMIT = 3000
"""Weights, or data points times outputs, up to which all eigenpairs are found."""

KRYLOV_SIZE = 100
"""Eigenpairs that Lanczos looks for beyond, unless told otherwise."""


class Eigenpairs(NamedTuple):
    """Eigenpairs of a symmetric positive semi-definite matrix, or Ritz pairs: those of its compression."""

    values: Float[Tensor, " k"]
    """In ascending order."""
    vectors: Float[Tensor, "k p"]
    """Orthonormal, one per row."""
    rounding: float
    """Size of rounding in the values, relative to the largest."""
    residuals: Float[Tensor, " k"]
    """‖A u − λ u‖ of each pair: zero of eigenpairs."""


class ImageSpectrum:
    """Eigenpairs of D G D, G = Σ Jᵀ (∂²ℓ/∂f²) J / temperature over all data at θ, in the image of that matrix.

    The rank is at most the number m of data points times outputs. All eigenpairs are found where p or m is small: of
    the p × p matrix if p ≤ m, and else through a QR decomposition of the m rows, so that the eigenvectors are
    orthonormal to rounding. Beyond, the Lanczos method finds Ritz pairs with Gauss-Newton products alone.

    Parameters
    ----------
    ggn
        D G D, whose data are passed over again and again for Lanczos.
    generator
        For start vectors of Lanczos.
    rank
        At most this many eigenpairs, the largest; ``None`` takes all, or 100 of Lanczos.
    cutoff
        Eigenvalues up to this size, and those that rounding explains, belong to the kernel.
    exact_limit
        Size of the smaller of p and m up to which Lanczos is not needed.

    Attributes
    ----------
    values
        Eigenvalues, largest first.
    vectors
        Orthonormal eigenvectors, one per row.
    exact
        Whether they span the whole image.
    evaluations
        Backward passes over a batch that it took.
    """

    values: Float[Tensor, " r"]
    vectors: Float[Tensor, "r p"]

    def __init__(
        self,
        ggn: ScaledGGN,
        generator: torch.Generator,
        *,
        rank: int | None = None,
        cutoff: float = 0.0,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        self.n_rows, self.exact = ggn.n_rows, ggn.decomposable(exact_limit)
        pairs = decomposition(ggn) if self.exact else krylov_pairs(ggn, generator, rank)
        self.evaluations, theta = ggn.evaluations, ggn.theta
        largest = pairs.values.flip(0)[:rank]
        kept = int((largest > max(cutoff, float(largest[0]) * pairs.rounding)).sum())
        self.values = largest[:kept].to(theta)
        self.vectors = pairs.vectors.flip(0)[:kept].to(theta)

    @property
    def rank(self) -> int:
        """Dimension of the image (of what was found of it)."""
        return len(self.values)

    def image(self, v: Float[Tensor, "*n p"]) -> Float[Tensor, "*n p"]:
        """U Uᵀ v, the part of v that changes the outputs on the data."""
        return v @ self.vectors.T @ self.vectors

    def kernel(self, v: Float[Tensor, "*n p"]) -> Float[Tensor, "*n p"]:
        """v − U Uᵀ v, the part that does not, to first order."""
        return v - self.image(v)

    def inverse_root(self, v: Float[Tensor, "*n p"], shift: float) -> Float[Tensor, "*n p"]:
        """U (Λ + shift)^-½ Uᵀ v."""
        return (v @ self.vectors.T * (self.values + shift).rsqrt()) @ self.vectors


def decomposition(ggn: ScaledGGN) -> Eigenpairs:
    """All eigenpairs that are not in the kernel by their number: of the p × p matrix, or by a QR of fewer rows.

    Raises
    ------
    RuntimeError
        The curvature is not finite.
    """
    theta, size = ggn.theta, max(len(ggn.theta), ggn.n_rows)
    # Rounding of the rows enters squared, that of the decomposition does not.
    precision = max(torch.finfo(torch.float64).eps, torch.finfo(theta.dtype).eps ** 2)
    if len(theta) <= ggn.n_rows:
        total = torch.zeros(len(theta), len(theta), dtype=torch.float64, device=theta.device)
        for r in ggn.rows():
            total.addmm_(r.T, r)
        values, vectors = _eigh(total)
        rows = vectors.T
    else:
        q, b = torch.linalg.qr(torch.cat(list(ggn.rows())).T)
        values, vectors = _eigh(b @ b.T)
        rows = (q @ vectors).T
    _check_finite(values)
    return Eigenpairs(values, rows, size * precision, torch.zeros_like(values))


def krylov_pairs(ggn: ScaledGGN, generator: torch.Generator, rank: int | None = None) -> Eigenpairs:
    """At most ``rank`` Ritz pairs (100 unless told) from random start vectors, by Gauss-Newton products alone.

    Raises
    ------
    RuntimeError
        The curvature is not finite.
    """
    theta = ggn.theta

    def draw() -> Tensor:
        return torch.randn(len(theta), generator=generator, dtype=theta.dtype, device=theta.device)

    pairs = lanczos(ggn.product, draw, min(rank or KRYLOV_SIZE, len(theta), ggn.n_rows))
    _check_finite(pairs.values)
    return pairs


def lanczos(
    product: Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]], draw: Callable[[], Float[Tensor, " p"]], order: int
) -> Eigenpairs:
    """Ritz pairs of a symmetric positive semi-definite matrix in a Krylov space.

    Start vectors are products, so that every Ritz vector lies in the image. Each new vector is orthogonalised twice
    against all before it. Where the Krylov space is exhausted (an eigenvalue of some multiplicity is found once only),
    another start vector goes on; fewer than ``order`` pairs are returned when the image holds no more.
    """
    fresh = product(draw())
    basis = fresh.new_empty(order, len(fresh))
    matrix = torch.zeros(order, order, dtype=torch.float64, device=fresh.device)
    rounding = torch.finfo(fresh.dtype).eps ** 0.75
    found, largest, w, norm, left = 0, 0.0, fresh, float(fresh.norm()), 0.0
    while found < order and norm != 0:  # not a number goes on, to be found in the values
        basis[found] = w / norm
        w = product(basis[found])
        matrix[found, found] = w.double() @ basis[found].double()
        found += 1
        w = orthogonal(w, basis[:found])
        norm, largest = float(w.norm()), max(largest, float(matrix[found - 1, found - 1]))
        left = norm if norm > rounding * largest else 0.0
        if left > 0:
            if found < order:
                matrix[found, found - 1] = matrix[found - 1, found] = norm
            continue
        fresh = product(draw())
        w = orthogonal(fresh, basis[:found])
        norm = float(w.norm()) if w.norm() > rounding * fresh.norm() else 0.0
    if found == 0:
        return Eigenpairs(matrix.new_zeros(1), basis[:1].zero_(), 0.0, matrix.new_zeros(1))
    values, vectors = _eigh(matrix[:found, :found])
    return Eigenpairs(values, vectors.T.to(basis) @ basis[:found], rounding, left * vectors[-1].abs())


def orthogonal(w: Float[Tensor, " p"], basis: Float[Tensor, "k p"]) -> Float[Tensor, " p"]:
    """The part of w that is orthogonal to orthonormal rows."""
    for _ in range(2):  # twice is enough
        w = w - (basis @ w) @ basis
    return w


def _eigh(matrix: Float[Tensor, "k k"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
    if not bool(torch.isfinite(matrix).all()):  # LAPACK would not say what is wrong
        return matrix.new_full((len(matrix),), torch.nan), matrix
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _check_finite(values: Float[Tensor, " k"]) -> None:
    if not bool(torch.isfinite(values).all()):
        raise RuntimeError(
            "Gauss-Newton matrix: expected finite curvature, got an infinite or undefined eigenvalue: the weights have "
            "left the region where the network can be evaluated; use a higher prior precision."
        )
