"""The processes that share a walk, started by ``torchrun``: particles are spread over them, results gathered on all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


class Ranks:
    """This process among those that walk together; alone where there is no process group.

    Parameters
    ----------
    distributed
        ``None``: with the default process group of ``torch.distributed``, if one has been initialised. ``False``:
        alone. ``True``: with the group, which must exist.

    Raises
    ------
    ValueError
        ``distributed=True`` without a process group.
    """

    def __init__(self, distributed: bool | None = None) -> None:
        initialised = dist.is_available() and dist.is_initialized()
        if distributed and not initialised:
            raise ValueError(
                "distributed=True: expected an initialised process group, got none; call "
                "torch.distributed.init_process_group() and start with torchrun."
            )
        together = initialised if distributed is None else distributed
        self.size = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0

    @property
    def first(self) -> bool:
        """Whether this is the process that shows progress and writes checkpoints."""
        return self.rank == 0

    def rows(self, n: int) -> slice:
        """This rank's share of n rows; the last ranks may have fewer, or none."""
        share = math.ceil(n / self.size)
        return slice(min(self.rank * share, n), min((self.rank + 1) * share, n))

    def gather(self, own: Shaped[Tensor, "k ..."], n: int) -> Shaped[Tensor, "n ..."]:
        """All n rows in order, from each rank's share of them."""
        if self.size == 1:
            return own
        share = math.ceil(n / self.size)
        padded = own.new_zeros(share, *own.shape[1:])
        padded[: len(own)] = own
        everyone = own.new_empty(self.size * share, *own.shape[1:])
        with self._together():
            dist.all_gather(list(everyone.split(share)), padded)
        # Only the last shares are padded, so the first n rows are all there are.
        return everyone[:n]

    def check_same(self, **values: object) -> None:
        """Make sure that all ranks have the same settings, data and network.

        Raises
        ------
        ValueError
            A value differs between ranks.
        """
        if self.size == 1:
            return
        everyone: list[dict[str, object]] = [{} for _ in range(self.size)]
        with self._together():
            dist.all_gather_object(everyone, values)
        for name in values:
            seen = [theirs[name] for theirs in everyone]
            if any(value != seen[0] for value in seen):
                raise ValueError(
                    f"distributed walk: expected the same {name} on all ranks, got {seen}; give every rank the whole "
                    "data set in the same order, the same trained network and the same settings."
                )

    def sum(self, *figures: float) -> list[float]:
        """Each figure summed over ranks."""
        everyone: list[tuple[float, ...]] = [() for _ in range(self.size)]
        if self.size == 1:
            everyone = [figures]
        else:
            with self._together():
                dist.all_gather_object(everyone, figures)
        return [sum(column) for column in zip(*everyone, strict=True)]

    def share_first(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with those of the first rank: processors may differ in rounding."""
        if self.size > 1:
            with self._together():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                f"distributed walk: expected {self.size} processes to take part, but another one stopped or did not "
                f"answer within the process group's timeout (rank {self.rank} was waiting). Look for the first error "
                "among the ranks and start again; with checkpoint= the walk resumes where it was."
            ) from error


def on_same_terms(theta: Tensor) -> str:
    """A digest of weights that all ranks must share, exact to the last bit."""
    return f"{float(theta.double().sum()):.17g}, {float(torch.linalg.vector_norm(theta.double())):.17g}"
