"""Splits, training, methods and runs on shipped or tiny data."""

import contextlib
import dataclasses
import json
import math
import platform
import signal

import pytest
import torch

from benchmarks import compared, datasets, models, tabular
from benchmarks.__main__ import main
from benchmarks.limits import time_limit
from benchmarks.methods import METHODS, QUICK, Fitted
from benchmarks.report import mean_and_error, report
from benchmarks.run import run_all
from benchmarks.runs import Run
from benchmarks.variants import VARIANT_METHODS
from laplace_fiber import metrics

SHORT = models.Training(epochs=3)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")


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
    assert record["split"] == datasets.load("snelson", 1).rows.digest()
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


def test_a_run_that_takes_too_long_is_recorded_and_not_repeated_within_the_same_limit(tmp_path, monkeypatch):
    long = Run("snelson", "snelson", "hmc", 0, out=tmp_path, limit_seconds=0.2)
    monkeypatch.setitem(models._TRAININGS, "snelson", SHORT)
    assert run_all([long], jobs=1) == [long]
    record = json.loads(long.path.read_text())
    assert record["status"] == "failed"
    assert "did not finish within 0.2 s; progress: " in record["error"]
    assert "settings:   0%" in record["error"]
    assert record["out_of_time"] == 0.2
    written = long.path.stat().st_mtime_ns
    assert run_all([long, dataclasses.replace(long, limit_seconds=0.1)], jobs=1) == []
    assert long.path.stat().st_mtime_ns == written
    assert not dataclasses.replace(long, limit_seconds=0.3).settled
    assert not dataclasses.replace(long, limit_seconds=None).settled


def test_a_time_limit_ends_what_takes_failures_lightly_and_leaves_nothing_behind():
    def endless():
        while True:
            with contextlib.suppress(Exception):  # as the search for settings
                while True:
                    pass

    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TimeoutError, match=r"within 0\.1 s"), time_limit(0.1):
        endless()
    with time_limit(5):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


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


def test_a_run_in_another_process_has_one_thread_and_a_limit_and_records_its_failure(tmp_path):
    without_data, without_time = (
        Run("first", "glass", "map", seed, data_dir=tmp_path, out=tmp_path, limit_seconds=limit)
        for seed, limit in enumerate((None, 1e-6))
    )
    assert set(run_all([without_data, without_time], jobs=2)) == {without_data, without_time}
    assert "did not finish" in json.loads(without_time.path.read_text())["error"]
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


def test_report_tells_of_methods_on_different_rows_and_of_generated_data(fake, tmp_path):
    run_all(make_runs(tmp_path), jobs=1)
    path = make_runs(tmp_path)[-1].path
    assert "**" not in report(path.parent)
    record = json.loads(path.read_text()) | {"split": "other", "stand_in": True}
    path.write_text(json.dumps(record))
    text = report(path.parent)
    assert "**Methods saw different rows: snelson (seed 1).**" in text
    assert "**Generated in place of a file: snelson.**" in text


def test_command_line_lists_and_reports(capsys, tmp_path):
    threads = torch.get_num_threads()
    assert main(["list"]) == 0
    assert "fiber-latent" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="found none"):
        main(["report", "first", "--out", str(tmp_path)])
    torch.set_num_threads(threads)
