"""The benchmark of distances from HMC: distances against closed forms, references, and quick runs on generated data."""

import itertools
import json
import math

import pytest
import torch

from benchmarks import models
from benchmarks.fidelity import distances, reference, training
from benchmarks.fidelity.__main__ import main
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.problems import PROBLEMS, Spec, architecture_of, data_of
from benchmarks.fidelity.run import Run

QUICK = Spec("cubic", quick=True)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- distances -------------------------------------------------------------------------------------------------------


def test_wasserstein_distance_of_shifted_samples_is_the_mean_shift():
    x, shift = normal(40, 3, 2), torch.tensor([[0.5, -1.0], [0.0, 2.0], [0.1, -0.2]], dtype=torch.float64)
    assert distances.wasserstein(x, x + shift) == pytest.approx(float(shift.abs().mean()), rel=1e-12)
    assert distances.wasserstein(x, x[torch.randperm(40)]) == 0


def test_wasserstein_distance_of_gaussians_that_differ_in_scale():
    x = normal(200_000, 1, 1)
    # E|(2 − 1) Z| for quantiles that differ by the factor 2.
    assert distances.wasserstein(x, 2 * normal(200_000, 1, 1, seed=1)) == pytest.approx(
        math.sqrt(2 / math.pi), rel=0.01
    )


@pytest.mark.parametrize(("s", "m"), [(1, 7), (5, 12), (20, 3)])
def test_wasserstein_distance_of_unequal_numbers_of_samples_is_that_of_their_repetitions(s, m):
    a, b = normal(s, 4, 2), normal(m, 4, 2, seed=1)
    repeated = a.repeat_interleave(m, 0), b.repeat_interleave(s, 0)
    expected = float((repeated[0].sort(0).values - repeated[1].sort(0).values).abs().mean())
    assert distances.wasserstein(a, b) == pytest.approx(expected, rel=1e-10)


def test_distance_from_a_point_is_the_mean_absolute_deviation():
    x = normal(50, 3, 1)
    assert distances.wasserstein(torch.zeros(1, 3, 1), x) == pytest.approx(float(x.abs().mean()), rel=1e-10)


def test_moments_and_class_probabilities():
    x = normal(30, 4, 2)
    assert distances.spread_ratio(3 * x + 1, x) == pytest.approx(3)
    assert distances.mean_difference(x + 2, x) == pytest.approx(2)
    p = torch.tensor([[[0.6, 0.4], [0.9, 0.1]], [[0.8, 0.2], [0.5, 0.5]]])  # means (0.7, 0.3) and (0.7, 0.3)
    q = torch.tensor([[[0.6, 0.4], [0.2, 0.8]]])
    assert distances.total_variation(p, q) == pytest.approx((0.1 + 0.5) / 2, rel=1e-6)
    assert distances.agreement(p, q) == 0.5


def test_discrepancy_of_gaussians_has_its_closed_form():
    d, shift = 3, 0.8
    f, g = normal(2000, d, 1) + shift, normal(2000, d, 1, seed=1)
    width = float(torch.pdist(g.flatten(1)).median()) ** 2
    # E exp(−|x − y|²/(2 h²)) for x − y ~ N(m, 2 I).
    same = (width / (width + 2)) ** (d / 2)
    across = same * math.exp(-0.5 * d * shift**2 / (width + 2))
    assert distances.discrepancy(f, g) == pytest.approx(math.sqrt(2 * same - 2 * across), rel=0.05)
    assert distances.discrepancy(g, g) == pytest.approx(0, abs=1e-6)


# --- problems and references -----------------------------------------------------------------------------------------


def test_networks_are_modes_of_the_objective_and_kept():
    problem = training.make_problem(Spec("cubic", tau=10.0))
    assert training.gradient_norm(problem) < 1e-3 * problem.joint.n_data
    again = training.make_problem(Spec("cubic", tau=10.0))
    assert torch.equal(problem.theta, again.theta)
    value = problem.joint.objective(problem.theta[None], problem.training_data.everything())
    expected = training.objective(problem.model, problem.data, 10.0).item()
    assert float(value) == pytest.approx(expected, rel=1e-10)


def test_outside_inputs_are_beyond_the_data():
    data = data_of(Spec("cubic"))
    x = data.train[0].sort(0).values
    gap = x.diff(dim=0).argmax()
    out = data.outside
    assert (((out < x[0]) | (out > x[-1])) | ((out > x[gap]) & (out < x[gap + 1]))).all()
    assert not ((data.inside > x[gap] + 0.1) & (data.inside < x[gap + 1] - 0.1)).any()
    low, high = (float(edge) for edge in (x[0], x[-1]))
    assert float(out.max()) == pytest.approx(high + 0.5 * (high - low))
    assert torch.equal(data_of(Spec("linear")).outside, 3 * data_of(Spec("linear")).inside)


def test_wide_problems_have_the_data_of_the_others_and_thousands_of_weights():
    wide, other = Spec("snelson-wide"), Spec("snelson")
    assert all(torch.equal(a, b) for a, b in zip(data_of(wide).train, data_of(other).train, strict=True))
    widths = [1, *architecture_of(wide).hidden, 1]
    assert sum((n + 1) * m for n, m in itertools.pairwise(widths)) == 2209


def test_exact_draws_and_chains_agree_with_the_gaussian_posterior():
    problem = training.make_problem(Spec("linear", tau=10.0))
    x, y = problem.data.train
    inputs = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    precision = inputs.T @ inputs / 0.5**2 + 10 * torch.eye(9, dtype=x.dtype)
    mean = torch.linalg.solve(precision, inputs.T @ y / 0.5**2).flatten()
    root = torch.linalg.cholesky(precision).T
    effort = reference.Effort(n_chains=4, n_warmup=40, n_first=150, n_kept=600, approach=50)
    for found in (reference.exact(problem, effort), reference.hmc(problem, effort, limit=120.0)):
        whitened = (found.thetas - mean) @ root.T  # standard normal
        assert float(whitened.mean(0).abs().max()) < 5 / 400**0.5
        assert float((whitened.T @ whitened / len(whitened) - torch.eye(9)).abs().max()) < 0.35
        assert found.info["rhat"] < 1.05
    assert reference.mode(problem)["half_effective_parameters"] == pytest.approx(
        0.5 * float(torch.trace(torch.eye(9) - 10 * precision.inverse())), rel=1e-8
    )


def test_chains_that_may_run_longer_are_run_anew(monkeypatch):
    problem = training.make_problem(QUICK)
    made = []

    def hmc(problem, effort, limit):
        made.append(limit)
        return reference.Reference(torch.zeros(4, 3), {"converged": limit > 2})

    monkeypatch.setattr(reference, "hmc", hmc)
    for limit in (1.0, 1.0, 0.5, 3.0, 9.0):
        reference.reference(problem, limit)
    assert made == [1.0, 3.0]


def test_chains_that_disagree_have_not_mixed():
    problem = training.make_problem(QUICK)
    p = len(problem.theta)
    chains = problem.theta + 0.1 * normal(4, 60, p)
    assert reference.mixing(problem, chains)["rhat"] < 1.1
    chains[0] += 0.5
    apart = reference.mixing(problem, chains)
    assert apart["rhat"] > 1.2
    assert apart["ess"] < 60


# --- runs ------------------------------------------------------------------------------------------------------------


def test_quick_runs_are_written_resumed_and_reported(tmp_path, capsys):
    command = ["run", "--quick", "--problems", "cubic", "--seeds", "1", "--limit", "0.5", "--out", str(tmp_path)]
    assert main([*command, "--methods", "map", "linearised"]) == 0
    runs = {m: Run(QUICK, m, 0.5, None, tmp_path) for m in ("hmc", "map", "linearised")}
    records = {m: run.record for m, run in runs.items()}
    assert all(run.finished for run in runs.values())
    assert records["map"]["metrics"]["spread_ratio_inside"] == 0
    assert records["map"]["metrics"]["nll_excess"] == 0
    assert records["linearised"]["metrics"]["wasserstein_outside"] > 0
    assert {"rhat", "ess", "half_effective_parameters", "gradient_norm"} <= set(records["hmc"]["info"])

    assert main([*command, "--methods", "map", "linearised"]) == 0
    assert {m: run.record for m, run in runs.items()} == records  # with the times of the first runs

    capsys.readouterr()
    assert main(["report", "--quick", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "fidelity-quick" / "report.md").read_text() in text + "\n"
    assert "tanh, τ = 1" in text
    assert "| Laplace, linearised |" in text


def test_results_of_another_reference_are_not_finished_and_failures_are_written(tmp_path, monkeypatch):
    command = ["run", "--quick", "--problems", "cubic", "--seeds", "1", "--limit", "0.5", "--out", str(tmp_path)]
    assert main([*command, "--methods", "map"]) == 0
    run = Run(QUICK, "map", 0.5, None, tmp_path)
    run.path.write_text(json.dumps({**run.record, "reference": "another"}))
    assert not run.finished

    def fail(problem):
        raise RuntimeError("no convergence")

    monkeypatch.setitem(METHODS, "map", fail)
    assert main([*command, "--methods", "map"]) == 1
    assert "no convergence" in json.loads(run.path.read_text())["traceback"]
    assert run.record is None
    assert main(["report", "--quick", "--out", str(tmp_path)]) == 0
    assert "no convergence" in (tmp_path / "fidelity-quick" / "report.md").read_text()


@pytest.mark.parametrize("name", [m for m in METHODS if m not in ("map", "linearised")])
def test_methods_sample_functions_of_the_right_shape_repeatedly(name):
    problem = training.make_problem(Spec("linear", quick=True))
    sampler = METHODS[name](problem)
    first = sampler.functions(problem.data.inside)
    assert first.shape[1:] == (len(problem.data.inside), 1)
    assert len(first) == len(sampler.thetas)
    assert torch.equal(first, sampler.functions(problem.data.inside))


def test_names_are_those_of_the_command_line():
    with pytest.raises(ValueError, match="linear, cubic"):
        data_of(Spec("unknown"))
    generated = {"linear", "cubic"}
    assert set(PROBLEMS) == {"snelson", "banana", "australian", "ionosphere", "glass", "snelson-wide"} | generated
