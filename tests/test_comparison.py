"""One call that compares methods: rows, tuning under a budget, failures, resumption, formats and the command line."""

import copy
import csv
import dataclasses
import io
import json
import math
import re
import sys
import warnings
from collections import UserDict
from pathlib import Path

import pytest
import torch
from laplace import FullLaplace, Laplace
from problems import FAST, classifier, loader, regressor
from torch import nn

from laplace_fiber import Comparison, TrajectorySampler, __main__, baselines, compare, metrics
from laplace_fiber.comparison import METHODS, Budget, Fitted, Method, fits, method, rows
from laplace_fiber.comparison.fits import OF_SEVERAL_NETWORKS, most_evident_precision
from laplace_fiber.comparison.methods import default_methods
from laplace_fiber.comparison.task import Task, make_task, network_outputs, residual_noise
from laplace_fiber.comparison.tuning import Search, turns

QUIET = {"progress_bar": False, "n_samples": 10}
ONE = Budget(n_settings=1)
DOCUMENT = Path(__file__).parent.parent / "docs" / "comparing.md"
CHAIN = method("sgld", n_steps=20, n_chains=2, n_kept=10, relative_step=0.25)


def problem(likelihood="classification"):
    """A trained network, and its data in three parts."""
    model, data = classifier() if likelihood == "classification" else regressor()
    x, y = data.dataset.tensors
    return model, [loader(x[i::3], y[i::3], 5) for i in range(3)]


def failing(task, seed, settings, progress_bar):
    raise RuntimeError("fell | over\nbadly")


def fake(losses, follows=False):
    """A method whose validation NLL is given by its settings, and the settings of its fits."""
    fits = []

    def fit(task, seed, settings, progress_bar):
        fits.append(settings)
        state = dict(settings)
        if state.get("a") == "bad":
            raise RuntimeError("bad setting")

        def predict(x):
            p = math.exp(-losses(state))
            return torch.tensor([p, 1 - p]).expand(len(x), 2)

        def follow(value):
            state["prior_precision"] = value
            return follows

        return Fitted(predict, follow, gradient_evaluations=7.0)

    return Method("fake", "Fake", fit, {"a": (1, 2, 3)}), fits


def slowed(chosen):
    """The method with fits that take ten seconds by a clock, and this clock."""
    seconds = [0.0]

    def fit(*args):
        seconds[0] += 10
        return chosen.fit(*args)

    return dataclasses.replace(chosen, fit=fit), lambda: seconds[0]


def always_first_class():
    return nn.Linear(1, 2), [loader(torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64))] * 3


def without_times(row):
    return {k: v for k, v in row.items() if not k.endswith("seconds") and k != "peak_memory_mib"}


# --- rows ------------------------------------------------------------------------------------------------------------


def test_every_method_and_seed_has_a_row_with_scores_and_costs():
    model, parts = problem()
    result = compare(model, "classification", *parts, ["map", "last_layer", CHAIN], seeds=(0, 1), budget=ONE, **QUIET)
    expected = [(m, s) for m in ("map", "last_layer", "sgld") for s in (0, 1)]
    assert [(row["method"], row["seed"]) for row in result.rows] == expected
    for row in result.rows:
        assert row["status"] == "finished"
        for score in ("nll", "ece", "brier", "accuracy"):
            assert math.isfinite(row[score])
            assert math.isfinite(row[f"{score}_per_sample"])
        assert min(row["fit_seconds"], row["tune_seconds"], row["predict_seconds"]) >= 0
        assert "auroc_ood" not in row
    chain = result.rows[-1]
    assert chain["gradient_evaluations"] == 40
    assert chain["settings"] == {"prior_precision": 1.0}
    assert chain["options"]["relative_step"] == "0.25"
    assert result.rows[-2]["nll"] != chain["nll"]


def test_scores_are_those_of_the_test_data():
    model, parts = problem()
    (row,) = compare(model, "classification", *parts, ["map"], **QUIET).rows
    x, y = parts[2].dataset.tensors
    expected = metrics.classification(model(x).detach().softmax(-1)[None], y)
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_the_model_and_the_global_random_state_are_left_alone():
    model, parts = problem()
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    chosen = ["map", "laplace", "linearised", "low_rank", "last_layer", CHAIN]
    result = compare(model, "classification", *parts, chosen, budget=Budget(2), **QUIET)
    assert all(row["status"] == "finished" for row in result.rows)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and (p.grad is None or not p.grad.any()) for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_seeds_repeat_a_comparison():
    model, parts = problem()
    first, second = (
        compare(model, "classification", *parts, [CHAIN, "laplace"], budget=ONE, **QUIET) for _ in range(2)
    )
    assert [without_times(row) for row in first.rows] == [without_times(row) for row in second.rows]


def test_regression_has_its_own_scores_and_an_estimated_noise():
    model, parts = problem("regression")
    chosen = ["map", "temperature", "linearised", CHAIN]
    result = compare(model, "regression", *parts, chosen, budget=ONE, **QUIET)
    x, y = (torch.cat(both) for both in zip(*(p.dataset.tensors for p in parts[:2]), strict=True))
    noise = (model(x) - y).square().mean().sqrt().item()
    assert result.conditions["sigma_noise"] == pytest.approx(noise)
    for row in result.rows:
        assert row["status"] == "finished"
        assert min(row["rmse"], row["crps"]) > 0
        assert "accuracy" not in row
    plain, scaled, linear, _ = result.rows
    assert scaled["rmse"] == plain["rmse"]
    assert scaled["settings"]["variance_factor"] > 0
    assert "crps_per_sample" in linear


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_linearised_predictions_need_no_more_than_a_piece_of_the_jacobian(likelihood, monkeypatch):
    model, parts = problem(likelihood)
    task = make_task(model, likelihood, *parts[:2], None, 10)
    x, sizes = parts[2].dataset.tensors[0], list[int]()
    predict = METHODS["linearised"].fit(task, 0, {}, False).predict
    predictive = FullLaplace.__call__

    def watched(la, points, **kwargs):
        sizes.append(len(points))
        return predictive(la, points, **kwargs)

    monkeypatch.setattr(FullLaplace, "__call__", watched)
    whole = predict(x)
    assert sizes == [len(x)]
    n_params = sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(fits, "JACOBIAN_NUMBERS", 3 * n_params * model(x[:1]).shape[1])
    torch.testing.assert_close(predict(x), whole)
    assert max(sizes[1:]) == 3
    assert sum(sizes[1:]) == len(x)


def test_temperature_scaling_keeps_the_accuracy_and_has_no_scores_per_sample():
    model, parts = problem()
    calibrated_chain = dataclasses.replace(CHAIN, name="scaled", calibrated=True)
    result = compare(
        model, "classification", *parts, ["map", "temperature", CHAIN, calibrated_chain], budget=ONE, **QUIET
    )
    plain, scaled, chain, scaled_chain = result.rows
    assert scaled["accuracy"] == plain["accuracy"]
    assert scaled["nll"] != plain["nll"]
    assert scaled_chain["accuracy"] == chain["accuracy"]
    assert scaled_chain["settings"]["temperature"] > 0
    assert "nll_per_sample" not in scaled_chain
    named = method("sgld+temperature")
    assert named.calibrated
    assert "temperature" in named.label


@pytest.mark.parametrize("bare", [True, False])
def test_inputs_from_elsewhere_are_told_by_the_variance(bare):
    model, parts = problem("regression")
    far = 50 + parts[2].dataset.tensors[0]
    outside = far.split(4) if bare else loader(far, far)
    result = compare(model, "regression", *parts, ["map", "linearised"], ood_loader=outside, budget=ONE, **QUIET)
    point, linear = (row["auroc_ood"] for row in result.rows)
    assert point == 0.5  # its variance is the same everywhere
    assert linear > 0.9


def test_inputs_from_elsewhere_are_told_by_the_entropy():
    model, parts = problem()
    x = parts[2].dataset.tensors[0]
    (row,) = compare(model, "classification", *parts, ["map"], ood_loader=[-x], **QUIET).rows
    entropies = [torch.distributions.Categorical(logits=model(inputs)).entropy().detach() for inputs in (x, -x)]
    assert row["auroc_ood"] == pytest.approx(metrics.detection_auroc(*entropies))
    assert 0 < row["auroc_ood"] < 1


def test_test_data_are_looked_at_once_per_method_and_seed():
    model, parts = problem()

    class Counting(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

    test = Counting(parts[2])
    compare(model, "classification", *parts[:2], test, ["map", "laplace"], seeds=(0, 1), budget=Budget(4), **QUIET)
    assert test.passes == 1 + 2 * 2  # and once for the fingerprint of the targets


class OnDicts(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, batch):
        return self.body(batch["x"])


def test_dict_batches():
    model, parts = problem()
    wrapped = [[UserDict(x=x, labels=y) for x, y in part] for part in parts]
    expected = compare(model, "classification", *parts, ["map", CHAIN], budget=ONE, **QUIET)
    result = compare(OnDicts(model), "classification", *wrapped, ["map", CHAIN], budget=ONE, **QUIET)
    for row, plain in zip(result.rows, expected.rows, strict=True):
        assert row["nll"] == pytest.approx(plain["nll"], rel=1e-4)


# --- choice of settings ----------------------------------------------------------------------------------------------


def test_settings_are_tried_in_turn_from_the_default():
    found = list(turns({"a": (1, 2, 3), "b": ("x", "y")}))
    assert found == [{}, {"a": 2}, {"b": "y"}, {"a": 3}]
    assert list(turns({})) == [{}]


def test_the_best_settings_are_kept_and_all_methods_may_try_the_same_number():
    model, parts = always_first_class()
    chosen, fits = fake(lambda s: abs(s["a"] - 2) + abs(math.log10(s["prior_precision"] / 10)))
    options = {"prior_precisions": (1.0, 10.0, 100.0), **QUIET}
    (row,) = compare(model, "classification", *parts, [chosen], **options).rows
    assert row["settings"] == {"a": 2, "prior_precision": 10.0}
    assert row["nll"] == pytest.approx(0, abs=1e-6)
    assert row["n_settings"] == len(fits) == 5
    assert fits[2] == {"a": 2, "prior_precision": 10.0}  # the second axis, at the best of the first
    assert row["gradient_evaluations"] == 7
    (row,) = compare(model, "classification", *parts, [chosen], budget=Budget(2), **options).rows
    assert row["n_settings"] == 2
    assert row["settings"] == {"a": 2, "prior_precision": 1.0}


def test_methods_that_follow_the_prior_precision_are_fitted_once():
    model, parts = always_first_class()
    chosen, fits = fake(lambda s: 1 + abs(math.log10(s["prior_precision"] / 10)), follows=True)
    chosen = dataclasses.replace(chosen, axes={})
    (row,) = compare(model, "classification", *parts, [chosen], prior_precisions=(1.0, 10.0, 100.0), **QUIET).rows
    assert len(fits) == 1
    assert row["n_settings"] == 3
    assert row["settings"] == {"prior_precision": 10.0}
    assert row["nll"] == pytest.approx(1)  # predictions are back at the best value, not at the last one


def test_no_setting_is_begun_that_will_end_too_late():
    model, parts = always_first_class()
    chosen, fits = fake(lambda s: 1.0)
    slow, clock = slowed(chosen)
    task = make_task(model, "classification", parts[0], parts[1], None, 5)
    for seconds, n in ((1.0, 1), (19.0, 2), (21.0, 3)):
        fits.clear()
        outcome = Search(slow, task, 0, Budget(20, seconds), clock=clock).run((1.0, 2.0, 3.0))
        assert len(fits) == outcome.n_settings == n
        assert outcome.fit_seconds == 10
        assert outcome.tune_seconds == 10 * (n - 1)


def test_settings_without_another_fit_are_tried_after_a_long_one():
    model, parts = always_first_class()
    chosen, fits = fake(lambda s: 1.0, follows=True)
    slow, clock = slowed(chosen)
    task = make_task(model, "classification", parts[0], parts[1], None, 5)
    outcome = Search(slow, task, 0, Budget(20, 1.0), clock=clock).run((1.0, 2.0, 3.0))
    assert len(fits) == 1
    assert outcome.n_settings == 3  # all prior precisions, no other value of the slow setting


def test_methods_on_a_gaussian_start_from_its_evidence():
    model, parts = problem()
    task = make_task(model, "classification", parts[0], parts[1], None, 5)
    start = most_evident_precision(task)
    grid = METHODS["riemannian"].candidates(task, (1.0, 10.0))["prior_precision"]
    assert grid == (start, 10 * start)

    def evidence(value):
        la = Laplace(copy.deepcopy(model), "classification", "all", "kron", prior_precision=value)
        la.fit(parts[0])
        return la.log_marginal_likelihood().item()

    assert evidence(start) > max(evidence(0.5 * start), evidence(2 * start))


def test_networks_without_a_gaussian_start_from_the_grid(monkeypatch):
    def refuse(task):
        raise NotImplementedError("no curvature")

    monkeypatch.setattr("laplace_fiber.comparison.methods.most_evident_precision", refuse)
    model, parts = problem()
    with pytest.warns(UserWarning, match="no curvature"):
        axes = METHODS["diffusion"].candidates(Task((model,), "classification", *parts[:2]), (1.0, 10.0))
    assert axes["prior_precision"] == (1.0, 10.0)


def test_a_setting_that_fails_is_left_out():
    model, parts = always_first_class()
    chosen, _ = fake(lambda s: 0.5 * s["a"])
    chosen = dataclasses.replace(chosen, axes={"a": ("bad", 2, 1)})
    (row,) = compare(model, "classification", *parts, [chosen], prior_precisions=[1.0], **QUIET).rows
    assert row["settings"]["a"] == 1
    assert "bad setting" in row["failed_settings"][0]


def test_until_a_setting_works_the_methods_own_are_tried_whatever_the_time():
    model, parts = always_first_class()
    chosen, fits = fake(lambda s: 0.5)
    chosen, clock = slowed(dataclasses.replace(chosen, axes={"a": ("bad", "bad", 1)}))
    task = make_task(model, "classification", parts[0], parts[1], None, 5)
    outcome = Search(chosen, task, 0, Budget(20, 25.0), clock=clock).run((1.0, 2.0, 3.0, 4.0))
    tried = [(s["a"], s["prior_precision"]) for s in fits]
    assert tried == [("bad", 1.0), ("bad", 1.0), (1, 1.0), (1, 2.0), (1, 3.0)]
    assert outcome.settings == {"a": 1, "prior_precision": 1.0}
    assert len(outcome.failures) == 2


def test_options_are_passed_on_and_not_tuned():
    model, parts = always_first_class()
    chosen, fits = fake(lambda s: 1.0)
    chosen = dataclasses.replace(chosen, options={"a": 3})
    compare(model, "classification", *parts, [chosen], prior_precisions=[1.0, 2.0], **QUIET)
    assert fits == [{"a": 3, "prior_precision": 1.0}, {"a": 3, "prior_precision": 2.0}]


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
def test_fiber_walks_again_for_lower_precisions_only():
    model, parts = problem()
    task = make_task(model, "classification", parts[0], parts[1], None, 5)
    settings = {"prior_precision": 0.1, "sampler": TrajectorySampler(n_particles=3, n_steps=3), "autoencoder": FAST}
    fitted = METHODS["fiber"].fit(task, 0, settings, False)
    assert fitted.follow(0.1)
    assert fitted.follow(10.0)
    assert not fitted.follow(0.01)


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_method_shows_its_error_and_the_others_go_on():
    model, parts = problem()
    result = compare(model, "classification", *parts, [Method("broken", "Broken", failing), "map"], **QUIET)
    broken, point = result.rows
    assert broken["status"] == "failed"
    assert broken["error"] == "RuntimeError: fell | over\nbadly"
    assert "Traceback" in broken["traceback"]
    assert point["status"] == "finished"
    line = next(line for line in result.to_markdown().splitlines() if line.startswith("| Broken"))
    assert line.endswith("RuntimeError: fell ¦ over badly |")
    assert line.count("|") == next(iter(result.to_markdown().splitlines())).count("|")
    assert "fell" in result._repr_html_()


def test_warnings_stand_below_the_table():
    def warns(task, seed, settings, progress_bar):
        warnings.warn("careful", stacklevel=1)
        return METHODS["map"].fit(task, seed, settings, progress_bar)

    model, parts = problem()
    result = compare(model, "classification", *parts, [Method("w", "Warns", warns)], seeds=(0, 1), **QUIET)
    assert result.to_markdown().count("- Warns: careful") == 1


def test_settings_that_were_not_chosen_warn_of_nothing():
    def warns(task, seed, settings, progress_bar):
        warnings.warn(f"careful at {settings['prior_precision']}", stacklevel=1)
        return fake(lambda s: abs(s["prior_precision"] - 2.0))[0].fit(task, seed, settings, progress_bar)

    model, parts = always_first_class()
    result = compare(
        model, "classification", *parts, [Method("w", "Warns", warns)], prior_precisions=(1.0, 2.0, 3.0), **QUIET
    )
    assert result.rows[0]["n_settings"] == 3
    assert result.rows[0]["warnings"] == ["careful at 2.0"]


def test_an_interrupt_passes_through_and_names_the_file_of_what_is_done(tmp_path):
    def interrupted(task, seed, settings, progress_bar):
        raise KeyboardInterrupt

    model, parts = problem()
    chosen = ["map", Method("stop", "Stop", interrupted)]
    for resume in (None, tmp_path / "rows.json"):
        with pytest.raises(KeyboardInterrupt) as caught:
            compare(model, "classification", *parts, chosen, resume=resume, **QUIET)
        file = re.search("rows are in (.*);", caught.value.__notes__[0]).group(1)
        assert [row["method"] for row in Comparison.load(file).rows] == ["map"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["swagger"]}, "swagger"),
        ({"methods": ["map", "map"]}, "twice"),
        ({"sigma_noise": 0.1}, "no noise"),
        ({"n_samples": 0}, "n_samples"),
        ({"prior_precisions": [1.0, -1.0]}, "prior_precisions"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    model, parts = problem()
    with pytest.raises(ValueError, match=message):
        compare(model, "classification", *parts, **{"methods": ["map"], **QUIET, **options})


def test_bad_problems_are_refused():
    model, parts = problem()
    with pytest.raises(ValueError, match="likelihood"):
        compare(model, "reward_modeling", *parts, ["map"], **QUIET)
    with pytest.raises(ValueError, match="empty"):
        compare([], "classification", *parts, ["map"], **QUIET)
    with pytest.raises(ValueError, match="expected at least one setting"):
        Budget(0)
    exact = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="sigma_noise"):
        residual_noise(exact, [[(torch.ones(2, 1), exact(torch.ones(2, 1)).detach())]])


# --- resumption ------------------------------------------------------------------------------------------------------


def test_resuming_does_not_repeat_what_is_finished(tmp_path, monkeypatch):
    model, parts = problem()
    file = tmp_path / "folder" / "rows.json"
    examined = []
    original = rows.examine

    def counting(m, task, seed, *args):
        examined.append((m.name, seed))
        return original(m, task, seed, *args)

    monkeypatch.setattr("laplace_fiber.comparison.run.examine", counting)

    def run(chosen, **options):
        examined.clear()
        options = {"seeds": (0,), "budget": ONE, **QUIET, **options}
        return compare(model, "classification", *parts, chosen, resume=file, **options)

    first = run(["map", Method("broken", "Broken", failing)])
    assert len(examined) == 2
    again = run(["map", "last_layer", Method("broken", "Broken", METHODS["map"].fit, has_prior=False)], seeds=(0, 1))
    assert ("map", 0) not in examined  # finished
    assert ("broken", 0) in examined  # failed
    assert [row["status"] for row in again.rows] == ["finished"] * 6
    assert again.rows[0] == first.rows[0]
    run([CHAIN])
    assert examined == [("sgld", 0)]
    run([method("sgld", n_steps=30, n_chains=2, n_kept=10)])  # other settings of the same name
    assert examined == [("sgld", 0)]
    assert len(Comparison.load(file).rows) == 7
    with pytest.raises(ValueError, match="n_samples"):
        run(["map"], n_samples=11)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(ValueError, match="networks"):
        run(["map"])


# --- registry --------------------------------------------------------------------------------------------------------


def test_every_baseline_is_registered_with_settings_that_it_has():
    for posterior in baselines.METHODS:
        entry = METHODS[posterior._key[1]]
        known = {f.name: f.default for f in dataclasses.fields(posterior.settings_class)}
        for name, values in entry.axes.items():
            assert name in known
            assert known[name] == values[0], f"{entry.name}: the first value tried is the default"
            for value in values:
                posterior.settings_class(**{name: value})
        model, _ = problem()
        takes_several = True
        try:
            posterior([model, copy.deepcopy(model)], "classification")
        except (TypeError, ValueError, AttributeError):
            takes_several = False
        assert takes_several == (entry.name in OF_SEVERAL_NETWORKS), entry.name


def test_methods_that_do_not_apply_are_left_out_by_default():
    model, parts = problem()
    task = Task((model,), "classification", *parts[:2])
    names = [m.name for m in default_methods(task)]
    assert "mixture" not in names
    assert {"map", "temperature", "fiber", "fiber+temperature", "swag", "riemannian_fisher"} <= set(names)
    several = [m.name for m in default_methods(dataclasses.replace(task, models=(model, model)))]
    assert "mixture" in several
    large = dataclasses.replace(task, models=(nn.Linear(100, 100),))
    assert "riemannian_fisher" not in [m.name for m in default_methods(large)]


def test_several_networks_go_to_the_methods_made_for_them():
    model, parts = problem()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.add_(0.1)
    result = compare([model, other], "classification", *parts, ["map", "ensemble", "mixture"], budget=ONE, **QUIET)
    point, ensemble, mixture = result.rows
    x, y = parts[2].dataset.tensors
    probs = network_outputs([model, other], x).softmax(-1)
    assert point["nll"] == pytest.approx(metrics.classification(probs[:1], y)["nll"])
    assert ensemble["nll"] == pytest.approx(metrics.classification(probs, y)["nll"])
    assert mixture["status"] == "finished"


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    model, parts = problem()
    chosen = ["map", "last_layer", CHAIN, Method("broken", "<Broken>", failing)]
    return compare(model, "classification", *parts, chosen, seeds=(0, 1), budget=ONE, **QUIET)


def test_summaries_are_means_and_standard_errors(result):
    by_name = {row["method"]: row for row in result.summary()}
    values = [row["nll"] for row in result.rows if row["method"] == "sgld"]
    assert by_name["sgld"]["nll"] == pytest.approx(sum(values) / 2)
    assert by_name["sgld"]["nll_error"] == pytest.approx(abs(values[0] - values[1]) / 2)
    assert by_name["sgld"]["n_seeds"] == 2
    assert by_name["broken"]["n_seeds"] == 0
    assert "seed" not in by_name["sgld"]


def test_markdown_and_html_have_a_row_per_method(result):
    lines = [line for line in str(result).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
    nll = next(row for row in result.summary() if row["method"] == "sgld")
    assert f"{nll['nll']:.3f} ± {nll['nll_error']:.3f}" in str(result)
    assert len([line for line in result.to_markdown(per_seed=True).splitlines() if line.startswith("|")]) == 2 + 8
    page = result._repr_html_()
    assert page.count("<tr>") == 5
    assert "&lt;Broken&gt;" in page
    assert "<Broken>" not in page


def test_csv_and_frame_hold_the_rows(result, tmp_path):
    assert result.to_csv(tmp_path / "rows.csv") is None
    text = (tmp_path / "rows.csv").read_text()
    assert text == result.to_csv()
    read = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["nll"]) for row in read[:6]] == [row["nll"] for row in result.rows[:6]]
    assert json.loads(read[4]["settings"]) == {"prior_precision": 1.0}
    frame = result.to_frame()
    assert frame.loc[("map", 1), "nll"] == result.rows[1]["nll"]
    assert len(frame) == 8


def test_a_file_gives_back_the_comparison(result, tmp_path):
    result.save(tmp_path / "c.json")
    loaded = Comparison.load(tmp_path / "c.json")
    assert loaded.rows == result.rows
    assert str(loaded) == str(result)
    (tmp_path / "other.json").write_text('{"format": 99, "rows": []}')
    with pytest.raises(ValueError, match="format 99"):
        Comparison.load(tmp_path / "other.json")


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_figures(result, tmp_path, likelihood):
    if likelihood == "regression":
        model, parts = problem(likelihood)
        result = compare(model, likelihood, *parts, ["map", "linearised"], budget=ONE, **QUIET)
    figure = result.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    titles = [axes.get_title() for axes in figure.axes]
    finished = {row["label"] for row in result.rows if row["status"] == "finished"}
    assert {" ".join(title.split()) for title in titles if title} == finished
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(legend) == len(finished)


def test_a_method_far_off_does_not_flatten_the_figure():
    rows = [
        {"method": str(i), "label": f"M{i}", "seed": 0, "nll": nll, "fit_seconds": 1.0, "status": "finished"}
        for i, nll in enumerate((1.0, 1.1, 1.3, 176.0))
    ]
    axes = Comparison([row | {"reliability": {"expected": [0.5], "observed": [0.5]}} for row in rows]).plot().axes[0]
    assert axes.get_ylim()[1] < 2
    assert "M3, NLL 176" in axes.get_legend().get_texts()[-1].get_text()


def test_nothing_to_draw_is_said():
    broken = Comparison([{"method": "m", "label": "M", "seed": 0, "status": "failed", "error": "E"}])
    with pytest.raises(ValueError, match="at least one method"):
        broken.plot()


@pytest.mark.parametrize(("package", "call"), [("pandas", "to_frame"), ("matplotlib", "plot")])
def test_missing_packages_are_named_with_the_remedy(result, monkeypatch, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"laplace-fiber\[compare\]"):
        getattr(result, call)()


def test_the_documented_call_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert "| MAP, temperature scaling |" in capsys.readouterr().out
    assert (tmp_path / "comparison.png").exists()


# --- command line ----------------------------------------------------------------------------------------------------

PROJECT = """
import sys
sys.path.insert(0, {tests!r})
from problems import classifier, loader

value = 3

def trained():
    return classifier()[0]

def parts():
    x, y = classifier()[1].dataset.tensors
    return [loader(x[i::3], y[i::3], 5) for i in range(3)]

def named():
    train, val, test = parts()
    return {{"train": train, "val": val, "test": test, "ood": test}}

def pair():
    return parts()[:2]
"""


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    (tmp_path / "compared_project.py").write_text(PROJECT.format(tests=str(request.path.parent)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "compared_project", raising=False)
    return tmp_path


def arguments(*more, model="compared_project:trained", data="compared_project:parts"):
    return ["compare", "--model", model, "--data", data, "--quiet", *more]


def test_the_command_gives_what_the_call_gives(project, capsys):
    options = ["--methods", "map, last_layer", "--seeds", "0,1", "--n-samples", "10", "--max-settings", "2"]
    assert __main__.main(arguments(*options, "--out", "results")) == 0
    model, parts = problem()
    expected = compare(model, "classification", *parts, ["map", "last_layer"], seeds=(0, 1), budget=Budget(2), **QUIET)
    found = Comparison.load(project / "results" / "comparison.json")
    assert [without_times(row) for row in found.rows] == [without_times(row) for row in expected.rows]
    table = (project / "results" / "comparison.md").read_text()
    assert table == str(found)
    assert table in capsys.readouterr().out
    assert (project / "results" / "comparison.csv").read_text() == found.to_csv()
    assert (project / "results" / "comparison.png").exists()
    before = found.rows
    assert __main__.main(arguments(*options, "--out", "results")) == 0
    assert Comparison.load(project / "results" / "comparison.json").rows == before  # nothing is computed again


def test_the_command_takes_named_loaders_and_tells_of_failures(project, capsys):
    more = ["--methods", "map,mc_dropout", "--max-settings", "1", "--out", "r"]
    assert __main__.main(arguments(*more, data="compared_project:named")) == 1
    assert "AUROC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"model": "compared_project"}, "expected module:function"),
        ({"model": "no_such_module:f"}, "no module named 'no_such_module'"),
        ({"model": "compared_project:nothing"}, "expected a function 'nothing'.*'trained'"),
        ({"model": "compared_project:value"}, "expected a function 'value'"),
        ({"data": "compared_project:pair"}, "--data: expected loaders"),
        ({"data": "compared_project:trained"}, "--data: expected loaders"),
    ],
)
def test_bad_places_are_refused_with_the_remedy(project, capsys, places, message):
    assert __main__.main(arguments(**places)) == 2
    assert re.search(message, capsys.readouterr().err)


def test_help_and_methods_are_listed(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["compare", "--help"])
    assert "my_project:trained" in capsys.readouterr().out
    assert __main__.main(["methods"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in METHODS)
