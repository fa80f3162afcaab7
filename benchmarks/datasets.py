"""Data sets with seeded splits into training, validation and test data.

Test data are 30 % of every classification set, 50 random points of ``snelson``, and the interval 1.5 < x < 3 of
``snelson-gap``. Validation data are 15 % of what remains. The seed fixes the split.

The six UCI sets have two input conventions. By its bare name, a set has standardised features. With the suffix
``-raw`` it is as the authors' earlier code (``RiemannianLaplaceBNN``) has it: features in their own unit, the labels
of ``breast`` in the form of UCI's web service, and integer classes without renumbering, so that ``glass`` has classes
1 to 7 and the network eight outputs. The same seed gives both the same rows in each part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sources import Source, verified
from benchmarks.tables import TABLES, read_table

TEST_SHARE = 0.3
VALIDATION_SHARE = 0.15
SNELSON_TEST_POINTS = 50
SNELSON_GAP = (1.5, 3.0)
RAW = "-raw"
"""Suffix of data sets whose inputs are raw."""

SHIPPED = Path(__file__).parent / "data"

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Dataset:
    """One seeded split of a data set.

    ``train``, ``val`` and ``test`` are pairs (x, y): x (b, d) float32; y (b,) int64 classes 0..n_outputs-1, or (b, 1)
    float32 targets in their original unit. ``x = (raw - x_shift) / x_scale``.
    """

    name: str
    likelihood: str
    train: Split
    val: Split
    test: Split
    n_outputs: int
    x_shift: Tensor
    x_scale: Tensor

    @property
    def n_inputs(self) -> int:
        """Number of features."""
        return self.x_shift.numel()

    def scale(self, raw: Tensor) -> Tensor:
        """Inputs (b, d) in the data's own unit -> inputs as the network sees them."""
        return (raw - self.x_shift) / self.x_scale


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
NAMES = ("snelson", "snelson-gap", *TABLES, *(name + RAW for name in UCI))


def load(name: str, seed: int, data_dir: str | Path | None = None, standardise: bool = True) -> Dataset:
    """The data set ``name``, split by ``seed``.

    ``standardise`` brings every feature to mean 0 and standard deviation 1 over the training data (constant features
    to 0), unless the name ends in ``-raw``. Targets are never changed, so that errors and noise of ``snelson`` keep the
    data's unit.
    """
    if name not in NAMES:
        raise ValueError(f"Expected a data set among {', '.join(NAMES)}; got {name!r}.")
    generator = torch.Generator().manual_seed(seed)
    if (table := TABLES.get(name.removesuffix(RAW))) is not None:
        raw = name.endswith(RAW)
        standardise = standardise and not raw
        x, y = read_table(table, data_dir, raw)
        order = torch.randperm(len(x), generator=generator)
        n_test = round(TEST_SHARE * len(x))
        likelihood, n_outputs = "classification", int(y.max()) + 1
    else:
        x, y = _numbers(SNELSON["train_inputs"]), _numbers(SNELSON["train_outputs"])
        order = torch.randperm(len(x), generator=generator)
        if name == "snelson-gap":
            gap = ((x > SNELSON_GAP[0]) & (x < SNELSON_GAP[1])).flatten()[order]
            order, n_test = torch.cat([order[gap], order[~gap]]), int(gap.sum())
        else:
            n_test = SNELSON_TEST_POINTS
        likelihood, n_outputs = "regression", 1
    return _split(name, likelihood, x, y, order, n_test, n_outputs, standardise)


def snelson_grid() -> Tensor:
    """Snelson's 301 inputs from -3 to 10 (301, 1), in the data's unit; they have no targets."""
    return _numbers(SNELSON["test_inputs"])


def _split(
    name: str, likelihood: str, x: Tensor, y: Tensor, order: Tensor, n_test: int, n_outputs: int, standardise: bool
) -> Dataset:
    """Rows ``order[:n_test]`` are test data; validation data follow, then training data."""
    n_val = round(VALIDATION_SHARE * (len(order) - n_test))
    test, val, train = order.split([n_test, n_val, len(order) - n_test - n_val])
    shift, scale = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
    if standardise:
        scale, shift = torch.std_mean(x[train], dim=0)
        scale = torch.where(scale > 0, scale, 1.0)
    x = (x - shift) / scale
    parts = {"train": (x[train], y[train]), "val": (x[val], y[val]), "test": (x[test], y[test])}
    return Dataset(name, likelihood, n_outputs=n_outputs, x_shift=shift, x_scale=scale, **parts)


def _numbers(source: Source) -> Tensor:
    """One number per line of a shipped file -> (b, 1) float32."""
    return torch.tensor([float(line) for line in verified(source, SHIPPED).split()]).unsqueeze(1)
