"""An orthonormal basis of the span of a walk's states: everything after the walk works on coordinates in it.

All states lie in θ_MAP + span of at most n·T vectors, so nothing is lost, distances stay what they are, and the cost of
the latent autoencoder no longer depends on the number of weights. The basis grows with the walk, which so never holds
more than one state per particle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laplace_fiber.columns import column_blocks, gram, products, transformed
from laplace_fiber.memory import available_bytes, of_kind

COLUMNS = {"cpu": 2**12, "cuda": 2**18}
"""Columns of weight vectors that are decoded at a time."""

DECODED_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Weight vectors are decoded together up to this size: each pass reads the whole basis."""

SINGLE_PRECISION_LIMIT = 2**31
"""Size in bytes up to which a basis is kept in float32 unless told otherwise; beyond, in float16."""

RELATIVE_CUTOFF = 1e-6
"""Directions shorter than this share of the longest displacement are rounding errors of float32 states."""


@dataclass(frozen=True)
class Subspace:
    """θ = origin + c V for coordinates c.

    Attributes
    ----------
    origin
        θ_MAP.
    basis
        V, with orthonormal rows, in float32 or more; or in float16, rounded.
    """

    origin: Float[Tensor, " p"]
    basis: Float[Tensor, "r p"]

    @cached_property
    def is_identity(self) -> bool:
        """Whether coordinates are displacements themselves, as where there are no more weights than states."""
        rank, p = self.basis.shape
        return rank == p and bool((self.basis.diagonal() == 1).all()) and int(self.basis.count_nonzero()) == p

    def own_basis(self) -> Float[Tensor, "r p"]:
        """The basis without room left over for rows that were not needed, to be saved: a copy where there is such."""
        return self.basis.clone() if self.basis.untyped_storage().nbytes() > self.basis.nbytes else self.basis

    def __reduce__(self) -> tuple[Any, ...]:
        return Subspace, (self.origin, self.own_basis())

    def to_weights(self, coordinates: Float[Tensor, "s r"]) -> Float[Tensor, "s p"]:
        """Weight vectors of coordinates."""
        return self._combined(coordinates, self.origin)

    def weight_groups(self, coordinates: Float[Tensor, "s r"], size: int) -> Iterator[Float[Tensor, "g p"]]:
        """:meth:`to_weights`, ``size`` rows at a time."""
        row, limit = self.origin.nbytes, of_kind(DECODED_BYTES, self.origin.device)
        if limit < len(coordinates) * row:
            limit = min(limit, available_bytes(self.origin.device) // 8)
        for rows in coordinates.split(max(1, limit // (row * size)) * size):
            yield from self.to_weights(rows).split(size)

    def directions(self, coordinates: Float[Tensor, "s r"]) -> Float[Tensor, "s p"]:
        """c V: displacements from the origin."""
        return self._combined(coordinates, None)

    def _combined(self, coordinates: Float[Tensor, "s r"], offset: Float[Tensor, " p"] | None) -> Float[Tensor, "s p"]:
        """c V, plus an offset."""
        if self.is_identity:
            result = coordinates.to(self.origin, copy=True)
            return result if offset is None else result.add_(offset)
        result = self.origin.new_empty(len(coordinates), self.basis.shape[1])
        wide = coordinates.to(torch.promote_types(self.basis.dtype, torch.float32))
        # Written where it belongs, and added to while in the cache: new memory costs as much as products of few rows.
        for start in range(0, result.shape[1], width := of_kind(COLUMNS, self.basis.device)):
            columns = slice(start, start + width)
            block, part = self.basis[:, columns].to(wide.dtype), result[:, columns]
            if part.dtype == wide.dtype:
                torch.mm(wide, block, out=part)
            else:
                part.copy_(wide @ block)
            if offset is not None:
                part.add_(offset[columns])
        return result

    def to_coordinates(self, weights: Float[Tensor, "s p"]) -> Float[Tensor, "s r"]:
        """Coordinates of (the projections of) weight vectors."""
        return products((weights - self.origin).to(torch.promote_types(self.basis.dtype, torch.float32)), self.basis)


@dataclass(frozen=True)
class BasisStorage:
    """How the basis of a walk is kept.

    Parameters
    ----------
    dtype
        ``None``: as the weights, in float32 at least, up to 2 GiB, in float16 beyond. In float16, a state is missed by
        about 2e-4 of the step that the walk took to it: what a rounded row leaves over goes into the next row.
    directory
        Keep the basis in a file in this folder (removed with the basis) instead of in memory.
    """

    dtype: torch.dtype | None = None
    directory: str | Path | None = None

    def allocate(self, rows: int, like: Float[Tensor, " p"]) -> Float[Tensor, "r p"]:
        """Room for a basis of so many rows. Memory is taken as rows are written.

        Raises
        ------
        MemoryError
            The room is larger than the memory that is available.
        """
        wide = torch.promote_types(like.dtype, torch.float32)
        size = rows * like.numel() * wide.itemsize
        dtype = self.dtype or (wide if size <= SINGLE_PRECISION_LIMIT else torch.float16)
        needed = rows * like.numel() * dtype.itemsize
        if self.directory is not None:
            with tempfile.NamedTemporaryFile(dir=self.directory, prefix="basis-") as file:
                file.truncate(needed)
                # Mapped, the file outlives its name.
                mapped = torch.from_file(file.name, shared=True, size=rows * like.numel(), dtype=dtype)
            return mapped.view(rows, like.numel())
        available = available_bytes(like.device)
        if needed > available:
            raise MemoryError(
                f"walk: expected {needed / 2**30:.1f} GiB for a basis of {rows} states of {like.numel()} weights in "
                f"{dtype}, got {available / 2**30:.1f} GiB available; take fewer particles or steps, move fewer layers "
                "(subset=), or keep the basis on disk with basis=BasisStorage(directory=...)."
            )
        return torch.empty(rows, like.numel(), dtype=dtype, device=like.device)


class StreamingBasis:
    """An orthonormal basis that grows by the displacements it is shown.

    Block Gram-Schmidt with re-orthogonalisation (Giraud et al., 2005: twice is enough). Only directions whose length
    is rounding next to the longest displacement are left out: small ones hold the refinement in the stiff directions.
    Where there are no more weights than vectors to come, the basis is the identity.

    Parameters
    ----------
    origin
        θ_MAP.
    n_vectors
        How many displacements will be shown at most.
    storage
        How the basis is kept.
    relative_cutoff
        Length below which a new direction is left out, as a share of the longest displacement.
    """

    def __init__(
        self,
        origin: Float[Tensor, " p"],
        n_vectors: int,
        storage: BasisStorage | None = None,
        relative_cutoff: float = RELATIVE_CUTOFF,
    ) -> None:
        self.origin, self.relative_cutoff = origin.clone(), relative_cutoff
        self.identity = origin.numel() <= n_vectors
        # In float32 at least: coordinates are trained on and decoded, for which half precision is too short.
        self.dtype = torch.promote_types(origin.dtype, torch.float32)
        if self.identity:
            self._rows = torch.eye(origin.numel(), dtype=self.dtype, device=origin.device)
        else:
            self._rows = (storage or BasisStorage()).allocate(n_vectors, origin)
        self.rank = len(self._rows) if self.identity else 0
        self._longest = 0.0

    @property
    def basis(self) -> Float[Tensor, "r p"]:
        """The rows so far."""
        return self._rows[: self.rank]

    def append(self, displacements: Float[Tensor, "n p"]) -> Float[Tensor, "n r"]:
        """Extend the basis to span the given displacements too, and return their coordinates.

        ``displacements`` is used as working memory and holds nothing of use afterwards.
        """
        rest = displacements.to(self.dtype)
        if self.identity:
            return rest.clone()
        # Row by row: all of them in float64 at once would be another two copies.
        self._longest = max(self._longest, *(float(torch.linalg.vector_norm(r, dtype=torch.float64)) for r in rest))
        old = self._take_out(rest)
        inner = gram(rest)
        room = len(self._rows) - self.rank
        kept = _independent_rows(inner, max(self.relative_cutoff * self._longest, 1e-30) ** 2)[:room]
        if not kept:
            return old
        # rest = M W with W = L⁻¹ rest[kept], and W = E V + L' W' for the rows V so far and the new ones W'.
        inverse = _inverse(torch.linalg.cholesky(inner[kept][:, kept]))
        mixing = inner[:, kept] @ inverse.T
        combinations = torch.zeros(len(kept), len(rest), dtype=inverse.dtype, device=inverse.device)
        combinations[:, kept] = inverse
        new_rows = transformed(combinations.to(rest), rest)
        along_old = self._take_out(new_rows)
        if float(torch.linalg.vector_norm(new_rows, dim=1).min()) < 0.7:
            along_old += self._take_out(new_rows)
        lower = torch.linalg.cholesky(gram(new_rows))
        self._rows[self.rank : self.rank + len(kept)] = transformed(_inverse(lower).to(rest), new_rows)
        self.rank += len(kept)
        return torch.cat([old + mixing.to(rest) @ along_old, (mixing @ lower).to(rest)], dim=1)

    def restore(self, rows: Float[Tensor, "k p"]) -> None:
        """Append rows that :meth:`append` has made before, as they are."""
        self._rows[self.rank : self.rank + len(rows)] = rows
        self.rank += len(rows)

    def finished(self) -> Subspace:
        """The subspace of all vectors shown."""
        return Subspace(self.origin, self.basis)

    def together(self, parts: list[Tensor]) -> Float[Tensor, "n t r"]:
        """Coordinates of the origin and of everything shown, of which earlier parts lack the later dimensions."""
        padded = [functional.pad(c, (0, self.rank - c.shape[1])) for c in parts]
        return torch.stack([torch.zeros_like(padded[0]), *padded], 1)

    def _take_out(self, vectors: Float[Tensor, "n p"]) -> Float[Tensor, "n r"]:
        """Coordinates along the rows so far; these parts of the vectors are subtracted in place."""
        coordinates = products(vectors, self.basis)
        if self.rank:
            for columns, block in column_blocks(self.basis, vectors.dtype):
                vectors[:, columns].addmm_(coordinates, block, alpha=-1)
        return coordinates


def _independent_rows(gram: Float[Tensor, "n n"], smallest: float) -> list[int]:
    """Rows that add more than ``smallest`` of squared length to the span of those before, in order.

    Unlike eigenvectors, whose signs are anybody's guess, a basis made of them does not jump with rounding.
    """
    rest, kept = gram.clone(), []
    for i in range(len(rest)):
        if float(rest[i, i]) > smallest:
            column = rest[:, i] / rest[i, i].sqrt()
            rest -= column[:, None] * column
            kept.append(i)
    return kept


def _inverse(lower: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    return torch.linalg.solve_triangular(lower, torch.eye(len(lower)).to(lower), upper=False)
