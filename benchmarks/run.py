"""Runs of methods on data sets: one JSON file each, finished ones are never repeated."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from benchmarks import environment
from benchmarks.compared import COMPARED_METHODS
from benchmarks.datasets import Dataset, load
from benchmarks.methods import FULL, METHODS, QUICK, Effort, Fitted
from benchmarks.models import Training, noise_scale, train, training_for
from benchmarks.records import write_record
from benchmarks.variants import VARIANT_METHODS
from laplace_fiber.metrics import evaluate

RESULTS = Path(__file__).parent / "results"
PREDICT_INPUTS = 1000
T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """The data sets and methods that belong together in one set of tables, and the part of the data these show.

    ``compared``: the names are those of ``laplace_fiber.comparison``.
    """

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    part: Literal["test", "validation"] = "test"
    compared: bool = False


ALL_METHODS = METHODS | VARIANT_METHODS
_BASELINES = ("snelson", "banana", "australian", "ionosphere", "glass")
_FIRST = ("snelson", "snelson-gap", "banana", "australian", "glass", "ionosphere")


EXPERIMENTS = {
    "first": Experiment(_FIRST, tuple(METHODS)),
    "defaults": Experiment((*_FIRST, "breast", "waveform"), tuple(VARIANT_METHODS), part="validation"),
    "baselines": Experiment(_BASELINES, tuple(COMPARED_METHODS), compared=True),
}


@dataclass(frozen=True)
class Run:
    """One method on one data set with one seed. ``out`` is the folder of all experiments' results."""

    experiment: str
    dataset: str
    method: str
    seed: int
    quick: bool = False
    data_dir: Path | None = None
    out: Path = RESULTS

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
    def training(self) -> Training:
        """The schedule of the network that the method starts from."""
        return training_for(self.dataset).shortened(self.effort.epoch_share)

    @property
    def finished(self) -> bool:
        """Whether the result exists and is no failure."""
        return self.path.exists() and json.loads(self.path.read_text())["status"] == "finished"

    def problem(self) -> tuple[Dataset, nn.Module]:
        """The data and the trained network."""
        dataset = load(self.dataset, self.seed, self.data_dir)
        return dataset, train(dataset, self.seed, self.training)


def run_all(runs: Iterable[Run], jobs: int) -> list[Run]:
    """Carry out the runs that are not finished, ``jobs`` at a time on one thread each; return those that failed.

    One job runs in this process, several in processes of their own.
    """
    pending = [run for run in runs if not run.finished]
    # Networks first, so that two runs never train the same one.
    networks = {(run.dataset, run.seed): run for run in pending}
    pool = None if jobs == 1 else ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        for _ in _each(_prepare, networks.values(), pool, "networks"):
            pass
        return [run for run, succeeded in _each(execute, pending, pool, "runs") if not succeeded]
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def execute(run: Run) -> bool:
    """Carry out one run and write its file; a failure is written with its traceback. Returns whether it succeeded."""
    head = {"experiment": run.experiment, "dataset": run.dataset, "method": run.method, "seed": run.seed}
    return write_record(run.path, head, lambda: _results(run))["status"] == "finished"


def measure(fitted: Fitted, dataset: Dataset, sigma: float) -> dict[str, Any]:
    """Scores on test and validation data, and the time of the fit and of 1000 predictions."""
    held_out = {"validation": dataset.val, "test": dataset.test}
    metrics = {part: evaluate(fitted.predict(x), y, sigma) for part, (x, y) in held_out.items()}
    x = dataset.test[0]
    inputs = x.repeat(math.ceil(PREDICT_INPUTS / len(x)), 1)[:PREDICT_INPUTS]
    start = time.perf_counter()
    fitted.predict(inputs)
    predict_seconds = time.perf_counter() - start
    return {"metrics": metrics, "fit_seconds": fitted.fit_seconds, "predict_seconds": predict_seconds}


def _results(run: Run) -> dict[str, Any]:
    dataset, model = run.problem()
    sigma = noise_scale(model, dataset)
    environment.reset_peak_memory()
    table = COMPARED_METHODS if EXPERIMENTS[run.experiment].compared else ALL_METHODS
    fitted = table[run.method](model, dataset, sigma, run.seed, run.effort)
    sigma = fitted.sigma or sigma
    measured = measure(fitted, dataset, sigma)
    settings = {"sigma_noise": sigma, "training": asdict(run.training), "effort": asdict(run.effort), **fitted.info}
    return {**measured, "peak_memory_mib": environment.peak_memory_mib(), "settings": settings}


def _prepare(run: Run) -> None:
    """Train the network of ``run``; an error will come again, and be recorded, in the run itself."""
    with contextlib.suppress(Exception):
        run.problem()


def _each(
    function: Callable[[Run], T], runs: Collection[Run], pool: Executor | None, title: str
) -> Iterator[tuple[Run, T]]:
    """Pairs (run, function(run)) as they are done, under a progress bar."""
    if pool is None:
        yield from ((run, function(run)) for run in tqdm(runs, desc=title))
        return
    futures = {pool.submit(function, run): run for run in runs}
    for future in tqdm(as_completed(futures), desc=title, total=len(futures)):
        yield futures[future], future.result()
