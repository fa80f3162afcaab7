"""Distances from long HMC, as the experiment ``fidelity`` measured them: by condition, problem, method and seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.collected import Collected, Record, paired
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.problems import PROBLEMS
from benchmarks.fidelity.run import REFERENCE
from benchmarks.style import label

LINEARISED, PLAIN, TYPICAL, STOCHASTIC = "linearised", "fiber", "fiber-typical", "fiber-stochastic"
WALKS = (PLAIN, TYPICAL, STOCHASTIC)
OWN = tuple(name for name in METHODS if name.startswith("fiber"))
PLACES = ("inside", "outside")
"""Of the data, where distances are taken."""

CLOSE = 1.5
"""Inside the data walks shall be at most this many times as far from HMC as the linearised Laplace."""


@dataclass(frozen=True)
class Conditions:
    """All results for one activation and prior precision τ."""

    activation: str
    tau: float
    records: Sequence[Record]

    @property
    def title(self) -> str:
        """As headings have it."""
        return f"{self.activation}, τ = {self.tau:g}"

    @property
    def problems(self) -> list[str]:
        """Those with results, in the usual order."""
        return [name for name in PROBLEMS if any(r["name"] == name for r in self.records)]

    @property
    def compared(self) -> list[str]:
        """Problems that every method was run on that has results here: those that are counted."""
        every = {r["method"] for r in self.records}
        return [name for name in self.problems if every == {r["method"] for r in self.records_on(name)}]

    def records_on(self, problem: str) -> list[Record]:
        """Those of one problem."""
        return [r for r in self.records if r["name"] == problem]

    def references(self) -> list[Record]:
        """The runs of the chains."""
        return [r for r in self.records if r["method"] == REFERENCE]

    def by_seed(self, problem: str, method: str, measure: str) -> dict[int, float]:
        """A measure of one method on one problem."""
        mine = [r for r in self.records_on(problem) if r["method"] == method]
        return {r["seed"]: float(r["metrics"][measure]) for r in mine if measure in r["metrics"]}

    def mean(self, problem: str, method: str, measure: str) -> float | None:
        """Over seeds, where there are any."""
        values = self.by_seed(problem, method, measure).values()
        return statistics.fmean(values) if values else None

    def lowest(self, problem: str, measure: str, methods: Iterable[str] = tuple(METHODS)) -> list[str]:
        """The method with the lowest mean, and those within one standard error of it."""
        means = {m: mean for m in methods if (mean := self.mean(problem, m, measure)) is not None}
        if not means:
            return []
        best = min(means, key=lambda m: means[m])
        return [m for m in means if m == best or self.no_worse(problem, m, best, measure)]

    def no_worse(self, problem: str, method: str, other: str, measure: str) -> bool:
        """Lower than the other, or within one standard error of it; False where one has no results."""
        gap = paired(self.by_seed(problem, method, measure), self.by_seed(problem, other, measure))
        return gap is not None and gap.no_worse

    def closest_outside(self, method: str) -> list[str]:
        """Problems on which no method but the other walks is closer to HMC outside the data, by over one error."""
        others = [m for m in METHODS if m not in OWN]
        return [p for p in self.compared if method in self.lowest(p, "wasserstein_outside", [*others, method])]

    def close_inside(self, method: str) -> list[str]:
        """Problems on which it is at most ``CLOSE`` times as far from HMC inside the data as the linearised Laplace."""
        found = []
        for problem in self.compared:
            mine, theirs = (self.mean(problem, m, "wasserstein_inside") for m in (method, LINEARISED))
            if mine is not None and theirs is not None and mine <= CLOSE * theirs:
                found.append(problem)
        return found

    def predicts_as_well(self, method: str, others: Sequence[str]) -> list[str]:
        """Problems on which its test NLL is no worse than each of the others'."""
        return [p for p in self.compared if all(self.no_worse(p, method, other, "test_nll") for other in others)]


def row_name(method: str) -> str:
    """Of a method in tables and figures of distances; the chains' own distance is that between their halves."""
    return "HMC, half against half" if method == REFERENCE else label(method)


def all_conditions(results: Collected) -> list[Conditions]:
    """Those with results: tanh first, each from τ = 1 on."""
    finished = [r for r in results.finished("fidelity") if not r["quick"]]
    found = sorted({(r["activation"], r["tau"]) for r in finished}, key=lambda c: (c[0] != "tanh", c[1] != 1, -c[1]))
    return [Conditions(a, t, [r for r in finished if (r["activation"], r["tau"]) == (a, t)]) for a, t in found]
