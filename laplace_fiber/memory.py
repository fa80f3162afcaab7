"""How much memory there is to work with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import torch

UNKNOWN = 2**31
"""Assumed where the system does not tell (bytes)."""

LARGEST_REUSED = 2**25 - 2**14
"""The largest piece of memory that teaches glibc's malloc (its limit is 32 MiB with what it keeps beside it)."""


def of_kind(sizes: Mapping[str, int], device: torch.device) -> int:
    """The size for a kind of device, by ``"cpu"`` and ``"cuda"``; other accelerators are like a GPU."""
    return sizes.get(device.type, sizes["cuda"])


def available_bytes(device: torch.device) -> int:
    """Memory that new tensors on ``device`` may take: free on a GPU, available without swapping on the host (Linux).

    Limits of a container (cgroup v2) are respected.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    host = _number_behind("MemAvailable:", Path("/proc/meminfo"))
    free = UNKNOWN if host is None else host * 1024
    group = Path("/sys/fs/cgroup")
    limit, used = (_number_behind("", group / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else max(min(free, limit - used), 0)


@functools.cache
def keep_freed_memory() -> None:
    """Let memory of up to 32 MiB that was freed be used again by this process, rather than asked for page by page.

    glibc's malloc gives larger pieces back to the system at once, until it has seen one of that size freed; it then
    also keeps up to 64 MiB at its end. Steps and predictions of small convolutional networks take two thirds to four
    fifths of the time then. Once per process is enough, and other allocators do not mind.
    """
    torch.empty(LARGEST_REUSED, dtype=torch.uint8)


def _number_behind(key: str, file: Path) -> int | None:
    """The number after ``key`` at the start of a line; None if the file or the number is missing."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    words = next((line.removeprefix(key).split() for line in lines if line.startswith(key)), [])
    return int(words[0]) if words and words[0].isdigit() else None
