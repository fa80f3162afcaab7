"""What a single setting could gain on each data set: the reason why the default falls short, as far as there is one."""

from __future__ import annotations

from benchmarks.collected import Collected
from benchmarks.report import markdown_table
from benchmarks.sensitivity import DEFAULT

MOST = 3
"""Settings shown for each data set."""

PARTS = ("validation", "test")


def largest_gains(results: Collected) -> str:
    """The settings with the lowest validation NLL of each data set: NLL minus the default's, paired over seeds."""
    rows = []
    for dataset in results.datasets("sensitivity"):
        scores = results.scores("sensitivity", dataset)
        settings = [name for name in scores.complete() if name != DEFAULT]
        gains = {name: [scores.difference(name, DEFAULT, part=part) for part in PARTS] for name in settings}
        known = {name: [gap for gap in gaps if gap is not None] for name, gaps in gains.items() if None not in gaps}
        best = sorted(known, key=lambda name: known[name][0].mean)[:MOST]
        rows += [[dataset, f"`{name}`", *map(str, known[name])] for name in best]
    return markdown_table(["data", "setting", *(f"{part} NLL, minus the default's" for part in PARTS)], rows)
