"""The walk among batches, against torch's own optimizer."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from problems import FAST, classifier, joint_of, linear_regression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import (
    EndPosition,
    FiberLaplace,
    StochasticRefinement,
    Thermalisation,
    TrajectorySampler,
    UniformPosition,
    comparison,
    stochastic_walk,
)
from laplace_fiber.comparison.task import Task
from laplace_fiber.data import TrainingData
from laplace_fiber.engines import CACHED_ELEMENTS, output_elements, several_cost_little
from laplace_fiber.stochastic import StochasticDescent
from laplace_fiber.tuning import search_prior_precision, spaced

TAU = 0.6


def walked(model, data, sampler):
    joint, _ = joint_of(model, data, "classification", tau=TAU)
    training = TrainingData(data, torch.device("cpu"), sampler.data_batch)
    with joint.network.evaluation():
        return sampler.walk(joint, joint.network.theta(), training), training


def test_a_drift_is_followed_by_the_steps_of_adam():
    """Against torch.optim.Adam on the same batches with the same learning rates, one particle after another."""
    model, data = classifier()
    refinement = StochasticRefinement(epochs=1.5, min_steps=1, learning_rate=0.02)
    sampler = TrajectorySampler(n_particles=3, n_steps=2, reach=2.0, refinement=refinement)
    walk, training = walked(model, data, sampler)
    n_batches, per_drift = 3, 5  # 40 points, 16 at a time; one and a half passes over them
    assert refinement.n_steps(training) == per_drift
    drifts = sampler.directions(torch.full((walk.subspace.basis.shape[1],), TAU, dtype=torch.float64))
    batches = list(data)
    for i, drift in enumerate(drifts):
        own, at = copy.deepcopy(model), 0
        for t in range(2):
            weights = nn.utils.parameters_to_vector(own.parameters()) + drift  # reach / n_steps is 1
            nn.utils.vector_to_parameters(weights, own.parameters())
            optimizer = torch.optim.Adam(own.parameters())
            for k in range(per_drift):
                optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * k / per_drift))
                x, y = batches[at % n_batches]
                at += 1
                prior = sum(p.square().sum() for p in own.parameters()) * TAU / 2
                optimizer.zero_grad()
                (nn.functional.cross_entropy(own(x), y) + prior / 40).backward()
                optimizer.step()
            expected = nn.utils.parameters_to_vector(own.parameters()).detach()
            torch.testing.assert_close(walk.states[i, t + 1], expected, rtol=1e-9, atol=1e-9)
    assert walk.gradient_evaluations == 2 * per_drift


def test_the_preset_ends_at_low_loss_where_its_samples_lie():
    """Drifts alone raise the training loss fivefold; the samples' is near that of the trained network."""
    model, data = classifier()
    losses = {}
    for name, refinement in [
        ("none", StochasticRefinement(1e-9, 1, learning_rate=1e-12)),
        ("default", StochasticRefinement()),
    ]:
        sampler = stochastic_walk(refinement=refinement)
        la = FiberLaplace(model, "classification", prior_precision=0.1, sampler=sampler, autoencoder=FAST)
        la.fit(data)
        losses[name] = la.report.nll_walk[-1] / la.report.nll_map
        assert isinstance(la.position, EndPosition)
        assert la.report.drawn_at == (1.0,)
        assert la.report.reach == pytest.approx(0.5 * math.sqrt(la.n_params / 0.1))
    assert losses["none"] > 5 > 1.5 > losses["default"]


def test_a_higher_prior_precision_takes_samples_from_earlier_states():
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=stochastic_walk(n_particles=3, n_steps=4), posterior="states")
    la.fit(data)
    states = la.fitted.subspace.to_weights(la.fitted.states.flatten(0, 1)).unflatten(0, (3, 5))
    for precision, state in [(1.0, 4), (1.2, 4), (2.0, 3), (4.0, 2), (1e6, 1)]:  # shares 1, 0.91, 0.71, 0.5 and none
        la.prior_precision = precision
        with warnings.catch_warnings(record=True) as said:
            samples = la.sample(3)
        torch.testing.assert_close(samples.sort(0).values, states[:, state].sort(0).values)
        assert sum("nearest of 4; fit again" in str(w.message) for w in said) == (precision == 1.2)  # said once
    loaded = FiberLaplace(model, "classification", posterior="states")
    loaded.load_state_dict(la.state_dict())
    loaded.prior_precision = 1.2
    torch.testing.assert_close(loaded.sample(3).sort(0).values, states[:, 4].sort(0).values)


def test_a_posterior_without_a_walk_of_its_own_takes_this_one_unless_data_are_few(monkeypatch):
    monkeypatch.setattr("laplace_fiber.data.FEW_NUMBERS", 60)
    model, data = classifier()
    few = DataLoader(TensorDataset(*data.dataset[:30]), batch_size=10)
    la = FiberLaplace(model, "classification", autoencoder=FAST)
    assert la.position == UniformPosition()
    for loader, walk, position in [(data, stochastic_walk(), EndPosition()), (few, TrajectorySampler(), None)]:
        la.fit(loader)
        assert (la.sampler, la.position) == (walk, position or UniformPosition())
        assert la.fitted.low_at_states_only == (position is not None)
        loaded = FiberLaplace(model, "classification")
        loaded.load_state_dict(la.state_dict())
        assert loaded.position == la.position
        torch.testing.assert_close(loaded.sample(5), la.sample(5))
    given = FiberLaplace(model, "classification", sampler=TrajectorySampler(3, 2), autoencoder=FAST)
    given.fit(data)
    assert given.sampler == TrajectorySampler(3, 2)


@pytest.mark.parametrize("form", ["latent", "states"])
def test_weights_that_are_drawn_often_are_run_once(form, monkeypatch):
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=stochastic_walk(n_particles=4), posterior=form, autoencoder=FAST)
    la.fit(data)
    run = []
    outputs = type(la)._outputs
    monkeypatch.setattr(
        type(la),
        "_outputs",
        lambda self, groups, *args: outputs(self, (run.append(len(g)) or g for g in groups), *args),
    )
    x, generator = data.dataset.tensors[0], torch.Generator
    for source in (lambda: None, lambda: generator().manual_seed(3)):
        expected = la.network.many(la.sample(50, source()), x)
        torch.testing.assert_close(la.functional_samples(x, n_samples=50, generator=source()), expected)
        assert sum(run) == 4
        run.clear()
    for seed in range(4):  # few samples come in their own order, too
        few = la.functional_samples(x, n_samples=3, generator=generator().manual_seed(seed))
        torch.testing.assert_close(few, la.network.many(la.sample(3, generator().manual_seed(seed)), x))
    assert len(la.sample(50).unique(dim=0)) == 4


def test_settings_follow_the_number_of_data(monkeypatch):
    data = classifier()[1]
    numbers = data.dataset.tensors[0].numel()
    for limit, few in [(numbers, True), (numbers - 1, False)]:
        monkeypatch.setattr("laplace_fiber.data.FEW_NUMBERS", limit)
        sampler = stochastic_walk(data, seed=3)
        assert sampler == stochastic_walk(seed=3, **({"n_particles": 32, "thermal": Thermalisation()} if few else {}))
        named = [{"x": x, "labels": y, "length": len(y)} for x, y in data]
        assert stochastic_walk(named, seed=3).n_particles == (32 if numbers + 40 <= limit else None)
    assert (stochastic_walk().n_particles, stochastic_walk().thermal) == (None, None)


class Unbatchable(nn.Linear):
    """A layer whose forward pass depends on a number that vmap cannot see."""

    def forward(self, x):
        return super().forward(x) * (1.0 if float(self.weight.sum()) > -1e9 else 2.0)


def dense(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (dense(2, 9, 3), {}, 16),
        (dense(2, 9, 3), {"engine": "loop"}, 4),
        (dense(2, 99, 99, 3), {}, 4),  # many weights
        (dense(2, 99, 99, 3), {"subset": "last_layer"}, 16),
        (nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(4, 3)), {}, 4),
        (nn.Sequential(dense(2, 9), Unbatchable(9, 3)), {}, 4),
    ],
    ids=["small", "loop", "large", "last layer", "convolutions", "unbatchable"],
)
@pytest.mark.filterwarnings("ignore")
def test_particles_are_more_where_they_cost_little(model, options, expected):
    loader = classifier()[1]
    quick = StochasticRefinement(epochs=1.0, min_steps=2, learning_rate=0.01)
    for _ in range(2):  # what an earlier fit has found out makes no difference
        sampler = stochastic_walk(refinement=quick)
        la = FiberLaplace(model.double(), "classification", sampler=sampler, autoencoder=FAST, **options)
        for _ in range(2):
            la.fit(loader)
            assert la.report.n_particles == expected


def test_particles_are_few_where_not_all_stay_in_the_cache(monkeypatch):
    model, loader = classifier()
    network, x = FiberLaplace(model, "classification").network, loader.dataset.tensors[0]
    elements = output_elements(network, x)
    for cached, cheap in [(16 * elements, True), (16 * elements - 1, False)]:
        monkeypatch.setitem(CACHED_ELEMENTS, "cpu", cached)
        assert several_cost_little(network, network.theta(), x, 16) == cheap


def test_ends_have_the_posterior_s_spread():
    """For a linear model with Gaussian noise, whose posterior is Gaussian; Adam alone ends at its mean."""
    tau, sigma = 0.7, 0.5
    model, data, hessian = linear_regression(tau=tau, sigma=sigma)
    covariance = torch.linalg.inv(30 * hessian)
    mean = model.weight.detach()[0]
    prior = {"sigma_noise": sigma, "prior_precision": tau}
    hot = Thermalisation(n_leapfrog=10)
    for batch, thermal, spread in [("full", hot, 1.0), ("loader", hot, 1.0), ("full", None, 0.0)]:
        sampler = stochastic_walk(batch=batch, n_particles=2000, thermal=thermal)
        la = FiberLaplace(model, "regression", **prior, sampler=sampler, posterior="states", autoencoder=FAST)
        la.fit(data)
        ends = la.sample(2000)
        # Relative to the posterior's standard deviations; 2000 samples tell them to about 2 %.
        whitened = (ends - mean) @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T
        torch.testing.assert_close(whitened.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.1)
        found = whitened.T @ whitened / 2000
        torch.testing.assert_close(found, spread * torch.eye(3, dtype=torch.float64), rtol=0, atol=0.15)


def test_moves_take_all_data_up_to_a_limit(monkeypatch):
    model, data = classifier()
    settings = {"n_particles": 3, "refinement": StochasticRefinement(1.0, 4), "thermal": Thermalisation(2, 5)}
    walk, training = walked(model, data, stochastic_walk(**settings))
    assert not training.full
    assert walk.acceptance > 0
    monkeypatch.setattr("laplace_fiber.walk_ends.FULL_BATCH_LIMIT", 39)
    with pytest.warns(UserWarning, match="with StochasticRefinement, up to 39 points"):
        left, _ = walked(model, data, stochastic_walk(**settings))
    assert math.isnan(left.acceptance)
    assert walk.gradient_evaluations - left.gradient_evaluations == pytest.approx(2 * 6)


def test_a_grid_search_walks_anew_where_each_trajectory_has_one_state():
    model, data = classifier()
    val = DataLoader(data.dataset, batch_size=40)
    refinement = StochasticRefinement(epochs=1.0, min_steps=20, learning_rate=0.05)
    sampler = stochastic_walk(refinement=refinement, chunk_size=4)
    settings = {"sampler": sampler, "posterior": "states", "autoencoder": FAST}
    la = FiberLaplace(model, "classification", prior_precision=5.0, **settings)
    la.fit(data)
    grid = {"log_prior_prec_min": -1.0, "log_prior_prec_max": 1.0, "grid_size": 9}  # by fours: 0.1, 0.32, 1, 3.2, 10
    expected = {}
    for tau in (5.0, 0.1, 10**-0.5, 1.0, 10**0.5, 10.0):
        own = FiberLaplace(model, "classification", prior_precision=tau, **settings)
        own.fit(data)
        expected[tau] = float(nn.functional.nll_loss(own(data.dataset.tensors[0]).log(), data.dataset.tensors[1]))
    la.optimize_prior_precision(method="gridsearch", val_loader=val, **grid)
    best = min(expected, key=expected.get)
    assert float(la.prior_precision) == pytest.approx(best)
    found = float(nn.functional.nll_loss(la(data.dataset.tensors[0]).log(), data.dataset.tensors[1]))
    assert found == pytest.approx(expected[best], rel=1e-4)
    assert best not in (5.0, 10.0)  # neither the first walk nor the search's last
    loaded = FiberLaplace(model, "classification", posterior="states")
    loaded.load_state_dict(la.state_dict())
    loaded.optimize_prior_precision(method="gridsearch", val_loader=val, **grid)  # no data to walk on
    assert float(loaded.prior_precision) == pytest.approx(best)


@pytest.mark.parametrize("largest", [-0.5, 3.0])
def test_a_grid_search_warns_of_the_chosen_walk_alone(largest):
    """Which walks away from a minimum of J, as all others do; the last one's need not be repeated if it is the best."""
    model, data = classifier()
    refinement = StochasticRefinement(epochs=1.0, min_steps=20, learning_rate=0.05)
    sampler = stochastic_walk(n_particles=2, refinement=refinement)
    la = FiberLaplace(model, "classification", prior_precision=1e4, sampler=sampler, autoencoder=FAST)
    with pytest.warns(UserWarning, match="not at a minimum"):
        la.fit(data)
    grid = {"log_prior_prec_min": largest - 4, "log_prior_prec_max": largest, "grid_size": 3}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        la.optimize_prior_precision(method="gridsearch", val_loader=data, **grid)
    assert (float(la.prior_precision) == pytest.approx(10**largest)) == (largest == -0.5)
    assert {str(w.message) for w in said if w.category is UserWarning} == set(la.report.warnings)
    assert la.report.warnings


class Refitted(FiberLaplace):
    """Stands for a posterior that is fitted anew for each prior precision; its loss is lowest at 10^best."""

    _key = ("none", "refitted")  # so that laplace-torch's factory keeps building the class itself
    refits_candidates = True
    prior_precision = None

    def __init__(self, best, start=1.0, broken_below=0.0):
        self.best, self.broken_below = best, broken_below
        self.prior_precision, self.tried = torch.tensor([start]), []

    def distinct_prior_precisions(self, grid):
        return grid

    def settle_prior_precision(self):
        self.tried.append(float(self.prior_precision))

    def loss(self):
        tau = float(self.prior_precision)
        return math.inf if tau < self.broken_below else abs(math.log10(tau) - self.best)


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.2, [10**0.5, 10, 10**-0.5, 0.1]),  # 1 itself
        (1.9, [10**0.5, 10, 10**1.5, 100, 10**2.5, 1000, 10**-0.5, 0.1]),
        (-0.6, [10**0.5, 10, 10**-0.5, 0.1, 10**-1.5]),
        (3.9, [10 ** (i / 2) for i in range(1, 9)] + [10**-0.5, 0.1]),  # to the end of the grid
    ],
)
def test_a_grid_search_that_costs_fits_goes_outwards_until_it_gets_worse(best, tried):
    posterior = Refitted(best)
    search_prior_precision(posterior, torch.logspace(-4, 4, 17), posterior.loss)
    assert posterior.tried == pytest.approx(tried)
    assert float(posterior.prior_precision) == pytest.approx(10 ** (round(2 * best) / 2))


def test_a_grid_search_goes_on_where_no_loss_is_finite_yet():
    posterior = Refitted(3.0, start=3e-5, broken_below=0.99)
    search_prior_precision(posterior, torch.logspace(-4, 4, 9), posterior.loss)
    assert posterior.tried == pytest.approx([10.0**i for i in range(-4, 5)])
    assert float(posterior.prior_precision) == pytest.approx(1000)


def test_grids_are_thinned_from_their_first_value_on():
    grid = torch.logspace(-4, 4, 100)
    kept = spaced(grid, 3.0)
    assert float(kept[0]) == pytest.approx(1e-4)
    assert bool((kept[1:] / kept[:-1] > 2.99).all())
    assert len(kept) == 17
    assert spaced(torch.logspace(0, 4, 5), 10.0).tolist() == pytest.approx([1, 10, 100, 1e3, 1e4])
    assert len(spaced(grid[:0], 3.0)) == 0


def test_steps_and_learning_rate_follow_data_and_weights():
    model, data = classifier()
    rule = StochasticRefinement(epochs=2.0, min_steps=4)
    batches = TrainingData(DataLoader(data.dataset, batch_size=5), torch.device("cpu"), "loader")
    assert rule.n_steps(batches) == 16
    assert rule.n_steps(TrainingData(data, torch.device("cpu"), "full")) == 4
    assert StochasticRefinement(epochs=9.0, min_steps=4, max_steps=11).n_steps(batches) == 11
    long = StochasticRefinement(epochs=1e6)
    assert long.n_steps(batches) * 5 == 2000 * 64
    many = DataLoader(TensorDataset(torch.randn(160, 2), torch.zeros(160)), batch_size=80)
    assert long.n_steps(TrainingData(many, torch.device("cpu"), "loader")) == 2000
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    shares = [rate * len(theta) ** 0.5 / float(theta.norm()) for rate in rule.rates_for(theta)]
    assert shares == pytest.approx([0.1, 0.03, 0.01, 0.003])
    assert min(rule.rates_for(torch.zeros(3))) > 0
    assert StochasticRefinement(learning_rate=0.5).rates_for(theta) == [0.5]
    assert [stochastic_walk(batch=b).data_batch for b in ("auto", "full")] == ["loader", "full"]
    assert TrajectorySampler().data_batch == "auto"


@pytest.mark.parametrize("radius_share", [0.05, 0.5])
def test_the_largest_learning_rate_that_comes_about_as_far_as_any_is_taken(radius_share):
    """Against torch.optim.Adam from the first particle's drift, with each of the rates."""
    model, data = classifier()
    rule = StochasticRefinement(epochs=1.0, min_steps=30, max_steps=30)
    sampler = stochastic_walk(n_particles=3, refinement=rule, radius_share=radius_share)
    walk, _ = walked(model, data, sampler)
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    drift = sampler.directions(torch.full_like(theta, TAU))[0] * sampler.length(torch.full_like(theta, TAU), theta)
    losses, bounds = {}, []
    batches = list(itertools.islice(itertools.cycle(list(data)), 30))
    for weights in (theta, torch.zeros_like(theta)):
        own = copy.deepcopy(model)
        nn.utils.vector_to_parameters(weights, own.parameters())
        bounds.append(sum(nn.functional.cross_entropy(own(x), y).item() for x, y in batches[24:]))  # the last fifth
    for rate in rule.rates_for(theta):
        own = copy.deepcopy(model)
        nn.utils.vector_to_parameters(theta + drift, own.parameters())
        optimizer = torch.optim.Adam(own.parameters())
        losses[rate] = 0.0
        for k, (x, y) in enumerate(batches):
            optimizer.param_groups[0]["lr"] = rate / 2 * (1 + math.cos(math.pi * k / 30))
            optimizer.zero_grad()
            prior = sum(p.square().sum() for p in own.parameters()) * TAU / 2
            loss = nn.functional.cross_entropy(own(x), y)
            (loss + prior / 40).backward()
            optimizer.step()
            losses[rate] += float(loss.detach()) * (k >= 24)
    recovered = {rate: (bounds[1] - loss) / (bounds[1] - bounds[0]) for rate, loss in losses.items()}
    enough = [rate for rate, share in recovered.items() if share >= max(recovered.values()) - 0.2]
    assert walk.step_sizes.tolist() == pytest.approx([max(enough)] * 3)
    assert (len(enough) == 4) == (radius_share == 0.05)


def test_drifts_are_halved_until_a_trial_comes_back():
    model, data = classifier()
    far = {"n_particles": 3, "norm_share": None}
    reach = {}
    for name, settings in [("found", {}), ("given", {"refinement": StochasticRefinement(learning_rate=0.05)})]:
        la = FiberLaplace(
            model, "classification", prior_precision=1e-5, sampler=stochastic_walk(**far, **settings), autoencoder=FAST
        )
        la.fit(data)
        reach[name] = la.report.reach
        if name == "found":
            away = la.fitted.subspace.to_weights(la.fitted.states[:, -1]) - la.mean
            assert la.report.nll_walk[-1] < 1.5 * la.report.nll_map
            assert float(away.norm(dim=1).max()) < reach["found"] * 3
    halvings = math.log2(reach["given"] / reach["found"])
    assert halvings == pytest.approx(round(halvings))
    assert 1 <= halvings <= 6
    # From there a trial comes back: no more is taken away.
    sampler = stochastic_walk(n_particles=3, reach=reach["found"])
    again = FiberLaplace(model, "classification", prior_precision=1e-5, sampler=sampler, autoencoder=FAST)
    again.fit(data)
    assert again.report.reach == pytest.approx(reach["found"])


def test_trials_are_longer_once_a_short_one_has_not_come_back(monkeypatch):
    tried = []

    def recovered(self, origin, drift, next_batch, group, n_steps):
        tried.append((n_steps, float(drift.norm())))
        return [0.45, 0.2, 0.1, 0.0] if len(tried) < 3 else [0.3, 0.55, 0.6, 0.2]

    monkeypatch.setattr(StochasticDescent, "_recovered", recovered)
    model, data = classifier()
    rule = StochasticRefinement(epochs=1.0, min_steps=750, max_steps=750)
    walk, _ = walked(model, data, stochastic_walk(n_particles=2, refinement=rule))
    assert [n_steps for n_steps, _ in tried] == [100, 150, 150]
    assert [length / tried[0][1] for _, length in tried] == pytest.approx([1, 0.5, 0.25])
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert walk.step_sizes.tolist() == pytest.approx([rule.rates_for(theta)[1]] * 2)


def test_a_trial_needs_no_outputs_at_weights_of_zero():
    """A layer that divides by the norm of its weights has none; the walk still comes back to low loss."""
    model, data = classifier()
    nn.utils.parametrizations.weight_norm(model[0])
    joint, _ = joint_of(model, data, "classification", tau=TAU)
    with joint.network.evaluation():
        at_zero = joint.network.one(0 * joint.network.theta(), data.dataset.tensors[0])
    assert not torch.isfinite(at_zero).any()
    walk, _ = walked(model, data, stochastic_walk(n_particles=3))
    assert float(walk.step_sizes[0]) > 0
    assert float(walk.trace.nll[:, -1].mean()) < float(walk.trace.nll[:, 0].mean()) + 0.3


def test_a_drift_is_no_longer_than_five_times_the_trained_weights():
    theta = torch.full((4,), 0.5)
    for tau, length in [(0.01, 5.0), (100.0, 0.1)]:  # half the prior's radius: 10, 0.1
        assert stochastic_walk().length(torch.full((4,), tau), theta) == pytest.approx(length)
    assert stochastic_walk().length(torch.full((4,), 0.01), theta, batch_norm=True) == pytest.approx(1.0)
    assert stochastic_walk(norm_share=None).length(torch.full((4,), 0.01), theta) == pytest.approx(10.0)
    assert stochastic_walk().length(torch.full((4,), 0.01), torch.zeros(4)) == pytest.approx(10.0)
    assert stochastic_walk(reach=3.0).length(torch.full((4,), 0.01), theta) == 3.0


def test_drifts_are_short_where_batch_norm_moves():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()
    data = classifier()[1]
    data = DataLoader(
        TensorDataset(*(t.to(torch.float32) if t.is_floating_point() else t for t in data.dataset.tensors)),
        batch_size=16,
    )
    for subset, share in [("all", 1.0), ("last_layer", 5.0)]:
        sampler = stochastic_walk(refinement=StochasticRefinement(learning_rate=0.01))  # not tried out, nor shortened
        la = FiberLaplace(model, "classification", prior_precision=1e-6, sampler=sampler, subset=subset)
        la.fit(data)
        assert la.report.reach == pytest.approx(share * float(la.mean.norm()), rel=1e-5)


@pytest.mark.parametrize("settings", [{"epochs": 0.0}, {"min_steps": 0}, {"max_steps": 3}, {"learning_rate": -1.0}])
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected (a positive number|at least)"):
        StochasticRefinement(**settings)
    with pytest.raises(ValueError, match="radius_share: expected a positive number"):
        stochastic_walk(radius_share=0.0)


def test_a_lost_particle_keeps_its_state_before_the_drift():
    model, data = classifier()
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()

    class Fragile(nn.Module):
        """Not finite far from the trained weights on one side."""

        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, x):
            broken = self.inner[0].weight[0, 0] > theta[0] + 1.0
            return self.inner(x) + torch.where(broken, torch.nan, 0.0)

    sampler = stochastic_walk(
        n_particles=12,
        n_steps=4,
        reach=8.0,
        refinement=StochasticRefinement(1e-9, 1, learning_rate=1e-9),
        lengths="fixed",
    )
    walk, _ = walked(Fragile(), data, sampler)
    lost = walk.lost_at <= 4
    assert 0 < int(lost.sum()) < 12
    for states, at in zip(walk.states[lost], walk.lost_at[lost].tolist(), strict=True):
        assert float(states[-1, 0]) <= theta[0] + 1.0
        torch.testing.assert_close(states[at:], states[at - 1].expand(5 - at, -1), rtol=0, atol=1e-10)


def test_a_comparison_fits_it_anew_for_each_prior_precision():
    model, data = classifier()
    task = Task((model,), "classification", data, data, 1.0, 10)
    method = comparison.method("fiber_stochastic", sampler=stochastic_walk(n_particles=3, n_steps=1), autoencoder=FAST)
    fitted = method.fit(task, 0, {**method.options, "prior_precision": 2.0}, False)
    assert not fitted.follow(20.0)
    assert fitted.gradient_evaluations == 3 * 500 + 4 * 100  # with the trial of four learning rates


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_walk_on_cuda_is_the_walk_on_the_cpu():
    model, data = classifier()
    ends = []
    for device in ("cpu", "cuda"):
        joint, training = joint_of(model.to(device), data, "classification", tau=TAU)
        with joint.network.evaluation():
            ends.append(stochastic_walk(n_particles=4).walk(joint, joint.network.theta(), training).states.cpu())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)
