"""Files of results: written whole or not at all, with what was measured or how it failed."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.limits import OutOfTimeError, time_limit


def write_record(
    path: Path, head: dict[str, Any], measure: Callable[[], dict[str, Any]], limit_seconds: float | None = None
) -> dict[str, Any]:
    """Measure, and write the result below ``head``; a failure is written with its traceback. Returns the record.

    ``"seconds"`` are those of the whole run. A measurement that takes longer than ``limit_seconds`` is a failure whose
    record holds the limit as ``"out_of_time"``; error and traceback tell how far it had come.
    """
    record = {**head, "environment": environment.describe()}
    start = time.perf_counter()
    try:
        with time_limit(limit_seconds):
            record |= {"status": "finished", **measure()}
    except Exception as error:  # whatever went wrong, the other runs shall go on
        record |= {"status": "failed", "error": repr(error), "traceback": traceback.format_exc()}
        if isinstance(error, OutOfTimeError):
            record["out_of_time"] = limit_seconds
    record["seconds"] = time.perf_counter() - start
    record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, record)
    return record


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
