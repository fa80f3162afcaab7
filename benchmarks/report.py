"""Markdown tables from the files that runs left behind."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.style import LABELS, MEASURES, label
from benchmarks.variants import VARIANTS

Record = dict[str, Any]
Section = Callable[[Sequence[Record]], str]
FILE_NAME = "report.md"


def report(folder: Path, part: str = "test", further: Section | None = None) -> str:
    """The tables of one experiment's ``folder`` on a part of the data, which are also written there.

    ``further`` makes one more section, behind them, of the finished runs.
    """
    records = records_in(folder)
    finished = [r for r in records if r["status"] == "finished"]
    sections = [f"# Results: {folder.name}", _lead(finished, part)]
    for measure, title in MEASURES.items():
        table = _measure_table(finished, measure, part)
        if table:
            sections.append(f"## {title}\n\n{table}")
    if further is not None:
        sections.append(further(finished))
    return write_report(folder, sections, records, "dataset")


def write_report(folder: Path, sections: Sequence[str], records: Sequence[Record], problem: str) -> str:
    """Write the sections, followed by the failures among the records, whose key ``problem`` names what was run on."""
    failures = [f"- {r[problem]}, {r['method']}, seed {r['seed']}: `{r['error']}`" for r in records if "error" in r]
    ending = ["## Failed runs\n\n" + "\n".join(failures)] if failures else []
    text = "\n\n".join([*sections, *ending]) + "\n"
    (folder / FILE_NAME).write_text(text)
    return text


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def mean_and_error(values: Sequence[float], decimals: int = 3) -> str:
    """Mean ± standard error, the latter where there are two values or more, all of them finite."""
    mean = statistics.fmean(values)
    if not math.isfinite(mean):
        return f"{mean}"
    form = f".{decimals}f" if abs(mean) < 1e5 else ".1e"
    if len(values) < 2:
        return f"{mean:{form}}"
    return f"{mean:{form}} ± {statistics.stdev(values) / math.sqrt(len(values)):{form}}"


def records_in(folder: Path) -> list[Record]:
    """All results in a folder.

    Raises
    ------
    FileNotFoundError
        There are none.
    """
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"Expected result files (*.json) in {folder}; found none. Run the experiment first.")
    return records


def _lead(finished: Sequence[Record], part: str) -> str:
    """How to read the tables, and the environments of the runs."""
    lead = f"{part.capitalize()} data; mean ± standard error over seeds. "
    return f"{lead}In brackets: the number of seeds where some are missing.\n{preamble(finished)}"


def preamble(finished: Sequence[Record]) -> str:
    """Remarks on the data, and the environments of the runs."""
    return "\n".join([*_split_remarks(finished), environments_of(finished)])


def _split_remarks(finished: Sequence[Record]) -> list[str]:
    """Data sets whose methods did not see the same rows, and those that were generated in place of a file."""
    splits: dict[tuple[str, int], set[str]] = {}
    for record in finished:
        if "split" in record:
            splits.setdefault((record["dataset"], record["seed"]), set()).add(record["split"])
    differing = [f"{dataset} (seed {seed})" for (dataset, seed), digests in splits.items() if len(digests) > 1]
    generated = sorted({record["dataset"] for record in finished if record.get("stand_in")})
    remarks = {"Methods saw different rows": differing, "Generated in place of a file": generated}
    return [f"**{title}: {', '.join(names)}.**" for title, names in remarks.items() if names]


def environments_of(finished: Sequence[Record]) -> str:
    """The distinct environments of the runs, a line each."""
    distinct = {json.dumps(r["environment"]): r["environment"] for r in finished}
    return "\n".join("- " + ", ".join(f"{key} {value}" for key, value in e.items()) for e in distinct.values())


def _measure_table(finished: Sequence[Record], measure: str, part: str) -> str | None:
    """Methods down, data sets across; None where no run has the measure."""
    cells: dict[tuple[str, str], list[float]] = {}
    for record in finished:
        scores = record.get("metrics", {}).get(part, {})
        value = scores.get(measure, record.get(measure, record["settings"].get(measure)))
        if value is not None:
            cells.setdefault((record["method"], record["dataset"]), []).append(value)
    if not cells:
        return None
    most = max(len(values) for values in cells.values())
    found = {method for method, _ in cells}
    methods = [m for m in (*LABELS, *VARIANTS) if m in found] + sorted(found - set(LABELS) - set(VARIANTS))
    datasets = sorted({dataset for _, dataset in cells})
    rows = [[label(m), *(cell(cells.get((m, d), []), most) for d in datasets)] for m in methods]
    return markdown_table(["method", *datasets], rows)


def cell(values: Sequence[float], expected: int) -> str:
    """Mean and error, with the number of values where fewer than expected."""
    if not values:
        return "–"
    return mean_and_error(values) + (f" ({len(values)})" if len(values) < expected else "")
