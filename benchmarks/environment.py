"""The machine and versions that a run is recorded with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import torch

import laplace_fiber

_PACKAGES = ("torch", "laplace-torch")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size of the process


def describe() -> dict[str, str | int | None]:
    """Versions of Python and of the packages, the machine, its GPU if there is one, and PyTorch's number of threads."""
    versions = {name: _version(name) for name in _PACKAGES} | {"laplace-fiber": laplace_fiber.__version__}
    machine = f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores"
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    threads = torch.get_num_threads()
    return {"python": platform.python_version(), **versions, "machine": machine, **gpu, "threads": threads}


def clock() -> float:
    """Seconds that this process has worked; what others do on a shared machine does not count.

    Where there is a GPU, whose work the processor only waits for: seconds by the clock on the wall, once it is done.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def kind_of_seconds() -> str:
    """What :func:`clock` counts here, for records."""
    return "by the clock on the wall" if torch.cuda.is_available() else "of the process's own work"


def reset_peak_memory() -> None:
    """Start a new measurement of the peak memory of this process, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mib() -> float | None:
    """Largest resident memory of this process in MiB since the last reset; None where the system does not tell."""
    value = _proc_entry("/proc/self/status", "VmHWM")
    return int(value.split()[0]) / 1024 if value else None


def peak_gpu_memory() -> dict[str, float]:
    """Most memory in MiB that tensors took on the GPU since the last reset; nothing where none was used."""
    return {"peak_gpu_memory_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_initialized() else {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    return _proc_entry("/proc/cpuinfo", "model name") or platform.processor() or "unknown processor"


def _proc_entry(path: str, key: str) -> str | None:
    """The first value behind ``key`` in a file of lines ``key: value``; None where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
