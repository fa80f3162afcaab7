"""A limit of wall-clock time for a run, and how far it had come."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

AGAIN_SECONDS = 5.0
"""The interruption is repeated at this interval, in case that it came where Python drops exceptions."""


class OutOfTimeError(TimeoutError):
    """The limit of :func:`time_limit` has passed."""


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


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End what is inside after so many seconds of wall-clock time; None lets it take all the time it needs.

    Only for the main thread of a process, on systems with alarm signals. A single call into compiled code is not cut
    short, but followed by the end. Under a limit, progress bars are not shown, but kept for the message.

    Raises
    ------
    OutOfTimeError
        It did not finish; the message holds the last states of its progress bars.
    """
    if seconds is None:
        yield
        return
    bars = _Bars(sys.stderr)
    try:
        with contextlib.redirect_stderr(bars), _interrupted_after(seconds):
            yield
    except _Interrupted as interruption:
        progress = "; ".join(bars.bars.values()) or "none was shown"
        raise OutOfTimeError(f"did not finish within {seconds:g} s; progress: {progress}") from interruption


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise _Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
