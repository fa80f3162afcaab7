"""A limit of wall-clock time for a run, and how far it had come."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO, TypeVar

T = TypeVar("T")

AGAIN_SECONDS = 5.0
"""The interruption is repeated at this interval, in case that it came where Python drops exceptions."""


class _Interrupted(BaseException):
    """No ``Exception``, so that a search goes not on with its next setting."""


class _Bars(io.TextIOBase):
    """Keeps the last state of every progress bar; passes on all other text."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.bars: dict[str, str] = {}

    def write(self, text: str) -> int:
        if text.startswith("\r"):
            bar = text.strip()
            title = bar.split(":")[0]
            self.bars.pop(title, None)  # to the end: the latest comes last
            self.bars |= {title: bar} if bar else {}
        elif text.strip("\n\x1b[A "):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def within(seconds: float, work: Callable[[], T]) -> T:
    """What ``work`` returns, if it returns in time. Its progress bars are not shown.

    Call it in the main thread of a process on a system with interval timers (not Windows, where there is no limit). One
    long operation inside a library is not cut short, but ends the work when it returns.

    Raises
    ------
    TimeoutError
        It did not return in time; the message holds the last states of its progress bars.
    """
    bars = _Bars(sys.stderr)
    try:
        with contextlib.redirect_stderr(bars), _interrupted_after(seconds):
            return work()
    except _Interrupted as interruption:
        progress = "; ".join(bars.bars.values()) or "none was shown"
        raise TimeoutError(f"did not finish within {seconds:g} s; progress: {progress}") from interruption


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    if not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
