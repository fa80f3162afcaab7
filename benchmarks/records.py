"""The file of a run: what was measured, or how it failed."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import environment


def write_record(path: Path, head: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure, and write the result below ``head``; a failure is written with its traceback. Returns the record."""
    record = {**head, "environment": environment.describe()}
    try:
        record |= {"status": "finished", **measure()}
    except Exception as error:  # whatever went wrong, the other runs shall go on
        record |= {"status": "failed", "error": repr(error), "traceback": traceback.format_exc()}
    record["time"] = datetime.now(UTC).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written elsewhere and renamed: another process never sees half a file.
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    unfinished.replace(path)
    return record
