"""New operations in recorded graphs, with examples of their values as make_fx leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx


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
    on_meta = kwargs | {"device": "meta"} if "device" in kwargs else kwargs
    value = target(*torch.fx.map_arg(args, _empty_like), **on_meta)
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta["val"] = value
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


def _empty_like(node: Node) -> Any:
    value = value_of(node)
    if value is None:
        return None
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
