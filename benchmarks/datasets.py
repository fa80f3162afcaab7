"""Data sets with seeded splits into training, validation and test data.

Test data are 30 % of every classification set, 50 random points of ``snelson``, and the interval 1.5 < x < 3 of
``snelson-gap``. Validation data are 15 % of what remains. The seed fixes the split.

Files are searched in ``data_dir``, else in the folder that the environment variable ``LAPLACE_FIBER_DATA`` names, else
in ``~/.cache/laplace-fiber``; only Snelson's files ship with the benchmarks.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TEST_SHARE = 0.3
VALIDATION_SHARE = 0.15
SNELSON_TEST_POINTS = 50
SNELSON_GAP = (1.5, 3.0)
ENVIRONMENT_VARIABLE = "LAPLACE_FIBER_DATA"
USER_CACHE = Path("~/.cache/laplace-fiber")
SHIPPED = Path(__file__).parent / "data"

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Source:
    """A file: where it lies inside the data folder, its checksum and its official home."""

    path: str
    sha256: str
    home: str


@dataclass(frozen=True)
class Table:
    """A classification set in one text file, one row per line.

    ``delimiter`` None means runs of blanks. ``label`` is the index of the class column; ``dropped`` are columns that
    are no features. ``missing`` marks a missing entry.
    """

    source: Source
    delimiter: str | None = ","
    label: int = -1
    dropped: tuple[int, ...] = ()
    missing: str = "?"
    header: bool = False


@dataclass(frozen=True, eq=False)
class Dataset:
    """One seeded split of a data set.

    ``train``, ``val`` and ``test`` are pairs (x, y): x (b, d) float32, or images (b, channels, h, w); y (b,) int64
    classes 0..n_outputs-1, or (b, 1) float32 targets in their original unit. ``x = (raw - x_shift) / x_scale``.
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
        return self.train[0][0].numel()

    def scale(self, raw: Tensor) -> Tensor:
        """Inputs (b, d) in the data's own unit -> inputs as the network sees them."""
        return (raw - self.x_shift) / self.x_scale


_UCI = "https://archive.ics.uci.edu/dataset/"

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

TABLES = {
    "banana": Table(
        Source(
            "banana/banana.csv",
            "4fb6e6ac8748456ab078a7eef75373ba682470722b0c90f2dc907985c0f855f3",
            "https://github.com/aleximmer/BNN-predictions (data/banana/banana.csv)",
        )
    ),
    "australian": Table(
        Source(
            "uci/australian/australian.dat",
            "3abe5af151afa50b999a9ba21cbc884e80d80a4050b716cf88b34a2e6ecb731c",
            f"{_UCI}143",
        ),
        delimiter=None,
    ),
    "breast": Table(
        Source(
            "uci/breast/breast-cancer.data",
            "ca7d3fa97b62ff967b6894ffbb3acaaf4a51062e0149e5950b3ad6f685970b65",
            f"{_UCI}14",
        ),
        label=0,
    ),
    "glass": Table(
        Source(
            "uci/glass/glass.data",
            "dd67373f4baf2807345df02cbfef2093d342e61ad0d82a4fb79af43ef8ce449d",
            f"{_UCI}42",
        ),
        dropped=(0,),
    ),
    "ionosphere": Table(
        Source(
            "uci/ionosphere/ionosphere.data",
            "46d52186b84e20be52918adb93e8fb9926b34795ff7504c24350ae0616a04bbd",
            f"{_UCI}52",
        )
    ),
    "vehicle": Table(
        Source(
            "uci/vehicle_coupon/in-vehicle-coupon-recommendation.csv",
            "87e841f5d41cdaf31a09d0a0770187b2fc9cabe4171c30bf7ea2182dd074abaa",
            f"{_UCI}603",
        ),
        missing="",
        header=True,
    ),
    "waveform": Table(
        Source(
            "uci/waveform/waveform.data",
            "da332f3121943f586826f5d1b2cdd354548c59f71ddbf28c4d0c2eb623d7bfc3",
            f"{_UCI}107",
        )
    ),
}

NAMES = ("snelson", "snelson-gap", *TABLES)


def load(name: str, seed: int, data_dir: str | Path | None = None, standardise: bool = True) -> Dataset:
    """The data set ``name``, split by ``seed``.

    ``standardise`` brings every feature to mean 0 and standard deviation 1 over the training data (constant features
    to 0). Targets are never changed, so that errors and noise of ``snelson`` keep the data's unit.
    """
    if name not in NAMES:
        raise ValueError(f"Expected a data set among {', '.join(NAMES)}; got {name!r}.")
    generator = torch.Generator().manual_seed(seed)
    if name in TABLES:
        x, y = _classification(TABLES[name], data_dir)
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


def _classification(table: Table, data_dir: str | Path | None) -> Split:
    """All rows: features (b, d) float32 and classes (b,) int64, numbered in the order of the sorted labels."""
    text = _read(table.source, data_dir).splitlines()[int(table.header) :]
    lines = [line for line in text if line.strip()]
    rows = list(csv.reader(lines, delimiter=table.delimiter)) if table.delimiter else [line.split() for line in lines]
    columns = list(zip(*rows, strict=True))
    label = range(len(columns))[table.label]
    features = [c for i, c in enumerate(columns) if i != label and i not in table.dropped]
    x = torch.tensor([_encode(c, table.missing) for c in features], dtype=torch.float32).T.contiguous()
    return x, torch.tensor(_codes(columns[label]))


def _encode(column: Sequence[str], missing: str) -> list[float]:
    """A column of numbers as it is; any other as codes of its values in alphabetical order, -1 where missing."""
    try:
        return [float(entry) for entry in column]
    except ValueError:
        return [float(code) for code in _codes(column, missing)]


def _codes(column: Sequence[str], missing: str | None = None) -> list[int]:
    """Position of each entry among the sorted distinct entries, -1 where missing."""
    values = sorted(set(column) - {missing})
    code = {value: position for position, value in enumerate(values)} | {missing: -1}
    return [code[entry] for entry in column]


def _numbers(source: Source) -> Tensor:
    """One number per line of a shipped file -> (b, 1) float32."""
    return torch.tensor([float(line) for line in _read(source, SHIPPED).split()]).unsqueeze(1)


def _read(source: Source, data_dir: str | Path | None) -> str:
    """The text of a file whose checksum has been verified."""
    return read(source, data_dir).decode()


def data_folder(data_dir: str | Path | None) -> Path:
    """Where the data files are."""
    return Path(data_dir or os.environ.get(ENVIRONMENT_VARIABLE) or USER_CACHE).expanduser()


def read(source: Source, data_dir: str | Path | None) -> bytes:
    """A file whose checksum has been verified."""
    folder = data_folder(data_dir)
    path = folder / source.path
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected the file {source.path}; it is not in {folder}. Get it from {source.home} and put it there, or "
            f"name the folder that holds it (--data-dir or the environment variable {ENVIRONMENT_VARIABLE})."
        )
    return verified(path.read_bytes(), source, path)


def verified(content: bytes, source: Source, path: Path) -> bytes:
    """The content, if it has the source's checksum; ``path`` is where it was found."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"{path} should have sha256 {source.sha256}, but has {digest}: it is another version or damaged. "
            f"Get it anew from {source.home}."
        )
    return content
