"""Pooling over windows side by side, from strided slices: on a CPU many times faster than the usual kernels."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import Node

from laplace_fiber.graph_nodes import VIEWS, inlined, inserted, is_written_after, shape_of, value_of

aten = torch.ops.aten


def unfold_pooling(node: Node) -> None:
    """Rewrite a pooling of a recorded graph together with its derivative, if its windows lie side by side."""
    if node.target is aten.max_pool2d_with_indices.default and _is_plain(node, maximum=True):
        _unfold_maximum(node)
    elif node.target is aten.avg_pool2d.default and _is_plain(node, maximum=False):
        x: Any = node.args[0]
        _put(node, inlined(node, partial(mean_of_windows, size=_size(node)), _apart(x) or x))
    elif node.target is aten.avg_pool2d_backward.default and _is_plain(node, maximum=False):
        grad, x = node.all_input_nodes[:2]
        apart = _apart(x)
        gradient = partial(gradient_of_mean, size=_size(node))
        _put(node, inlined(node, gradient, _like(grad, apart), apart or x))


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
    covered = x.shape[-2] % size[0] == x.shape[-1] % size[1] == 0
    result, share = torch.empty_like(x) if covered else torch.zeros_like(x), grad / (size[0] * size[1])
    for part in _slots(result, size):
        part.copy_(share)
    return result


def _unfold_maximum(node: Node) -> None:
    joined, size = node.args[0], _size(node)
    assert isinstance(joined, Node)
    apart = _apart(joined)
    x = apart or joined
    users = {user.args[1]: user for user in node.users}  # the maxima and their places
    derivatives = list(users[1].users) if 1 in users else []
    if any(d.target is not aten.max_pool2d_with_indices_backward.default for d in derivatives):
        return
    maxima = inlined(node, partial(maximum_of_windows, size=size), x)
    for derivative in derivatives:
        grad = derivative.args[0]
        assert isinstance(grad, Node)
        _put(derivative, inlined(derivative, partial(gradient_of_maximum, size=size), _like(grad, apart), x, maxima))
    if 0 in users:
        _put(users[0], maxima)


def _apart(joined: Node) -> Node | None:
    """What the images of several weight vectors, (n · b, c, h, w), are a copy of, if that is (n, b, c, h, w).

    Its memory is mostly that of a convolution, (b, n, c, h, w); without the copy it stays so up to the next one.
    """
    copy = joined.args[0] if joined.target in VIEWS else None
    if not isinstance(copy, Node) or value_of(copy) is None:
        return None
    source = copy.args[0] if copy.target is aten.clone.default else copy
    if not isinstance(source, Node) or value_of(source) is None or is_written_after(source, copy):
        return None
    shape, (n_b, *image) = shape_of(source), shape_of(joined)
    is_joined = len(shape) > 2 and shape[0] * shape[1] == n_b and list(shape[2:]) == image
    return source if is_joined else None


def _like(grad: Node, apart: Node | None) -> Node:
    """The derivative in a pooling's result, with the vectors apart as in its argument."""
    if apart is None:
        return grad
    found = _apart(grad)
    n, b = shape_of(apart)[:2]
    if found is not None and shape_of(found)[:2] == (n, b):
        return found
    return inserted(grad.next, aten.view.default, grad, [n, b, *shape_of(grad)[1:]])


def _put(node: Node, new: Node) -> None:
    """``new`` in the place of ``node``, of which it may be a version with the vectors apart."""
    shape, apart = shape_of(node), shape_of(new)
    if shape != apart:
        for user in list(node.users):
            if user.target in VIEWS and shape_of(user) == apart:
                user.replace_all_uses_with(new)
        new = inserted(new.next, aten.clone.default, new, memory_format=torch.contiguous_format)
        new = inserted(new.next, aten.view.default, new, list(shape))
    node.replace_all_uses_with(new)


def _is_plain(node: Node, maximum: bool) -> bool:
    """Whether a pooling on a CPU, or its derivative, has windows side by side and nothing beside them."""
    arguments, values_of = _arguments(node), node.meta.get("val")
    first = values_of[0] if isinstance(values_of, (tuple, list)) else values_of
    if node.kwargs or not isinstance(first, Tensor) or first.device.type != "cpu":
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
