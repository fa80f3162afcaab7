"""How many weight vectors and inputs go through a network together: as many as fit and are fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.memory import available_bytes, of_kind
from laplace_fiber.plain_layers import numbers_within
from laplace_fiber.weights import Inputs, NetworkFunction

CACHED_ELEMENTS = {"cpu": 2**21, "cuda": 2**28}
"""Rows go together while their layers' outputs have no more elements than this: beyond, they only leave the cache."""

WORKING_COPIES = 3
"""Memory of a row, in units of its layers' outputs: derivatives and what functions outside modules return."""

MEMORY_SHARE = 0.5

CLEARLY_FASTER = 0.75
"""Share of the time that another group size must take to be preferred, so that noise rarely decides."""

SAME_OUTPUT = 1e-4
"""Largest difference between outputs that are the same but for rounding, as a share of the largest output."""

WORTH_A_TRIAL = 2**24
"""Numbers that layers put out in a prediction, from which on trials pay in the first one of its shape, not the second.
"""

SMALL_NETWORK = 10_000
"""Weights up to which several vectors take little longer than a few: of dense networks, on batches of 32 and 128
points, a step of 16 vectors takes 1.4 times as long as one of 4 with 1,800 weights, 1.6 times with 5,600, 2.2 with
19,000 and 3 with 72,000."""

TRIAL_ROWS, TRIAL_SECONDS = 8, 0.2
"""Rows of a trial, at most, and how long its runs may go on being repeated."""


def output_elements(network: NetworkFunction, x: Inputs, **model_kwargs: Any) -> int:
    """Numbers that all layers (modules without children) make in one forward pass. Call inside evaluation."""
    counted: list[int] = []

    def count(module: nn.Module, _args: object, output: object) -> None:
        parts = output if isinstance(output, (tuple, list)) else (output,)
        counted.append(numbers_within(module) * sum(part.numel() for part in parts if isinstance(part, Tensor)))

    leaves = [m for m in network.model.modules() if next(m.children(), None) is None]
    hooks = [leaf.register_forward_hook(count) for leaf in leaves]
    try:
        with torch.no_grad():
            network.model(x, **model_kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def inputs_together(network: NetworkFunction, theta: Float[Tensor, " p"], x: Inputs) -> int | None:
    """How many inputs are best evaluated together, ``None`` for all: as many as stay in the cache.

    Inputs are taken apart only on a CPU, and only if the outputs of the first ones do not depend on the others, which
    is tried out. Call inside evaluation.
    """
    if not isinstance(x, Tensor) or x.device.type != "cpu" or network.is_part:
        return None
    elements = output_elements(network, x)
    first = int(len(x) * CACHED_ELEMENTS["cpu"] / max(elements, 1))
    if not 1 <= first < len(x):
        return None
    with torch.no_grad():
        whole, part = network.one(theta, x)[:first], network.one(theta, x[:first])
    scale = float(whole.abs().max())
    same = whole.shape == part.shape and torch.allclose(whole, part, rtol=0, atol=SAME_OUTPUT * scale)
    # Equal parts, so that each is evaluated in the same way.
    return -(-len(x) // -(-len(x) // first)) if same else None


def several_cost_little(network: NetworkFunction, theta: Float[Tensor, " p"], x: Inputs, n: int) -> bool:
    """Whether n weight vectors take little longer than a few: a small network, all of whose rows stay in the cache.

    Tries whether its layers can be batched. Call inside evaluation.
    """
    if network.n_params > SMALL_NETWORK or network.resolved_engine() == "loop":
        return False
    if n * output_elements(network, x) > of_kind(CACHED_ELEMENTS, theta.device):
        return False
    with torch.no_grad():
        network.many(theta.expand(2, -1), x)
    return network.batches


def group_size(
    network: NetworkFunction,
    trial: Float[Tensor, "k p"],
    n: int,
    x: Inputs,
    run: Callable[[Float[Tensor, "k p"]], object],
    try_out: bool = True,
    **model_kwargs: Any,
) -> int:
    """How many of n weight vectors are best evaluated together by ``run``.

    Without an engine chosen by the user: as many as stay in the cache and in half of the available memory, or one at a
    time for convolutions on a CPU; the other of the two if ``run`` turns out to be clearly faster with it. Call inside
    evaluation.

    Parameters
    ----------
    trial
        Weight vectors to try ``run`` on.
    try_out
        Whether to try the other one at all.
    """
    if not network.batches or n <= 1:
        return 1
    elements = max(output_elements(network, x, **model_kwargs), 1)
    per_row = (WORKING_COPIES * elements + 5 * trial.shape[1]) * trial.element_size()
    fitting = int(available_bytes(trial.device) * MEMORY_SHARE) // per_row
    cached = n if network.engine == "vmap" else of_kind(CACHED_ELEMENTS, trial.device) // elements
    together = max(1, min(n, fitting, cached))
    together = -(-n // -(-n // together))  # groups of about equal size
    if network.engine == "vmap" or together == 1:
        return together
    usual, other = (1, together) if network.resolved_engine() == "loop" else (together, 1)
    if not try_out:
        return usual
    times = {size: _seconds_per_row(run, trial[:size]) for size in (usual, other)}
    if not network.batches:  # as run has found out
        return 1
    return other if times[other] < CLEARLY_FASTER * times[usual] else usual


def in_groups(
    groups: Iterable[Float[Tensor, "_ p"]], evaluate: Callable[[Float[Tensor, "k p"]], Tensor]
) -> Iterator[Tensor]:
    """``evaluate`` of one group after another; once a group does not fit into memory, of halves of groups."""
    limit: int | None = None
    for group in groups:
        start = 0
        while start < len(group):
            rows = group[start : start + (limit or len(group))]
            try:
                result = evaluate(rows)
            except torch.OutOfMemoryError:
                if len(rows) == 1:
                    raise
                limit = len(rows) // 2
                continue
            yield result
            start += len(rows)


def _seconds_per_row(run: Callable[[Tensor], object], rows: Tensor) -> float:
    """The best of two to eight runs after a first one, per row: more where they are short, since noise adds only.

    On a CPU in the time of this thread, which does not count that of others in the meantime.
    """
    now = time.thread_time if rows.device.type == "cpu" else time.perf_counter
    times: list[float] = []
    while len(times) < 3 or (len(times) < 9 and sum(times) < TRIAL_SECONDS):
        _wait_for(rows.device)
        start = now()
        run(rows)
        _wait_for(rows.device)
        times.append(now() - start)
    return min(times[1:]) / len(rows)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
