"""Image and kernel of the Gauss-Newton matrix at a weight vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.baselines.jacobian_rows import gauss_newton_rows, outputs_per_point
from laplace_fiber.baselines.output_loss import OutputLoss
from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.memory import available_bytes

EXACT_LIMIT = 3000
"""Weights, or data points times outputs, up to which all eigenpairs are found."""

KRYLOV_SIZE = 100
"""Eigenpairs that Lanczos looks for beyond, unless told otherwise."""


class GGNSpectrum:
    """Eigenpairs of D G D, G = Σ Jᵀ (∂²ℓ/∂f²) J / temperature over all data at θ, in the image of that matrix.

    The rank is at most the number m of data points times outputs. All eigenpairs are found where p or m is small: of
    the p × p matrix if p ≤ m, and else through a QR decomposition of the m rows, so that the eigenvectors are
    orthonormal to rounding. Beyond, the Lanczos method finds Ritz pairs with Gauss-Newton products alone.

    Parameters
    ----------
    joint
        The objective: its likelihood, noise and temperature make G.
    theta
        θ.
    data
        Batches that are passed over, again and again for Lanczos. Fewer than ``joint.n_data`` points stand for all.
    generator
        For start vectors of Lanczos.
    scale
        The diagonal D: units that weights are measured in.
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
        joint: LogJoint,
        theta: Float[Tensor, " p"],
        data: Sequence[Batch] | TrainingData,
        generator: torch.Generator,
        *,
        scale: Float[Tensor, " p"] | float = 1.0,
        rank: int | None = None,
        cutoff: float = 0.0,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        self._joint, self._theta, self._data, self._scale = joint, theta, data, scale
        size = data.n_data if isinstance(data, TrainingData) else sum(batch.size for batch in data)
        self._share = joint.n_data / size
        n_outputs = outputs_per_point(joint.network, theta, next(iter(self._batches())).blocks[0][0])
        self.n_rows, self.evaluations = size * n_outputs, 0.0
        self.exact = min(len(theta), self.n_rows) <= exact_limit and self._rows_fit()
        if self.exact:
            self.evaluations = float(n_outputs * sum(1 for _ in self._batches()))
            values, vectors, rounding = self._by_decomposition()
        else:
            order = min(rank or KRYLOV_SIZE, len(theta), self.n_rows)

            def draw() -> Tensor:
                return torch.randn(len(theta), generator=generator, dtype=theta.dtype, device=theta.device)

            values, vectors, rounding = lanczos(self._product, draw, order)
        if not bool(torch.isfinite(values).all()):
            raise RuntimeError(
                "GGNSpectrum: expected finite curvature, got an infinite or undefined eigenvalue: the weights have "
                "left the region where the network can be evaluated; use a higher prior precision."
            )
        largest = values.flip(0)[:rank]
        kept = int((largest > max(cutoff, float(largest[0]) * rounding)).sum())
        self.values = largest[:kept].to(theta)
        self.vectors = vectors.flip(0)[:kept].to(theta)

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

    def _batches(self) -> Iterable[Batch]:
        return self._data.epoch() if isinstance(self._data, TrainingData) else self._data

    def _rows_fit(self) -> bool:
        wide = 3 * 8 * min(self.n_rows, len(self._theta)) * len(self._theta)
        return wide < available_bytes(self._theta.device) / 2

    def _by_decomposition(self) -> tuple[Float[Tensor, " k"], Float[Tensor, "k p"], float]:
        p, root = len(self._theta), self._share**0.5
        rows = ((r * self._scale * root).double() for r in gauss_newton_rows(self._joint, self._theta, self._batches()))
        size = max(p, self.n_rows)
        # Rounding of the rows enters squared, that of the decomposition does not.
        precision = max(torch.finfo(torch.float64).eps, torch.finfo(self._theta.dtype).eps ** 2)
        if p <= self.n_rows:
            total = torch.zeros(p, p, dtype=torch.float64, device=self._theta.device)
            for r in rows:
                total.addmm_(r.T, r)
            values, vectors = _eigh(total)
            return values, vectors.T, size * precision
        q, b = torch.linalg.qr(torch.cat(list(rows)).T)
        values, vectors = _eigh(b @ b.T)
        return values, (q @ vectors).T, size * precision

    def _product(self, v: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """D G D v, by differentiating once backwards, that derivative backwards again (which is J v), and back."""
        scaled, total = v * self._scale, torch.zeros_like(v)
        for x, _ in (block for batch in self._batches() for block in batch.blocks):
            rows = self._theta.detach().requires_grad_()
            with torch.enable_grad(), self._joint.network.evaluation(), sdpa_kernel(SDPBackend.MATH):
                outputs = self._joint.network.one(rows, x)
                probe = torch.zeros_like(outputs, requires_grad=True)
                (pulled,) = torch.autograd.grad(outputs, rows, probe, create_graph=True)
                (tangent,) = torch.autograd.grad(pulled, probe, scaled, retain_graph=True)
                weighted = OutputLoss(self._joint).bent(outputs.detach(), tangent)
                (back,) = torch.autograd.grad(outputs, rows, weighted)
            total, self.evaluations = total + back, self.evaluations + 3
        return total * self._scale * self._share


def lanczos(
    product: Callable[[Float[Tensor, " p"]], Float[Tensor, " p"]], draw: Callable[[], Float[Tensor, " p"]], order: int
) -> tuple[Float[Tensor, " k"], Float[Tensor, "k p"], float]:
    """Ritz pairs (ascending) of a symmetric positive semi-definite matrix, and the relative size of rounding in them.

    Start vectors are products, so that every Ritz vector lies in the image. Each new vector is orthogonalised twice
    against all before it. Where the Krylov space is exhausted (an eigenvalue of some multiplicity is found once only),
    another start vector goes on; fewer than ``order`` pairs are returned when the image holds no more.
    """
    fresh = product(draw())
    basis = fresh.new_empty(order, len(fresh))
    matrix = torch.zeros(order, order, dtype=torch.float64, device=fresh.device)
    rounding = torch.finfo(fresh.dtype).eps ** 0.75
    found, largest, w, norm = 0, 0.0, fresh, float(fresh.norm())
    while found < order and norm > 0:
        basis[found] = w / norm
        w = product(basis[found])
        matrix[found, found] = w.double() @ basis[found].double()
        found += 1
        w = _orthogonal(w, basis[:found])
        norm, largest = float(w.norm()), max(largest, float(matrix[found - 1, found - 1]))
        if norm > rounding * largest:
            if found < order:
                matrix[found, found - 1] = matrix[found - 1, found] = norm
            continue
        fresh = product(draw())
        w = _orthogonal(fresh, basis[:found])
        norm = float(w.norm()) if w.norm() > rounding * fresh.norm() else 0.0
    if found == 0:
        return matrix.new_zeros(1), basis[:1].zero_(), 0.0
    values, vectors = _eigh(matrix[:found, :found])
    return values, vectors.T.to(basis) @ basis[:found], rounding


def _eigh(matrix: Float[Tensor, "k k"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
    if not bool(torch.isfinite(matrix).all()):  # LAPACK would not say what is wrong
        return matrix.new_full((len(matrix),), torch.nan), matrix
    values, vectors = torch.linalg.eigh(matrix)
    return values, vectors


def _orthogonal(w: Float[Tensor, " p"], basis: Float[Tensor, "k p"]) -> Float[Tensor, " p"]:
    for _ in range(2):
        w = w - (basis @ w) @ basis
    return w
