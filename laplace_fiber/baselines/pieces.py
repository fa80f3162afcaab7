"""The data behind a metric on weights, in pieces that fit into memory, or a subset for each geodesic."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import cast

import torch
from jaxtyping import Int
from torch import Tensor

from laplace_fiber.data import TrainingData
from laplace_fiber.weights import Inputs


class Pieces:
    """The data behind a metric: all of them, or a fixed random subset for each geodesic.

    Parameters
    ----------
    data
        The training data; those of one pass are kept.
    subsets
        Indices of data points, a row for each geodesic; ``None`` takes all.

    Raises
    ------
    ValueError
        Subsets of inputs that are not tensors of one shape.
    """

    def __init__(self, data: TrainingData, subsets: Int[Tensor, "s m"] | None = None) -> None:
        self.blocks, self.size, self.subsets = data.everything().blocks, data.n_data, subsets
        if subsets is not None:
            self.size = subsets.shape[1]
            tensors = [x for x, _ in self.blocks if isinstance(x, Tensor)]
            if len(tensors) < len(self.blocks) or len({x.shape[1:] for x in tensors}) > 1:
                raise ValueError(
                    "data: expected inputs that are tensors of one shape for 'subset', got others; use data='full'."
                )
            self.blocks = [(torch.cat(tensors), torch.cat([y for _, y in self.blocks]))]

    def split(self, n_points: int) -> None:
        """Make the pieces no larger than so many data points, where the inputs are tensors."""
        if self.subsets is None:
            self.blocks = [piece for block in self.blocks for piece in _split(block, max(1, n_points))]

    def cast(self, dtype: torch.dtype) -> None:
        """Floating-point inputs and targets in another precision."""
        self.blocks = [(_cast(x, dtype), cast("Tensor", _cast(y, dtype))) for x, y in self.blocks]

    def of(self, rows: Int[Tensor, " k"]) -> Iterator[tuple[Inputs, Tensor]]:
        """Inputs and targets, with a leading dimension for the rows if each has its own."""
        if self.subsets is None:
            yield from self.blocks
        else:
            chosen, (x, y) = self.subsets[rows], self.blocks[0]
            yield cast("Tensor", x)[chosen], y[chosen]


def _split(block: tuple[Inputs, Tensor], size: int) -> list[tuple[Inputs, Tensor]]:
    x, y = block
    if not isinstance(x, Tensor):
        return [block]
    return list(zip(x.split(size), y.split(size), strict=True))


def _cast(value: Inputs, dtype: torch.dtype) -> Inputs:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    mapping = copy.copy(value)
    for key, item in value.items():
        mapping[key] = _cast(item, dtype) if isinstance(item, Tensor) else item
    return mapping
