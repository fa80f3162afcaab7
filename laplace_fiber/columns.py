"""Passes over matrices of a few very long rows, some columns at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.memory import of_kind

BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Columns are converted to the precision of arithmetic in blocks that stay in a CPU's cache, or keep a GPU busy."""


def column_blocks(rows: Float[Tensor, "r p"], dtype: torch.dtype) -> Iterator[tuple[slice, Float[Tensor, "r b"]]]:
    """The rows in ``dtype``, whole where they have it already, else some columns at a time."""
    width = rows.shape[1] if rows.dtype == dtype else _columns_of_block(rows, dtype)
    for start in range(0, rows.shape[1], width):
        columns = slice(start, start + width)
        yield columns, rows[:, columns].to(dtype)


def products(vectors: Float[Tensor, "n p"], basis: Float[Tensor, "r p"]) -> Float[Tensor, "n r"]:
    """Inner products in the vectors' precision."""
    total = vectors.new_zeros(len(vectors), len(basis))
    for columns, block in column_blocks(basis, vectors.dtype):
        total += vectors[:, columns] @ block.T
    return total


def _columns_of_block(rows: Float[Tensor, "k p"], dtype: torch.dtype) -> int:
    return max(1, of_kind(BLOCK_BYTES, rows.device) // (dtype.itemsize * max(len(rows), 1)))


def gram(rows: Float[Tensor, "a b"]) -> Float[Tensor, "a a"]:
    """Inner products in float64, a block of columns at a time."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for _, block in column_blocks(rows, torch.float64):
        total += block @ block.T
    return total


def transformed(matrix: Float[Tensor, "k n"], rows: Float[Tensor, "n p"]) -> Float[Tensor, "k p"]:
    """Matrix times rows, written into the rows' own memory."""
    for block in rows.split(_columns_of_block(rows, rows.dtype), dim=1):
        block[: len(matrix)] = matrix @ block
    return rows[: len(matrix)]
