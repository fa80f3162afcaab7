"""Training data as the walk needs it: all at once, or one loader batch after another."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from laplace_fiber.weights import Inputs

BatchChoice: TypeAlias = Literal["auto", "few", "full", "loader"]
"""Data behind one gradient: all of them, the loader's batches, all up to 10,000 points, or all if they are few."""

FULL_BATCH_LIMIT = 10_000
"""``batch="auto"`` walks on the whole data up to this many points, on the loader's batches beyond."""

FEW_NUMBERS = 2**16
"""Data whose inputs are at most so many numbers are few: walks can afford gradients of all of them."""


class Batch(NamedTuple):
    """Inputs and targets; ``blocks`` of it are processed one after another and summed."""

    blocks: list[tuple[Inputs, Tensor]]
    size: int

    def tensors(self) -> list[Tensor] | None:
        """Inputs and targets of all blocks one after another; None where some inputs are no tensors."""
        flat = [part for block in self.blocks for part in block if isinstance(part, Tensor)]
        return flat if len(flat) == 2 * len(self.blocks) else None

    def with_tensors(self, flat: Sequence[Tensor]) -> Batch:
        """The batch with other tensors in the order of :meth:`tensors`; itself if none are given."""
        if not flat:
            return self
        return Batch(list(zip(flat[::2], flat[1::2], strict=True)), self.size)


class TrainingData:
    """The data behind a loader, moved to the model's device.

    Parameters
    ----------
    loader
        Yields ``(x, y)`` pairs, or dict-like batches holding the targets under ``dict_key_y``.
    batch
        ``"full"``: every evaluation sees all data. ``"loader"``: one batch of the loader at a time, in its order.
        ``"auto"``: full up to 10,000 points. ``"few"``: full if they are few.
    seed
        Of the loader's own shuffling and workers, so that a walk repeats; the global random state is put back.

    Raises
    ------
    ValueError
        The loader is empty, or its batches are not of the expected form.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        device: torch.device,
        batch: BatchChoice = "auto",
        dict_key_y: str = "labels",
        seed: int = 0,
    ) -> None:
        self.loader, self.device, self.dict_key_y, self.seed = loader, device, dict_key_y, seed
        self._stream: Iterator[tuple[Inputs, Tensor]] | None = None
        self._epoch = self._taken = 0
        self._everything: Batch | None = None
        first = next(self._pass(0), None)
        if first is None or len(first[1]) == 0:
            raise ValueError("train_loader: expected at least one data point, got an empty loader.")
        self.first = first
        self.full = batch == "full" or (batch == "auto" and self._at_most() <= FULL_BATCH_LIMIT)
        self.full |= batch == "few" and are_few(loader, dict_key_y)
        # Counted as they come: a sampler or drop_last may leave out part of the data set.
        self.n_data = self.everything().size if self.full else sum(len(y) for _, y in self._pass(0))

    def __getstate__(self) -> dict[str, Any]:
        # A running pass cannot be copied or pickled; the next walk starts a new one.
        return {**self.__dict__, "_stream": None, "_everything": None}

    @property
    def batch_size(self) -> int:
        """Points that an evaluation sees: all, or as many as the loader's first batch has."""
        return self.n_data if self.full else len(self.first[1])

    @property
    def steps_per_epoch(self) -> int:
        """Evaluations in one pass over the data."""
        return math.ceil(self.n_data / self.batch_size)

    def next_batch(self) -> Batch:
        """The whole data set, or the loader's next batch (starting over at its end)."""
        if self.full:
            return self.everything()
        if self._stream is None:
            self._epoch, self._taken = self._epoch + 1, 0
            self._stream = self._pass(self._epoch)
        block = next(self._stream, None)
        if block is None:
            self._stream = None
            return self.next_batch()
        self._taken += 1
        return Batch([block], len(block[1]))

    @property
    def position(self) -> tuple[int, int]:
        """Passes begun by :meth:`next_batch`, and batches taken of the present one."""
        return self._epoch, self._taken

    def skip_to(self, epoch: int, taken: int) -> None:
        """Go on as after ``taken`` batches of the given pass."""
        if self.full or epoch == 0:
            return
        self._stream, self._epoch, self._taken = self._pass(epoch), epoch, taken
        for _ in range(taken):
            next(self._stream)

    def epoch(self) -> Iterator[Batch]:
        """One pass over all data."""
        if self.full:
            yield self.everything()
        else:
            for block in self._pass(0):
                yield Batch([block], len(block[1]))

    def restart(self) -> None:
        """Begin again with the first batch of the first pass."""
        self._stream, self._epoch, self._taken = None, 0, 0

    def everything(self) -> Batch:
        """All data, gathered once, with equal-shaped tensors joined into blocks of up to 10,000 points."""
        if self._everything is None:
            blocks = list(_joined(self._pass(0)))
            self._everything = Batch(blocks, sum(len(y) for _, y in blocks))
        return self._everything

    def some(self, n_points: int) -> Batch:
        """The first loader batches that together hold at least ``n_points`` points (or all there are)."""
        blocks: list[tuple[Inputs, Tensor]] = []
        for block in self._everything.blocks if self._everything else self._pass(0):
            blocks.append(block)
            if sum(len(y) for _, y in blocks) >= n_points:
                break
        return Batch(blocks, sum(len(y) for _, y in blocks))

    def _at_most(self) -> int:
        try:
            return len(self.loader.dataset)  # type: ignore[attr-defined]
        except (TypeError, AttributeError):
            return sum(len(y) for _, y in self._pass(0))

    def _pass(self, epoch: int) -> Iterator[tuple[Inputs, Tensor]]:
        return pairs(batches_of(self.loader, self.seed + epoch), self.device, self.dict_key_y)


def batches_of(loader: Iterable[Any], seed: int = 0) -> Iterator[Any]:
    """The loader's batches, shuffled and augmented from a random stream of their own.

    A DataLoader draws from the global generator, even when it does not shuffle; the stream is switched in for each
    batch and out again.

    Raises
    ------
    ValueError
        The loader can be gone through once only.
    """
    if isinstance(loader, Iterator):
        raise ValueError(
            f"loader: expected batches that can be gone through again and again, got a {type(loader).__name__}, which "
            "ends with the first pass; pass the DataLoader itself, or a list of batches."
        )
    stream = torch.Generator().manual_seed(seed).get_state()
    batches: Iterator[Any] | None = None
    while True:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(stream)
            batches = iter(loader) if batches is None else batches
            batch = next(batches, None)
            stream = torch.get_rng_state()
        if batch is None:
            return
        yield batch


def are_few(loader: Iterable[Any], dict_key_y: str = "labels") -> bool:
    """Whether the loader's inputs are few numbers in all."""
    count = 0
    for x, _ in pairs(batches_of(loader), torch.device("cpu"), dict_key_y):
        parts = x.values() if isinstance(x, MutableMapping) else [x]
        count += sum(part.numel() for part in parts if isinstance(part, Tensor))
        if count > FEW_NUMBERS:
            return False
    return True


class MissingTargetsError(KeyError, ValueError):
    """A dict-like batch without the targets' key: a ``KeyError``, as laplace-torch raises, with a readable message."""

    __str__ = ValueError.__str__


def pairs(
    batches: Iterable[Any], device: torch.device, dict_key_y: str = "labels", name: str = "train_loader"
) -> Iterator[tuple[Inputs, Tensor]]:
    """Inputs and targets of each batch, moved to ``device``.

    Raises
    ------
    ValueError
        A batch is neither a pair (x, y) nor a mapping that holds ``dict_key_y`` (then also a ``KeyError``), or its
        targets are not a tensor.
    """
    for batch in batches:
        if isinstance(batch, MutableMapping):
            if dict_key_y not in batch:
                raise MissingTargetsError(
                    f"{name}: expected targets under {dict_key_y!r}, got the keys {sorted(batch)}; set dict_key_y."
                )
            x = moved(batch, device)
            y = x[dict_key_y]
        elif isinstance(batch, (tuple, list)) and len(batch) == 2:
            x, y = moved(batch[0], device), moved(batch[1], device)
        else:
            length = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            what = type(batch).__name__ + length
            raise ValueError(f"{name}: expected batches (x, y) or dicts, got a {what}; wrap the data set.")
        if not isinstance(y, Tensor):
            raise ValueError(
                f"{name}: expected targets in a tensor, got a {type(y).__name__}; convert them (torch.as_tensor)."
            )
        yield x, y


def moved(value: Any, device: torch.device) -> Any:
    """Tensors on ``device``, also inside (nested) dict-like batches and sequences; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, MutableMapping):
        # A copy of the user's own mapping class: models may rely on more than the keys (Hugging Face's BatchEncoding).
        result = copy.copy(value)
        for key in value:
            result[key] = moved(value[key], device)
        return result
    if isinstance(value, (list, tuple)):
        items = [moved(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _joined(blocks: Iterator[tuple[Inputs, Tensor]]) -> Iterator[tuple[Inputs, Tensor]]:
    waiting: list[tuple[Tensor, Tensor]] = []
    for x, y in blocks:
        if not isinstance(x, Tensor):
            yield x, y
            continue
        fits = not waiting or waiting[0][0].shape[1:] == x.shape[1:]
        if not fits or sum(len(w[1]) for w in waiting) + len(y) > FULL_BATCH_LIMIT:
            yield _concatenated(waiting)
            waiting = []
        waiting.append((x, y))
    if waiting:
        yield _concatenated(waiting)


def _concatenated(blocks: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in blocks]), torch.cat([y for _, y in blocks])
