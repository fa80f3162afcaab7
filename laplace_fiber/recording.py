"""Functions of tensors recorded as flat graphs of tensor operations, and run again without the overhead of Python.

A recorded graph is split in two: the *body*, which depends on the data alone and is run once per batch (constants, the
layers below the first moving weight), and the *head*, which is run for every new set of weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from laplace_fiber.captured import captured_if_it_pays
from laplace_fiber.graph_nodes import base_of, value_of, written_by
from laplace_fiber.memory import keep_freed_memory
from laplace_fiber.rewrites import simplify

CALL_WORK = 2e8
"""Operations of tensors that take as long as the overhead of a call that is not recorded, roughly."""

NARROWER_AFTER = {False: 32, True: 1000}
"""Calls without a recording that take as long as to make one, and to compile it."""

Function: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, ...]]
"""From moving tensors and fixed ones (the data) to results."""


class Recorded:
    """One function for moving and fixed tensors of given shapes.

    Parameters
    ----------
    function
        To be recorded. It may differentiate inside, but must not branch on the values of tensors.
    moving, fixed
        Arguments to record it with. Later ones must have the same shapes.
    compiled
        Hand the head to ``torch.compile``, which takes seconds to a minute on its first call.

    Attributes
    ----------
    work
        Operations of one run of the head.

    Raises
    ------
    Exception
        Whatever the recorder raises for a function that it cannot follow, such as one that branches on values.
    """

    def __init__(
        self, function: Function, moving: Sequence[Tensor], fixed: Sequence[Tensor], compiled: bool = False
    ) -> None:
        n_moving = len(moving)

        def flat(*tensors: Tensor) -> tuple[Tensor, ...]:
            return function(tensors[:n_moving], tensors[n_moving:])

        with torch.no_grad():
            whole = make_fx(flat)(*moving, *fixed)
        simplify(whole.graph)
        self._body, head = _split(whole, n_moving)
        self.work = sum(_operations(node) for node in head.graph.nodes)
        self._head: Callable[..., Any] = head
        if compiled:
            self._head = _compiled(head)
        elif any(t.is_cuda for t in moving):  # elsewhere the body need not be run here
            with torch.no_grad():
                self._head = captured_if_it_pays(head, (*moving, *self._body(*fixed)), self.work)
        self._fixed: tuple[Tensor, ...] = ()
        self._stamps: list[int | None] = []
        self._prepared: tuple[Tensor, ...] = ()

    def __call__(self, moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The function's results, without a graph of derivatives."""
        with torch.no_grad():
            stamps = [None if t.is_inference() else t._version for t in fixed]
            same = len(fixed) == len(self._fixed) and all(a is b for a, b in zip(fixed, self._fixed, strict=True))
            if not same or stamps != self._stamps or None in stamps:
                self._fixed, self._stamps = tuple(fixed), stamps
                self._prepared = tuple(self._body(*fixed))
            results: tuple[Tensor, ...] = self._head(*moving, *self._prepared)
        return results


class Recorder:
    """Calls functions of tensors, after some calls with the same name and shapes as recorded graphs.

    Counted rather than timed, so that equal seeds give equal results. Functions that cannot be recorded are called.

    Parameters
    ----------
    after
        Calls before a recording, which takes as long as some dozens of plain calls.
    compiled
        Hand recordings to ``torch.compile``.
    """

    def __init__(self, after: int, compiled: bool = False) -> None:
        keep_freed_memory()
        self.after, self.compiled = after, compiled
        self.calls: dict[tuple[Any, ...], float] = {}
        """What calls of each kind would have gained by a recording, in calls; it is made where that exceeds after."""
        self._recorded: dict[tuple[Any, ...], Recorded | None] = {}

    def __call__(
        self, name: str, function: Function, moving: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The function's results."""
        return self._called((name, *(tuple(t.shape) for t in (*moving, *fixed))), function, moving, fixed)

    def by_rows(
        self, name: str, function: Function, moving: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """The same for a function of rows: those of all results and of all moving tensors but scalars.

        Rows are filled up to the number of a recording, until what that has cost in all is worth a recording of its
        own.
        """
        rows = len(moving[0])
        kind = (name, *(tuple(t.shape[1:]) for t in moving), *(tuple(t.shape) for t in fixed))
        key = (kind, rows)
        if not self.calls.get(key, 0) > self.after:
            wider = [k for k, calls in self.calls.items() if k[0] == kind and k[1] > rows and calls > self.after]
            if wider:
                first = self.after - max(self.after, NARROWER_AFTER[self.compiled])
                self.calls.setdefault(key, first)
                results = self._filled_up(key, min(wider, key=lambda k: k[1]), function, moving, fixed)
                if results is not None:
                    return results
        return self._called(key, function, moving, fixed)

    def _filled_up(
        self,
        key: tuple[Any, ...],
        wider: tuple[Any, ...],
        function: Function,
        moving: Sequence[Tensor],
        fixed: Sequence[Tensor],
    ) -> tuple[Tensor, ...] | None:
        """By a recording of more rows; None where that takes longer than a plain call."""
        (_, rows), (_, all_rows) = key, wider
        more = all_rows - rows

        def filled() -> list[Tensor]:
            return [torch.cat([t, t[:1].expand(more, *t.shape[1:])]) if t.ndim else t for t in moving]

        if wider not in self._recorded:  # known from a checkpoint alone
            self._recorded[wider] = self._record(function, filled(), fixed)
        recorded = self._recorded[wider]
        if recorded is None or (extra := recorded.work * more / all_rows / CALL_WORK) >= 1:
            return None
        self.calls[key] += extra
        return tuple(result[:rows] for result in recorded(filled(), fixed))

    def _called(
        self, key: tuple[Any, ...], function: Function, moving: Sequence[Tensor], fixed: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] > self.after and key not in self._recorded:
            self._recorded[key] = self._record(function, moving, fixed)
        recorded = self._recorded.get(key)
        return function(moving, fixed) if recorded is None else recorded(moving, fixed)

    def _record(self, function: Function, moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> Recorded | None:
        expected = function(moving, fixed)
        try:
            recorded = Recorded(function, moving, fixed, self.compiled)
            results = recorded(moving, fixed)
        except Exception as reason:  # recorder and compiler raise errors of many kinds; the plain call is always there
            if not self.compiled:
                return None
            line = next(iter(str(reason).strip().splitlines()), "")
            warnings.warn(f"torch.compile failed ({type(reason).__name__}: {line}); going on without.", stacklevel=2)
            self.compiled = False
            return self._record(function, moving, fixed)
        agrees = (torch.allclose(a, b, 1e-3, 1e-4, equal_nan=True) for a, b in zip(expected, results, strict=True))
        return recorded if all(agrees) else None


def _compiled(head: GraphModule) -> Callable[..., Any]:
    """By ``torch.compile``, without its checks at each call of what cannot change: shapes, types and modes."""
    unchecked = getattr(torch.compiler, "skip_all_guards_unsafe", None)  # older versions of torch lack it
    options = {"guard_filter_fn": unchecked} if unchecked else None
    compiled = torch.compile(head.forward, dynamic=False, fullgraph=True, options=options)
    # Which strides a caller's tensors have may change.
    return lambda *inputs: compiled(*(t.contiguous() for t in inputs))


def _split(whole: GraphModule, n_moving: int) -> tuple[GraphModule, GraphModule]:
    """The graph as a body, from fixed tensors to all that the head needs of them, and a head."""
    nodes = list(whole.graph.nodes)
    inputs = [node for node in nodes if node.op == "placeholder"]
    moving, fixed, output = inputs[:n_moving], inputs[n_moving:], nodes[-1]
    in_body = _independent_of(moving, nodes)
    outside = [node for node in nodes if node not in in_body and node.op != "placeholder"]
    # A head that writes into the body's tensors could be run only once.
    if any(base_of(written) in in_body for node in outside for written in written_by(node)):
        in_body = set(fixed)
    needed = [n for n in nodes if n in in_body and n.op != "get_attr" and any(u not in in_body for u in n.users)]

    body, copies = Graph(), dict[Node, Node]()
    for node in fixed:
        copies[node] = body.placeholder(node.name)
    for node in nodes:
        if node in in_body and node.op != "placeholder":
            copies[node] = body.node_copy(node, copies.__getitem__)
    body.output(tuple(copies[node] for node in needed))

    head, copies = Graph(), dict[Node, Node]()
    for node in (*moving, *needed):
        copies[node] = head.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in nodes:
        if node.op == "get_attr" or (node not in in_body and node.op not in ("placeholder", "output")):
            copies[node] = head.node_copy(node, copies.__getitem__)
    head.output(torch.fx.map_arg(output.args[0], copies.__getitem__))
    body.eliminate_dead_code()
    head.eliminate_dead_code()
    return GraphModule(whole, body), GraphModule(whole, head)


def _independent_of(moving: list[Node], nodes: list[Node]) -> set[Node]:
    """Nodes that need no moving tensor, except those that write over what a dependent node has read before."""
    independent: set[Node] = set()
    read: set[Node] = set()
    for node in nodes:
        free = node not in moving and node.op != "output" and all(n in independent for n in node.all_input_nodes)
        if free and not any(base_of(written) in read for written in written_by(node)):
            independent.add(node)
        else:
            read.update(base_of(n) for n in node.all_input_nodes)
    return independent


def _operations(node: Node) -> float:
    """Multiplications, additions and numbers written; 0 where it is not known."""
    from torch.utils.flop_counter import flop_registry  # not with the package: it takes time, and most need it never

    value = value_of(node)
    if node.op != "call_function" or value is None:
        return 0.0
    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), value_of)
    return value.numel() + (count(*args, **kwargs, out_val=value) if count else 0)
