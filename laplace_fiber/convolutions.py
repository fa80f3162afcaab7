"""Batched convolutions in recorded graphs: the bias inside, as the libraries that compute them add it on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from laplace_fiber.graph_nodes import VIEWS, inserted, is_private, shape_of, value_of

aten = torch.ops.aten

_BIAS, _TRANSPOSED = 2, 6
"""Places among the arguments of a convolution."""


def move_bias_inside(node: Node) -> None:
    """A convolution of n weight vectors, taken apart, and the sum with their biases become one operation.

    Batched convolutions compute the channels of all vectors together, (b, n · c, ...); (n, b, c, ...) is a view.
    """
    if node.target is not aten.add.Tensor or len(node.args) != 2 or node.kwargs:
        return
    for bias, turned in (node.args, node.args[::-1]):
        if not isinstance(bias, Node) or not is_private(turned, aten.permute.default):
            continue
        apart: Any = turned.args[0]
        if not is_private(apart, *VIEWS) or not is_private(apart.args[0], aten.convolution.default):
            continue
        convolution: Any = apart.args[0]
        n, b, c, *size = shape_of(turned)
        one_each = [n, 1, c, *(1 for _ in size)]
        is_turned = turned.args[1] == [1, 0, *range(2, len(size) + 3)] and shape_of(apart)[:3] == (b, n, c)
        without = convolution.args[_BIAS] is None and not convolution.args[_TRANSPOSED]
        same_type = value_of(bias).dtype == value_of(convolution).dtype
        if is_turned and without and same_type and list(shape_of(bias)) == one_each:
            row = inserted(node, aten.clone.default, bias, memory_format=torch.contiguous_format)
            row = inserted(node, aten.view.default, row, [n * c])
            arguments = (*convolution.args[:_BIAS], row, *convolution.args[_BIAS + 1 :])
            result = inserted(node, aten.convolution.default, *arguments)
            result = inserted(node, aten.view.default, result, list(shape_of(apart)))
            node.replace_all_uses_with(inserted(node, aten.permute.default, result, turned.args[1]))
            return
