"""How much memory a piece of work takes at most."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): resets the peak resident set size of the process
MIB = 2**20


@dataclass
class PeakMemory:
    """Growth of memory above its start, in MiB; None where the system does not tell."""

    mib: float | None = None


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the work inside: memory of a GPU's tensors, or resident memory of this process (Linux).

    Memory that earlier work has freed, but the process has kept, is not seen to grow again: for exact numbers on the
    CPU run one method in each process.
    """
    result = PeakMemory()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield result
        result.mib = (torch.cuda.max_memory_allocated(device) - before) / MIB
        return
    try:
        CLEAR.write_text(RESET_PEAK)
        resident = _kib("VmRSS:")
    except OSError:
        resident = None
    yield result
    peak = _kib("VmHWM:")
    if resident is not None and peak is not None:
        result.mib = max(peak - resident, 0) / 1024


def _kib(key: str) -> int | None:
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(key)), None)
