"""FiberLaplace with one setting at a time moved away from its default (Figures 8 to 11 of the paper).

Nothing is tuned: the prior precision is 1 and everything else is at its default. The value that is the default is run
once for all axes, under the name ``default``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.datasets import Dataset
from benchmarks.methods import FULL, Effort, Fitted, Method
from benchmarks.report import Record, cell, markdown_table, preamble, records_in, write_report
from benchmarks.runs import Run
from benchmarks.tabular import results
from benchmarks.variants import Variant, fit_variant
from laplace_fiber import FixedRefinement, LatentAutoencoder, RefineToLevel, TrajectorySampler

DATASETS = ("snelson", "australian", "ionosphere")
DEFAULT = "default"
_WALK, _AUTOENCODER = TrajectorySampler(), LatentAutoencoder()


@dataclass(frozen=True)
class Axis:
    """A setting and the values it takes.

    Attributes
    ----------
    about
        What it is.
    values
        All but the default.
    default
        The value, or what else is done by default.
    vary
        Makes the variant of a value.
    """

    about: str
    values: tuple[float, ...]
    default: float | str
    vary: Callable[[Any], Variant]


def _of_walk(setting: str, values: tuple[int, ...], about: str) -> Axis:
    return Axis(about, values, getattr(_WALK, setting), lambda value: Variant(walk={setting: value}))


def _of_autoencoder(setting: str, values: tuple[float, ...], about: str) -> Axis:
    default = getattr(_AUTOENCODER, setting)
    return Axis(about, values, default, lambda value: Variant(autoencoder={setting: value}))


AXES: dict[str, Axis] = {
    "reach": Axis("length of the walk, in prior radii", (0.25, 0.5, 2.0, 4.0), 1.0, lambda v: Variant(reach=v)),
    "n_steps": _of_walk("n_steps", (5, 10, 20, 80), "drifts of the walk, T"),
    "refinements": Axis(
        "refinement steps after each drift, M, instead of as many as the level asks for",
        (0, 1, 5, 20, 40),
        "to the level",
        lambda value: Variant(walk={"refinement": FixedRefinement(value)}),
    ),
    "level": Axis(
        "nats per parameter that refinement leaves above the mode",
        (0.05, 0.1, 0.4, 0.8),
        RefineToLevel().nats_per_parameter,
        lambda value: Variant(walk={"refinement": RefineToLevel(value)}),
    ),
    "n_particles": _of_walk("n_particles", (4, 8, 16, 64), "trajectories, n"),
    "latent_size": _of_autoencoder("latent_size", (2, 4, 8, 16, 64), "dimensions of the latent space"),
    "lambda_plus": _of_autoencoder("lambda_plus", (0.0, 0.1, 0.3, 3.0, 10.0), "weight of λ₊"),
    "lambda_minus": _of_autoencoder("lambda_minus", (0.0, 0.1, 1.0, 3.0), "weight of λ₋"),
}


def name_of(axis: str, value: float) -> str:
    """The name of a run, such as ``reach=0.5``."""
    return f"{axis}={value:g}"


def fit_on_axis(
    model: Any,
    dataset: Dataset,
    sigma: float,
    seed: int,
    effort: Effort = FULL,
    *,
    axis: str,
    value: float | None,
) -> Fitted:
    """A variant whose record tells its place: the axis (``default`` for the run on all of them) and the value."""
    variant = Variant() if value is None else AXES[axis].vary(value)
    fitted = fit_variant(model, dataset, sigma, seed, effort, variant=variant)
    return replace(fitted, info={**fitted.info, "axis": axis, "value": value})


METHODS: dict[str, Method] = {
    DEFAULT: functools.partial(fit_on_axis, axis=DEFAULT, value=None),
    **{
        name_of(axis, value): functools.partial(fit_on_axis, axis=axis, value=value)
        for axis, found in AXES.items()
        for value in found.values
    },
}


def measure(run: Run) -> dict[str, Any]:
    """FiberLaplace at one place."""
    return results(run, METHODS[run.method])


PARTS = ("validation", "test")
CONVENTIONS = {"nll": "averaged predictive", "nll_per_sample": "single samples"}


def report(folder: Path) -> str:
    """Tables of NLL in both conventions on validation and test data, one for each axis; also written there."""
    records = records_in(folder)
    finished = [r for r in records if r["status"] == "finished"]
    lead = "Mean NLL ± standard error over seeds; in brackets the number of seeds where some are missing."
    sections = [f"# Results: {folder.name}", f"{lead}\n{preamble(finished)}"]
    sections += [_axis_section(finished, axis) for axis in AXES]
    return write_report(folder, sections, records, "dataset")


def _axis_section(finished: Sequence[Record], axis: str) -> str:
    found = AXES[axis]
    numbers = [*found.values, *([found.default] if not isinstance(found.default, str) else [])]
    rows: list[tuple[str, str]] = [] if not isinstance(found.default, str) else [(found.default, DEFAULT)]
    for value in sorted(float(number) for number in numbers):
        is_default = value == found.default
        rows.append((f"{value:g}" + " (default)" * is_default, DEFAULT if is_default else name_of(axis, value)))
    tables = []
    for dataset in sorted({record["dataset"] for record in finished}):
        header = [dataset, *(f"{part}, {title}" for part in PARTS for title in CONVENTIONS.values())]
        of_set = [record for record in finished if record["dataset"] == dataset]
        most = max(len([r for r in of_set if r["method"] == method]) for _, method in rows)
        cells = [[title, *_scores([r for r in of_set if r["method"] == method], most)] for title, method in rows]
        tables.append(markdown_table(header, cells))
    return "\n\n".join([f"## {axis}: {found.about}", *tables])


def _scores(records: Sequence[Record], most: int) -> list[str]:
    return [cell([r["metrics"][part][measure] for r in records], most) for part in PARTS for measure in CONVENTIONS]
