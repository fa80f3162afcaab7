"""How objects show themselves, and how they say something once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parent)


def changed(settings: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults."""
    found = {}
    for f in fields(settings):
        value = getattr(settings, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if default is MISSING or value != default:
            found[f.name] = value
    return found


def arguments(named: dict[str, Any]) -> str:
    """The inside of a call: ``a=1, b='x'``."""
    return ", ".join(f"{name}={value!r}" for name, value in named.items())


def with_changes(settings: Any) -> str:
    """The ``repr`` of a dataclass, defaults left out."""
    return f"{type(settings).__name__}({arguments(changed(settings))})"


class Notices:
    """Warnings of one object: each is said once, at the line outside this package that led to it."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, message: str) -> None:
        """Warn, unless this object has said the same before."""
        if message not in self._said:
            self._said.add(message)
            warnings.warn(message, stacklevel=_levels_inside())


def say_again(recorded: Iterable[warnings.WarningMessage]) -> None:
    """Warn of what ``warnings.catch_warnings(record=True)`` has held back."""
    for w in recorded:
        warnings.warn_explicit(w.message, w.category, w.filename, w.lineno, source=w.source)


def _levels_inside() -> int:
    """How far up the caller's stack the code lies that called into this package."""
    frame, level, inside = sys._getframe(1), 1, 1
    while frame.f_back is not None:
        frame, level = frame.f_back, level + 1
        if frame.f_code.co_filename.startswith(PACKAGE):
            inside = level
    return inside + 1
