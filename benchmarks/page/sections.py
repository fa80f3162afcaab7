"""What the page shows of each experiment."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import figures, paper
from benchmarks.collected import Collected, Record, Scores, score_of
from benchmarks.experiments import EXPERIMENTS
from benchmarks.figures.curves import (
    corruption_records,
    layers_of,
    log_seconds,
    on_axis,
    settings_axes,
    shifted,
    walk_of,
)
from benchmarks.figures.summary import scores_of_all
from benchmarks.page.gains import largest_gains
from benchmarks.page.tables import cells_table, dataset_table, measure_table, rank_table, record_table, shift_table
from benchmarks.page.verdicts import goals, verdict
from benchmarks.report import environments_of
from benchmarks.style import label

SHOWN = {
    "nll": "NLL of the averaged predictive",
    "nll_per_sample": "NLL, mean over single posterior samples",
    "ece": "ECE of the averaged predictive (%)",
    "ece_per_sample": "ECE, mean over single posterior samples (%)",
    "calibration_error": "Calibration error of central intervals (%)",
    "accuracy": "Accuracy of the averaged predictive",
    "log_time": "Log time: base-10 logarithm of the seconds of the fit",
}
"""Measures of the tables, in their order."""

RANKED = {
    "nll": "NLL, averaged predictive",
    "nll_per_sample": "NLL, single samples",
    "ece": "ECE, averaged predictive",
}
FEW_SETS = 2
"""Up to so many data sets of an experiment have a table each, with all measures."""

SCORED = ("snelson", "banana", "uci", "uci-raw", "mnist", "fashion", "cifar10", "cifar10-resnet18")
"""Experiments of all methods, each with its tables."""

ALL_EXPERIMENTS = (*SCORED, "scaling", "sensitivity", "pictures")
COMMANDS = {"fidelity": "python -m benchmarks.fidelity run --seeds 3 --data-dir DATA"}
ANGLES = tuple(str(angle) for angle in range(0, 181, 15))
SEVERITIES = tuple(str(severity) for severity in range(1, 6))
FOREIGN = {"auroc_confidence": "by the largest class probability", "auroc_entropy": "by the predictive entropy"}
"""Measures of the detection of foreign images."""

LONGEST_ERROR = 160
"""Characters of an error message that the page shows."""


def sections(results: Collected) -> dict[str, str]:
    """Everything that the page's template has places for."""
    shown = {picture.name: figure(results, picture.name, figures.FOLDER) for picture in figures.PICTURES}
    shown.pop("nll-against-map-short")  # the README's
    every = scores_of_all(results)
    return {
        **shown,
        "goals": goals(results),
        "ranks": rank_table(every, RANKED) if every else missing("snelson"),
        **{name: _tables(name, [results.scores(name, d) for d in results.datasets(name)]) for name in SCORED},
        "rotation": _shifts("mnist", shifted(results.finished("mnist"), "rotation"), str, ANGLES),
        "corruption": _shifts("cifar10", shifted(corruption_records(results), "corruption"), _severity, SEVERITIES),
        "foreign": _foreign(results),
        "scaling": _scaling(results),
        "sensitivity": _sensitivity(results),
        "failed": _failed(results),
        "not-run": _not_run(results),
        "conditions": _conditions(results),
    }


def missing(experiment: str) -> str:
    """The command that makes the results of an experiment that has none."""
    command = COMMANDS.get(experiment, f"python -m benchmarks run {experiment} --data-dir DATA")
    return f"No results yet: `{command}` makes them."


def figure(results: Collected, name: str, folder: Path) -> str:
    """The figure with its caption, or the command that makes its results."""
    picture = {p.name: p for p in figures.PICTURES}[name]
    if not picture.has_results(results):
        return f"{picture.caption} {missing(picture.experiment)}"
    return f"![{picture.title}]({(folder / name).as_posix()}.png)\n\n{picture.caption}"


def _tables(experiment: str, every: Sequence[Scores]) -> str:
    """Verdicts, then a table for each measure of many data sets, and one for each data set of few or of the paper's."""
    if not every:
        return missing(experiment)
    parts = ["\n".join(f"- {verdict(scores)}" for scores in every)]
    if len(every) > FEW_SETS:
        tables = ((title, measure_table(every, measure)) for measure, title in SHOWN.items())
        parts += [f"#### {title}\n\n{table}" for title, table in tables if table]
    for scores in every:
        if len(every) <= FEW_SETS or scores.dataset in paper.DATASETS:
            parts.append(f"#### {scores.dataset}\n\n{dataset_table(scores)}")
    return "\n\n".join(parts)


def _shifts(
    experiment: str,
    found: Mapping[str, Mapping[str, list[float]]],
    name: Callable[[str], str],
    order: Sequence[str],
) -> str:
    return shift_table(found, name, order) if found else missing(experiment)


def _severity(shift: str) -> str:
    return shift.rpartition("/")[2]


def _foreign(results: Collected) -> str:
    """How well each method tells images of another set from those of its own."""
    records = [r for name in ("mnist", "fashion") for r in results.finished(name) if r.get("ood")]
    if not records:
        return missing("mnist")
    parts = []
    for measure, title in FOREIGN.items():
        area = functools.partial(_only_area, measure=measure)
        table = record_table(records, lambda r: r["method"], lambda r: f"{r['dataset']} against {_other(r)}", area)
        parts.append(f"Area under the ROC curve, {title}:\n\n{table}")
    return "\n\n".join(parts)


def _other(record: Record) -> str:
    (name,) = record["ood"]
    return str(name)


def _only_area(record: Record, measure: str) -> float | None:
    return float(record["ood"][_other(record)][measure])


def _scaling(results: Collected) -> str:
    records = results.finished("scaling")
    if not records:
        return missing("scaling")
    parts = []
    for title, value in (("NLL", score_of), ("Base-10 logarithm of the seconds of fit and prediction", log_seconds)):
        table = record_table(records, lambda r: r["method"], layers_of, value, "hidden layers")
        parts.append(f"{title}:\n\n{table}")
    return "\n\n".join(parts)


def _sensitivity(results: Collected) -> str:
    """Test NLL for each value of each setting, and what the best of them would gain."""
    if not results.finished("sensitivity"):
        return missing("sensitivity")
    parts = [
        "What one setting could gain, the three with the lowest validation NLL on each data set:\n\n"
        + largest_gains(results)
    ]
    for axis in settings_axes(results):
        cells: dict[tuple[str, float], list[float]] = {}
        for value, record in on_axis(results, axis):
            row = f"{record['dataset']}, {label(walk_of(record))}"
            cells.setdefault((row, value), []).append(record["metrics"]["test"]["nll"])
        parts.append(f"Test NLL against `{axis}`:\n\n{cells_table(cells, 'data')}")
    return "\n\n".join(parts)


def _failed(results: Collected) -> str:
    """Runs that ended otherwise than finished, with their message, and seeds together."""
    seeds: dict[tuple[str, ...], list[int]] = {}
    for experiment in ALL_EXPERIMENTS:
        for record in results.all_of(experiment):
            if record["status"] != "finished":
                text = str(record.get("error", record.get("progress", ""))).replace("`", "'").replace("\n", " ")
                key = experiment, record["dataset"], record["method"], record["status"], text[:LONGEST_ERROR]
                seeds.setdefault(key, []).append(record["seed"])
    lines = [
        f"- {experiment}, {dataset}, {label(method)}, {_numbers(found)}: {status}, `{text}`"
        for (experiment, dataset, method, status, text), found in sorted(seeds.items())
    ]
    return "\n".join(lines) or "None."


def _not_run(results: Collected) -> str:
    """Pairs of data set and method without any file, though their experiment has others."""
    lines = []
    for name in ALL_EXPERIMENTS:
        records = results.all_of(name)
        experiment = EXPERIMENTS.get(name)
        if not records or experiment is None:
            continue
        found = {(r["dataset"], r["method"]) for r in records}
        for method in experiment.methods:
            sets = [d for d in experiment.datasets if experiment.applies(d, method) and (d, method) not in found]
            if sets:
                everywhere = len(sets) == sum(experiment.applies(d, method) for d in experiment.datasets)
                lines.append(f"- {name}, {label(method)}: {'all data sets' if everywhere else ', '.join(sets)}")
    return "\n".join(lines) or "None."


def _conditions(results: Collected) -> str:
    """Machines, versions, seeds and budgets of each experiment."""
    parts = []
    for name in ALL_EXPERIMENTS:
        records = results.finished(name)
        if records:
            budgets = sorted({r["settings"]["budget"] for r in records if "budget" in r["settings"]})
            spent = f" Settings chosen within: `{'`, `'.join(budgets)}`." if budgets else ""
            seeds = _numbers({r["seed"] for r in records})
            parts.append(f"**{name}**: {len(records)} runs, {seeds}.{spent}{_schedules(records)}")
            parts.append(environments_of(records))
    return "\n\n".join(parts) or missing("snelson")


def _schedules(records: Iterable[Record]) -> str:
    """Training schedules of the networks, by data set."""
    by_schedule: dict[str, set[str]] = {}
    for record in records:
        training = record["settings"].get("training")
        if training:
            by_schedule.setdefault(json.dumps(training), set()).add(record["dataset"])
    parts = []
    for text, names in sorted(by_schedule.items(), key=lambda item: sorted(item[1])):
        listed = ", ".join(f"{key} {value}" for key, value in json.loads(text).items())
        parts.append(f" Training of {', '.join(sorted(names))}: {listed}.")
    return "".join(parts)


def _numbers(seeds: Iterable[int]) -> str:
    listed = sorted(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {', '.join(map(str, listed))}"
