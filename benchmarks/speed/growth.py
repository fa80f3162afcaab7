"""Time of a fit against the number of weights and of data points, for FiberLaplace and laplace-torch's posteriors.

A fit lasts until the first posterior sample: full and low-rank Laplace factorise their precision only when it is asked
for. Every fit has a process of its own, which ends where it needs too much memory or time; larger sizes are then left
out. All particles take the same number of refinement steps at every size.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from laplace import Laplace
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from benchmarks.report import markdown_table
from benchmarks.speed.common import Options, seconds_of
from benchmarks.speed.memory import GIB, Partial, Send, run_alone
from benchmarks.speed.networks import mlp, n_weights, unit_precision
from benchmarks.speed.problems import NOISE, curve
from benchmarks.style import COLOURS
from laplace_fiber import FiberLaplace, FixedRefinement, LatentAutoencoder, TrajectorySampler, low_rank_laplace

FIBER = "fiber-latent"
STRUCTURES = {
    "la-gn": ("all", "full"),
    "la-kron": ("all", "kron"),
    "la-diag": ("all", "diag"),
    "la-last-layer": ("last_layer", "full"),
}
METHODS = {
    FIBER: "Fiber",
    "la-gn": "Laplace, full",
    "la-kron": "Laplace, Kronecker",
    "la-diag": "Laplace, diagonal",
    "la-lowrank": "Laplace, low rank",
    "la-last-layer": "Laplace, last layer",
}
LINE_COLOURS = COLOURS | {"la-kron": "#009E73", "la-diag": "#D55E00", "la-last-layer": "#7F7F7F"}
FIGURE = Path(__file__).parents[2] / "docs" / "img" / "growth.png"

ADDRESS_SPACE = 16 * GIB
LIMIT_SECONDS = 60
FIBER_LIMIT_SECONDS = 3600
TARGET_SLOPE = 1.05
TRAINING_STEPS = 200
BATCH = 512
N_SAMPLES, N_INPUTS = 100, 1000


@dataclass(frozen=True)
class Series:
    """Fits that differ in one size only: what it is, the walk's settings, and whether predictions are timed, too."""

    axis: str
    walk: Mapping[str, Any]
    marker: str
    predicts: bool = False


_WALK = {"refinement": FixedRefinement(5), "descent": "monotone"}
SERIES = {
    "depth": Series("weights", _WALK, "o-", predicts=True),
    "width": Series("weights", {**_WALK, "n_particles": 8, "n_steps": 10}, "s--"),
    "data": Series("data points", _WALK, "o-"),
    "batches": Series("data points", {**_WALK, "batch": "loader"}, "s--"),
}
TITLES = {
    "depth": "1 to 9 layers of 64 units, 32 particles, 40 steps",
    "width": "2 wide layers, 8 particles, 10 steps",
    "data": "all data in each step",
    "batches": f"batches of {BATCH}",
}


@dataclass(frozen=True)
class Point:
    """One size of one series: a network and how many data it is trained on."""

    series: str
    hidden: tuple[int, ...]
    n_data: int = 150

    @property
    def size(self) -> int:
        """Where it stands on its axis."""
        return self.n_data if SERIES[self.series].axis == "data points" else n_weights(self.network())

    def network(self) -> nn.Sequential:
        """The untrained network."""
        return mlp(1, self.hidden, 1)


POINTS = (
    *(Point("depth", (64,) * layers) for layers in (1, 3, 5, 7, 9)),
    *(Point("width", (width, width)) for width in (98, 314, 998, 1998, 3314)),
    *(Point("data", (32, 32, 32), n) for n in (1000, 2000, 4000, 8000)),
    *(Point("batches", (32, 32, 32), n) for n in (16_000, 64_000)),
)
QUICK_POINTS = (Point("depth", (8,)), Point("depth", (8, 8)), Point("data", (8,), 100), Point("data", (8,), 200))
QUICK_WALK = {"n_particles": 4, "n_steps": 5}


@dataclass(frozen=True)
class Job:
    """One method at one point."""

    point: Point
    method: str
    options: Options

    @property
    def name(self) -> str:
        """Its key among the results."""
        return f"{self.point.series}/{self.point.size}/{self.method}"

    @property
    def limit(self) -> float:
        """Seconds that a fit may take."""
        return FIBER_LIMIT_SECONDS if self.method == FIBER else LIMIT_SECONDS

    @property
    def walk(self) -> dict[str, Any]:
        """The walk's settings."""
        return {**SERIES[self.point.series].walk, **(QUICK_WALK if self.options.quick else {})}


def measure(options: Options) -> dict[str, Any]:
    """All methods at all sizes, and the figure unless this is a trial."""
    partial = Partial(options, "growth")
    points = QUICK_POINTS if options.quick else POINTS
    jobs = [Job(point, method, options) for point in points for method in METHODS]
    with tqdm(jobs, desc="fits") as bar:
        for job in bar:
            bar.set_postfix_str(job.name)
            if job.name not in partial.cases:
                partial.add(job.name, _result(job, partial.cases))
    results = {"fits": partial.cases, "slopes": _slopes(partial.cases), "target_slope": TARGET_SLOPE}
    if not options.quick:
        figure(results, FIGURE)
    partial.remove()
    return results


def table(results: dict[str, Any]) -> str:
    """Fit seconds of every series, predict seconds where there are some, and FiberLaplace's exponents."""
    fits, sections = results["fits"].values(), []
    for series, setting in SERIES.items():
        found = [fit for fit in fits if fit["series"] == series]
        for measure_, title in (("fit_seconds", "Fit seconds"), ("predict_seconds", "Predict seconds")):
            if any(measure_ in fit for fit in found):
                sections.append(f"{title}, {TITLES[series]}:\n\n{_sizes_table(found, measure_, setting.axis)}")
    lines = [f"- {TITLES[series]}: size to the power {slope:.2f}" for series, slope in results["slopes"].items()]
    lead = f"FiberLaplace over the larger half of each series (target: at most {results['target_slope']}):"
    return "\n\n".join([*sections, "\n".join([lead, "", *lines])])


def figure(results: dict[str, Any], path: Path) -> None:
    """Fit seconds against both sizes, one line per method and series."""
    from matplotlib.figure import Figure  # here, since the processes of the fits do not need it
    from matplotlib.lines import Line2D

    drawn = Figure(figsize=(11, 5), layout="constrained")
    axes = drawn.subplots(1, 2, sharey=True)
    for axis, name in zip(axes, ("weights", "data points"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel=f"number of {name}")
        axis.grid(alpha=0.25)
        axis.margins(y=0.1)  # room for the words above the crosses
        styles = {series: s.marker for series, s in SERIES.items() if s.axis == name}
        for series, marker in styles.items():
            for method in METHODS:
                _draw(axis, _fits_of(results["fits"], series, method), marker)
        handles = [
            Line2D([], [], color="black", marker=marker[0], ls=marker[1:], ms=4, label=TITLES[series])
            for series, marker in styles.items()
        ]
        axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8, frameon=False)
    axes[0].set_ylabel("seconds of a fit")
    lines = [Line2D([], [], color=LINE_COLOURS[method], lw=2, label=label) for method, label in METHODS.items()]
    drawn.legend(handles=lines, loc="outside upper center", ncols=len(lines), fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=150)


def _draw(axis: Any, fits: list[dict[str, Any]], marker: str) -> None:
    """A line through the finished fits of a method, and a cross where it gave up."""
    done = [fit for fit in fits if "fit_seconds" in fit]
    if done:
        colour = LINE_COLOURS[done[0]["method"]]
        axis.plot([f["size"] for f in done], [f["fit_seconds"] for f in done], marker, color=colour, ms=4)
    for fit in fits:
        if "fit_seconds" in fit or fit["status"] == "skipped":
            continue
        colour = LINE_COLOURS[fit["method"]]
        y = fit["limit_seconds"] if fit["status"] == "time" or not done else done[-1]["fit_seconds"]
        axis.plot([fit["size"]], [y], "x", color=colour, ms=8, mew=2)
        axis.annotate(fit["status"], (fit["size"], y), (0, 7), textcoords="offset points", ha="center", color=colour)


def _result(job: Job, earlier: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The fit, unless the method gave up at a smaller size."""
    point, axis = job.point, SERIES[job.point.series].axis
    facts = {"series": point.series, "size": point.size, "method": job.method, "limit_seconds": job.limit}
    for fit in earlier.values():
        same = fit["method"] == job.method and SERIES[fit["series"]].axis == axis
        if same and "fit_seconds" not in fit and fit["size"] <= point.size:
            return {**facts, "status": "skipped"}
    return {**facts, **run_alone(_fit, job, ADDRESS_SPACE, from_server=True)}


def _fit(job: Job, send: Send) -> None:
    """Train the network, fit the posterior and, where asked, predict; each of the latter two may take the limit."""
    torch.set_num_threads(job.options.threads)
    _fit_something_small(job.method)
    point = job.point
    model, x, y = point.network(), *curve(point.n_data)
    _train(model, x, y)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
    la = _posterior(job.method, model, job.walk)
    seconds: dict[str, float] = {}
    signal.setitimer(signal.ITIMER_REAL, job.limit)  # unhandled, its signal ends the process
    with _timed(TrajectorySampler, "walk", seconds), _timed(LatentAutoencoder, "fit", seconds):
        fit_seconds, _ = seconds_of(lambda: la.fit(loader))
    first_sample_seconds, _ = seconds_of(lambda: la.sample(1))
    send({"fit_seconds": fit_seconds + first_sample_seconds, "first_sample_seconds": first_sample_seconds, **seconds})
    if job.method == FIBER:
        kept = ("gradient_evaluations", "group_size", "basis_rank", "lost_particles")
        send({key: getattr(la.report, key) for key in kept})
    if SERIES[point.series].predicts:
        signal.setitimer(signal.ITIMER_REAL, job.limit)
        inputs = torch.linspace(-2, 2, N_INPUTS)[:, None]
        send({"predict_seconds": seconds_of(lambda: la.predictive_samples(inputs, "nn", N_SAMPLES))[0]})
    signal.setitimer(signal.ITIMER_REAL, 0)


def _posterior(method: str, model: nn.Module, walk: dict[str, Any]) -> Any:
    options: dict[str, Any] = {"sigma_noise": NOISE, "prior_precision": unit_precision(model)}
    if method == FIBER:
        return FiberLaplace(model, "regression", sampler=TrajectorySampler(**walk), **options)
    if method == "la-lowrank":
        return low_rank_laplace(model, "regression", **options)
    return Laplace(model, "regression", *STRUCTURES[method], **options)


def _fit_something_small(method: str) -> None:
    """Load the code that a first fit loads."""
    la = _posterior(method, mlp(1, (8,), 1), QUICK_WALK)
    la.fit(DataLoader(TensorDataset(*curve(20)), batch_size=20))
    la.sample(1)


def _train(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(TRAINING_STEPS):
        optimizer.zero_grad()
        functional.mse_loss(model(x), y).backward()
        optimizer.step()


def _timed(owner: type, name: str, seconds: dict[str, float]) -> Any:
    """While inside, calls of a class's method are timed."""
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        seconds[f"{owner.__name__}.{name}_seconds"], result = seconds_of(lambda: method(*args, **kwargs))
        return result

    return mock.patch.object(owner, name, timed)


def _slopes(fits: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Exponents of FiberLaplace's fit time, by least squares on logarithms over the larger half of each series."""
    slopes = {}
    for series in SERIES:
        found = [fit for fit in _fits_of(fits, series, FIBER) if "fit_seconds" in fit]
        half = sorted((f["size"], f["fit_seconds"]) for f in found)[-max(2, -(-len(found) // 2)) :]
        if len(half) >= 2:
            logarithms = np.log(half)
            slopes[series] = float(np.polyfit(logarithms[:, 0], logarithms[:, 1], 1)[0])
    return slopes


def _fits_of(fits: Mapping[str, dict[str, Any]], series: str, method: str) -> list[dict[str, Any]]:
    return [fit for fit in fits.values() if (fit["series"], fit["method"]) == (series, method)]


def _sizes_table(fits: list[dict[str, Any]], name: str, axis: str) -> str:
    found = {(fit["size"], fit["method"]): fit for fit in fits}
    cells = {key: f"{f[name]:.3g}" if name in f else f["status"].replace("skipped", "–") for key, f in found.items()}
    rows = [[f"{size:,}", *(cells.get((size, m), "–") for m in METHODS)] for size in sorted({s for s, _ in found})]
    return markdown_table([axis, *METHODS.values()], rows)
