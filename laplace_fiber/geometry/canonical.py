"""One representative for all weights of the same function: scaling, sign and permutation of hidden units taken away."""

from __future__ import annotations

import copy
import warnings
from typing import overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.geometry.matching import match
from laplace_fiber.geometry.parts import Named, by_unit, multiply, permute, squared_norm
from laplace_fiber.geometry.structure import Units, hidden_units
from laplace_fiber.weights import NetworkFunction

BALANCED = 1e-12
"""Units are balanced when the logarithm of no factor is larger."""

MOST_SWEEPS = 10_000


@overload
def canonicalize(
    weights: nn.Module,
    model: None = None,
    *,
    scaling: bool = True,
    sign: bool = True,
    permutation: bool = True,
    reference: nn.Module | Tensor | None = None,
) -> nn.Module: ...


@overload
def canonicalize(
    weights: Tensor,
    model: nn.Module | NetworkFunction,
    *,
    scaling: bool = True,
    sign: bool = True,
    permutation: bool = True,
    reference: nn.Module | Tensor | None = None,
) -> Tensor: ...


def canonicalize(
    weights: nn.Module | Float[Tensor, "*s p"],
    model: nn.Module | NetworkFunction | None = None,
    *,
    scaling: bool = True,
    sign: bool = True,
    permutation: bool = True,
    reference: nn.Module | Float[Tensor, " q"] | None = None,
) -> nn.Module | Float[Tensor, "*s p"]:
    """Other weights of the same function: the same ones for all weights that differ by symmetries of hidden units.

    Scaling: where a unit's activation is positively homogeneous, its incoming weights and bias times a > 0 and its
    outgoing ones over a give the same function. Each unit takes the a at which both have the same norm,
    a = (‖out‖² / (‖in‖² + b²))^¼, again and again until nothing changes. The squared norm is a sum of exponentials of
    affine functions of the log a, hence convex: this is its only minimum, the representative of minimum norm. A unit
    without incoming or without outgoing weights adds nothing, and has norm 0. Behind a batch norm, γ and β are what
    comes in. Weights in front of it are left as they are: the function does not depend on their size, and the minimum
    would be 0.

    Sign: where it is odd (tanh), both may change sign. The sum of a unit's incoming weights and bias becomes positive.

    Permutation: units are sorted by that sum, the largest first, which is unique but for ties and not continuous; or
    matched to those of a reference, layer by layer until no assignment changes, so that the inner product with it
    grows as far as it does that way.

    Source: Laurent, Aldea and Franchi (2024), *A symmetry-aware exploration of Bayesian neural network posteriors*, for
    the three symmetries and the minimum; Ainsworth, Hayase and Srinivasa (2023), *Git Re-Basin*, for the matching.

    Parameters
    ----------
    weights
        A network, of which a changed copy is returned; or weight samples, one per row, in the order of θ.
    model
        The network of weight samples, or the function of its moving weights. Units whose weights do not all move stay
        as they are.
    scaling, sign, permutation
        Which symmetries are taken away.
    reference
        A network or a weight vector to match units with (signs are then matched, too). It is scaled first.

    Raises
    ------
    ValueError
        A layer that is not understood, named; a reference or samples of another size; indices as subset; weight
        samples to be permuted behind a batch norm, whose statistics they do not carry.

    Warns
    -----
    UserWarning
        Scaling has not converged, which changes nothing about the function.
    """
    if isinstance(weights, nn.Module):
        named = _values(dict([*weights.named_parameters(), *weights.named_buffers()]))
        network = NetworkFunction(weights) if isinstance(reference, Tensor) else None
        _take_away(named, weights, _reference(reference, network), scaling, sign, permutation)
        return _copy_with(weights, named)
    if model is None:
        raise ValueError("canonicalize: expected the network of the weight samples as second argument, got None.")
    network = model if isinstance(model, NetworkFunction) else NetworkFunction(model)
    rows = weights.reshape(-1, weights.shape[-1])
    if network.index is not None or weights.shape[-1] != network.n_params:
        raise ValueError(
            f"canonicalize: expected samples of {network.n_params} weights of whole tensors, got {weights.shape[-1]} "
            f"{'' if network.index is None else '(indices as subset) '}; move all weights, or those of named modules."
        )
    parts = zip(network.names, network.shapes, rows.split(network.sizes, 1), strict=True)
    named = {name: part.unflatten(1, shape).double() for name, shape, part in parts}
    _take_away(named, network.model, _reference(reference, network), scaling, sign, permutation)
    return torch.cat([named[name].flatten(1) for name in network.names], 1).to(weights).reshape(weights.shape)


def _take_away(
    named: Named, model: nn.Module, reference: Named | None, scaling: bool, sign: bool, permutation: bool
) -> None:
    """Change the tensors in ``named``, and those of the reference where it is to be scaled."""
    units = [u for u in hidden_units(model) if all(part.name in named for part in u.tensors)]
    if permutation:
        for layer in units:
            _check_statistics(layer, named)
    if reference is not None:
        for part in (part for layer in units for part in layer.tensors):
            if part.name not in reference or reference[part.name].shape[1:] != named[part.name].shape[1:]:
                raise ValueError(
                    f"reference: expected weights {part.name!r} of the same shape; pass a network like it."
                )
    if scaling:
        for each in (named,) if reference is None else (named, reference):
            _balance(each, units)
    if reference is not None:
        match(named, units, reference, sign, permutation)
        return
    if sign:
        for layer in units:
            _make_positive(layer, named)
    if permutation:
        for layer in units:
            order = _sums(layer, named).argsort(dim=1, descending=True, stable=True)
            for part in [*layer.tensors, *layer.buffers]:
                permute(named, part, order)


def _balance(named: Named, units: list[Units]) -> None:
    """The representative of minimum norm: each unit in turn, until no factor differs from 1."""
    scalable = [u for u in units if u.homogeneous and u.written]
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for layer in scalable:
            written, read = squared_norm(named, layer.written), squared_norm(named, layer.read)
            dead = (written == 0) | (read == 0)
            # Square roots of square roots: the fourth root of a quotient may overflow before it is taken.
            factor = torch.where(dead, 1.0, (read.sqrt() / written.sqrt()).sqrt())
            largest = max(largest, float(factor.log().abs().max()))
            for part in layer.written:
                multiply(named, part, factor.masked_fill(dead, 0.0))
            for part in layer.read:
                multiply(named, part, (1 / factor).masked_fill(dead, 0.0))
        if largest <= BALANCED:
            return
    if scalable:
        warnings.warn(
            f"canonicalize: some units are not balanced after {MOST_SWEEPS} sweeps (a factor of {largest:.2g} is left "
            "in the logarithm); the function is the same, the norm is not yet the smallest.",
            stacklevel=4,
        )


def _make_positive(layer: Units, named: Named) -> None:
    """Change the signs of units whose incoming weights and bias have a negative sum."""
    if layer.odd and layer.written:
        signs = torch.where(_sums(layer, named) < 0, -1.0, 1.0).double()
        for part in [*layer.written, *layer.read]:
            multiply(named, part, signs)


def _sums(layer: Units, named: Named) -> Float[Tensor, "s h"]:
    """Σ of what comes into each unit: what it is made positive and sorted by."""
    return torch.stack([by_unit(named, part).sum(-1) for part in layer.written or layer.rows]).sum(0)


def _check_statistics(layer: Units, named: Named) -> None:
    missing = [part.name for part in layer.buffers if part.name not in named]
    if missing:
        raise ValueError(
            f"canonicalize: expected no permutation behind a batch norm of weight samples, which carry no running "
            f"statistics, got {missing[0].rpartition('.')[0]!r} (units of layer {layer.layer!r}); pass "
            "permutation=False, or canonicalize the networks themselves."
        )


def _values(tensors: dict[str, Tensor]) -> Named:
    return {name: t.detach()[None].double() for name, t in tensors.items() if t.is_floating_point()}


def _reference(reference: nn.Module | Tensor | None, network: NetworkFunction | None) -> Named | None:
    """The reference's weight tensors; those of a vector by the network's names."""
    if reference is None or isinstance(reference, nn.Module):
        return None if reference is None else _values(dict(reference.named_parameters()))
    if network is None or reference.shape != (network.n_params,):
        expected = "a network" if network is None else f"one vector of {network.n_params} weights"
        raise ValueError(f"reference: expected {expected}, got shape {tuple(reference.shape)}.")
    return _values(network.named(reference.detach()))


def _copy_with(model: nn.Module, named: Named) -> nn.Module:
    """A copy of the model with other values."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
            if name in named:
                tensor.copy_(named[name][0])
    return result
