"""Splits, training, methods and runs on shipped or tiny data."""

import hashlib
import json
import math
import platform

import pytest
import torch

from benchmarks import compared, datasets, models, tabular
from benchmarks.__main__ import main
from benchmarks.methods import METHODS, QUICK, Fitted
from benchmarks.report import mean_and_error, report
from benchmarks.run import run_all
from benchmarks.runs import Run
from benchmarks.variants import VARIANT_METHODS
from laplace_fiber import metrics

SHORT = models.Training(epochs=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")


# --- data sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A set of 40 rows: a number, a category with missing entries, a constant, and a label 'yes' or 'no'."""
    text = "".join(f"{i},{'?' if i % 5 == 0 else 'ab'[i % 2]},3,{'yes' if i % 4 else 'no'}\n" for i in range(40))
    (tmp_path / "tiny.csv").write_text(text)
    source = datasets.Source("tiny.csv", hashlib.sha256(text.encode()).hexdigest(), "https://example.org")
    monkeypatch.setitem(datasets.TABLES, "banana", datasets.Table(source))
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


def test_the_gap_is_held_out():
    data = datasets.load("snelson-gap", 0, standardise=False)
    assert ((data.test[0] > 1.5) & (data.test[0] < 3)).all()
    assert not ((data.train[0] > 1.5) & (data.train[0] < 3)).any()


# --- networks --------------------------------------------------------------------------------------------------------


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_training_depends_on_the_seed_alone_and_is_done_once(monkeypatch):
    data = datasets.load("snelson", 0)
    state = torch.get_rng_state()
    first, other = models.train(data, 0, SHORT), models.train(data, 1, SHORT)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(weights(first), weights(other))
    models.CACHE.rename(models.CACHE.with_name("elsewhere"))
    assert torch.equal(weights(first), weights(models.train(data, 0, SHORT)))
    monkeypatch.setattr(models, "_fit", None)  # a further training would fail
    assert torch.equal(weights(first), weights(models.train(data, 0, SHORT)))


def test_noise_scale_is_the_residual_on_training_and_validation_data():
    data = datasets.load("snelson", 0)
    zero = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(zero.weight), torch.nn.init.zeros_(zero.bias)
    residuals = torch.cat([data.train[1], data.val[1]])
    assert models.noise_scale(zero, data) == pytest.approx(residuals.square().mean().sqrt().item())


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")  # after three epochs
@pytest.mark.parametrize("method", [*METHODS, "reach-half", *(f"compared:{m}" for m in ("last_layer", "mixture"))])
def test_methods_leave_the_network_alone_and_repeat_themselves(method, monkeypatch):
    monkeypatch.setitem(models._NETWORKS, "snelson", models.Network((8,), "relu"))
    data = datasets.load("snelson", 0)
    model = models.train(data, 0, SHORT)
    before, state = weights(model).clone(), torch.get_rng_state()
    prefixed = {f"compared:{name}": fit for name, fit in compared.COMPARED_METHODS.items()}
    fitted = (METHODS | VARIANT_METHODS | prefixed)[method](model, data, 0.3, 0, QUICK)
    first, second = (metrics.evaluate(fitted.predict(data.test[0]), data.test[1], 0.3) for _ in range(2))
    assert first == second
    assert torch.equal(before, weights(model))
    assert torch.equal(state, torch.get_rng_state())


# --- runs and report -------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch):
    """A method that predicts zeros and counts its calls; it fails while ``broken`` is set."""

    def fit(model, dataset, sigma, seed, effort):
        fit.calls += 1
        if fit.broken:
            raise RuntimeError("fell over")
        return Fitted(lambda x: torch.zeros(1, len(x), 1), 0.25, {"prior_precision": 1.0})

    fit.calls, fit.broken = 0, False
    monkeypatch.setitem(tabular.OWN_METHODS, "fake", fit)
    return fit


def make_runs(out, methods=("map", "fake")):
    return [Run("first", "snelson", method, seed, quick=True, out=out) for method in methods for seed in range(2)]


def test_finished_runs_are_not_repeated(fake, tmp_path):
    runs = make_runs(tmp_path)
    assert run_all(runs, jobs=1) == []
    assert run_all(runs, jobs=1) == []
    assert fake.calls == 2
    record = json.loads(runs[-1].path.read_text())
    assert (record["method"], record["seed"], record["status"]) == ("fake", 1, "finished")
    assert record["fit_seconds"] == 0.25
    assert record["predict_seconds"] > 0
    assert set(record["metrics"]) == {"validation", "test"}
    assert record["settings"]["prior_precision"] == 1.0
    assert record["environment"]["python"] == platform.python_version()


def test_a_failed_run_is_recorded_and_tried_again(fake, tmp_path):
    fake.broken = True
    runs = make_runs(tmp_path)
    assert run_all(runs, jobs=1) == runs[2:]
    record = json.loads(runs[-1].path.read_text())
    assert record["status"] == "failed"
    assert "fell over" in record["error"]
    assert "Traceback" in record["traceback"]
    assert runs[0].finished
    assert "Failed runs" in report(runs[0].path.parent)
    fake.broken = False
    assert run_all(runs, jobs=1) == []
    assert "Failed runs" not in report(runs[0].path.parent)


def test_an_experiment_of_compared_methods_takes_them_from_the_package(tmp_path):
    compared_run = Run("snelson", "snelson", "linearised", 0, quick=True, out=tmp_path)
    assert run_all([compared_run], jobs=1) == []
    record = json.loads(compared_run.path.read_text())
    assert record["settings"]["n_settings"] == 1
    assert record["settings"]["prior_precision"] == 1.0
    assert record["metrics"]["test"]["crps"] > 0
    assert "| Laplace, linearised |" in report(compared_run.path.parent)


def test_pairs_that_do_not_go_together_are_left_out(tmp_path):
    threads = torch.get_num_threads()
    options = ["--datasets", "snelson", "--methods", "riemannian_fisher", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["run", "snelson", *options]) == 0
    assert not list(tmp_path.iterdir())
    torch.set_num_threads(threads)


def test_a_run_in_another_process_has_one_thread_and_records_its_failure(tmp_path):
    without_data = Run("first", "glass", "map", 0, data_dir=tmp_path, out=tmp_path)
    assert run_all([without_data], jobs=2) == [without_data]
    record = json.loads(without_data.path.read_text())
    assert "glass.data" in record["error"]
    assert record["environment"]["threads"] == 1


def test_report_gives_mean_and_standard_error(tmp_path):
    for seed, nll in enumerate((1.0, 2.0, 3.0)):
        record = {
            "method": "map",
            "dataset": "glass",
            "seed": seed,
            "status": "finished",
            "environment": {"torch": "1"},
        }
        record |= {"metrics": {"test": {"nll": nll}}, "settings": {}, "fit_seconds": 1.0, "predict_seconds": 0.5}
        (tmp_path / f"{seed}.json").write_text(json.dumps(record))
    text = report(tmp_path)
    assert f"| MAP | 2.000 ± {1 / math.sqrt(3):.3f} |" in text
    assert text == (tmp_path / "report.md").read_text()
    assert mean_and_error([1.5]) == "1.500"


def test_command_line_lists_and_reports(capsys, tmp_path):
    threads = torch.get_num_threads()
    assert main(["list"]) == 0
    assert "fiber-latent" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="found none"):
        main(["report", "first", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
