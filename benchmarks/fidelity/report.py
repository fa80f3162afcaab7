"""Markdown tables of the results: methods down, problems across, for each activation and prior precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.problems import PROBLEMS
from benchmarks.fidelity.run import REFERENCE
from benchmarks.report import (
    Record,
    environments_of,
    markdown_table,
    mean_and_error,
    records_in,
    write_report,
)
from benchmarks.style import label

MEASURES = {
    "wasserstein_inside": "1-Wasserstein distance from HMC, inside the data",
    "wasserstein_outside": "1-Wasserstein distance from HMC, outside the data",
    "spread_ratio_inside": "Standard deviation over HMC's, inside the data",
    "spread_ratio_outside": "Standard deviation over HMC's, outside the data",
    "test_nll": "Test NLL of the averaged predictive",
    "discrepancy_inside": "Maximum mean discrepancy of functions from HMC's, inside the data",
    "nll_excess": "NLL excess of weight samples over the mode, all training data (nats)",
    "map_distance": "Distance of weight samples from the mode",
    "fit_seconds": "Fit seconds",
}

DIAGNOSTICS = {
    "rhat": "R-hat",
    "rhat_train": "R-hat, training inputs",
    "rhat_inside": "R-hat, inside",
    "rhat_outside": "R-hat, outside",
    "ess": "effective samples",
    "seconds": "seconds",
    "half_effective_parameters": "d_eff/2 at the mode",
    "prior_radius": "prior radius",
}

PREAMBLE = """Every method has the same prior precision τ and noise σ as the posterior that Hamiltonian Monte Carlo
(HMC) samples, starts at a mode of that posterior (the ensemble: at modes of its own), and is not tuned. Distances are
those of function values (regression) or class probabilities. Inside: test inputs, or a grid over the range of
one-dimensional inputs; outside: test inputs times 3, or grids over half of the range on each side (cubic: and in the
gap). The problem named linear has exact draws in place of HMC. HMC's own row in tables of distances compares half of
its chains with the other half: smaller distances mean nothing. R-hat and effective samples are the largest and the
smallest one in function space; where R-hat is above 1.01 the chains have not converged in the time they had.
Mean ± standard error over seeds; in brackets the number of seeds where some are missing."""


def report(folder: Path) -> str:
    """The tables of all results in a folder, which are also written there.

    Raises
    ------
    FileNotFoundError
        There are no results.
    """
    records = records_in(folder)
    finished = [r for r in records if r["status"] == "finished"]
    sections = [f"# Results: {folder.name}", PREAMBLE, environments_of(finished)]
    for activation, tau in sorted({(r["activation"], r["tau"]) for r in finished}, reverse=True):
        chosen = [r for r in finished if (r["activation"], r["tau"]) == (activation, tau)]
        sections += _sections(chosen, f"{activation}, τ = {tau:g}")
    return write_report(folder, sections, records, "name")


def _sections(records: Sequence[Record], conditions: str) -> list[str]:
    """All tables of one activation and prior precision."""
    problems = [name for name in PROBLEMS if any(r["name"] == name for r in records)]
    found = {r["method"] for r in records}
    known = (REFERENCE, *METHODS)
    methods = [*(m for m in known if m in found), *sorted(found - set(known))]
    sections = [f"## {conditions}\n\n### HMC ({conditions})\n\n{_diagnostics(records, problems)}"]
    for measure, title in MEASURES.items():
        values = _values(records, measure)
        rows = [[label(m), *(_cell(values.get((m, p), []), records, p) for p in problems)] for m in methods]
        rows = [row for row in rows if any(cell != "–" for cell in row[1:])]
        sections.append(f"### {title} ({conditions})\n\n{markdown_table(['method', *problems], rows)}")
    return sections


def _values(records: Sequence[Record], measure: str) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if measure in record["metrics"]:
            found.setdefault((record["method"], record["name"]), []).append(record["metrics"][measure])
    return found


def _diagnostics(records: Sequence[Record], problems: Sequence[str]) -> str:
    """How well the reference's chains have mixed, and where they were."""
    rows = []
    for key, title in DIAGNOSTICS.items():
        cells = []
        for problem in problems:
            mine = [r for r in records if (r["method"], r["name"]) == (REFERENCE, problem)]
            cells.append(_cell([r["info"][key] for r in mine if key in r["info"]], records, problem))
        rows.append([title, *cells])
    return markdown_table(["reference", *problems], rows)


def _cell(values: Sequence[float], records: Sequence[Record], problem: str) -> str:
    if not values:
        return "–"
    seeds = len({r["seed"] for r in records if r["name"] == problem})
    return mean_and_error(values) + (f" ({len(values)})" if len(values) < seeds else "")
