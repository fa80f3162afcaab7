"""The pages of the paper's experiments and of distances from HMC, and the README's results, from the committed files.

Prose lies in ``page.md``, ``fidelity.md`` and ``readme.md`` beside this file; lines ``<!-- insert: NAME -->`` are
replaced by tables, figures and sentences made from the results.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks import figures
from benchmarks.collected import Collected
from benchmarks.figures.summary import SHORT_LIST, scores_of_all
from benchmarks.page import fidelity
from benchmarks.page.sections import figure, sections
from benchmarks.page.tables import measure_table

PAGE, FIDELITY_PAGE = "benchmarks.md", "fidelity.md"
README_MARKS = ("<!-- results -->", "<!-- /results -->")
PAGE_TEMPLATE, FIDELITY_TEMPLATE, README_TEMPLATE = (
    Path(__file__).parent / name for name in ("page.md", "fidelity.md", "readme.md")
)
README_SETS = ("snelson", "banana", "uci")
"""Experiments of the README's table."""

_INSERT = re.compile(r"<!-- insert: ([\w-]+) -->")


def page_texts(results: Collected) -> dict[str, str]:
    """Both pages by the names of their files."""
    return {
        PAGE: fill(PAGE_TEMPLATE.read_text(), sections(results)),
        FIDELITY_PAGE: fill(FIDELITY_TEMPLATE.read_text(), fidelity.sections(results)),
    }


def write_pages(results: Collected, docs: Path) -> list[Path]:
    """Write ``benchmarks.md``, ``fidelity.md`` and their figures into ``docs``; returns the files."""
    files = figures.draw_all(results, docs)
    texts = page_texts(results)
    for name, text in texts.items():
        (docs / name).write_text(text)
    return [*(docs / name for name in texts), *files]


def readme_block(results: Collected) -> str:
    """What stands between the README's marks."""
    names = {name for experiment in README_SETS for name in results.datasets(experiment)}
    shown = [scores for scores in scores_of_all(results) if scores.dataset in names]
    table = measure_table(shown, "nll", ("map", *SHORT_LIST)) or "No results yet: `python -m benchmarks run snelson`."
    inserts = {"table": table, "figure": figure(results, "nll-against-map-short", Path("docs") / figures.FOLDER)}
    body = fill(README_TEMPLATE.read_text(), inserts).strip()
    return f"{README_MARKS[0]}\n\n{body}\n\n{README_MARKS[1]}"


def update_readme(readme: Path, results: Collected) -> None:
    """Write the README's results anew, between their marks.

    Raises
    ------
    ValueError
        The file does not have the marks.
    """
    before, found, rest = readme.read_text().partition(README_MARKS[0])
    _, ended, after = rest.partition(README_MARKS[1])
    if not (found and ended):
        raise ValueError(f"Expected the lines {README_MARKS} in {readme}; got no such place for the results.")
    readme.write_text(before + readme_block(results) + after)


def fill(template: str, inserts: Mapping[str, str]) -> str:
    """The template with every insert in its place.

    Raises
    ------
    ValueError
        A place without an insert, or an insert without a place.
    """
    places = _INSERT.findall(template)
    if sorted(places) != sorted(inserts):
        different = ", ".join(sorted(set(places) ^ set(inserts))) or "repeated names"
        raise ValueError(f"Expected one insert for each place of the template; got a difference in: {different}.")
    return _INSERT.sub(lambda match: inserts[match[1]], template)
