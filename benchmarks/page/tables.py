"""Tables of the page: methods down, data sets or the paper's numbers across."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks import paper
from benchmarks.collected import WITHOUT_FIT, Record, Scores, grouped
from benchmarks.report import markdown_table, mean_and_error
from benchmarks.style import in_order, label
from laplace_fiber.plots.shifts import summary

DECIMALS = {"ece": 1, "ece_per_sample": 1, "calibration_error": 1, "log_time": 2}
"""Of a measure in tables; 3 for all others."""

COLUMNS = {
    "nll": "NLL",
    "nll_per_sample": "NLL, single",
    "crps": "CRPS",
    "rmse": "RMSE",
    "calibration_error": "calibration error (%)",
    "ece": "ECE (%)",
    "ece_per_sample": "ECE (%), single",
    "accuracy": "accuracy",
    "accuracy_per_sample": "accuracy, single",
    "log_time": "log time",
}
"""Headings of a table with all measures of one data set."""

NOTHING = "–"


def values_of(scores: Scores, method: str, measure: str) -> list[float]:
    """A measure of all seeds; ``"log_time"`` is the base-10 logarithm of the seconds of the fit, if there is a fit."""
    if measure != "log_time":
        return scores.values(method, measure)
    return [] if method in WITHOUT_FIT else [math.log10(s) for s in scores.values(method, "fit_seconds")]


def measure_table(every: Sequence[Scores], measure: str, methods: Iterable[str] | None = None) -> str | None:
    """One measure, a column for each data set; None where no run has it.

    Bold: the lowest of the methods that keep to one network, and those within one standard error of it, for NLL and
    calibration errors. In brackets the number of seeds where some are missing.
    """
    chosen = in_order({m for s in every for m in s.by_method} if methods is None else methods)
    bold = {s.dataset: _bold(s, measure) for s in every}
    rows = []
    for method in chosen:
        cells = [_cell(s, method, measure, method in bold[s.dataset]) for s in every]
        if any(cell != NOTHING for cell in cells):
            rows.append([label(method), *cells])
    return markdown_table(["method", *(s.dataset for s in every)], rows) if rows else None


def dataset_table(scores: Scores) -> str:
    """Every measure of one data set, with the paper's mean and standard deviation beside it where it has any.

    Bold and brackets as in :func:`measure_table`.
    """
    measures = [m for m in COLUMNS if any(values_of(scores, method, m) for method in scores.by_method)]
    with_paper = [m for m in measures if any(paper.reported(m, method, scores.dataset) for method in paper.METHODS)]
    bold = {m: _bold(scores, m) for m in measures}
    header = ["method"]
    for measure in measures:
        header.append(COLUMNS[measure])
        if _last_of_kind(measure) and _kind(measure) in with_paper:
            header.append(f"{COLUMNS[_kind(measure)]}, paper")
    rows = []
    for method in in_order({*scores.by_method, *(paper.METHODS if with_paper else ())}):
        row = [label(method)]
        for measure in measures:
            row.append(_cell(scores, method, measure, method in bold[measure]))
            if _last_of_kind(measure) and _kind(measure) in with_paper:
                row.append(_reported(_kind(measure), method, scores.dataset))
        rows.append(row)
    return markdown_table(header, rows)


def rank_table(every: Sequence[Scores], measures: Mapping[str, str]) -> str:
    """Average ranks over data sets, with standard errors and, in brackets, the number of data sets."""
    methods = in_order({m for s in every for m in s.by_method})
    columns = []
    for measure in measures:
        ranks = [s.ranks(measure) for s in every]
        columns.append({m: [r[m] for r in ranks if m in r] for m in methods})
    rows = []
    for method in methods:
        found = [column[method] for column in columns]
        if any(found):
            rows.append([label(method), *(f"{mean_and_error(v, 1)} ({len(v)})" if v else NOTHING for v in found)])
    return markdown_table(["method", *measures.values()], rows)


def record_table(
    records: Iterable[Record],
    row: Callable[[Record], str],
    column: Callable[[Record], Any],
    value: Callable[[Record], float | None],
    corner: str = "method",
) -> str:
    """Means and standard errors of the records' values, by row and column; rows are methods or names."""
    return cells_table(grouped(records, lambda r: (row(r), column(r)), value), corner)


def cells_table(cells: Mapping[tuple[str, Any], Sequence[float]], corner: str) -> str:
    """Means and standard errors by row and column; rows are methods or names."""
    columns = sorted({c for _, c in cells})
    rows = [
        [label(name), *(mean_and_error(cells[name, c]) if (name, c) in cells else NOTHING for c in columns)]
        for name in in_order({r for r, _ in cells})
    ]
    return markdown_table([corner, *map(_heading, columns)], rows)


def _heading(column: Any) -> str:
    """Of a column; the infinite value of a setting is a default that is no number."""
    if column == math.inf:
        return "default"
    return f"{column:g}" if isinstance(column, float) else str(column)


def shift_table(
    found: Mapping[str, Mapping[str, list[float]]], name: Callable[[str], str], order: Sequence[str]
) -> str:
    """Log-likelihoods under shifts, averaged over the shifts of one name."""
    rows = []
    for method in in_order(found):
        pooled: dict[str, list[float]] = {}
        for shift, losses in found[method].items():
            pooled.setdefault(name(shift), []).append(-summary(losses)[0])
        rows.append([label(method), *(f"{summary(pooled[n])[0]:.3f}" if n in pooled else NOTHING for n in order)])
    return markdown_table(["method", *order], rows)


def _cell(scores: Scores, method: str, measure: str, bold: bool = False) -> str:
    values = values_of(scores, method, measure)
    if not values:
        return NOTHING
    text = mean_and_error(values, DECIMALS.get(measure, 3))
    if len(values) < len(scores.seeds):
        text += f" ({len(values)})"
    return f"**{text}**" if bold else text


def _bold(scores: Scores, measure: str) -> list[str]:
    lower_is_better = measure.startswith(("nll", "ece", "calibration", "crps"))
    return scores.no_worse_than_best(scores.single_network(), measure) if lower_is_better else []


def _reported(metric: str, method: str, dataset: str) -> str:
    found = paper.reported(metric, method, dataset)
    return f"{found[0]:g} ± {found[1]:g}" if found else NOTHING


def _kind(measure: str) -> str:
    return measure.removesuffix("_per_sample")


def _last_of_kind(measure: str) -> bool:
    """Whether the paper's column follows: after the mean over single samples, which is very likely the paper's own."""
    return measure.endswith("_per_sample") or measure == "log_time"
