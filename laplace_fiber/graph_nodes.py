"""New operations in recorded graphs, with examples of their values as make_fx leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

aten = torch.ops.aten

VIEWS = (aten.view.default, aten._unsafe_view.default)
"""Operations that need memory of a certain order."""


def value_of(node: Any) -> Any:
    """An example of the node's value, if that is one tensor."""
    value = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def shape_of(node: Any) -> torch.Size:
    """The shape of a node's value."""
    shape: torch.Size = value_of(node).shape
    return shape


def inserted(before: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A new operation."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    try:
        node.meta["val"] = _example(node)
    except RuntimeError:
        before.graph.erase_node(node)
        raise
    return node


def inlined(before: Node, function: Callable[..., Tensor], *args: Node) -> Node:
    """The operations of a function of tensors."""
    traced = make_fx(function)(*map(_empty_like, args)).graph
    arguments, copies = iter(args), dict[Node, Node]()
    for node in traced.nodes:
        if node.op == "placeholder":
            copies[node] = next(arguments)
        elif node.op == "output":
            break
        else:
            with before.graph.inserting_before(before):
                copies[node] = before.graph.node_copy(node, copies.__getitem__)
    return copies[node.args[0]]


def replace(node: Node, target: Any, *args: Any, **kwargs: Any) -> None:
    """Put another operation in the node's place, if its arguments allow it."""
    try:
        new = inserted(node, target, *args, **kwargs)
    except RuntimeError:  # a view that this layout does not allow
        return
    node.replace_all_uses_with(new)


def is_private(node: Any, *targets: Any) -> TypeGuard[Node]:
    """Whether it is one of these operations, and needed in one place only."""
    return isinstance(node, Node) and node.target in targets and len(node.users) == 1


def written_by(node: Node) -> list[Node]:
    """The arguments that an operation writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    pairs = zip(schema.arguments, node.args, strict=False)
    return [a for s, a in pairs if s.alias_info is not None and s.alias_info.is_write and isinstance(a, Node)]


def base_of(node: Node) -> Node:
    """The node whose memory this one is a view of."""
    schema = getattr(node.target, "_schema", None)
    first = node.args[0] if node.args else None
    if schema is None or not isinstance(first, Node) or not any(r.alias_info for r in schema.returns):
        return node
    return base_of(first)


def is_written_after(node: Node, later: Node) -> bool:
    """Whether an operation that comes after ``later`` writes into the memory of ``node``."""
    base, after = base_of(node), False
    for other in node.graph.nodes:
        after |= other is later
        if after and any(base_of(written) is base for written in written_by(other)):
            return True
    return False


def restate(graph: Graph) -> None:
    """Bring the examples up to date, after other orders of memory; views that these do not allow get a copy.

    Operations that cannot be tried without numbers keep their old ones.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or any(n.meta.get("val") is None for n in node.all_input_nodes):
            continue
        try:
            node.meta["val"] = _example(node)
        except RuntimeError:
            if node.target not in VIEWS:
                continue
            copy = inserted(node, aten.clone.default, node.args[0], memory_format=torch.contiguous_format)
            node.args = (copy, *node.args[1:])
            node.meta["val"] = _example(node)


def _example(node: Node) -> Any:
    target: Any = node.target
    kwargs = node.kwargs | {"device": "meta"} if "device" in node.kwargs else node.kwargs
    return target(*torch.fx.map_arg(node.args, _empty_like), **kwargs)


def _empty_like(node: Node) -> Any:
    def empty(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    return tree_map(empty, node.meta.get("val"))
