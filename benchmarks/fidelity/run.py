"""Runs: one JSON file for every method, problem and seed, and one for every reference; finished ones stay."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.fidelity import distances
from benchmarks.fidelity.methods import METHODS, Sampler, of_weights
from benchmarks.fidelity.problems import Problem, Spec, prior_radius
from benchmarks.fidelity.reference import Reference, reference
from benchmarks.fidelity.training import make_problem
from benchmarks.records import write_record
from laplace_fiber.metrics import negative_log_likelihood

RESULTS = Path(__file__).parent.parent / "results"
REFERENCE = "hmc"
"""Name that references have among the methods."""


@dataclass(frozen=True)
class Run:
    """One method, or the reference, on one problem. ``limit``: seconds for the reference's chains."""

    spec: Spec
    method: str
    limit: float = 240.0
    data_dir: Path | None = None
    out: Path = RESULTS

    @property
    def path(self) -> Path:
        """The file of the result. Quick runs lie apart, since their numbers mean nothing."""
        return folder(self.out, self.spec.quick) / f"{self.spec.stem}_{self.method}_{self.spec.seed}.json"

    @property
    def record(self) -> dict[str, Any] | None:
        """The result, unless there is none or a failure."""
        found = json.loads(self.path.read_text()) if self.path.exists() else {"status": "missing"}
        return found if found["status"] == "finished" else None

    @property
    def measured_by(self) -> Run:
        """The run of the reference."""
        return Run(self.spec, REFERENCE, self.limit, self.data_dir, self.out)

    @property
    def finished(self) -> bool:
        """Whether the result exists, by the present reference, whose chains have converged or may not go on."""
        own, of_reference = self.record, self.measured_by.record
        if own is None or of_reference is None or own["reference"] != of_reference["reference"]:
            return False
        info = of_reference["info"]
        return bool(info["converged"] or info["limit_seconds"] >= self.limit)


def folder(out: Path, quick: bool) -> Path:
    """Where results lie."""
    return out / ("fidelity-quick" if quick else "fidelity")


def run_all(runs: Iterable[Run]) -> list[Run]:
    """Carry out the runs that are not finished, problem by problem, references first; return those that failed."""
    by_spec: dict[Spec, list[Run]] = {}
    for run in runs:
        by_spec.setdefault(run.spec, []).append(run)
    return [run for group in by_spec.values() for run in _run_problem(group)]


def _run_problem(runs: Sequence[Run]) -> list[Run]:
    first = runs[0].measured_by
    if all(run.finished for run in (first, *runs)):
        return []
    problem = make_problem(first.spec, first.data_dir)
    made: list[Reference] = []

    def of_reference() -> dict[str, Any]:
        made.append(reference(problem, first.limit))
        return reference_results(problem, made[0])

    if not _execute(first, of_reference):
        return list(runs)
    pending = [run for run in runs if run.method != REFERENCE and not run.finished]
    results = {run: functools.partial(method_results, problem, made[0], run.method) for run in pending}
    return [run for run in pending if not _execute(run, results[run])]


def _execute(run: Run, measure: Callable[[], dict[str, Any]]) -> bool:
    """Write the results of one run, or its failure with the traceback; returns whether it succeeded."""
    record = write_record(run.path, {"method": run.method, **asdict(run.spec)}, measure)
    print(f"{record['status']}: {run.path.stem}", flush=True)
    return bool(record["status"] == "finished")


def reference_results(problem: Problem, found: Reference) -> dict[str, Any]:
    """The reference's own figures; its distances are those between the halves of its chains: what chance makes."""
    first, second = (of_weights(problem, half) for half in found.halves)
    whole = of_weights(problem, found.thetas)
    metrics = {**compare(problem, first, second), **single(problem, whole)}
    conditions = {"sigma_noise": problem.data.sigma, "prior_radius": prior_radius(problem)}
    return {"reference": found.identity, "metrics": metrics, "info": {**found.info, **conditions}}


def method_results(problem: Problem, found: Reference, method: str) -> dict[str, Any]:
    """How far a method's predictive is from the reference's, and how good it is by itself."""
    sampler = METHODS[method](problem)
    metrics = {**compare(problem, sampler, of_weights(problem, found.thetas)), **single(problem, sampler)}
    metrics["fit_seconds"] = sampler.fit_seconds
    return {"reference": found.identity, "metrics": metrics, "info": sampler.info}


def compare(problem: Problem, sampler: Sampler, target: Sampler) -> dict[str, float]:
    """Distances between predictives of function values, or of class probabilities, inside and outside the data."""
    measures = {
        "wasserstein": distances.wasserstein,
        "spread_ratio": distances.spread_ratio,
        "mean_difference": distances.mean_difference,
    }
    if problem.classes:
        measures |= {"total_variation": distances.total_variation, "agreement": distances.agreement}
    found = dict[str, float]()
    for part, x in {"inside": problem.data.inside, "outside": problem.data.outside}.items():
        pair = predictions(problem, sampler, x), predictions(problem, target, x)
        found |= {f"{name}_{part}": measure(*pair) for name, measure in measures.items()}
        if part == "inside":
            found["discrepancy_inside"] = distances.discrepancy(*pair)
    return found


def single(problem: Problem, sampler: Sampler) -> dict[str, float]:
    """Test NLL of the averaged predictive; of weight samples, mean NLL excess over the mode's and distance from it."""
    x, y = problem.data.test
    found = {"test_nll": negative_log_likelihood(predictions(problem, sampler, x), y, problem.data.sigma)}
    if sampler.thetas is None:
        return found
    joint, batch = problem.joint, problem.training_data.everything()
    lowest = joint.data_term(problem.theta[None], batch)
    excess = [joint.data_term(rows, batch) - lowest for rows in sampler.thetas.split(100)]
    found["nll_excess"] = float(sum(part.sum() for part in excess)) / len(sampler.thetas)
    found["map_distance"] = float((sampler.thetas - problem.theta).norm(dim=1).mean())
    return found


def predictions(problem: Problem, sampler: Sampler, x: Tensor) -> Tensor:
    """Function values, or class probabilities, (s, b, c)."""
    outputs = sampler.functions(x)
    return outputs.softmax(-1) if problem.classes else outputs
