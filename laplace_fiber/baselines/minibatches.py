"""Minibatches for several weight vectors that are trained side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.data import Batch, BatchChoice


class Stack(NamedTuple):
    """A minibatch of its own for each of m weight vectors."""

    x: Shaped[Tensor, "m b *_"]
    y: Shaped[Tensor, "m b *_"]

    def row(self, i: int) -> Batch:
        """The i-th one's."""
        return Batch([(self.x[i], self.y[i])], len(self.y[i]))


class Minibatches:
    """Minibatches of the training data.

    Data in memory (up to 10,000 points with ``batch="auto"``) go by in an order of each weight vector's own, the few
    that do not fill a minibatch left out of the pass. Larger data, and inputs that are no tensors, come as the loader's
    batches, the same ones for all. With ``batch="full"`` each gradient sees everything.

    Parameters
    ----------
    size
        Points of a minibatch; ``None`` takes the loader's.
    """

    def __init__(self, problem: Problem, n_rows: int, batch: BatchChoice, size: int | None = None) -> None:
        self.data, self.n_rows, self.generator = problem.data, n_rows, problem.generator
        self.full = batch == "full"
        blocks = self.data.everything().blocks if self.data.full else []
        self.own = len(blocks) == 1 and isinstance(blocks[0][0], Tensor) and not self.full
        self.size = min(size or len(self.data.first[1]), self.data.n_data)
        per_pass = self.data.n_data // self.size if self.own else len(blocks) or self.data.steps_per_epoch
        self.per_epoch = 1 if self.full else per_pass
        self._stream: Iterator[Stack | Batch] = self._endless()

    def __next__(self) -> Stack | Batch:
        return next(self._stream)

    def _endless(self) -> Iterator[Stack | Batch]:
        while True:
            if self.full or not self.data.full:
                yield self.data.next_batch()
            elif self.own:
                yield from self._own_order()
            else:
                blocks = self.data.everything().blocks
                for i in torch.randperm(len(blocks), generator=self.generator, device=self.generator.device).tolist():
                    yield Batch([blocks[i]], len(blocks[i][1]))

    def _own_order(self) -> Iterator[Stack]:
        x, y = self.data.everything().blocks[0]
        keys = torch.rand((self.n_rows, len(y)), generator=self.generator, device=self.generator.device)
        order = keys.argsort(1)
        for chosen in order[:, : self.per_epoch * self.size].split(self.size, 1):
            yield Stack(x[chosen], y[chosen])
