"""An orthonormal basis of the span of a walk's states: everything after the walk works on coordinates in it.

All states lie in θ_MAP + span of at most n·T vectors, so nothing is lost, distances stay what they are, and the cost of
the latent autoencoder no longer depends on the number of weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

COLUMN_BLOCK = 65_536
"""Columns of the states that are held in float64 at a time."""


@dataclass(frozen=True)
class Subspace:
    """θ = origin + c V for coordinates c.

    Attributes
    ----------
    origin
        θ_MAP.
    basis
        V, with orthonormal rows, in float32 at least.
    """

    origin: Float[Tensor, " p"]
    basis: Float[Tensor, "r p"]

    def to_weights(self, coordinates: Float[Tensor, "*s r"]) -> Float[Tensor, "*s p"]:
        """Weight vectors of coordinates."""
        return self.origin + (coordinates.to(self.basis) @ self.basis).to(self.origin)

    def to_coordinates(self, weights: Float[Tensor, "*s p"]) -> Float[Tensor, "*s r"]:
        """Coordinates of (the projections of) weight vectors."""
        return (weights - self.origin).to(self.basis) @ self.basis.T


def span_of(states: Float[Tensor, "n t p"], relative_cutoff: float = 1e-6) -> tuple[Subspace, Float[Tensor, "n t r"]]:
    """The exact subspace of a walk and its states' coordinates.

    Built from the eigendecomposition of the displacements' Gram matrix in float64. Only directions whose length
    is rounding next to the longest one are left out: the small ones hold the refinement in the stiff directions.

    Parameters
    ----------
    states
        θ of each particle and step; ``states[:, 0]`` is the MAP.
    relative_cutoff
        Directions shorter than this share of the longest are rounding errors of float32 states.
    """
    p = states.shape[-1]
    origin = states[0, 0]
    rows = (states[:, 1:] - origin).reshape(-1, p)
    if p <= len(rows):
        gram = _gram(rows.T)
    else:
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for block in rows.split(COLUMN_BLOCK, dim=1):
            gram += _gram(block)
    squares, vectors = torch.linalg.eigh(gram)
    kept = squares > squares[-1].clamp(min=torch.finfo(squares.dtype).tiny) * relative_cutoff**2
    squares, vectors = squares[kept].flip(0), vectors[:, kept].flip(1)
    if p <= len(rows):
        basis = vectors.T
    else:
        raw = torch.cat([(vectors / squares.sqrt()).T @ b.double() for b in rows.split(COLUMN_BLOCK, dim=1)], dim=1)
        basis = _orthonormalised(raw)
    # In float32 at least: coordinates are trained on and decoded, for which half precision is too short.
    dtype = torch.promote_types(origin.dtype, torch.float32)
    return Subspace(origin.clone(), basis.to(dtype)), ((states - origin).double() @ basis.T).to(dtype)


def _gram(rows: Float[Tensor, "a b"]) -> Float[Tensor, "a a"]:
    wide = rows.double()
    return wide @ wide.T


def _orthonormalised(rows: Float[Tensor, "r p"]) -> Float[Tensor, "r p"]:
    """Nearly orthonormal rows made orthonormal: the Gram matrix squared their errors, one correction undoes it."""
    lower = torch.linalg.cholesky(rows @ rows.T)
    return torch.linalg.solve_triangular(lower, rows, upper=False)
