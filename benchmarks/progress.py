"""How long the runs that are left will take, from those that are done: they differ in length by a factor of 1000."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Record, records_in
from benchmarks.runs import Run

_LIKENESS: tuple[Callable[[Any], Hashable], ...] = (
    lambda r: ("both", r["dataset"], r["method"]),
    lambda r: ("method", r["method"]),
    lambda r: "any",
)
"""Keys of runs that last about as long, the most alike first."""


class RemainingTime:
    """An estimate of the time that runs will take, by the mean of those on record that are most like each of them."""

    def __init__(self, pending: Iterable[Run], jobs: int) -> None:
        self._pending = {run: _identity(run) for run in pending}
        self._jobs = jobs
        self._seconds: dict[Hashable, list[float]] = {}
        for folder in {run.path.parent for run in self._pending}:
            for record in _records(folder):
                self._learn(record)

    def finished(self, run: Run) -> None:
        """The run has left a record."""
        self._pending.pop(run)
        self._learn(run.record)

    def __str__(self) -> str:
        seconds = self.seconds()
        if seconds is None:
            return "unknown time left"
        units = (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
        unit, size = next((u for u in units if seconds >= 2 * u[1]), units[-1])
        return f"about {seconds / size:.0f} {unit} left"

    def seconds(self) -> float | None:
        """Of wall-clock time; None where no run is on record."""
        expected = [self._expected(identity) for identity in self._pending.values()]
        known = [seconds for seconds in expected if seconds is not None]
        return sum(known) / min(self._jobs, max(len(known), 1)) if len(known) == len(expected) else None

    def _expected(self, identity: Record) -> float | None:
        found = (self._seconds.get(key(identity)) for key in _LIKENESS)
        return next((statistics.fmean(seconds) for seconds in found if seconds), None)

    def _learn(self, record: Record) -> None:
        seconds = seconds_of(record)
        if seconds is not None:
            for key in _LIKENESS:
                self._seconds.setdefault(key(record), []).append(seconds)


def seconds_of(record: Record) -> float | None:
    """How long a run took. None for a failure, which tells nothing of the next one, unless it ran out of time."""
    if record["status"] != "finished" and "out_of_time" not in record:
        return None
    if "seconds" in record:
        return float(record["seconds"])
    parts = (record.get("fit_seconds"), record.get("predict_seconds"), record.get("settings", {}).get("tune_seconds"))
    known = [float(part) for part in parts if part is not None]
    return sum(known) if known else None


def _identity(run: Run) -> Record:
    return {"dataset": run.dataset, "method": run.method}


def _records(folder: Path) -> Sequence[Record]:
    return records_in(folder) if any(folder.glob("*.json")) else []
