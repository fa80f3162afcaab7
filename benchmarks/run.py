"""Carries out runs: one JSON file each, finished ones are never repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from benchmarks.experiments import EXPERIMENTS
from benchmarks.limits import within
from benchmarks.records import write_record
from benchmarks.runs import Run

T = TypeVar("T")


def run_all(runs: Iterable[Run], jobs: int) -> list[Run]:
    """Carry out the runs that are not finished, ``jobs`` at a time on one thread each; return those that failed.

    One job runs in this process, several in processes of their own.
    """
    pending = [run for run in runs if not run.finished]
    # What runs share first, so that two of them never make the same.
    shared = {(run.experiment, run.dataset, run.seed): run for run in pending}
    pool = None if jobs == 1 else ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        for _ in _each(_prepare, shared.values(), pool, "networks"):
            pass
        return [run for run, succeeded in _each(execute, pending, pool, "runs") if not succeeded]
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def execute(run: Run) -> bool:
    """Carry out one run and write its file; a failure is written with its traceback. Returns whether it succeeded."""
    head = {"experiment": run.experiment, "dataset": run.dataset, "method": run.method, "seed": run.seed}
    experiment = EXPERIMENTS[run.experiment]

    def measure() -> dict[str, Any]:
        return within(experiment.time_limit, lambda: experiment.measure(run))

    return write_record(run.path, head, measure)["status"] == "finished"


def _prepare(run: Run) -> None:
    """Make what ``run`` shares with others; an error will come again, and be recorded, in the run itself."""
    with contextlib.suppress(Exception):
        EXPERIMENTS[run.experiment].prepare(run)


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
