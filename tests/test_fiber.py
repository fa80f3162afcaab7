"""FiberLaplace: the plugin seam, predictions, prior precision, evidence, state, report, and bad input."""

import copy
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchmetrics
from laplace import FullLaplace, Laplace
from problems import FAST, classifier, fitted, flat_problem, loader, regressor
from torch import nn

from laplace_fiber import FiberLaplace, FitReport, FixedRefinement, SampledPosterior, TrajectorySampler
from laplace_fiber.advice import warned_of
from laplace_fiber.paths import FORMS

# --- the plugin seam -------------------------------------------------------------------------------------------------


def test_the_factory_returns_fiber():
    model, data = classifier()
    everything = Laplace(model, "classification", subset_of_weights="all", hessian_structure="fiber", sampler=None)
    assert type(everything) is FiberLaplace
    assert everything.n_params == sum(p.numel() for p in model.parameters())
    for last in (
        Laplace(model, "classification", subset_of_weights="last_layer", hessian_structure="fiber", autoencoder=FAST),
        Laplace(model, "classification", hessian_structure="fiber", autoencoder=FAST),
    ):
        assert type(last) is FiberLaplace
        assert last.n_params == sum(p.numel() for p in model[2].parameters())
        last.fit(data)
        assert last(data.dataset.tensors[0]).shape == (40, 3)
    some = Laplace(
        model, "classification", "all", "fiber", subnetwork_indices=torch.tensor([1, 5, 7]), autoencoder=FAST
    )
    assert some.n_params == 3
    with pytest.raises(ValueError, match="expected subset or subnetwork_indices, got both"):
        FiberLaplace(model, "classification", subset=["2"], subnetwork_indices=torch.tensor([1]))


def test_laplace_torchs_own_flavours_are_untouched():
    code = """
import {first}laplace
from laplace.baselaplace import BaseLaplace
from laplace.laplace import _all_subclasses
classes = [c for c in _all_subclasses(BaseLaplace) if hasattr(c, "_key")]
keys = sorted((*map(str, c._key), c.__module__ + "." + c.__name__) for c in classes)
print([k for k in keys if "laplace_fiber" not in k[2]])
"""
    tables = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code.format(first=first)], capture_output=True, text=True, check=True
        ).stdout
        for first in ("", "laplace_fiber, ")
    ]
    assert "FullLaplace" in tables[0]
    assert tables[0] == tables[1]


def test_positional_arguments_are_laplace_torchs():
    la = FiberLaplace(classifier()[0], "regression", 0.5, 2.0, 0.1, 3.0)
    assert [float(v) for v in (la.sigma_noise, la.prior_precision, la.prior_mean, la.temperature)] == [0.5, 2, 0.1, 3]


# --- predictions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("subset", ["all", "last_layer", ["0"], torch.tensor([0, 3, 9, 20])], ids=str)
def test_classification_interface(form, subset):
    model, data = classifier()
    x = data.dataset.tensors[0]
    la = fitted(model, data, posterior=form, subset=subset)
    assert isinstance(la, SampledPosterior)
    probabilities = la(x, n_samples=30)
    assert probabilities.shape == (40, 3)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(40, dtype=torch.float64))
    samples = la.predictive_samples(x, n_samples=30)
    torch.testing.assert_close(samples.mean(0), probabilities)
    torch.testing.assert_close(la.functional_samples(x, n_samples=30).softmax(-1), samples)
    assert la.sample(7).shape == (7, la.n_params)


@pytest.mark.parametrize("form", FORMS)
def test_regression_interface(form, regression):
    la, data = copy.deepcopy(regression)
    la.posterior = form
    x = data.dataset.tensors[0]
    mean, variance = la(x, n_samples=50)
    samples = la.predictive_samples(x, n_samples=50)
    assert samples.shape == (50, 24, 2)
    torch.testing.assert_close(mean, samples.mean(0))
    torch.testing.assert_close(variance, samples.var(0))
    assert float(la(x, n_samples=1)[1].abs().max()) == 0.0


def test_reward_modelling_fits_pairs_and_scores_inputs():
    class Scorer(nn.Module):
        def __init__(self):
            super().__init__()
            self.score = nn.Linear(2, 1)

        def forward(self, x):
            return self.score(x).squeeze(-1) if x.ndim == 3 else self.score(x)

    generator = torch.Generator().manual_seed(0)
    pairs, choices = torch.randn(20, 2, 2, generator=generator), torch.arange(20) % 2
    la = fitted(Scorer(), loader(pairs, choices), "reward_modeling")
    mean, variance = la(torch.randn(5, 2, generator=generator))
    assert mean.shape == variance.shape == (5, 1)
    assert la(pairs, fitting=True).shape == (20, 2)


def test_samples_are_functions_of_the_input(classification):
    """The same weights whatever the batch, so that parts of the inputs give parts of the predictions."""
    la, data = classification
    x = data.dataset.tensors[0]
    torch.testing.assert_close(la(x)[10:20], la(x[10:20]), rtol=1e-12, atol=1e-14)


def test_generators(classification):
    la, data = classification
    x = data.dataset.tensors[0]

    def draw(seed):
        return la(x, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(la(x), la(x))
    before = torch.get_rng_state()
    la(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_chunked_predictions_are_the_same(classification):
    la, data = copy.deepcopy(classification)
    x = data.dataset.tensors[0]
    whole = la(x)
    la.chunk_size = 7
    torch.testing.assert_close(la(x), whole, rtol=1e-12, atol=1e-14)


def test_predictions_are_differentiable_in_the_input_when_asked():
    model, data = regressor()
    la = fitted(model, data, "regression", enable_backprop=True)
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    step = 1e-6
    for index in range(2):
        (gradient,) = torch.autograd.grad(la(x)[index].sum(), x)
        above, below = (float(la((x + sign * step).detach())[index].sum()) for sign in (1, -1))
        assert float(gradient) == pytest.approx((above - below) / (2 * step), rel=1e-5)
    assert not fitted(model, data, "regression")(x)[0].requires_grad


def test_dict_batches():
    class OnDicts(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, batch):
            return self.inner(batch["input_ids"])

    model, data = classifier()
    dicts = [{"input_ids": x, "labels": y} for x, y in data]
    wrapped = fitted(OnDicts(model), dicts)
    plain = fitted(model, data)
    x = data.dataset.tensors[0]
    torch.testing.assert_close(wrapped({"input_ids": x}), plain(x))


def test_mini_batches_and_data_sets_without_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(data.dataset)

    model, data = classifier()
    stream = torch.utils.data.DataLoader(Stream(), batch_size=8)
    la = fitted(model, stream, sampler=TrajectorySampler(n_particles=4, n_steps=6, batch="loader"))
    assert la.n_data == 40
    x, y = data.dataset.tensors
    assert float(nn.functional.nll_loss(la(x).log(), y)) < math.log(3)
    assert float(la.log_likelihood) == pytest.approx(-40 * la.report.nll_map)


def test_convolutional_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(20) % 2
    x = torch.randn(20, 1, 5, 5, generator=generator) + y[:, None, None, None]
    la = fitted(model, loader(x, y), subset=["0", "4"])
    assert la(x).shape == (20, 2)
    assert float(la.log_marginal_likelihood()) < 0


# --- prior precision and evidence ------------------------------------------------------------------------------------


def test_free_spread_follows_the_prior_precision():
    """On a flat objective, the spread of straight lines is proportional to 1/√τ, without a new walk."""
    model, data = flat_problem()
    sampler = TrajectorySampler(n_particles=6, n_steps=4, reach=3.0)
    la = fitted(model, data, "regression", sampler=sampler, posterior="line", prior_precision=1e-12)
    spread = la.sample(200) - la.mean
    for factor in (4.0, 25.0):
        la.prior_precision = 1e-12 * factor
        torch.testing.assert_close((la.sample(200) - la.mean) * factor**0.5, spread, rtol=1e-5, atol=1e-9)


def test_a_lower_prior_precision_says_to_fit_again(classification):
    la, _ = copy.deepcopy(classification)
    whole = la.sample(5)
    la.prior_precision = 0.25
    with pytest.warns(UserWarning, match=r"asks for 2\.00 times the walk's reach.*fit again"):
        assert torch.equal(la.sample(5), whole)


def test_gridsearch_finds_the_best_value_of_the_grid():
    model, data = classifier()
    la = fitted(model, data)
    x, y = data.dataset.tensors
    validation = loader(x + 0.5, y)

    def loss_at(tau):
        la.prior_precision = tau
        return float(nn.functional.nll_loss(la(x + 0.5).log(), y))

    grid = torch.logspace(0, 3, 7)
    losses = [loss_at(tau) for tau in grid]
    la.prior_precision = 1.0
    la.optimize_prior_precision(
        method="gridsearch", val_loader=validation, log_prior_prec_min=0, log_prior_prec_max=3, grid_size=7
    )
    assert float(la.prior_precision) == pytest.approx(float(grid[losses.index(min(losses))]), rel=1e-5)


@pytest.mark.parametrize("loss", [None, nn.functional.nll_loss, torchmetrics.classification.MulticlassAccuracy(3)])
def test_gridsearch_never_makes_the_validation_loss_worse(loss):
    """Also with a metric that is better when larger: the search minimises, as laplace-torch's does."""
    model, data = classifier()
    x, y = data.dataset.tensors
    la = fitted(model, data)

    def value():
        if isinstance(loss, torchmetrics.Metric):
            loss.reset()
            loss.update(la(x), y)
            return float(loss.compute())
        return float((loss or nn.functional.nll_loss)(la(x) if loss else la(x).log(), y))

    before = value()
    la.optimize_prior_precision(method="gridsearch", val_loader=loader(x, y, 40), loss=loss, grid_size=9)
    assert value() <= before + 1e-9


def test_evidence_over_the_whole_space_is_full_laplaces():
    """A walk of more states than weights spans everything; relative tolerance 1e-6 (the host's matrix is float32)."""
    for problem, likelihood, sigma in ((classifier, "classification", 1.0), (regressor, "regression", 0.3)):
        model, data = problem()
        host = FullLaplace(copy.deepcopy(model), likelihood, sigma_noise=sigma, prior_precision=2.0)
        host.fit(data)
        sampler = TrajectorySampler(n_particles=40, n_steps=4)
        la = fitted(model, data, likelihood, sampler=sampler, sigma_noise=sigma, prior_precision=2.0)
        for tau in (torch.tensor(2.0), torch.tensor(0.5), torch.linspace(0.5, 2, la.n_params)):
            ours, theirs = (m.log_marginal_likelihood(prior_precision=tau.double()) for m in (la, host))
            assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_marglik_climbs_the_evidence_and_walks_on_when_it_must():
    model, data = classifier()
    la = fitted(model, data)
    before = float(la.log_marginal_likelihood())
    la.optimize_prior_precision(method="marglik", n_steps=200)
    assert float(la.log_marginal_likelihood()) >= before
    tau = la.prior_precision.clone()
    nearby = [float(la.log_marginal_likelihood(tau * f)) for f in (0.9, 1.0, 1.1)]
    assert nearby[1] == max(nearby)
    la.prior_precision = tau
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 < la.walk_share <= 1
    assert la.report.reach == pytest.approx(math.sqrt(la.n_params / min(1.0, float(tau))), rel=0.06)


def test_evidence_is_differentiable(regression):
    la, _ = copy.deepcopy(regression)
    tau = torch.tensor([1.3], dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(la.log_marginal_likelihood(tau, sigma), [tau, sigma])
    step = 1e-6
    for k, gradient in enumerate(gradients):
        values = []
        for sign in (1, -1):
            point = [tau.detach().clone(), sigma.detach().clone()]
            point[k] += sign * step
            values.append(float(la.log_marginal_likelihood(*point)))
        assert float(gradient) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)


# --- state -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_state_goes_through_a_file(form, tmp_path, classification):
    la, data = copy.deepcopy(classification)
    la.posterior = form
    la.prior_precision = 1.7
    torch.save(la.state_dict(), tmp_path / "state.pt")
    other = FiberLaplace(copy.deepcopy(la.model), "classification")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = data.dataset.tensors[0]
    assert torch.equal(la(x), other(x))
    generators = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(*(m(x, generator=g) for m, g in zip((la, other), generators, strict=True)))
    with pytest.raises(RuntimeError, match="call it once before state_dict"):
        other.log_marginal_likelihood()


def test_deepcopy_predicts_the_same(classification):
    la, data = classification
    assert torch.equal(copy.deepcopy(la)(data.dataset.tensors[0]), la(data.dataset.tensors[0]))


def test_states_that_do_not_fit_are_refused(classification, regression):
    state = classification[0].state_dict()
    wider, _ = classifier(width=6)
    untrained = copy.deepcopy(classification[0].model)
    nn.init.zeros_(untrained[0].weight)
    cases = [
        (FiberLaplace(copy.deepcopy(regression[0].model), "regression"), "expected likelihood 'regression'"),
        (FiberLaplace(copy.deepcopy(untrained), "classification", subset="last_layer"), "expected weights"),
        (FiberLaplace(wider, "classification"), "expected n_params 39, got 33"),
        (FiberLaplace(untrained, "classification"), "got a model with others"),
    ]
    for la, message in cases:
        with pytest.raises(ValueError, match=message):
            la.load_state_dict(state)
        with pytest.raises(RuntimeError, match="has not been fitted"):
            la.sample(1)
    with pytest.raises(ValueError, match="expected version 3, got 99"):
        FiberLaplace(copy.deepcopy(classification[0].model), "classification").load_state_dict({**state, "version": 99})


# --- report ----------------------------------------------------------------------------------------------------------

HEALTHY = {
    "objective_map": 1.0, "nll_map": 0.1, "positions": (0.5, 1.0), "objective_walk": (1.0, 1.0),
    "nll_walk": (0.2, 0.3), "nll_decoded": (0.2, 0.3), "predictive_gap": 0.0, "reconstruction_error": 0.0,
    "straightness": 1.0, "reach": 10.0, "distance": 9.0, "rejected_share": 0.1, "gradient_evaluations": 5.0,
    "group_size": 8, "basis_rank": 64, "lost_particles": 0, "n_particles": 8,
    "gradient_norm": 0.0, "gradient_imbalance": 0.0,
    "balanced_prior_precision": 1.0, "common_displacement": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("sign", "advice"),
    [
        ({"distance": 1.0}, "cluster near the trained weights"),
        ({"nll_walk": (0.2, 3.0), "nll_decoded": (0.2, 3.0)}, "leaves the low-loss set"),
        ({"reconstruction_error": 0.5}, "Decoded samples differ"),
        ({"nll_decoded": (0.4, 0.6)}, "Decoded samples differ"),
        ({"straightness": 0.5}, "latent space bends"),
        ({"predictive_gap": 0.1}, "latent space bends"),
        ({"rejected_share": 0.9}, "were taken back"),
    ],
)
def test_each_failure_sign_has_its_advice(sign, advice):
    assert FitReport(**HEALTHY).advice() == []
    report = FitReport(**{**HEALTHY, **sign})
    assert len(report.advice()) == 1
    assert advice in report.advice()[0]
    assert report.advice()[0] in str(report)


def test_bent_trajectories_matter_where_samples_lie_on_them():
    bent = FitReport(**{**HEALTHY, "straightness": 0.5})
    assert bent.advice()
    assert not replace(bent, drawn_at=(1.0,)).advice()
    assert replace(bent, drawn_at=(1.0,), predictive_gap=0.1).advice()


def test_samples_that_fit_far_more_closely_than_the_network_are_warned_of():
    close = {**HEALTHY, "nll_walk": (0.05, 0.01), "closeness": 0.1}
    (sentence,) = warned_of(FitReport(**close))
    assert "much more closely than the trained network" in sentence
    assert not list(warned_of(FitReport(**{**close, "closeness": 0.5})))
    assert not list(warned_of(FitReport(**{**close, "nll_map": 0.02})))  # both fit them well


def test_report_of_a_fit(classification):
    la, data = classification
    report = la.report
    x, y = data.dataset.tensors
    expected = float(nn.functional.cross_entropy(la.model(x), y))
    assert report.nll_map == pytest.approx(expected, rel=1e-9)
    assert report.reach == pytest.approx(math.sqrt(la.n_params))
    assert report.lost_particles == 0
    assert 0 <= report.rejected_share < 1
    assert "train NLL, decoded" in str(report)


def test_report_compares_losses_without_their_normalising_constants(classification, regression):
    per_output = math.log(0.2 * math.sqrt(2 * math.pi))  # the fixture's noise
    for (la, _), constant in [(classification, 0.0), (regression, per_output * regression[0].n_outputs)]:
        end, trained = la.report.nll_walk[-1] - constant, la.report.nll_map - constant
        assert la.report.closeness == pytest.approx(end / trained, rel=1e-6)


def test_report_measures_the_distance_of_decoded_samples():
    model, data = classifier()
    rough = fitted(model, data, autoencoder=type(FAST)(n_steps=1, line_units=2)).report
    good = fitted(model, data, autoencoder=type(FAST)(n_steps=50)).report
    assert rough.reconstruction_error > 0.1 > 0.02 > good.reconstruction_error
    assert rough.advice()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_a_network_that_is_not_at_a_minimum_is_reported_with_its_gradient():
    model, data = classifier()
    with pytest.warns(UserWarning, match=r"not at a minimum .*gradient norm .* prior_precision=") as told:
        la = fitted(model, data, prior_precision=100.0)
    assert Path(told[0].filename).parent == Path(__file__).parent  # the line that called fit
    x, y = data.dataset.tensors
    objective = nn.functional.cross_entropy(model(x), y, reduction="sum")
    objective = objective + 50.0 * sum(p.square().sum() for p in model.parameters())
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(model.parameters()))])
    assert la.report.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-9)
    assert 0.2 < la.report.balanced_prior_precision < 5


def test_a_data_parallel_wrapper_is_refused():
    with pytest.raises(ValueError, match=r"got a DataParallel; pass model\.module"):
        FiberLaplace(nn.DataParallel(classifier()[0]), "classification")


def test_errors_before_fit():
    model, _ = classifier()
    la = FiberLaplace(model, "classification")
    x = torch.ones(2, 2, dtype=torch.float64)
    calls = [
        lambda: la(x), lambda: la.sample(), lambda: la.predictive_samples(x), lambda: la.functional_samples(x),
        lambda: la.log_marginal_likelihood(), lambda: la.state_dict(), lambda: la.optimize_prior_precision(),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(RuntimeError, match=r"FiberLaplace has not been fitted: call fit\(train_loader\) first"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "poisson"}, r"likelihood: expected one of .*, got 'poisson'"),
        ({"sigma_noise": 0.5}, "sigma_noise: expected 1 for classification"),
        ({"prior_precision": -1.0}, "prior_precision: expected positive finite values, got -1"),
        ({"prior_precision": torch.ones(7)}, r"expected one value, 4 .one per weight tensor. or 33 .*got shape \(7,\)"),
        ({"prior_mean": torch.ones(7)}, "Invalid length of prior mean"),
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0"),
        ({"posterior": "cubic"}, "posterior: expected one of"),
        ({"engine": "jit"}, "engine: expected 'auto', 'vmap' or 'loop'"),
    ],
)
def test_bad_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        FiberLaplace(classifier()[0], **{"likelihood": "classification", **options})


def test_bad_calls(classification):
    la, data = classification
    x = data.dataset.tensors[0]
    for call, message in [
        (lambda: la(x, n_samples=0), "n_samples: expected at least 1, got 0"),
        (lambda: la(x, pred_type="map"), "link_approx|pred_type: expected 'nn' or 'glm'"),
        (lambda: la(x, link_approx="probit"), "link_approx: expected mc for pred_type='nn', got 'probit'"),
        (lambda: la(x, pred_type="glm", link_approx="logit"), "link_approx: expected .*got 'logit'"),
        (lambda: la(x, generator=3), "generator: expected a torch.Generator"),
        (lambda: la.optimize_prior_precision(method="gridsearch"), "pass val_loader="),
        (lambda: la.optimize_prior_precision(method="guess"), "expected 'gridsearch' or 'marglik'"),
        (lambda: la.fit(data, override=False), "override: expected True"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_failed_fit_leaves_nothing_half_done():
    model, data = classifier()
    x, y = data.dataset.tensors
    poisoned = x.clone()
    poisoned[3] = torch.nan
    la = FiberLaplace(model, "classification", autoencoder=FAST)
    for bad, message in [
        (loader(poisoned, y), "expected a finite loss at the trained weights, got nan"),
        (loader(x, y + 1), "expected labels in"),
        (loader(x[:0], y[:0]), "got an empty loader"),
        (iter(loader(x, y)), "again and again, got a .*pass the DataLoader itself"),
    ]:
        with pytest.raises(ValueError, match=message):
            la.fit(bad)
        assert la.mean is None
        assert la.report is None
    la.fit(data)
    before = la(x)
    with pytest.raises(ValueError, match="finite loss"):
        la.fit(loader(poisoned, y))
    assert torch.equal(la(x), before)


def test_lost_particles_are_reported():
    class Explodes(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))

        def forward(self, x):
            return (x @ self.weight)[:, None] + torch.where(self.weight[0] > 0.5, torch.nan, 0.0)

    data = loader(torch.eye(4, dtype=torch.float64) * 1e-3, torch.zeros(4, 1, dtype=torch.float64))
    with pytest.warns(UserWarning, match=r"of 8 particles met an objective that was not finite"):
        la = fitted(Explodes(), data, "regression", sampler=TrajectorySampler(n_particles=8, n_steps=10))
    assert 0 < la.report.lost_particles < 8
    assert bool(torch.isfinite(la.sample(50)).all())


def test_fixed_refinement_is_the_papers_walk():
    model, data = classifier()
    sampler = TrajectorySampler(
        n_particles=4, n_steps=5, reach=2.0, step_size=1e-2, descent="plain", refinement=FixedRefinement(10)
    )
    la = fitted(model, data, sampler=sampler)
    assert la.report.gradient_evaluations == 5 * 11
    assert la.report.rejected_share == 0.0


def test_hyper_parameters_changed_after_fit_say_to_fit_again(regression):
    la, _ = copy.deepcopy(regression)
    la.sigma_noise = 0.4
    with pytest.warns(UserWarning, match="sigma_noise changed since fit.*fit again"):
        la.sample(2)
    la.sigma_noise = 0.2
    la.temperature = 2.0
    with pytest.warns(UserWarning, match="temperature changed since fit"):
        la.sample(2)


def test_noise_per_output():
    """Equal noises are as one; unequal ones scale their own output's errors; a wrong number is refused."""
    model, data = regressor()
    x, y = data.dataset.tensors
    one = fitted(model, data, "regression", sigma_noise=0.3)
    two = fitted(model, data, "regression", sigma_noise=torch.tensor([0.3, 0.3], dtype=torch.float64))
    torch.testing.assert_close(one(x)[0], two(x)[0])
    torch.testing.assert_close(one.log_marginal_likelihood(), two.log_marginal_likelihood())
    sigma = torch.tensor([0.1, 2.0], dtype=torch.float64)
    unequal = fitted(model, data, "regression", sigma_noise=sigma)
    expected = torch.distributions.Normal(model(x), sigma).log_prob(y).sum()
    torch.testing.assert_close(unequal.log_likelihood, expected.detach())
    variance = unequal(x)[1].mean(0)
    assert float(variance[0]) < float(variance[1])
    parameter = sigma.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(unequal.log_marginal_likelihood(sigma_noise=parameter), parameter)
    assert bool(torch.isfinite(gradient).all())
    with pytest.raises(ValueError, match=r"sigma_noise: expected one value or 2 \(one per output\), got 3"):
        fitted(model, data, "regression", sigma_noise=torch.ones(3))


@pytest.mark.parametrize("structure", ["layerwise", "diag"])
def test_marglik_with_a_precision_per_layer_or_weight(structure):
    model, data = classifier()
    la = fitted(model, data)
    before = float(la.log_marginal_likelihood())
    la.optimize_prior_precision(method="marglik", prior_structure=structure, n_steps=20)
    assert la.prior_precision.numel() == {"layerwise": 4, "diag": la.n_params}[structure]
    assert float(la.log_marginal_likelihood()) > before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.sample(2)


def test_values_that_are_no_numbers_are_refused():
    model, _ = classifier()
    for name in ("prior_precision", "sigma_noise"):
        with pytest.raises(ValueError, match=f"{name}: expected a number or a tensor, got 'much'"):
            FiberLaplace(model, "regression", **{name: "much"})


def test_noise_for_classes_is_refused_in_the_evidence(classification):
    with pytest.raises(ValueError, match="sigma_noise: expected 1 for classification"):
        classification[0].log_marginal_likelihood(sigma_noise=torch.tensor(0.5))


def test_last_layer_by_name_as_in_laplace_torch():
    model, _ = classifier()
    la = Laplace(model, "classification", hessian_structure="fiber", last_layer_name="0")
    assert la.network.names == ("0.weight", "0.bias")
    with pytest.raises(ValueError, match="feature_reduction: expected None"):
        Laplace(model, "classification", hessian_structure="fiber", feature_reduction="pick_last")
