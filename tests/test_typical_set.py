"""The walk to the typical set, against Gaussian posteriors known in closed form."""

import math
from dataclasses import replace

import pytest
import torch
from problems import FAST, classifier, joint_of, linear_regression, loader, regressor
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import (
    Checkpoint,
    EndPosition,
    FiberLaplace,
    FixedRefinement,
    LatentAutoencoder,
    RefineToTypicalSet,
    Thermalisation,
    TrajectorySampler,
    UniformPosition,
    typical_set,
    typical_set_walk,
)
from laplace_fiber.data import TrainingData
from laplace_fiber.draws import normal
from laplace_fiber.quasi_newton import KEPT_AFTER
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import Refining
from laplace_fiber.sharpness import sharpness
from laplace_fiber.thermal import Heat
from laplace_fiber.typical_set import Arrival
from laplace_fiber.walk import Walk


def gaussian(n: int = 30, d: int = 6, tau: float = 0.7, sigma: float = 0.5):
    """A linear regression with stiff and soft directions, and its posterior's covariance and dimension."""
    model, data, _ = linear_regression(n, d, tau, sigma)
    x, y = data.dataset.tensors
    x = x * torch.tensor([3.0, 1.0, 0.3, 0.1, 0.03, 0.0][:d], dtype=x.dtype)
    precision = x.T @ x / sigma**2 + tau * torch.eye(d, dtype=x.dtype)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / sigma**2).T)
    values = torch.linalg.eigvalsh(x.T @ x / sigma**2)
    return model, loader(x, y, n), torch.linalg.inv(precision), float((values / (values + tau)).sum())


def walked(sampler: TrajectorySampler, tau: float = 0.7, sigma: float = 0.5):
    model, data, covariance, dimension = gaussian(tau=tau, sigma=sigma)
    joint, training = joint_of(model, data, "regression", tau, sigma)
    with joint.network.evaluation():
        walk = sampler.walk(joint, joint.network.theta(), training)
    return walk, walk.states[:, -1], joint, training, covariance, dimension


@pytest.mark.parametrize("dimension", [3.0, 13.7, 200.0])
def test_levels_have_the_law_of_half_a_chi_square(dimension):
    quantiles = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)
    levels = RefineToTypicalSet.level(dimension, torch.special.ndtri(quantiles))
    exact = 0.5 * torch.as_tensor(stats.chi2(dimension).ppf(quantiles.numpy()))
    torch.testing.assert_close(levels, exact, rtol=0.05, atol=0.02)


def test_particles_above_their_own_level_go_on():
    at = Refining(0, torch.tensor([6.0, 6.0]), 1.0, 40, 100, torch.tensor([-1.0, 1.0]), 10.0)
    assert RefineToTypicalSet().wants_more(at).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"expected at.effective_dimension, got None"):
        RefineToTypicalSet().wants_more(at._replace(effective_dimension=None))


def test_the_walk_ends_in_the_gaussian_posterior():
    """Means, covariance, excess and effective dimension of 1024 ends, each within five Monte Carlo errors."""
    n = 1024
    sampler = typical_set_walk(n_particles=n, n_steps=5, thermal=Thermalisation(n_trajectories=8, n_leapfrog=40))
    walk, ends, joint, training, covariance, dimension = walked(sampler)
    assert walk.arrival.effective_dimension == pytest.approx(dimension, rel=1e-6)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (ends - joint.network.theta()).T, upper=False)
    assert float(white.mean(1).abs().max()) < 5 / math.sqrt(n)
    second = white @ white.T / n - torch.eye(len(white), dtype=white.dtype)
    assert float(second.diagonal().abs().max()) < 5 * math.sqrt(2 / n)
    assert float((second - second.diagonal().diag()).abs().max()) < 5 / math.sqrt(n)
    batch = training.everything()
    excess = joint.data_term(ends, batch) - joint.data_term(joint.network.theta()[None], batch)
    assert walk.excess == pytest.approx(float(excess.mean()), rel=1e-9)
    # 2 · excess = Σ λ/(λ + τ) z²: exact in the mean for a minimum of J up to the prior's pull.
    assert abs(float(excess.mean()) - dimension / 2) < 5 * float(excess.std()) / math.sqrt(n) + 0.5
    assert 0.5 < walk.acceptance <= 1


def test_without_moves_the_walk_ends_at_the_levels():
    walk, *_, dimension = walked(typical_set_walk(thermal=None, n_particles=200, n_steps=5))
    assert 0.3 * dimension / 2 < walk.excess <= 1.3 * dimension / 2
    assert math.isnan(walk.acceptance)


def test_moves_leave_the_posterior_as_it_is():
    """Particles that start with exact draws keep their second moments: nothing is lost to the correction."""
    model, data, covariance, _ = gaussian()
    joint, training = joint_of(model, data, "regression", 0.7, 0.5)
    generator, n = torch.Generator().manual_seed(0), 4000
    noise = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    with joint.network.evaluation():
        theta, batch = joint.network.theta(), training.everything()
        settings = Thermalisation(n_trajectories=3, n_leapfrog=3, target_acceptance=0.6)
        heat = Heat(settings, joint, batch, Recorder(0), sharpness(joint, theta, batch))
        heat.step *= 2.5  # coarse: without the correction the energy's error would show
        particles = theta + noise @ root.T
        for _ in range(3):
            state, probability = heat.moved(particles, torch.randn(n, 8, generator=generator, dtype=torch.float64))
            particles = state.theta
    assert 0.3 < float(probability.mean()) < 0.97
    white = torch.linalg.solve_triangular(root, (particles - theta).T, upper=False)
    torch.testing.assert_close(white @ white.T / n, torch.eye(6, dtype=white.dtype), rtol=0, atol=0.12)
    assert float((particles - theta - noise @ root.T).norm(dim=1).mean()) > 0.3  # they did move


def test_states_after_the_last_moves_are_kept():
    """They are the ends of walks with fewer moves, after the same states; the last ones of all particles come first."""
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")

    def walked_with(thermal):
        with joint.network.evaluation():
            sampler = typical_set_walk(n_particles=3, n_steps=2, thermal=thermal)
            return sampler.walk(joint, joint.network.theta(), training)

    shorter = [walked_with(Thermalisation(k, 5)) for k in (2, 3, 4)]
    walk = walked_with(Thermalisation(4, 5, n_kept=3))
    ends = walk.subspace.to_weights(walk.paths[:, -1]).unflatten(0, (3, 3))
    expected = [s.states[:, -1] for s in (shorter[2], shorter[0], shorter[1])]
    torch.testing.assert_close(ends, torch.stack(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(walk.paths[3:6, :-1], walk.coordinates[:, :-1])
    assert walk.gradient_evaluations == shorter[2].gradient_evaluations
    torch.testing.assert_close(shorter[0].paths, shorter[0].coordinates)


def test_every_kept_state_is_a_sample():
    model, data = classifier()
    sampler = typical_set_walk(n_particles=3, n_steps=2, thermal=Thermalisation(3, 5, n_kept=2))
    la = FiberLaplace(model, "classification", sampler=sampler, posterior="states", autoencoder=FAST)
    la.fit(data)
    assert len(la.sample(30).unique(dim=0)) == 6
    assert la.report.n_particles == 3


def test_the_loss_is_counted_from_a_minimum_near_a_network_that_is_not_at_one():
    model, data, _, dimension = gaussian()
    with torch.no_grad():
        model.weight.add_(0.5)
    joint, training = joint_of(model, data, "regression", 0.7, 0.5)
    with joint.network.evaluation():
        walk = typical_set_walk(n_particles=200, n_steps=5).walk(joint, joint.network.theta(), training)
    assert walk.arrival.effective_dimension == pytest.approx(dimension, rel=1e-6)
    assert 0.5 * dimension / 2 < walk.excess < 2 * dimension / 2


def test_lengths_follow_the_prior():
    precision = torch.linspace(0.5, 2.0, 50, dtype=torch.float64)
    rows = TrajectorySampler(n_particles=2000, lengths="prior").directions(precision)
    radius = (1 / precision).sum().sqrt()
    torch.testing.assert_close((rows * radius).var(0) * precision, torch.ones_like(precision), rtol=0.2, atol=0)
    unit = TrajectorySampler(n_particles=20).directions(precision)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(20, dtype=torch.float64))


def test_parts_of_a_stream_are_independent():
    """Also where seeds are told apart by bits that generators leave out."""
    draws = torch.stack([normal(4000, 0, 3, part) for part in (-1, 0, 1, 2)] + [normal(4000, 0, 4, 1)])
    correlation = torch.corrcoef(draws) - torch.eye(5, dtype=draws.dtype)
    assert float(correlation.abs().max()) < 5 / math.sqrt(4000)


def test_posterior_samples_are_the_ends_each_as_often_as_any_other():
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=typical_set_walk(n_particles=8, n_steps=3), posterior="states")
    assert la.position == EndPosition()
    assert FiberLaplace(model, "classification").position == UniformPosition()
    la.autoencoder = FAST
    la.fit(data)
    samples, ends = la.sample(48), la.fitted.states[:, -1]
    assert len(ends) == 24  # three states of each particle, some of them equal where a move was rejected
    (_, counts), (_, held) = (t.mul(1e6).round().unique(dim=0, return_counts=True) for t in (samples, ends))
    assert sorted(counts.tolist()) == sorted((2 * held).tolist())
    assert len(held) > 16
    first = la.sample(8)  # of different particles, after their last moves
    torch.testing.assert_close(
        first.norm(dim=1).sort().values, la.fitted.subspace.to_weights(ends[:8]).norm(dim=1).sort().values
    )
    text = str(la.report)
    assert "effective parameters" in text
    assert "Hamiltonian moves" in text
    la.prior_precision = 4.0  # a narrower prior: states half way
    assert float((la.sample(8) - la.mean).norm(dim=1).mean()) < float((samples - la.mean).norm(dim=1).mean())


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_groups_change_nothing_but_rounding(chunk_size):
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    states = []
    for size in (None, chunk_size):
        refinement, thermal = RefineToTypicalSet(max_steps=5), Thermalisation(2, 5)
        sampler = typical_set_walk(n_particles=6, n_steps=2, chunk_size=size, refinement=refinement, thermal=thermal)
        with joint.network.evaluation():
            states.append(sampler.walk(joint, joint.network.theta(), training).states)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("refinement", [RefineToTypicalSet(), FixedRefinement(KEPT_AFTER + 2)])
def test_an_interrupted_walk_goes_on_to_the_same_ends(refinement, tmp_path, monkeypatch):
    """Also where curvature is kept from drift to drift."""
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    thermal = Thermalisation(2, 5, n_kept=2)
    settings = {"n_particles": 5, "n_steps": 4, "thermal": thermal, "refinement": refinement}
    sampler = typical_set_walk(**settings, checkpoint=Checkpoint(tmp_path, every=1))
    drift = Walk._drift

    def dying(self):
        if self.t == 3:
            raise KeyboardInterrupt
        drift(self)

    with joint.network.evaluation():
        whole = typical_set_walk(**settings).walk(joint, joint.network.theta(), training)
        monkeypatch.setattr(Walk, "_drift", dying)
        with pytest.raises(KeyboardInterrupt):
            sampler.walk(joint, joint.network.theta(), training)
        monkeypatch.setattr(Walk, "_drift", drift)
        resumed = sampler.walk(joint, joint.network.theta(), training)
    torch.testing.assert_close(resumed.states, whole.states, rtol=0, atol=1e-7)
    torch.testing.assert_close(resumed.paths, whole.paths, rtol=0, atol=1e-7)
    assert resumed.gradient_evaluations == whole.gradient_evaluations
    torch.testing.assert_close(resumed.trace.nll, whole.trace.nll, rtol=0, atol=1e-7)
    assert torch.equal(resumed.trace.rejected_share, whole.trace.rejected_share)


def test_on_batches_particles_settle_at_their_levels_on_all_data():
    """Refinement on single batches leaves them several times too high."""
    generator, n, d, tau, sigma = torch.Generator().manual_seed(0), 400, 10, 1.0, 0.5
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -1.5, d, dtype=torch.float64)
    y = x.sum(1, keepdim=True) + sigma * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    precision = x.T @ x / sigma**2 + tau * torch.eye(d, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / sigma**2).T)
    joint, everything = joint_of(model, loader(x, y, 100), "regression", tau, sigma)
    streamed = TrainingData(DataLoader(TensorDataset(x, y), 50, shuffle=True), x.device, "loader")
    theta = joint.network.theta()
    sampler = typical_set_walk(n_particles=64, thermal=None)
    with joint.network.evaluation():
        walk = sampler.walk(joint, theta, streamed)
        batch = everything.everything()
        excess = joint.data_term(walk.states[:, -1], batch) - joint.data_term(theta[None], batch)
        unsettled = joint.data_term(walk.states[:, -2], batch) - joint.data_term(theta[None], batch)
    half = walk.arrival.expected_excess
    assert float(unsettled.mean()) > 3 * half
    assert 0.6 * half < float(excess.mean()) < 1.5 * half
    assert 0.4 * half**0.5 < float(excess.std()) < 2 * half**0.5  # the spread of ½ χ²
    assert 0 < walk.arrival.excess_error < half
    assert abs(walk.excess - float(excess.mean())) < 3 * walk.arrival.excess_error
    assert "±" in str(walk.arrival)
    assert "no Hamiltonian moves" in str(walk.arrival)


def test_batches_of_a_loader_are_not_thermalised():
    model, data = classifier()
    sampler = typical_set_walk(n_particles=4, n_steps=2, batch="loader")
    la = FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST)
    with pytest.warns(UserWarning, match="expected batch='full'"):
        la.fit(data)
    assert math.isnan(la.report.acceptance)


ARRIVED = Arrival(
    effective_dimension=20.0,
    imbalance=0.01,
    excess=9.0,
    excess_error=0.0,
    distance=8.0,
    expected_distance=9.0,
    n_data=100,
    n_params=200,
    exact_moves=True,
)


def test_a_walk_that_has_arrived_has_nothing_to_warn_of():
    assert list(ARRIVED.warnings()) == []
    assert str(ARRIVED).endswith("9 nats above the minimum of J, 10 expected; distance from it 8, 9 expected")


@pytest.mark.parametrize(
    ("differs", "message"),
    [
        ({"imbalance": 0.4}, "not at a minimum of J"),
        ({"effective_dimension": 95.0, "excess": 45.0}, "about as many as there are data points"),
        ({"effective_dimension": 190.0, "excess": 95.0, "n_data": 1000}, "no free direction"),
        ({"excess": 21.0}, "ends 21 nats above the minimum of J, where 10 are expected: allow more"),
        (
            {"excess": 31.0, "excess_error": 2.0},
            "ends 31 nats above the minimum of J, where 10 are expected: take larger",
        ),
        ({"excess": 1.5}, "curvature falls along the walk"),
        ({"distance": 20.0}, "Particles end 20 from the minimum"),
        ({"distance": 3.0}, "Particles end 3 from the minimum"),
    ],
)
def test_each_assumption_that_fails_is_told(differs, message):
    (sentence,) = replace(ARRIVED, **differs).warnings()
    assert message in sentence


def test_distances_from_the_minimum_are_those_of_the_gaussian():
    walk, ends, joint, *_, covariance, _ = walked(typical_set_walk(n_particles=400, n_steps=5))
    arrival = walk.arrival
    assert arrival.distance == pytest.approx(float((ends - joint.network.theta()).norm(dim=1).mean()), rel=1e-4)
    assert arrival.expected_distance == pytest.approx(float(covariance.trace().sqrt()), rel=1e-6)
    assert arrival.exact_moves
    assert list(arrival.warnings()) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Thermalisation(n_trajectories=0), "n_trajectories: expected at least 1"),
        (lambda: Thermalisation(target_acceptance=1.0), "target_acceptance: expected a share"),
        (lambda: Thermalisation(jitter=1.0), "jitter: expected a share"),
        (lambda: Thermalisation(n_kept=6), r"n_kept: expected 1 to n_trajectories \(5\), got 6"),
        (lambda: TrajectorySampler(lengths="long"), "lengths: expected 'fixed' or 'prior'"),
        (lambda: RefineToTypicalSet(max_steps=-1), "max_steps: expected 0 or more"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_flat_network_has_no_effective_parameters():
    """Its posterior is the prior."""
    model = nn.Linear(6, 1, bias=False).double()
    data = loader(torch.zeros(8, 6, dtype=torch.float64), torch.zeros(8, 1, dtype=torch.float64), 8)
    nn.init.zeros_(model.weight)
    joint, training = joint_of(model, data, "regression", tau=2.0)
    with joint.network.evaluation():
        walk = typical_set_walk(n_particles=500, n_steps=2).walk(joint, joint.network.theta(), training)
    assert walk.arrival.effective_dimension == 0
    variance = walk.states[:, -1].var(0)
    torch.testing.assert_close(variance, torch.full_like(variance, 0.5), rtol=0.3, atol=0)


def test_the_report_compares_decoded_points_with_states_where_samples_lie():
    """The latent lines of a rough autoencoder miss the middle of the walk: of no matter to samples at its ends."""
    model, data = regressor()
    settings = {"n_particles": 4, "n_steps": 6, "thermal": None}
    few_units = LatentAutoencoder(n_steps=1, line_units=6)
    reports = []
    for position in (None, UniformPosition()):
        la = FiberLaplace(
            model, "regression", sampler=typical_set_walk(**settings), autoencoder=few_units, position=position
        )
        la.fit(data)
        reports.append(la.report)
        knots = torch.linspace(0, 1, 7, dtype=torch.float64)[6 if position is None else 0 :]
        states, n = la.fitted.states[:, -len(knots) :], len(knots)
        points = la.fitted.lines.coordinates(torch.arange(4).repeat_interleave(n), knots.repeat(4)).unflatten(0, (4, n))
        apart = ((points - states).square().sum() / states.square().sum()).sqrt()
        assert la.report.reconstruction_error == pytest.approx(float(apart))
    ends, anywhere = reports
    assert (ends.drawn_at, anywhere.drawn_at) == ((1.0,), ends.positions)
    assert ends.nll_decoded == anywhere.nll_decoded
    walk, decoded = ends.nll_walk[-1], ends.nll_decoded[-1]
    assert ends.decoded_gap == pytest.approx((decoded - walk) / walk)
    assert ends.predictive_gap != anywhere.predictive_gap


def deep_regressor():
    """A network whose outputs grow with a high power of its weights, under a wide prior."""
    x = torch.linspace(-2, 2, 24, dtype=torch.float64)[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.ReLU())]
        model = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), *hidden, nn.Linear(16, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        (model(x) - x.sin()).square().mean().backward()
        optimizer.step()
    return model, loader(x, x.sin(), 24)


@pytest.mark.parametrize("tolerance", [typical_set.TOLERANCE, math.inf])
def test_drifts_that_refinement_does_not_come_back_from_are_halved(tolerance, monkeypatch):
    monkeypatch.setattr(typical_set, "TOLERANCE", tolerance)
    halved = tolerance < math.inf
    model, data = deep_regressor()
    joint, training = joint_of(model, data, "regression", 1.0, 0.1)
    with joint.network.evaluation():
        walk = Walk(typical_set_walk(n_particles=4, n_steps=4, thermal=None), joint, joint.network.theta(), training)
        walk.run(progress_bar=False)
        batch = training.next_batch()
        excess = joint.data_term(walk.theta, batch) - joint.data_term(walk.typical.centre[None], batch)
    last = RefineToTypicalSet.level(walk.typical.dimension.total, walk.normal)
    assert bool((excess <= 1.1 * last).all()) == halved
    assert (float(walk.share.mean()) < 1) == halved
    sampler = typical_set_walk(n_particles=4, n_steps=4, thermal=None)
    la = FiberLaplace(model, "regression", sigma_noise=0.1, prior_precision=1.0, sampler=sampler, autoencoder=FAST)
    la.fit(data)
    assert (la.report.arrival.drift_share < 1) == halved
    assert ("drifts cut to" in str(la.report)) == halved


def test_a_walk_with_halved_drifts_is_resumed_as_it_was(tmp_path):
    model, data = deep_regressor()
    joint, training = joint_of(model, data, "regression", 0.1, 0.1)
    ends = []
    for stop in (None, 2):
        sampler = typical_set_walk(
            n_particles=3, n_steps=4, thermal=None, checkpoint=Checkpoint(tmp_path / f"{stop}", 1)
        )
        with joint.network.evaluation():
            if stop:
                interrupted = Walk(sampler, joint, joint.network.theta(), training)
                for _ in range(stop):
                    interrupted.t += 1
                    interrupted._drift()
                    interrupted._keep()
                    interrupted._save()
                assert float(interrupted.share.min()) < 1
            ends.append(sampler.walk(joint, joint.network.theta(), training).states[:, -1])
    torch.testing.assert_close(ends[0], ends[1])


def test_particles_that_come_back_keep_their_drifts():
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=typical_set_walk(n_particles=6), autoencoder=FAST)
    la.fit(data)
    assert la.report.arrival.drift_share == 1
    assert "drifts cut" not in str(la.report)
