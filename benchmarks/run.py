"""Carries out runs: one JSON file each, finished ones are never repeated, nor those that a longer limit cannot help."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TypeVar

import torch
from tqdm import tqdm

from benchmarks.experiments import EXPERIMENTS
from benchmarks.progress import RemainingTime
from benchmarks.records import write_record
from benchmarks.runs import Run

T = TypeVar("T")
_BAR = "{desc}: {n_fmt}/{total_fmt}|{bar}| {elapsed}{postfix}"


def run_all(runs: Iterable[Run], jobs: int) -> list[Run]:
    """Carry out the runs that are not settled, ``jobs`` at a time on one thread each; return those that failed.

    One job runs in this process, several in processes of their own.
    """
    pending = [run for run in runs if not run.settled]
    # What runs share first, so that two of them never make the same.
    shared = {(run.experiment, run.dataset, run.seed): run for run in pending}
    pool = None if jobs == 1 else ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,))
    try:
        for _ in tqdm(_each(_prepare, shared.values(), pool), desc="networks", total=len(shared)):
            pass
        return list(_failed(pending, jobs, pool))
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def execute(run: Run) -> bool:
    """Carry out one run and write its file; a failure is written with its traceback. Returns whether it succeeded."""
    head = {"experiment": run.experiment, "dataset": run.dataset, "method": run.method, "seed": run.seed}
    measure = functools.partial(EXPERIMENTS[run.experiment].measure, run)
    return write_record(run.path, head, measure, run.limit_seconds)["status"] == "finished"


def _prepare(run: Run) -> None:
    """Make what ``run`` shares with others; an error will come again, and be recorded, in the run itself."""
    with contextlib.suppress(Exception):
        EXPERIMENTS[run.experiment].prepare(run)


def _failed(pending: Collection[Run], jobs: int, pool: Executor | None) -> Iterator[Run]:
    """Carry out the runs under a progress bar, and tell which failed."""
    remaining = RemainingTime(pending, jobs)
    with tqdm(total=len(pending), desc="runs", bar_format=_BAR) as bar:
        bar.set_postfix_str(str(remaining))
        for run, succeeded in _each(execute, pending, pool):
            remaining.finished(run)
            bar.set_postfix_str(str(remaining), refresh=False)
            bar.update()
            if not succeeded:
                yield run


def _each(function: Callable[[Run], T], runs: Collection[Run], pool: Executor | None) -> Iterator[tuple[Run, T]]:
    """Pairs (run, function(run)) as they are done."""
    if pool is None:
        yield from ((run, function(run)) for run in runs)
        return
    futures = {pool.submit(function, run): run for run in runs}
    for future in as_completed(futures):
        yield futures[future], future.result()
