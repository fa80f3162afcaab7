"""Walks saved every few drifts, to be resumed after the process has died."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laplace_fiber.subspace import StreamingBasis

WALK_FILE = "walk.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds an unfinished walk.

    Only rows of the basis that are new since the last time are written, each time to a file of their own; the rest
    replaces the previous state at once, so that a process may die at any moment.

    Parameters
    ----------
    folder
        Made if missing, and removed when a fit is finished. All ranks of a distributed walk must see it.
    every
        Save after so many drifts.
    """

    folder: str | Path
    every: int = 5

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"checkpoint: expected every >= 1, got {self.every}.")

    def save(self, state: dict[str, Any], basis: StreamingBasis) -> None:
        """Write a state and the rows that the basis has gained."""
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [] if basis.identity else self._row_files()
        written = int(rows[-1].stem.split("-")[2]) if rows else 0
        if not basis.identity and written < basis.rank:
            name = f"rows-{written:06d}-{basis.rank:06d}.pt"
            _replace(folder / name, basis.basis[written:].clone())
        _replace(folder / WALK_FILE, {**state, "rank": basis.rank})

    def load(self, expected: dict[str, Any], basis: StreamingBasis, device: torch.device) -> dict[str, Any] | None:
        """The saved state, with the basis filled; None if there is none.

        Raises
        ------
        ValueError
            The folder holds the walk of other settings, weights or data, or of another version.
        """
        file = Path(self.folder) / WALK_FILE
        if not file.exists():
            return None
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        for name, value in expected.items():
            if state["walk"].get(name) != value:
                raise ValueError(
                    f"checkpoint: expected {name} {value!r}, but {self.folder} holds a walk with "
                    f"{state['walk'].get(name)!r}; remove the folder, or name another one."
                )
        for rows in self._row_files():
            _, start, end = rows.stem.split("-")
            if int(start) == basis.rank < state["rank"] and not basis.identity:
                basis.restore(torch.load(rows, map_location=device, weights_only=True))
            if int(end) > state["rank"]:  # written just before the process died, and not yet part of the state
                rows.unlink(missing_ok=True)
        return state

    def remove(self) -> None:
        """Delete the folder's files; the folder too if nothing else is in it."""
        folder = Path(self.folder)
        for file in [*folder.glob("walk.*"), *folder.glob("rows-*")]:
            file.unlink()
        if folder.exists() and not any(folder.iterdir()):
            folder.rmdir()

    def _row_files(self) -> list[Path]:
        return sorted(Path(self.folder).glob("rows-*.pt"))


def _replace(path: Path, content: Any) -> None:
    """Write a file so that it is either the old or the new one, whole."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    with unfinished.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
