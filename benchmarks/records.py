"""Files of results: written whole or not at all, with what was measured or how it failed."""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment

_AGAIN_SECONDS = 10.0  # then time is called once more: an exception that a destructor meets is lost


class _OutOfTime(BaseException):
    """No ``Exception``, since the search for settings takes those for failures of a setting and goes on."""


def write_record(
    path: Path, head: dict[str, Any], measure: Callable[[], dict[str, Any]], limit_seconds: float | None = None
) -> dict[str, Any]:
    """Measure, and write the result below ``head``; a failure is written with its traceback. Returns the record.

    ``"seconds"`` are those of the whole run. A measurement that takes longer than ``limit_seconds`` is a failure whose
    record holds the limit as ``"out_of_time"``; the traceback tells how far it had come.
    """
    record = {**head, "environment": environment.describe()}
    start = time.perf_counter()
    try:
        with time_limit(limit_seconds):
            record |= {"status": "finished", **measure()}
    except Exception as error:  # whatever went wrong, the other runs shall go on
        record |= {"status": "failed", "error": repr(error), "traceback": traceback.format_exc()}
        if isinstance(error, TimeoutError) and isinstance(error.__cause__, _OutOfTime):
            record["out_of_time"] = limit_seconds
    record["seconds"] = time.perf_counter() - start
    record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, record)
    return record


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End what is inside after so many seconds of wall-clock time; None lets it take all the time it needs.

    Only for the main thread of a process, on systems with alarm signals. A single call into compiled code is not cut
    short, but followed by the end.

    Raises
    ------
    TimeoutError
        It did not finish.
    """
    if seconds is None:
        yield
        return

    def stop(signal_number: int, frame: object) -> None:
        raise _OutOfTime

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except _OutOfTime as interruption:
        raise TimeoutError(f"did not finish within {seconds:g} s") from interruption
    finally:
        signal.signal(signal.SIGALRM, previous)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, as :func:`write_whole`."""
    write_whole(path, lambda unfinished: unfinished.write_text(json.dumps(content, indent=1) + "\n"))


def write_tensors(path: Path, content: object) -> None:
    """Save with torch, as :func:`write_whole`."""
    write_whole(path, lambda unfinished: torch.save(content, unfinished))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write elsewhere and rename: another process never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    write(unfinished)
    unfinished.replace(path)
