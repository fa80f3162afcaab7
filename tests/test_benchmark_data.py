"""Data sets: columns, input conventions, splits and generated stand-ins, on shipped or tiny tables."""

import dataclasses
import hashlib
import json

import pytest
import torch

from benchmarks import compared, datasets, models, tables
from benchmarks.sources import Source


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A set of 40 rows: a number, a category with missing entries, a constant, and a label 'yes' or 'no'."""
    text = "".join(f"{i},{'?' if i % 5 == 0 else 'ab'[i % 2]},3,{'yes' if i % 4 else 'no'}\n" for i in range(40))
    (tmp_path / "tiny.csv").write_text(text)
    source = Source("tiny.csv", hashlib.sha256(text.encode()).hexdigest(), "https://example.org")
    monkeypatch.setitem(tables.TABLES, "banana", tables.Table(source, 3, ("no", "yes")))
    return tmp_path


def test_columns_are_encoded_as_documented(table):
    data = datasets.load("banana", 0, table, standardise=False)
    x = torch.cat([part[0] for part in (data.train, data.val, data.test)])
    y = torch.cat([part[1] for part in (data.train, data.val, data.test)])
    row = x[:, 0].long()
    expected_code = torch.where(row % 5 == 0, -1, row % 2)
    assert torch.equal(x[:, 1].long(), expected_code)
    assert torch.equal(y, (row % 4 != 0).long())
    assert (data.n_inputs, data.n_outputs, data.likelihood) == (3, 2, "classification")


def test_inputs_are_standardised_by_the_training_data(table):
    data = datasets.load("banana", 0, table)
    x = data.train[0]
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(x.std(0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-6)
    raw = datasets.load("banana", 0, table, standardise=False)
    assert torch.allclose(data.scale(raw.test[0]), data.test[0])


@pytest.fixture
def replace_table(tmp_path, monkeypatch):
    """Puts rows of one's own in place of a data set's file, for the tables' usual reading of it; returns the folder."""

    def put(name, rows):
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        (tmp_path / "own.csv").write_text(text)
        source = Source("own.csv", hashlib.sha256(text.encode()).hexdigest(), "https://example.org")
        monkeypatch.setitem(tables.TABLES, name, dataclasses.replace(tables.TABLES[name], source=source))
        return tmp_path

    return put


def all_rows(data):
    return tuple(torch.cat([part[i] for part in (data.train, data.val, data.test)]) for i in range(2))


def test_raw_inputs_are_those_of_the_same_split_in_their_own_unit(replace_table):
    folder = replace_table("glass", [(i, 1000 * i, 3, (1, 2, 3, 5, 6, 7)[i % 6]) for i in range(60)])
    scaled, raw = (datasets.load(name, 1, folder) for name in ("glass", "glass-raw"))
    for part in ("train", "val", "test"):
        assert torch.allclose(raw.scale(getattr(raw, part)[0]), getattr(raw, part)[0])
        assert torch.allclose(scaled.scale(getattr(raw, part)[0]), getattr(scaled, part)[0])
    x, y = all_rows(raw)
    assert x[:, 0].max() == 59_000  # and the first column, an identifier, is left out
    labels = torch.tensor([1, 2, 3, 5, 6, 7])
    assert torch.equal(y, labels[(x[:, 0] / 1000).long() % 6])
    assert torch.equal(y, labels[all_rows(scaled)[1]])
    assert (raw.n_outputs, scaled.n_outputs) == (8, 6)
    model = models.build(models.network_for("glass-raw"), raw.n_inputs, raw.n_outputs, torch.Generator())
    assert model(raw.test[0]).shape == (18, 8)


def test_raw_breast_codes_follow_the_labels_of_the_web_service(replace_table):
    # In alphabetical order: 0-4, 14-Oct (10-14), 50-54, 9-May (5-9); and 0-2, 11-Sep, 14-Dec, 5-Mar, 8-Jun.
    sizes = {"0-4": (0, 0), "10-14": (1, 1), "50-54": (3, 2), "5-9": (2, 3), "?": (-1, -1)}
    nodes = {"0-2": (0, 0), "12-14": (1, 2), "3-5": (2, 3), "6-8": (3, 4), "9-11": (4, 1)}
    labels = ("no-recurrence-events", "recurrence-events")
    keys = [(size, node) for size in sizes for node in nodes] * 2
    rows = [(labels[i % 2], i, *key, i % 3) for i, key in enumerate(keys)]
    folder = replace_table("breast", rows)
    (by_file, classes), (by_service, same_classes) = (
        all_rows(datasets.load(name, 0, folder, standardise=False)) for name in ("breast", "breast-raw")
    )
    assert torch.equal(classes, same_classes)
    for x, convention in ((by_file, 0), (by_service, 1)):
        chosen = [keys[int(row)] for row in x[:, 0]]
        expected = [
            [sizes[size][convention], nodes[node][convention], i % 3]
            for (size, node), i in zip(chosen, x[:, 0].int().tolist(), strict=True)
        ]
        assert torch.equal(x[:, 1:], torch.tensor(expected).float())


def test_every_compared_method_takes_raw_sets_as_it_takes_standardised_ones():
    for method in compared.COMPARED_METHODS:
        for name in datasets.UCI:
            assert compared.fits_together(name, method) == compared.fits_together(name + datasets.RAW, method)
    assert not compared.fits_together("ionosphere-raw", "riemannian_fisher")


def test_a_missing_or_altered_file_is_named(table):
    with pytest.raises(FileNotFoundError, match=r"glass\.data.*archive\.ics\.uci\.edu"):
        datasets.load("glass", 0, table)
    (table / "tiny.csv").write_text("1,2\n")
    with pytest.raises(ValueError, match="sha256"):
        datasets.load("banana", 0, table)
    with pytest.raises(ValueError, match="snelson"):
        datasets.load("unknown", 0)


@pytest.mark.parametrize(("name", "sizes"), [("snelson", (128, 22, 50)), ("snelson-gap", (126, 22, 52))])
def test_splits_are_disjoint_complete_and_fixed_by_the_seed(name, sizes):
    data, again, other = (datasets.load(name, seed, standardise=False) for seed in (3, 3, 4))
    parts = [data.train[0], data.val[0], data.test[0]]
    assert tuple(len(part) for part in parts) == sizes
    assert len(torch.cat(parts).unique()) == 200
    assert torch.equal(data.train[0], again.train[0])
    assert not torch.equal(data.train[0], other.train[0])


def test_splits_are_the_committed_ones():
    committed = json.loads((datasets.SHIPPED / "splits.json").read_text())
    for name, entry in committed.items():
        for seed, digest in enumerate(entry["digests"]):
            if name == "snelson-gap":
                rows = datasets.load(name, seed).rows
            else:
                rows = datasets.split_rows(entry["rows"], entry["test"], seed)
            assert rows.digest() == digest
            assert [len(part) for part in vars(rows).values()][2] == entry["test"]
    assert datasets.load("snelson", 7).rows.digest() == datasets.load("layers-9", 7).rows.digest()
    assert datasets.load("snelson", 7).rows.digest() == committed["snelson"]["digests"][7]
    assert set(committed) == {"snelson", "snelson-gap", *tables.TABLES}


def test_rows_are_those_of_the_file(replace_table):
    folder = replace_table("glass", [(i, 10 * i, 3, i % 3) for i in range(60)])
    data = datasets.load("glass-raw", 5, folder)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(data, part)[0][:, 0], 10.0 * getattr(data.rows, part))


@pytest.mark.parametrize("name", [*tables.TABLES, "glass-raw", "breast-raw"])
def test_quick_runs_without_a_file_have_a_generated_one_of_the_same_form(name, tmp_path):
    data, again = (datasets.load(name, 0, tmp_path, quick=True) for _ in range(2))
    table = tables.TABLES[name.removesuffix("-raw")]
    assert data.stand_in
    assert torch.equal(data.train[0], again.train[0])
    assert (data.n_inputs, len(all_rows(data)[1].unique())) == (table.n_features, len(table.labels))
    assert data.n_outputs == (8 if name == "glass-raw" else len(table.labels))
    assert len(all_rows(data)[0]) == tables.STAND_IN_ROWS


def test_quick_runs_prefer_the_file(replace_table):
    folder = replace_table("glass", [(i, 10 * i, 3, i % 3) for i in range(60)])
    data = datasets.load("glass", 0, folder, quick=True)
    assert not data.stand_in
    assert len(all_rows(data)[0]) == 60
    with pytest.raises(FileNotFoundError):
        datasets.load("banana", 0, folder)


def test_the_gap_is_held_out():
    data = datasets.load("snelson-gap", 0, standardise=False)
    assert ((data.test[0] > 1.5) & (data.test[0] < 3)).all()
    assert not ((data.train[0] > 1.5) & (data.train[0] < 3)).any()
