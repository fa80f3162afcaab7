"""One set of defaults against settings that are tuned for each data set, among the variants of ``defaults``.

Tuned in two ways, neither of which sees what it is scored on: the variant with the lowest mean validation NLL over all
other seeds, scored on the validation data of the seed left out; and the one with the lowest validation NLL of each
seed, scored on its test data.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from benchmarks import report
from benchmarks.report import Record, markdown_table, mean_and_error
from benchmarks.variants import VARIANTS

DEFAULT = "default"
OTHER_POSTERIORS = ("states", "decoder-by-gradients")
"""Variants that are no settings of the walk or of the latent space."""

Scores: TypeAlias = Mapping[str, Mapping[int, float]]
"""NLL by variant and seed."""


def write(folder: Path) -> str:
    """The usual tables on validation data and the comparison below them; also written into the folder."""
    return report.report(folder, "validation", section)


def section(finished: Sequence[Record]) -> str:
    """NLL of the default minus that of the tuned variant, for each data set; below zero the default is better."""
    records = [r for r in finished if _is_setting(r["method"])]
    rows = []
    for dataset in sorted({r["dataset"] for r in records}):
        of_set = [r for r in records if r["dataset"] == dataset]
        validation, test = (_scores(of_set, part) for part in ("validation", "test"))
        seeds = sorted(validation.get(DEFAULT, {}))
        if len(seeds) < 2:
            continue
        chosen, left_out = zip(*(_left_out(validation, seed, seeds) for seed in seeds), strict=True)
        own = [_own(validation, test, seed) for seed in seeds]
        names = ", ".join(dict.fromkeys(chosen))
        rows.append([dataset, names, *(f"{mean_and_error(d, 4)}{_verdict(d)}" for d in (left_out, own))])
    lead = (
        "NLL of the default minus that of the tuned variant, mean ± standard error over seeds, paired: below zero the "
        "default is better; ✓ marks where it is no more than one standard error worse. "
        f"{len({r['method'] for r in records}) - 1} variants to choose from."
    )
    header = ["data set", "tuned on the other seeds", "validation NLL of the seed left out", "test NLL, own tuning"]
    return f"## Against tuning for each data set\n\n{lead}\n\n{markdown_table(header, rows)}"


def _is_setting(method: str) -> bool:
    return method in VARIANTS and method not in OTHER_POSTERIORS and VARIANTS[method].kind == "plain"


def _scores(records: Sequence[Record], part: str) -> Scores:
    found: dict[str, dict[int, float]] = {}
    for r in records:
        found.setdefault(r["method"], {})[r["seed"]] = r["metrics"][part]["nll"]
    return found


def _left_out(validation: Scores, seed: int, seeds: Sequence[int]) -> tuple[str, float]:
    """The variant that the other seeds choose, and by how much the default is worse on this one."""
    others = [s for s in seeds if s != seed]
    complete = [m for m, of in validation.items() if set(seeds) <= set(of)]
    chosen = min(complete, key=lambda m: statistics.fmean(validation[m][s] for s in others))
    return chosen, validation[DEFAULT][seed] - validation[chosen][seed]


def _own(validation: Scores, test: Scores, seed: int) -> float:
    """By how much the default is worse on a seed's test data than the variant that its validation data choose."""
    chosen = min((m for m in validation if seed in validation[m]), key=lambda m: validation[m][seed])
    return test[DEFAULT][seed] - test[chosen][seed]


def _verdict(differences: Sequence[float]) -> str:
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return " ✓" if statistics.fmean(differences) <= error else ""
