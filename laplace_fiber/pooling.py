"""Pooling over windows side by side, from strided slices: on a CPU many times faster than the usual kernels."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import Node

from laplace_fiber.graph_nodes import inlined, value_of

aten = torch.ops.aten


def unfold_pooling(node: Node) -> None:
    """Rewrite a pooling of a recorded graph together with its derivative, if its windows lie side by side."""
    if node.target is aten.max_pool2d_with_indices.default and _is_plain(node, maximum=True):
        _unfold_maximum(node)
    elif node.target is aten.avg_pool2d.default and _is_plain(node, maximum=False):
        node.replace_all_uses_with(inlined(node, partial(mean_of_windows, size=_size(node)), *node.all_input_nodes))
    elif node.target is aten.avg_pool2d_backward.default and _is_plain(node, maximum=False):
        gradient = partial(gradient_of_mean, size=_size(node))
        node.replace_all_uses_with(inlined(node, gradient, *node.all_input_nodes[:2]))


def maximum_of_windows(x: Float[Tensor, "*n h w"], size: tuple[int, int]) -> Float[Tensor, "*n k l"]:
    """Maxima over windows of the given size, side by side; an incomplete one at the end is left out."""
    return _reduced(torch.maximum, x, size)


def mean_of_windows(x: Float[Tensor, "*n h w"], size: tuple[int, int]) -> Float[Tensor, "*n k l"]:
    """Means over windows, as :func:`maximum_of_windows`."""
    return _reduced(torch.add, x, size) / (size[0] * size[1])


def gradient_of_maximum(
    grad: Float[Tensor, "*n k l"], x: Float[Tensor, "*n h w"], maxima: Float[Tensor, "*n k l"], size: tuple[int, int]
) -> Float[Tensor, "*n h w"]:
    """The derivative of Σ ``grad`` · maxima: all of it goes to the first largest element of each window."""
    result = torch.zeros_like(x)
    taken = torch.zeros_like(maxima, dtype=torch.bool)
    for part, slot in zip(_slots(result, size), _slots(x, size), strict=True):
        largest = slot == maxima
        part.copy_(grad * (largest > taken))
        taken = taken | largest
    return result


def gradient_of_mean(
    grad: Float[Tensor, "*n k l"], x: Float[Tensor, "*n h w"], size: tuple[int, int]
) -> Float[Tensor, "*n h w"]:
    """The derivative of Σ ``grad`` · means."""
    result, share = torch.zeros_like(x), grad / (size[0] * size[1])
    for part in _slots(result, size):
        part.copy_(share)
    return result


def _unfold_maximum(node: Node) -> None:
    x, size = node.args[0], _size(node)
    assert isinstance(x, Node)
    users = {user.args[1]: user for user in node.users}  # the maxima and their places
    derivatives = list(users[1].users) if 1 in users else []
    if any(d.target is not aten.max_pool2d_with_indices_backward.default for d in derivatives):
        return
    maxima = inlined(node, partial(maximum_of_windows, size=size), x)
    for derivative in derivatives:
        grad = derivative.args[0]
        assert isinstance(grad, Node)
        gradient = inlined(derivative, partial(gradient_of_maximum, size=size), grad, x, maxima)
        derivative.replace_all_uses_with(gradient)
    if 0 in users:
        users[0].replace_all_uses_with(maxima)


def _is_plain(node: Node, maximum: bool) -> bool:
    """Whether a pooling on a CPU, or its derivative, has windows side by side and nothing beside them."""
    source, arguments = node.args[0], _arguments(node)
    if node.kwargs or value_of(source) is None or value_of(source).device.type != "cpu":
        return False
    defaults = ((), (0, 0), (1, 1), False) if maximum else ((), (0, 0), False, True, None)
    values: tuple[Any, ...] = (*arguments, *defaults[len(arguments) - 1 :])
    kernel, stride, padding, *others = values
    if tuple(stride or kernel) != tuple(kernel) or any(padding):
        return False
    if maximum:
        return set(others[0]) == {1} and not others[1]
    return not others[0] and others[2] is None


def _arguments(node: Node) -> tuple[Any, ...]:
    """Of a pooling or its derivative, from the windows' size on."""
    return node.args[2 if "backward" in str(node.target) else 1 :]


def _size(node: Node) -> tuple[int, int]:
    kernel = _arguments(node)[0]
    return kernel[0], kernel[-1]


def _reduced(operation: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
    for dim, width in ((-2, size[0]), (-1, size[1])):
        end = x.shape[dim] // width * width
        x = functools.reduce(operation, [_strided(x, dim, start, end, width) for start in range(width)])
    return x


def _slots(x: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """The first, second, … elements of all windows, row by row of a window."""
    (height, width), (h, w) = size, x.shape[-2:]
    rows = [_strided(x, -2, i, h // height * height, height) for i in range(height)]
    return [_strided(row, -1, j, w // width * width, width) for row in rows for j in range(width)]


def _strided(x: Tensor, dim: int, start: int, end: int, step: int) -> Tensor:
    part: Tensor = aten.slice.Tensor(x, dim, start, end, step)
    return part
