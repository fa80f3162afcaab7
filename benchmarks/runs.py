"""What a run is, and what an experiment is: the runs that belong together in one set of tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from benchmarks.methods import FULL, QUICK, Effort

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One method on one data set with one seed.

    ``out`` is the folder of all experiments' results. ``limit_seconds`` of wall-clock time is what the run may take,
    None without end.
    """

    experiment: str
    dataset: str
    method: str
    seed: int
    quick: bool = False
    data_dir: Path | None = None
    out: Path = RESULTS
    limit_seconds: float | None = None

    @property
    def path(self) -> Path:
        """The file of the result. Quick runs lie apart, since their numbers mean nothing."""
        folder = self.experiment + ("-quick" if self.quick else "")
        return self.out / folder / f"{self.dataset}_{self.method}_{self.seed}.json"

    @property
    def effort(self) -> Effort:
        """What the method may spend."""
        return QUICK if self.quick else FULL

    @property
    def finished(self) -> bool:
        """Whether the result exists and is no failure."""
        return bool(self.record["status"] == "finished")

    @property
    def settled(self) -> bool:
        """Whether there is no use in carrying it out (again): finished, or out of time within at least this limit."""
        record = self.record
        if self.limit_seconds is None or "out_of_time" not in record:
            return bool(record["status"] == "finished")
        return bool(record["out_of_time"] >= self.limit_seconds)

    @property
    def record(self) -> dict[str, Any]:
        """What its file holds; the status is ``"missing"`` where there is none."""
        return json.loads(self.path.read_text()) if self.path.exists() else {"status": "missing"}


Measure: TypeAlias = Callable[[Run], dict[str, Any]]
"""Carries out a run and returns what its file shall hold, beside what every file holds."""


def _together(dataset: str, method: str) -> bool:
    return True


@dataclass(frozen=True)
class Experiment:
    """Data sets and methods that belong together in one set of tables.

    Attributes
    ----------
    about
        One line for the list of experiments.
    datasets, methods
        Their names; each pair is run, if ``applies(dataset, method)``.
    measure
        Carries out one run.
    prepare
        Makes what several runs of one data set and seed share, such as the trained network: called once for each pair
        of them before all runs.
    part
        The part of the data that the tables show.
    report
        Writes its tables into the folder of its results and returns them; None: the usual ones.
    applies
        Whether a method can be run on a data set.
    limit_seconds
        What a run may take, unless the command line says otherwise; None: all the time it needs.
    """

    about: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    measure: Measure
    prepare: Callable[[Run], object]
    part: Literal["test", "validation"] = "test"
    report: Callable[[Path], str] | None = None
    applies: Callable[[str, str], bool] = _together
    limit_seconds: float | None = None
