"""Rows and columns of weight tensors that belong to hidden units: read, multiplied and permuted, sample by sample."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

Named: TypeAlias = dict[str, Tensor]
"""Weight tensors and buffers by name, with a first dimension for samples."""


class Part(NamedTuple):
    """A weight tensor or buffer, one row (or column) per unit."""

    name: str
    dimension: int
    """Along which the units stand, samples not counted."""
    repeats: int = 1
    """Successive rows that belong to each unit: the pixels of a channel, after flattening."""


def by_unit(named: Named, part: Part) -> Float[Tensor, "s h k"]:
    """The numbers that belong to each unit."""
    units_first = named[part.name].movedim(1 + part.dimension, 1)
    n_samples, rows = units_first.shape[:2]
    return units_first.reshape(n_samples, rows // part.repeats, -1)


def squared_norm(named: Named, parts: list[Part]) -> Float[Tensor, "s h"]:
    """Σ of squares of each unit's numbers."""
    return torch.stack([by_unit(named, part).square().sum(-1) for part in parts]).sum(0)


def multiply(named: Named, part: Part, factor: Float[Tensor, "s h"]) -> None:
    """Multiply each unit's numbers, in place of the tensor in ``named``."""
    tensor = named[part.name]
    shape = [1] * tensor.ndim
    shape[0], shape[1 + part.dimension] = len(factor), -1
    named[part.name] = tensor * factor.repeat_interleave(part.repeats, 1).view(shape)


def permute(named: Named, part: Part, order: Int[Tensor, "s h"]) -> None:
    """Put unit ``order[i]`` in place i, in place of the tensor in ``named``."""
    tensor = named[part.name]
    within = torch.arange(part.repeats, device=order.device)
    rows = (order[:, :, None] * part.repeats + within).flatten(1)
    shape = [1] * tensor.ndim
    shape[0], shape[1 + part.dimension] = rows.shape
    named[part.name] = tensor.gather(1 + part.dimension, rows.view(shape).expand(tensor.shape))
