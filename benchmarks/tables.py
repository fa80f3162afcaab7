"""Classification sets in one text file each: their sources and the reading of rows.

Categories become codes in alphabetical order, -1 where missing. In the raw convention (:mod:`benchmarks.datasets`),
labels are first brought into the form of UCI's web service, and integer classes keep their numbers.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.sources import Source, verified

STAND_IN_ROWS = 200


@dataclass(frozen=True)
class Table:
    """A classification set in one text file, one row per line.

    ``n_features`` columns are features, ``labels`` are those of the classes. ``delimiter`` None means runs of blanks.
    ``label`` is the index of the class column; ``dropped`` are columns that are no features. ``missing`` marks a
    missing entry. ``served`` maps entries to the form in which UCI's web service has them, where that differs: it
    matters to the order of the categories in the raw convention.
    """

    source: Source
    n_features: int
    labels: tuple[str, ...]
    delimiter: str | None = ","
    label: int = -1
    dropped: tuple[int, ...] = ()
    missing: str = "?"
    header: bool = False
    served: Mapping[str, str] = field(default_factory=dict)


def _uci(number: int, slug: str, path: str, sha256: str, member: str | None = None) -> Source:
    """A file of UCI's archive; ``member`` where its name in there is another one."""
    site = "https://archive.ics.uci.edu"
    name = member or Path(path).name
    return Source(path, sha256, f"{site}/dataset/{number}", f"{site}/static/public/{number}/{slug}.zip", name)


# A spreadsheet has taken these ranges (tumor-size, inv-nodes) for dates.
_BREAST_SERVED = {
    "5-9": "9-May",
    "10-14": "14-Oct",
    "3-5": "5-Mar",
    "6-8": "8-Jun",
    "9-11": "11-Sep",
    "12-14": "14-Dec",
}

TABLES = {
    "banana": Table(
        Source(
            "banana/banana.csv",
            "4fb6e6ac8748456ab078a7eef75373ba682470722b0c90f2dc907985c0f855f3",
            "https://github.com/aleximmer/BNN-predictions (data/banana/banana.csv)",
            "https://raw.githubusercontent.com/aleximmer/BNN-predictions/"
            "7285a08e56d3778212919d811aa000ca8f0d4211/data/banana/banana.csv",
        ),
        n_features=2,
        labels=("1", "2"),
    ),
    "australian": Table(
        _uci(
            143,
            "statlog+australian+credit+approval",
            "uci/australian/australian.dat",
            "3abe5af151afa50b999a9ba21cbc884e80d80a4050b716cf88b34a2e6ecb731c",
        ),
        n_features=14,
        labels=("0", "1"),
        delimiter=None,
    ),
    "breast": Table(
        _uci(
            14,
            "breast+cancer",
            "uci/breast/breast-cancer.data",
            "ca7d3fa97b62ff967b6894ffbb3acaaf4a51062e0149e5950b3ad6f685970b65",
        ),
        n_features=9,
        labels=("no-recurrence-events", "recurrence-events"),
        label=0,
        served=_BREAST_SERVED,
    ),
    "glass": Table(
        _uci(
            42,
            "glass+identification",
            "uci/glass/glass.data",
            "dd67373f4baf2807345df02cbfef2093d342e61ad0d82a4fb79af43ef8ce449d",
        ),
        n_features=9,
        labels=("1", "2", "3", "5", "6", "7"),
        dropped=(0,),
    ),
    "ionosphere": Table(
        _uci(
            52,
            "ionosphere",
            "uci/ionosphere/ionosphere.data",
            "46d52186b84e20be52918adb93e8fb9926b34795ff7504c24350ae0616a04bbd",
        ),
        n_features=34,
        labels=("b", "g"),
    ),
    "vehicle": Table(
        _uci(
            603,
            "in+vehicle+coupon+recommendation",
            "uci/vehicle_coupon/in-vehicle-coupon-recommendation.csv",
            "87e841f5d41cdaf31a09d0a0770187b2fc9cabe4171c30bf7ea2182dd074abaa",
        ),
        n_features=25,
        labels=("0", "1"),
        missing="",
        header=True,
    ),
    "waveform": Table(
        _uci(
            107,
            "waveform+database+generator+version+1",
            "uci/waveform/waveform.data",
            "da332f3121943f586826f5d1b2cdd354548c59f71ddbf28c4d0c2eb623d7bfc3",
            member="waveform.data.Z",
        ),
        n_features=21,
        labels=("0", "1", "2"),
    ),
}


def read_text(table: Table, data_dir: str | Path | None) -> str:
    """The file, verified, and fetched where it is missing."""
    return verified(table.source, data_dir).decode()


def parse_table(table: Table, text: str, raw: bool) -> tuple[Tensor, Tensor]:
    """All rows: features (b, d) float32 and classes (b,) int64, numbered in the order of the sorted labels.

    ``raw``: categories are coded in the form of UCI's web service, and integer labels stay as they are.
    """
    lines = [line for line in text.splitlines()[int(table.header) :] if line.strip()]
    rows = list(csv.reader(lines, delimiter=table.delimiter)) if table.delimiter else [line.split() for line in lines]
    columns = list(zip(*rows, strict=True))
    label = range(len(columns))[table.label]
    features = [c for i, c in enumerate(columns) if i != label and i not in table.dropped]
    if raw:
        features = [tuple(table.served.get(entry, entry) for entry in c) for c in features]
    x = torch.tensor([_encode(c, table.missing) for c in features], dtype=torch.float32).T.contiguous()
    return x, torch.tensor(_raw_classes(columns[label]) if raw else _codes(columns[label]))


def stand_in_text(table: Table) -> str:
    """A file of the same form with ``STAND_IN_ROWS`` generated rows, for trials of the machinery without the real one.

    Features are normal, in units from 1 to 100. A class is the largest of random functions tanh(x W) V, so that there
    is something to learn.
    """
    generator = torch.Generator().manual_seed(table.n_features)
    x = torch.randn(STAND_IN_ROWS, table.n_features, generator=generator)
    first = torch.randn(table.n_features, 8, generator=generator)
    last = torch.randn(8, len(table.labels), generator=generator)
    classes = ((x @ first).tanh() @ last).argmax(1)
    classes[: len(table.labels)] = torch.arange(len(table.labels))  # each occurs
    x = x * torch.logspace(0, 2, table.n_features)
    lines = ["a header"] * table.header
    for i, (row, label) in enumerate(zip(x.tolist(), classes.tolist(), strict=True)):
        entries = [f"{value:.3f}" for value in row]
        for column in table.dropped:
            entries.insert(column, str(i))
        entries.insert(range(len(entries) + 1)[table.label], table.labels[label])
        lines.append((table.delimiter or " ").join(entries))
    return "\n".join(lines)


def _raw_classes(labels: Sequence[str]) -> list[int]:
    """Integer labels as they are; any others as codes."""
    try:
        return [int(entry) for entry in labels]
    except ValueError:
        return _codes(labels)


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
