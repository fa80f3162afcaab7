"""Stochastic Lanczos quadrature: tr f(A) for f(λ) = λ/(λ + 1), from products with A alone.

Source: Ubaru, Chen and Saad (2017), *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laplace_fiber.spectrum import Eigenpairs, orthogonal

DEPTH = 100
"""Lanczos steps of a probe at most."""

TOLERANCE = 1e-3
"""Share of the total up to which quadrature, and Ritz values that have not converged, may be wrong."""

NODE = -0.5
"""Below all eigenvalues, those that rounding has made negative included, and above the pole of λ/(λ + 1)."""


class Tail(NamedTuple):
    """The trace and the diagonal of f(A) in the complement of the leading eigenvectors, averaged over probes."""

    total: float
    error: float
    diagonal: Float[Tensor, " p"]
    values: Float[Tensor, " t"]
    weights: Float[Tensor, " t"]


class Quadrature(NamedTuple):
    """vᵀ f(A) v as Σ w f(λ): the Gauss quadrature that Lanczos from v gives."""

    values: Float[Tensor, " k"]
    weights: Float[Tensor, " k"]
    gap: float
    """The sum is above vᵀ f(A) v, by this at most."""
    root: Float[Tensor, " p"]
    """f(A)^½ v, whose squares sum to the quadrature's value."""

    @property
    def value(self) -> float:
        """Σ w f(λ)."""
        return float((self.weights * shrunk(self.values)).sum())


def converged(pairs: Eigenpairs) -> Eigenpairs:
    """The Ritz pairs whose coupling ρ to the rest of the matrix changes d_eff by less than ``TOLERANCE`` of it.

    Leaving out the coupling of orthonormal Ritz pairs (λ, u), A u − λ u = ρ q with one unit vector q for all, changes
    tr (A + 1)⁻¹ by up to 3 Σ ρ²/(λ + 1), if the sum is below ½: by Schur complements, as A + 1 ≥ 1.
    """
    real = pairs.values > pairs.values.max() * pairs.rounding
    return chosen(pairs, real & (3 * pairs.residuals.square() <= TOLERANCE * pairs.values))


def estimated_tail(
    product: Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]],
    leading: Eigenpairs,
    generator: torch.Generator,
    probes: int,
) -> Tail:
    """tr P f(P A P) P for the projection P on the complement of the leading vectors, by random signs."""
    known, basis = float(shrunk(leading.values).sum()), leading.vectors
    found = list[float]()
    nodes, weights = list[Tensor](), list[Tensor]()
    gap, diagonal = 0.0, basis.new_zeros(basis.shape[1], dtype=torch.float64)

    def projected(v: Tensor) -> Tensor:
        return orthogonal(product(v), basis)

    for _ in range(probes):
        signs = torch.randint(0, 2, (basis.shape[1],), generator=generator, device=basis.device) * 2 - 1
        part = quadrature(projected, orthogonal(signs.to(basis), basis), known)
        found.append(part.value)
        gap += part.gap / probes
        diagonal += part.root.double().square() / probes
        nodes.append(part.values)
        weights.append(part.weights / probes)
    mean = sum(found) / probes
    deviation = math.sqrt(sum((value - mean) ** 2 for value in found) / (probes - 1))
    return Tail(mean, 2 * deviation / probes**0.5 + gap, diagonal, torch.cat(nodes), torch.cat(weights))


def quadrature(
    product: Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]], v: Float[Tensor, " p"], known: float = 0.0
) -> Quadrature:
    """vᵀ f(A) v for f(λ) = λ/(λ + 1), by Lanczos with full orthogonalisation.

    It stops where the value is known up to ``TOLERANCE`` of it and ``known`` together: vᵀ f(A) v is
    vᵀv − vᵀ (A + 1)⁻¹ v, the last term of which is at least Gauss's value and at most that of Gauss-Radau with a node
    below all eigenvalues (Golub and Meurant (2010), *Matrices, moments and quadrature*, section 6.2).
    """
    order, length = min(DEPTH, len(v)), float(v.norm())
    basis, matrix = v.new_empty(order, len(v)), torch.zeros(order, order, dtype=torch.float64, device=v.device)
    gap, size, w, norm = 0.0, 0, v, length
    while size < order and norm != 0:
        basis[size] = w / norm
        w = product(basis[size])
        matrix[size, size] = w.double() @ basis[size].double()
        size += 1
        w = orthogonal(w, basis[:size])
        norm = float(w.norm())
        inverse, gap = _inverse_bounds(matrix[:size, :size], norm)
        gap *= length**2
        if gap <= TOLERANCE * (known + length**2 * (1 - inverse)):
            break
        if size < order:
            matrix[size, size - 1] = matrix[size - 1, size] = norm
    if size == 0:  # v = 0: the leading vectors span everything
        return Quadrature(matrix.new_zeros(0), matrix.new_zeros(0), 0.0, torch.zeros_like(v))
    values, vectors = torch.linalg.eigh(matrix[:size, :size])
    values = values.clamp(min=0)
    root = length * (vectors * shrunk(values).sqrt()) @ vectors[0]
    return Quadrature(values, (length * vectors[0]).square(), gap, root.to(basis) @ basis[:size])


def _inverse_bounds(matrix: Float[Tensor, "k k"], norm: float) -> tuple[float, float]:
    """Gauss's value of e₁ᵀ (T + 1)⁻¹ e₁, and how far Gauss-Radau's is above, for the next off-diagonal ``norm``."""
    unit = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    first, last = torch.linalg.solve(matrix + unit, unit[:, [0, -1]]).unbind(1)
    node = NODE + norm**2 * float(torch.linalg.solve(matrix - NODE * unit, unit[-1])[-1])
    # The additional row changes the last diagonal entry of T + 1 by its Schur complement.
    pull = norm**2 / (node + 1)
    rest = 1 - pull * float(last[-1])
    # Both are so but for rounding; the bound that is left is the residual of (A + 1) x = v, squared, as A + 1 ≥ 1.
    factor = pull / rest if node >= NODE and rest > 0 else norm**2
    return float(first[0]), factor * float(first[-1]) ** 2


def shrunk(values: Float[Tensor, "*k"]) -> Float[Tensor, "*k"]:
    """f(λ) = λ/(λ + 1)."""
    return values / (values + 1)


def chosen(pairs: Eigenpairs, kept: Bool[Tensor, " k"]) -> Eigenpairs:
    """The pairs under a mask, values in float64."""
    return Eigenpairs(pairs.values[kept].double(), pairs.vectors[kept], pairs.rounding, pairs.residuals[kept])
