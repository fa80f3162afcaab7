"""The result of a comparison, and the forms it can be shown and kept in."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laplace_fiber.comparison.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLUMNS = {
    "nll": ("NLL", ".3f"),
    "nll_per_sample": ("NLL per sample", ".3f"),
    "ece": ("ECE (%)", ".2f"),
    "ece_per_sample": ("ECE per sample (%)", ".2f"),
    "brier": ("Brier", ".3f"),
    "accuracy": ("Accuracy", ".3f"),
    "rmse": ("RMSE", ".3f"),
    "crps": ("CRPS", ".3f"),
    "calibration_error": ("Calibration error (%)", ".2f"),
    "auroc_ood": ("AUROC (OOD)", ".3f"),
    "fit_seconds": ("Fit (s)", ".2f"),
    "tune_seconds": ("Tuning (s)", ".2f"),
    "predict_seconds": ("Prediction (s)", ".3f"),
    "peak_memory_mib": ("Memory (MiB)", ".0f"),
    "gradient_evaluations": ("Gradients", ".0f"),
    "n_settings": ("Settings", ".0f"),
}
"""Columns of the tables shown, with titles and formats. Rows, frames and files hold further ones."""

SCORES = tuple(COLUMNS)[: list(COLUMNS).index("fit_seconds")]
LARGE = 1e5
UNTABLED = ("reliability", "traceback", "warnings", "failed_settings", "options")
FORMAT = 1


@dataclass
class Comparison:
    """Methods compared on one task.

    Attributes
    ----------
    rows
        One dictionary for each method and seed: ``method``, ``label``, ``seed``, ``status``; the scores of the averaged
        predictive and, as ``*_per_sample``, their means over single samples (missing where a method has none); costs;
        ``settings``; or ``error``.
    conditions
        What the rows depend on besides method and seed.
    """

    rows: list[Row] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)

    def summary(self) -> list[Row]:
        """One row per method, in order: of each score its mean, and as ``*_error`` the standard error over seeds.

        The error is missing for a single seed. ``n_seeds`` counts the seeds that did not fail.
        """
        return [_summarised(rows) for rows in self._by_method().values()]

    def to_frame(self) -> DataFrame:
        """The rows as a pandas DataFrame, indexed by method and seed.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_frame: needs pandas; pip install 'laplace-fiber[compare]', or use .rows.") from error
        return pandas.DataFrame([_flat(row) for row in self.rows]).set_index(["method", "seed"])

    def to_csv(self, path: str | Path | None = None) -> str | None:
        """All rows as comma-separated values, written to ``path`` or returned."""
        rows = [_flat(row) for row in self.rows]
        names = list(dict.fromkeys(name for row in rows for name in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        if path is None:
            return buffer.getvalue()
        Path(path).write_text(buffer.getvalue())
        return None

    def to_markdown(self, per_seed: bool = False) -> str:
        """A table of means ± standard errors over seeds (or of single rows), with errors and warnings below it."""
        header, body = self._cells(per_seed)
        rule = ["---", *["---:"] * (len(header) - 1)]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *body))
        notes = "\n".join(f"- {note}" for note in self.notes())
        return f"{table}\n\n{notes}\n" if notes else f"{table}\n"

    def notes(self) -> list[str]:
        """Errors and warnings of the methods, each once."""
        found = [f"{row['label']}, seed {row['seed']} failed: {row['error']}" for row in self.rows if "error" in row]
        found += [f"{row['label']}: {message}" for row in self.rows for message in row.get("warnings", ())]
        return list(dict.fromkeys(" ".join(note.split()) for note in found))

    def save(self, path: str | Path) -> None:
        """Write everything to a JSON file; a file that is there is replaced in one step."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, "conditions": self.conditions, "rows": self.rows}, indent=1, default=repr)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}")
        unfinished.write_text(text + "\n")
        unfinished.replace(target)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """What :meth:`save` wrote.

        Raises
        ------
        ValueError
            The file is no saved comparison.
        """
        try:
            state = json.loads(Path(path).read_text())
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}")
            return cls(state["rows"], state["conditions"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"load: expected a comparison saved in format {FORMAT}, got {path} ({error}).") from error

    def plot(self, path: str | Path | None = None) -> Figure:
        """Cost against NLL, and a reliability diagram per method; also written to ``path`` if one is given.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        ValueError
            No method has finished.
        """
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError("plot: needs matplotlib; pip install 'laplace-fiber[compare]'.") from error
        from laplace_fiber.comparison.plots import figure

        result = figure(self)
        if path is not None:
            result.savefig(path, dpi=150, facecolor="white")
        return result

    def __str__(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        header, body = self._cells(per_seed=False)
        rows = [("th", header), *(("td", cells) for cells in body)]
        lines = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) for tag, cells in rows)
        table = "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes())
        return f"{table}<ul>{notes}</ul>" if notes else table

    def _by_method(self) -> dict[str, list[Row]]:
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row["method"], []).append(row)
        return groups

    def _cells(self, per_seed: bool) -> tuple[list[str], list[list[str]]]:
        rows = self.rows if per_seed else self.summary()
        shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
        errors = any("error" in row for row in rows)
        several = not per_seed and any(row["n_seeds"] > 1 for row in rows)
        header = ["Method", *(["Seed"] if per_seed else []), *(COLUMNS[name][0] for name in shown)]
        body = []
        for row in rows:
            cells = [row["label"], *([str(row["seed"])] if per_seed else [])]
            cells += [_cell(name, row) for name in shown]
            body.append(cells + ([_shortened(row.get("error", ""))] if errors else []))
        if several:
            header[0] = "Method (mean ± standard error)"
        return header + (["Error"] if errors else []), body


def _summarised(rows: Sequence[Row]) -> Row:
    finished = [row for row in rows if "error" not in row]
    result: Row = {"method": rows[0]["method"], "label": rows[0]["label"], "n_seeds": len(finished)}
    for name in dict.fromkeys(name for row in finished for name in row):
        values = [row[name] for row in finished if _is_score(name, row.get(name))]
        if values:
            result[name] = statistics.fmean(values)
        if len(values) > 1:
            result[f"{name}_error"] = statistics.stdev(values) / math.sqrt(len(values))
    failed = [row["error"] for row in rows if "error" in row]
    return result | ({"error": failed[0]} if failed else {})


def _is_score(name: str, value: object) -> bool:
    return name != "seed" and isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(row: Row) -> Row:
    """A row without what no cell can hold; its settings as JSON."""
    kept = {name: value for name, value in row.items() if name not in UNTABLED}
    return kept | ({"settings": json.dumps(row["settings"], default=repr)} if "settings" in row else {})


def _cell(name: str, row: Row) -> str:
    """A score with its standard error, or a cost."""
    value, error, form = row.get(name), row.get(f"{name}_error"), COLUMNS[name][1]
    if value is None:
        return "–"
    form = form if abs(value) < LARGE else ".3g"
    return f"{value:{form}} ± {error:{form}}" if error is not None and name in SCORES else f"{value:{form}}"


def _shortened(message: str, length: int = 100) -> str:
    words = " ".join(message.split()).replace("|", "¦")
    return words if len(words) <= length else words[: length - 1] + "…"


def rows_by_key(rows: Iterable[Row]) -> dict[tuple[str, int], Row]:
    """Rows by method and seed."""
    return {(row["method"], row["seed"]): row for row in rows}
