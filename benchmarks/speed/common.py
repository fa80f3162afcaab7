"""What the measurements of speed share: options, functions timed in turn, medians and ratios with their range."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Spread = dict[str, float]
"""Median, smallest and largest of some repeats."""


@dataclass(frozen=True)
class Options:
    """What a measurement is asked for.

    ``quick`` is a trial of the machinery on small sizes, with useless numbers. ``out`` is the folder of the results.
    """

    quick: bool
    data_dir: Path | None
    out: Path
    threads: int = 1


def in_turn(functions: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Results of all functions, called one after another and all over again ``repeats`` times.

    The speed of a shared machine drifts: only calls that follow each other can be compared.
    """
    results: dict[str, list[T]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            results[name].append(function())
    return results


def interleaved(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each function in each of ``repeats`` rounds, after one call of each that is not counted."""
    for function in functions.values():
        function()
    return in_turn({name: _timed(function) for name, function in functions.items()}, repeats)


def seconds_of(function: Callable[[], T]) -> tuple[float, T]:
    """Seconds of one call, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def spread(values: Sequence[float]) -> Spread:
    """Median and range."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Median and range of the ratios of the same round."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def cell(values: Mapping[str, Any] | None, form: str = ".2f") -> str:
    """A spread in a table: median (smallest to largest); a dash for a missing one."""
    if values is None:
        return "–"
    low, middle, high = (format(values[key], form) for key in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def _timed(function: Callable[[], object]) -> Callable[[], float]:
    return lambda: seconds_of(function)[0]
