"""Data sets with seeded splits into training, validation and test data.

Test data are 30 % of every classification set, 50 random points of ``snelson``, and the interval 1.5 < x < 3 of
``snelson-gap``. Validation data are 15 % of what remains. The seed fixes the split.

The six UCI sets have two input conventions. By its bare name, a set has standardised features. With the suffix
``-raw`` it is as the authors' earlier code (``RiemannianLaplaceBNN``) has it: features in their own unit, the labels
of ``breast`` in the form of UCI's web service, and integer classes without renumbering, so that ``glass`` has classes
1 to 7 and the network eight outputs. The same seed gives both the same rows in each part.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from benchmarks.sources import Source, present, verified
from benchmarks.tables import TABLES, parse_table, read_text, stand_in_text

TEST_SHARE = 0.3
VALIDATION_SHARE = 0.15
SNELSON_TEST_POINTS = 50
SNELSON_GAP = (1.5, 3.0)
RAW = "-raw"
"""Suffix of data sets whose inputs are raw."""

SHIPPED = Path(__file__).parent / "data"

LAYERS = "layers-"
"""Prefix of Snelson's data for networks of that many hidden layers."""

LAYERED = tuple(f"{LAYERS}{depth}" for depth in range(1, 10))

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of a file, counted from 0, are in each part; in the order of the part."""

    train: Tensor
    val: Tensor
    test: Tensor

    def digest(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of the rows as JSON, ``[[train], [val], [test]]``."""
        rows = json.dumps([part.tolist() for part in (self.train, self.val, self.test)])
        return hashlib.sha256(rows.encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Dataset:
    """One seeded split of a data set.

    ``train``, ``val`` and ``test`` are pairs (x, y): x (b, d) float32, or images (b, channels, h, w); y (b,) int64
    classes 0..n_outputs-1, or (b, 1) float32 targets in their original unit. ``x = (raw - x_shift) / x_scale``.
    ``rows`` tells where they stand in the file; ``stand_in``: the data are generated, since a quick run has no file.
    """

    name: str
    likelihood: str
    train: Split
    val: Split
    test: Split
    n_outputs: int
    x_shift: Tensor
    x_scale: Tensor
    rows: Rows | None = None
    stand_in: bool = False

    @property
    def n_inputs(self) -> int:
        """Number of features."""
        return self.train[0][0].numel()

    def scale(self, raw: Tensor) -> Tensor:
        """Inputs (b, d) in the data's own unit -> inputs as the network sees them."""
        return (raw - self.x_shift) / self.x_scale

    def to(self, device: torch.device) -> Dataset:
        """The same with its tensors on ``device``."""
        train, val, test = ((x.to(device), y.to(device)) for x, y in (self.train, self.val, self.test))
        shift, scale = self.x_shift.to(device), self.x_scale.to(device)
        return replace(self, train=train, val=val, test=test, x_shift=shift, x_scale=scale)


SNELSON_HOME = "http://www.gatsby.ucl.ac.uk/~snelson/"
SNELSON = {
    "train_inputs": Source(
        "snelson/train_inputs", "fd745fae3686ee6b1e03feef7bf4be1b577231ec7406e0e84715fcb37731e44c", SNELSON_HOME
    ),
    "train_outputs": Source(
        "snelson/train_outputs", "5f8752c19dbd536ad6435eed26d3e96b0d8101fa194ca31f05d10ab2a5bd9205", SNELSON_HOME
    ),
    "test_inputs": Source(
        "snelson/test_inputs", "494c34d9632e896bbb1571f37e61c717c5e9ef4879a7ec3869b4717b45d3c0b0", SNELSON_HOME
    ),
}

UCI = ("australian", "breast", "glass", "ionosphere", "vehicle", "waveform")
NAMES = ("snelson", "snelson-gap", *LAYERED, *TABLES, *(name + RAW for name in UCI))


def load(
    name: str, seed: int, data_dir: str | Path | None = None, standardise: bool = True, quick: bool = False
) -> Dataset:
    """The data set ``name``, split by ``seed``.

    ``standardise`` brings every feature to mean 0 and standard deviation 1 over the training data (constant features
    to 0), unless the name ends in ``-raw``. Targets are never changed, so that errors and noise of ``snelson`` keep the
    data's unit. ``quick`` replaces a file that the data folder lacks by a generated one.
    """
    if name not in NAMES:
        raise ValueError(f"Expected a data set among {', '.join(NAMES)}; got {name!r}.")
    held_out, raw, stand_in = None, name.endswith(RAW), False
    if (table := TABLES.get(name.removesuffix(RAW))) is not None:
        stand_in = quick and not present(table.source, data_dir)
        x, y = parse_table(table, stand_in_text(table) if stand_in else read_text(table, data_dir), raw)
        likelihood, n_outputs = "classification", int(y.max()) + 1
    else:
        x, y = _numbers(SNELSON["train_inputs"]), _numbers(SNELSON["train_outputs"])
        likelihood, n_outputs = "regression", 1
        if name == "snelson-gap":
            held_out = ((x > SNELSON_GAP[0]) & (x < SNELSON_GAP[1])).flatten()
    n_test = round(TEST_SHARE * len(x)) if table is not None else SNELSON_TEST_POINTS
    rows = split_rows(len(x), n_test, seed, held_out)
    shift, scale = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    if standardise and not raw:
        scale, shift = torch.std_mean(x[rows.train], dim=0)
        scale = torch.where(scale > 0, scale, 1.0)
    x = (x - shift) / scale
    parts = {part: (x[chosen], y[chosen]) for part, chosen in vars(rows).items()}
    return Dataset(
        name, likelihood, n_outputs=n_outputs, x_shift=shift, x_scale=scale, rows=rows, stand_in=stand_in, **parts
    )


def split_rows(n_rows: int, n_test: int, seed: int, held_out: Tensor | None = None) -> Rows:
    """A split that the number of rows and the seed fix; ``held_out`` (n_rows,) marks test rows, instead of ``n_test``.

    A random order of all rows: test rows first, validation rows next, training rows last.
    """
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(seed))
    if held_out is not None:
        outside = held_out[order]
        order, n_test = torch.cat([order[outside], order[~outside]]), int(held_out.sum())
    n_val = round(VALIDATION_SHARE * (n_rows - n_test))
    test, val, train = order.split([n_test, n_val, n_rows - n_test - n_val])
    return Rows(train, val, test)


def snelson_grid() -> Tensor:
    """Snelson's 301 inputs from -3 to 10 (301, 1), in the data's unit; they have no targets."""
    return _numbers(SNELSON["test_inputs"])


def _numbers(source: Source) -> Tensor:
    """One number per line of a shipped file -> (b, 1) float32."""
    return torch.tensor([float(line) for line in verified(source, SHIPPED).split()]).unsqueeze(1)


def indexed_loader(
    split: Split, batch_size: int, *, shuffled: bool, drop_last: bool = False, **settings: Any
) -> DataLoader[tuple[Tensor, ...]]:
    """Batches that are taken by one indexing operation each, not point by point."""
    data: Any = TensorDataset(*split)
    order = RandomSampler(data) if shuffled else SequentialSampler(data)
    return DataLoader(data, batch_size=None, sampler=BatchSampler(order, batch_size, drop_last), **settings)
