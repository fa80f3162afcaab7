"""Units put in the order, and given the signs, of those of a reference.

Source: Ainsworth, Hayase and Srinivasa (2023), *Git Re-Basin: Merging models modulo permutation symmetries*, section
3.2 (matching weights).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from laplace_fiber.geometry.parts import Named, Part, by_unit, multiply, permute
from laplace_fiber.geometry.structure import Units

MOST_ROUNDS = 100
LEAST_GAIN = 1e-12
"""Of the inner product, relative to the product of norms: a smaller one is rounding."""


def match(named: Named, units: list[Units], reference: Named, signs: bool, permutations: bool) -> None:
    """Change all samples in ``named`` so that their inner product with the reference grows, layer by layer.

    Each step is the best one for its layer, by linear assignment, for the others as they are; they are repeated until
    none gains. The result is a local optimum: the joint problem is hard.
    """
    rows = []
    for i in range(len(next(iter(named.values())))):
        sample = {name: tensor[i : i + 1] for name, tensor in named.items()}
        _match_one(sample, units, reference, signs, permutations)
        rows.append(sample)
    for name in named:
        named[name] = torch.cat([sample[name] for sample in rows])


def _match_one(sample: Named, units: list[Units], reference: Named, signs: bool, permutations: bool) -> None:
    for _ in range(MOST_ROUNDS):
        gains = [_match_layer(sample, layer, reference, signs and layer.odd, permutations) for layer in units]
        if not any(gains):
            return


def _match_layer(sample: Named, layer: Units, reference: Named, signs: bool, permutations: bool) -> bool:
    """One layer's best assignment; whether it gains anything."""
    turned = [*layer.written, *layer.read]
    kept = [part for part in layer.rows if part not in layer.written]
    signed, fixed = (_products(reference, sample, parts, layer.size) for parts in (turned, kept))
    value = fixed + (signed.abs() if signs else signed)
    present = float((fixed + signed).trace())
    order = torch.arange(layer.size, device=value.device)
    if permutations:
        order = torch.as_tensor(linear_sum_assignment(value.cpu().numpy(), maximize=True)[1], device=value.device)
    places = torch.arange(layer.size, device=value.device), order
    size = float(_squared(reference, layer) * _squared(sample, layer)) ** 0.5
    if float(value[places].sum()) - present <= LEAST_GAIN * size:
        return False
    for part in [*layer.tensors, *(b for b in layer.buffers if b.name in sample)]:
        permute(sample, part, order[None])
    if signs:
        flips = torch.where(signed[places] < 0, -1.0, 1.0).to(value)[None]
        for part in turned:
            multiply(sample, part, flips)
    return True


def _squared(named: Named, layer: Units) -> Float[Tensor, ""]:
    """Σ of squares of all numbers that belong to a layer's units."""
    return torch.stack([named[part.name].square().sum() for part in layer.tensors]).sum()


def _products(reference: Named, sample: Named, parts: list[Part], size: int) -> Float[Tensor, "h h"]:
    """Inner products of the reference's units (rows) with the sample's (columns)."""
    total = next(iter(sample.values())).new_zeros(size, size)
    for part in parts:
        total = total + by_unit(reference, part)[0] @ by_unit(sample, part)[0].T
    return total
