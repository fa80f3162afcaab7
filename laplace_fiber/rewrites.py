"""Recorded graphs made shorter, and their small matrix products faster, with the same results up to rounding.

Batched products of matrices with one row, column or inner index are slow in the libraries that compute them: they are
turned into elementwise products, or transposed so that the short side comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch.fx import Graph, Node

from laplace_fiber.convolutions import move_bias_inside
from laplace_fiber.graph_nodes import (
    VIEWS,
    base_of,
    inserted,
    is_private,
    is_written_after,
    replace,
    restate,
    shape_of,
    value_of,
)
from laplace_fiber.pooling import unfold_pooling

aten = torch.ops.aten

LARGE = 2**18
"""Numbers in a product from which on it is written where it belongs: new memory takes longer than passes over it."""

THIN, TALL = 4, 64
"""Products with one column are transposed, and those with at most THIN columns if they have at least TALL rows."""

_PRODUCTS = (aten.bmm.default, aten.baddbmm.default)
_TRANSPOSES = (aten.transpose.int, aten.t.default)
_FILLED = {
    aten.new_zeros.default: 0,
    aten.zeros_like.default: 0,
    aten.new_ones.default: 1,
    aten.ones_like.default: 1,
}


def simplify(graph: Graph) -> None:
    """Rewrite a graph of batched operations in place. Its nodes carry examples of their values, as make_fx leaves."""
    thin = (_flip_result, _join, _flip_thin, _multiply)
    _apply(graph, _drop, _fill, *thin, _reshape, _reshape, move_bias_inside, unfold_pooling)
    restate(graph)
    _apply(graph, _drop, _fill_parts)


def _apply(graph: Graph, *rules: Callable[[Node], None]) -> None:
    for rule in rules:
        for node in list(graph.nodes):
            if node.op == "call_function":
                rule(node)
        graph.eliminate_dead_code()


def _drop(node: Node) -> None:
    """Leave out what changes nothing."""
    same = _same_as(node)
    if same is not None:
        node.replace_all_uses_with(same)


def _fill(node: Node) -> None:
    """Constants that take only their shape from a tensor no longer wait for it."""
    value = value_of(node)
    if node.target in _FILLED and value is not None and value.is_contiguous():
        filled = (list(value.shape), _FILLED[node.target])
        replace(node, aten.full.default, *filled, dtype=value.dtype, device=value.device)


def _flip_result(node: Node) -> None:
    """(A B)ᵀ = Bᵀ Aᵀ, which comes out of the product in the layout that is asked for, unless that makes it thin."""
    product = node.args[0] if node.args else None
    if _is_transpose(node) and is_private(product, aten.bmm.default) and shape_of(product)[1] > THIN:
        a, b = product.args
        replace(node, aten.bmm.default, _transposed(b, node), _transposed(a, node))


def _join(node: Node) -> None:
    """A product and the sum that follows it become one operation."""
    if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return
    for bias, product in (node.args, node.args[::-1]):
        if (
            not is_private(product, aten.bmm.default)
            or not isinstance(bias, Node)
            or shape_of(product) != shape_of(node)
        ):
            continue
        if value_of(bias).dtype == value_of(product).dtype:
            replace(node, aten.baddbmm.default, bias, *product.args)
            return


def _flip_thin(node: Node) -> None:
    """A product with few columns as the transpose of one with few rows."""
    if node.target not in _PRODUCTS or node.kwargs or any(value_of(part).ndim != 3 for part in node.args):
        return
    *bias, a, b = node.args
    _, rows, columns = shape_of(node)
    if shape_of(b)[1] == 1 or not (columns == 1 < rows or (columns <= THIN and rows >= TALL)):
        return
    flipped = inserted(node, node.target, *(_transposed(part, node) for part in (*bias, b, a)))
    if columns == 1:
        replace(node, aten.view.default, flipped, list(shape_of(node)))
    else:
        result = inserted(node, aten.transpose.int, flipped, 1, 2)
        replace(node, aten.clone.default, result, memory_format=torch.contiguous_format)


def _multiply(node: Node) -> None:
    """A product over a single inner index is an elementwise one."""
    if node.target in _PRODUCTS and not node.kwargs and shape_of(node.args[-1])[1] == 1:
        replace(node, aten.mul.Tensor if node.target is aten.bmm.default else aten.addcmul.default, *node.args)


def _reshape(node: Node) -> None:
    """Transposes of a single row or column are views, and views of views are views."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or value_of(node) is None:
        return
    flat = _is_transpose(node) and 1 in shape_of(node)[1:]
    if flat or (node.target in VIEWS and source.target in VIEWS):
        replace(node, aten.view.default, source.args[0] if source.target in VIEWS else source, list(shape_of(node)))


def _fill_parts(node: Node) -> None:
    """A vector of parts, some of them large products, as memory that is written by the products themselves."""
    parts: Any = node.args[0] if node.target is aten.cat.default else ()
    if value_of(node) is None or value_of(node).ndim != 1 or not any(map(_is_large_product, parts)):
        return
    start = 0
    whole = inserted(node, aten.new_empty.default, parts[0], [len(value_of(node))])
    for part in parts:
        stop = start + len(value_of(part))
        place = inserted(node, aten.slice.Tensor, whole, 0, start, stop)
        if _is_large_product(part):
            product: Any = part.args[0]
            shaped = inserted(node, aten.view.default, place, list(shape_of(product)))
            inserted(node, aten.addmm_.default, shaped, *product.args, beta=0)
        else:
            inserted(node, aten.copy_.default, place, part)
        start = stop
    node.replace_all_uses_with(whole)


def _is_large_product(part: Any) -> TypeGuard[Node]:
    """Whether the part is a large matrix product as a vector, needed nowhere else."""
    product = part.args[0] if part.target in VIEWS and len(part.users) == 1 else None
    return is_private(product, aten.mm.default) and value_of(part).numel() >= LARGE


def _same_as(node: Node) -> Any:
    """The argument that the operation returns as it is, if it does."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node):
        return None
    if node.target in (aten.alias.default, aten.detach.default):
        return first
    if node.target is first.target and node.target in _TRANSPOSES and node.args[1:] == first.args[1:]:
        return first.args[0]
    new, old = value_of(node), value_of(first)
    if new is None or old is None:
        return None
    if node.target in (aten.mul.Scalar, aten.pow.Tensor_Scalar):
        return first if node.args[1] == 1 and new.dtype == old.dtype else None
    is_copy = node.target is aten.clone.default and (is_private(first, aten.bmm.default) or _is_needless(node))
    if is_copy or node.target in (*VIEWS, aten.expand.default, aten.permute.default):
        return first if new.shape == old.shape and new.stride() == old.stride() else None
    return None


def _is_needless(copy: Node) -> bool:
    """Whether nobody could tell the copy from what it was made of: neither is written to, or returned."""
    source: Any = copy.args[0]
    if base_of(source).op != "call_function" or is_written_after(source, copy) or is_written_after(copy, copy):
        return False
    return not any(user.op == "output" for node in copy.graph.nodes if base_of(node) is copy for user in node.users)


def _is_transpose(node: Node) -> bool:
    return node.target is aten.transpose.int and node.args[1:] == (1, 2) and value_of(node).ndim == 3


def _transposed(node: Any, before: Node) -> Node:
    return node.args[0] if _is_transpose(node) else inserted(before, aten.transpose.int, node, 1, 2)
