"""What a single setting could gain on each data set: the reason why the default falls short, as far as there is one."""

from __future__ import annotations

import statistics

from benchmarks.collected import Collected, Record
from benchmarks.report import markdown_table, mean_and_error
from benchmarks.sensitivity import DEFAULT

MOST = 3
"""Settings shown for each data set."""


def largest_gains(results: Collected) -> str:
    """The settings with the lowest validation NLL of each data set: NLL minus the default's, paired over seeds."""
    rows = []
    for dataset in results.datasets("sensitivity"):
        runs: dict[str, dict[int, Record]] = {}
        for record in results.finished("sensitivity"):
            if record["dataset"] == dataset:
                runs.setdefault(record["method"], {})[record["seed"]] = record
        default = runs.pop(DEFAULT, {})
        gains = {
            name: [[_nll(found[s], part) - _nll(default[s], part) for s in sorted(default)] for part in _PARTS]
            for name, found in runs.items()
            if default and set(default) <= set(found)
        }
        best = sorted(gains, key=lambda name: statistics.fmean(gains[name][0]))[:MOST]
        rows += [[dataset, f"`{name}`", *map(mean_and_error, gains[name])] for name in best]
    return markdown_table(["data", "setting", *(f"{part} NLL, minus the default's" for part in _PARTS)], rows)


_PARTS = ("validation", "test")


def _nll(record: Record, part: str) -> float:
    return float(record["metrics"][part]["nll"])
