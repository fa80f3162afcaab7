"""What the pages show of distances from long HMC."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import figures
from benchmarks.collected import Collected
from benchmarks.fidelity.conditions import CLOSE, LINEARISED, PLACES, PLAIN, WALKS, Conditions, all_conditions, row_name
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.run import REFERENCE
from benchmarks.page.sections import figure, missing
from benchmarks.page.tables import NOTHING
from benchmarks.report import markdown_table
from benchmarks.style import label


def sections(results: Collected) -> dict[str, str]:
    """Everything that the template has places for."""
    conditions = all_conditions(results)
    if not conditions:
        return dict.fromkeys(("distances", "goals", "references", "tables"), missing("fidelity"))
    return {
        "distances": figure(results, "distances", figures.FOLDER),
        "goals": goals(conditions),
        "references": references(conditions),
        "tables": "\n\n".join(f"## {c.title}\n\n{_tables(c)}" for c in conditions),
    }


def goals(conditions: Sequence[Conditions]) -> str:
    """On how many problems the walks reach what they are meant to."""
    header = [
        "walk",
        "conditions",
        "closest outside",
        f"inside at most {CLOSE:g} × linearised",
        "NLL no worse than plain and linearised",
        "NLL no worse than HMC's",
    ]
    rows = []
    for walk in WALKS:
        for c in conditions:
            rivals = [m for m in (PLAIN, LINEARISED) if m != walk]
            reached = [
                c.closest_outside(walk),
                c.close_inside(walk),
                c.predicts_as_well(walk, rivals),
                c.predicts_as_well(walk, [REFERENCE]),
            ]
            rows.append([label(walk), c.title, *(_count(found, c.compared) for found in reached)])
    return markdown_table(header, rows)


def _count(found: Sequence[str], every: Sequence[str]) -> str:
    """How many problems, and which are missing."""
    missing = [p for p in every if p not in found]
    without = f" (not {', '.join(missing)})" if found and missing else ""
    return f"{len(found)} of {len(every)}{without}"


def references(conditions: Sequence[Conditions]) -> str:
    """Which chains have not converged, with their R-hat."""
    every = [(c, r) for c in conditions for r in c.references()]
    open_ended = [(c, r["name"], r["seed"], r["info"]) for c, r in every if not r["info"]["converged"]]
    lines = [
        f"- {name}, {c.title}, seed {seed}: R-hat {info['rhat']:.3f}, {info['ess']:.0f} effective draws after "
        f"{info['seconds']:.0f} s"
        for c, name, seed, info in open_ended
    ]
    lead = f"Of {len(every)} references {len(open_ended)} stopped at their limit"
    return "\n".join([f"{lead}:\n", *lines]) if lines else f"{lead}."


def _tables(c: Conditions) -> str:
    kinds = {
        "1-Wasserstein distance from HMC, inside · outside": "wasserstein",
        "Standard deviation over HMC's, inside · outside": "spread_ratio",
    }
    parts = [f"{title}:\n\n{_table(c, [f'{name}_{place}' for place in PLACES])}" for title, name in kinds.items()]
    return "\n\n".join([*parts, f"Test NLL · fit seconds:\n\n{_table(c, ['test_nll', 'fit_seconds'])}"])


def _table(c: Conditions, measures: Sequence[str]) -> str:
    """Two measures in each cell; distances are bold where they are the lowest, or within one standard error."""
    bold = {
        (p, measure): c.lowest(p, measure) if measure.startswith("wasserstein") else []
        for p in c.problems
        for measure in measures
    }
    rows = []
    for method in (REFERENCE, *METHODS):
        cells = []
        for problem in c.problems:
            texts = [_number(c.mean(problem, method, measure)) for measure in measures]
            marked = zip(texts, measures, strict=True)
            cells.append(" · ".join(f"**{t}**" if method in bold[problem, m] else t for t, m in marked))
        if any(cell.strip(f"{NOTHING} ·") for cell in cells):
            rows.append([row_name(method), *cells])
    return markdown_table(["method", *c.problems], rows)


def _number(value: float | None) -> str:
    """Three decimals, fewer for large numbers."""
    if value is None:
        return NOTHING
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
