"""Results of all experiments as they lie in files, and comparisons of methods on one data set."""

from __future__ import annotations

import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laplace_fiber.plots.style import FIBER

Record = dict[str, Any]

SEVERAL_NETWORKS = ("ensemble", "multiswag", "mixture")
"""Methods that train further networks."""

CHAINS = ("hmc", "sgld", "sghmc", "csghmc")
"""Methods that run Markov chains from the trained network."""

WITHOUT_FIT = ("map", "temperature")
"""The trained network by itself; the temperature is found by the choice of settings."""

FIBER_FAMILY = (*FIBER, "fiber+temperature")


class Collected:
    """The records of a folder of experiments, read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, list[Record]] = {}

    def all_of(self, experiment: str) -> list[Record]:
        """Every record of an experiment, failures included; empty where there are none."""
        if experiment not in self._read:
            paths = sorted((self.folder / experiment).glob("*.json"))
            self._read[experiment] = [json.loads(path.read_text()) for path in paths]
        return self._read[experiment]

    def finished(self, experiment: str) -> list[Record]:
        """The records of finished runs."""
        return [r for r in self.all_of(experiment) if r["status"] == "finished"]

    def datasets(self, experiment: str) -> list[str]:
        """Data sets with finished runs, in alphabetical order."""
        return sorted({r["dataset"] for r in self.finished(experiment)})

    def scores(self, experiment: str, dataset: str) -> Scores:
        """All methods on one data set."""
        return Scores(dataset, [r for r in self.finished(experiment) if r["dataset"] == dataset])


@dataclass(frozen=True)
class Difference:
    """A measure of one method minus that of another on the same seeds (the lower, the better the one).

    Attributes
    ----------
    mean, error
        Over the seeds that both have; the standard error is None for a single seed.
    n_seeds
        How many these are.
    """

    mean: float
    error: float | None
    n_seeds: int

    @property
    def lower(self) -> bool:
        """Whether the one is lower on average."""
        return self.mean < 0

    @property
    def tied(self) -> bool:
        """Whether the mean is within one standard error of zero."""
        return self.error is not None and abs(self.mean) <= self.error

    @property
    def no_worse(self) -> bool:
        """Lower, or within one standard error."""
        return self.mean <= 0 or self.tied

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.mean:+.3f}{error}"


def paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """The one minus the other on the seeds of both, where that is finite; None where there are none."""
    gaps = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    gaps = [gap for gap in gaps if math.isfinite(gap)]
    if not gaps:
        return None
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
    return Difference(statistics.fmean(gaps), error, len(gaps))


class Scores:
    """Test scores of all methods on one data set."""

    def __init__(self, dataset: str, records: Iterable[Record]) -> None:
        self.dataset = dataset
        self.by_method: dict[str, dict[int, Record]] = {}
        for record in sorted(records, key=lambda r: int(r["seed"])):
            self.by_method.setdefault(record["method"], {})[record["seed"]] = record

    @functools.cached_property
    def seeds(self) -> tuple[int, ...]:
        """Those of the trained network (the MAP's), or all where it is missing."""
        every = {seed for found in self.by_method.values() for seed in found}
        return tuple(sorted(self.by_method.get("map", every)))

    def of_seed(self, method: str, measure: str, part: str = "test") -> dict[int, float]:
        """The measure of a method by seed: a score on a part of the data, or another entry of the record."""
        found = {}
        for seed, record in self.by_method.get(method, {}).items():
            value = record["metrics"][part].get(measure, record.get(measure, record["settings"].get(measure)))
            if value is not None:
                found[seed] = float(value)
        return found

    def values(self, method: str, measure: str) -> list[float]:
        """As :meth:`of_seed`, without the seeds."""
        return list(self.of_seed(method, measure).values())

    def mean(self, method: str, measure: str = "nll") -> float | None:
        """Mean over seeds, where there are any."""
        values = self.values(method, measure)
        return statistics.fmean(values) if values else None

    def complete(self, measure: str = "nll") -> list[str]:
        """Methods with finite values for every seed of the trained network: those that are ranked."""
        return [m for m in self.by_method if self._complete(m, measure)]

    def best(self, methods: Iterable[str], measure: str = "nll") -> str | None:
        """The lowest on average of the methods that are ranked."""
        ranked = set(self.complete(measure))
        return min((m for m in methods if m in ranked), key=lambda m: (self.mean(m, measure), m), default=None)

    def single_network(self, without: Iterable[str] = ()) -> list[str]:
        """Methods that keep to one trained network."""
        return [m for m in self.by_method if m not in {*SEVERAL_NETWORKS, *without}]

    def difference(self, method: str, other: str, measure: str = "nll", part: str = "test") -> Difference | None:
        """Method minus other on the seeds of both; None where there are none."""
        return paired(self.of_seed(method, measure, part), self.of_seed(other, measure, part))

    def no_worse_than_best(self, methods: Iterable[str], measure: str = "nll") -> list[str]:
        """The best of the methods, and those within one standard error of it."""
        methods = list(methods)
        best = self.best(methods, measure)
        if best is None:
            return []
        ranked = [m for m in methods if m in self.complete(measure)]
        gaps = {m: self.difference(m, best, measure) for m in ranked}
        return [m for m, gap in gaps.items() if m == best or (gap is not None and gap.no_worse)]

    def ranks(self, measure: str = "nll", methods: Iterable[str] | None = None) -> dict[str, float]:
        """Rank of each method that is ranked, 1 for the lowest mean; equal means share the mean of their ranks."""
        chosen = self.complete(measure) if methods is None else [m for m in self.complete(measure) if m in set(methods)]
        means = {m: statistics.fmean(self.values(m, measure)) for m in chosen}
        ordered = sorted(means.values())
        return {m: ordered.index(v) + (ordered.count(v) + 1) / 2 for m, v in means.items()}

    def _complete(self, method: str, measure: str) -> bool:
        found = self.of_seed(method, measure)
        return bool(found) and all(math.isfinite(found.get(seed, math.inf)) for seed in self.seeds)


def grouped(
    records: Iterable[Record], key: Callable[[Record], Any], value: Callable[[Record], float | None]
) -> dict[Any, list[float]]:
    """Values of the records that have one, by key."""
    found: dict[Any, list[float]] = {}
    for record in records:
        number = value(record)
        if number is not None:
            found.setdefault(key(record), []).append(float(number))
    return found


def score_of(record: Mapping[str, Any], measure: str = "nll", part: str = "test") -> float | None:
    """A score of a record on test or validation data, where it has it."""
    value = record["metrics"].get(part, {}).get(measure)
    return None if value is None else float(value)
