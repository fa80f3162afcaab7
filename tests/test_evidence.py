"""The choice of prior precision and noise, against the exact evidence of linear-Gaussian models."""

import math

import pytest
import torch
from problems import FAST, classifier, flat_problem, joint_of, loader, regressor
from scipy import optimize, stats
from torch import nn

from laplace_fiber import FiberLaplace, FixedRefinement, Thermalisation, TrajectorySampler, typical_set_walk
from laplace_fiber.effective_dimension import effective_dimension
from laplace_fiber.evidence import factors, maximise_evidence

QUICK = {
    "n_particles": 6,
    "n_steps": 3,
    "refinement": FixedRefinement(2),
    "evidence": True,
}


def linear(n: int = 60, d: int = 5, tau: float = 4.0, sigma: float = 0.3):
    """Targets drawn from the prior N(0, 1/τ) and noise σ, inputs of several scales, and a model at the origin."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * scales
    weights = torch.randn(d, 1, generator=generator, dtype=torch.float64) / tau**0.5
    y = x @ weights + sigma * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return model, loader(x, y, n)


def exact(data, tau: float, sigma: float) -> float:
    """log N(y; 0, X Xᵀ/τ + σ² I)."""
    x, y = (part.numpy() for part in data.dataset.tensors)
    covariance = x @ x.T / tau + sigma**2 * torch.eye(len(x), dtype=torch.float64).numpy()
    return float(stats.multivariate_normal(cov=covariance).logpdf(y[:, 0]))


def chosen(model, data, likelihood, tau=1.0, sigma=1.0):
    joint, training = joint_of(model, data, likelihood, tau, sigma)
    with joint.network.evaluation():
        return maximise_evidence(joint, joint.network.theta(), training)[0]


@pytest.mark.parametrize(("tau", "sigma"), [(1.0, 1.0), (100.0, 0.05)])
def test_the_evidence_of_a_linear_model_is_maximised_from_anywhere(tau, sigma):
    model, data = linear()
    best = optimize.minimize(lambda u: -exact(data, *(math.exp(v) for v in u)), [0.0, 0.0], method="Nelder-Mead")
    choice = chosen(model, data, "regression", tau, sigma)
    assert choice.converged
    assert choice.prior_precision == pytest.approx(math.exp(best.x[0]), rel=0.03)
    assert choice.sigma_noise == pytest.approx(math.exp(best.x[1]), rel=0.01)
    assert choice.prior_precision == pytest.approx(tau * choice.precision_factor)
    assert choice.sigma_noise == pytest.approx(sigma * choice.noise_factor)
    assert choice.log_evidence == pytest.approx(-best.fun, abs=1e-3)
    assert choice.log_evidence == pytest.approx(exact(data, choice.prior_precision, choice.sigma_noise), abs=1e-3)
    assert list(choice.warnings()) == []


@pytest.mark.parametrize("regression", [True, False])
def test_factors_are_a_fixed_point_of_mackays_formulas(regression):
    model, data = regressor() if regression else classifier()
    joint, training = joint_of(model, data, "regression" if regression else "classification", 2.0)
    with joint.network.evaluation():
        theta = joint.network.theta()
        dimension = effective_dimension(joint, theta, training)
        misfit = float(joint.data_term(theta[None], training.everything()))
    energy, n = float(joint.prior_energy(theta[None])), 48 if regression else None
    t, s = factors(dimension, misfit, energy, n)
    gamma = sum(float(v) / (float(v) + t * s**2) for v in dimension.values)
    assert 2 * t * energy == pytest.approx(gamma, rel=1e-9)
    if regression:
        assert 2 * misfit / s**2 == pytest.approx(48 - gamma, rel=1e-9)
    else:
        assert s == 1.0


def test_the_choice_is_where_laplaces_evidence_is_largest_at_a_minimum():
    """With τ moved by a third either way the evidence, computed anew at the minimum for it, is smaller."""
    model, data = classifier()
    choice = chosen(model, data, "classification")
    assert choice.converged
    evidences = {}
    for factor in (0.7, 1.0, 1.4):
        joint, training = joint_of(model, data, "classification", factor * choice.prior_precision)
        theta = joint.network.theta().requires_grad_()
        lbfgs = torch.optim.LBFGS([theta], max_iter=100, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

        def closure(joint=joint, theta=theta, lbfgs=lbfgs, training=training):
            lbfgs.zero_grad()
            value = joint.objective(theta[None], training.everything()).sum()
            value.backward()
            return value

        lbfgs.step(closure)
        at = theta.detach()
        value = float(joint.objective(at[None], training.everything())) * joint.n_data
        evidences[factor] = -value - 0.5 * effective_dimension(joint, at, training).log_determinant(1.0)
    assert max(evidences, key=evidences.__getitem__) == 1.0
    assert evidences[1.0] == pytest.approx(choice.log_evidence, abs=0.05)


def test_ratios_of_precisions_and_noises_stay(monkeypatch):
    monkeypatch.setattr("laplace_fiber.evidence.ROUNDS", 2)
    model, data = regressor()
    precision, noise = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), torch.tensor([0.1, 0.2]).double()
    la = FiberLaplace(
        model,
        "regression",
        sigma_noise=noise,
        prior_precision=precision,
        sampler=TrajectorySampler(**QUICK),
        autoencoder=FAST,
    )
    la.fit(data)
    choice = la.report.evidence
    torch.testing.assert_close(la.prior_precision, choice.precision_factor * precision)
    torch.testing.assert_close(la.sigma_noise, choice.noise_factor * noise)
    assert choice.precision_factor != 1
    assert choice.noise_factor != 1


def test_the_fit_carries_what_was_chosen():
    model, data = classifier()
    sampler = typical_set_walk(n_particles=6, n_steps=3, thermal=Thermalisation(2, 5), evidence=True)
    la = FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST)
    la.fit(data)
    choice = la.report.evidence
    assert float(la.prior_precision) == pytest.approx(choice.prior_precision)
    assert choice.converged
    text = str(la.report)
    assert f"evidence: prior precision {choice.prior_precision:.3g}" in text
    assert "converged in" in text
    radius = math.sqrt(la.n_params / choice.prior_precision)
    assert la.report.reach == pytest.approx(radius)
    assert la.walk_share == 1
    given = FiberLaplace(
        model,
        "classification",
        prior_precision=choice.prior_precision,
        sampler=typical_set_walk(n_particles=6, n_steps=3, thermal=Thermalisation(2, 5)),
        autoencoder=FAST,
    )
    given.fit(data)
    torch.testing.assert_close(la.sample(6), given.sample(6), rtol=0, atol=1e-5)
    loaded = FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST)
    loaded.load_state_dict(la.state_dict())
    assert torch.equal(loaded.prior_precision, la.prior_precision)
    assert torch.equal(loaded.sample(4), la.sample(4))


def test_the_walk_counts_from_the_minimum_of_the_chosen_objective():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification", 30.0)
    origin = joint.network.theta()
    with joint.network.evaluation():
        sampler = typical_set_walk(n_particles=2, n_steps=1, thermal=None, evidence=True)
        walk = sampler.walk(joint, origin, training)
        _, minimum = maximise_evidence(joint, origin, training)
        there = effective_dimension(walk.evidence.applied_to(joint), minimum, training).total
    assert walk.arrival.effective_dimension == pytest.approx(there, rel=0.02)
    assert walk.arrival.imbalance < 0.02


def test_a_precision_chosen_afterwards_is_not_chosen_again():
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(**QUICK), autoencoder=FAST)
    la.fit(data)
    wider = float(la.prior_precision) / 4
    la.prior_precision = wider
    la.settle_prior_precision()
    assert float(la.prior_precision) == pytest.approx(wider)
    assert la.report.evidence is None
    assert la.sampler.evidence


def test_batches_choose_once_at_the_trained_weights():
    model, data = classifier()
    joint, _ = joint_of(model, data, "classification")
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(**QUICK, batch="loader"), autoencoder=FAST)
    la.fit(data)
    choice = la.report.evidence
    theta = joint.network.theta()
    assert choice.rounds == 1
    energy = choice.prior_precision * float(joint.prior_energy(theta[None]))
    assert 2 * energy == pytest.approx(choice.effective_dimension, rel=1e-4)


def test_data_without_curvature_have_no_evidence_to_go_by():
    choice = chosen(*flat_problem(), "regression")
    assert any("no maximum" in sentence for sentence in choice.warnings())


def test_a_choice_that_has_not_converged_and_one_away_from_a_minimum_are_told(monkeypatch):
    model, data = classifier()
    monkeypatch.setattr("laplace_fiber.evidence.ROUNDS", 1)
    with torch.no_grad():
        model[0].weight.mul_(3)
    told = " ".join(chosen(model, data, "classification", 1e3).warnings())
    assert "not converged in 1 rounds" in told
    assert "not at a minimum of J" in told


def test_as_many_parameters_as_observations_are_told():
    """Six points and five weights without noise to speak of."""
    choice = chosen(*linear(n=6, sigma=1e-6), "regression")
    assert choice.effective_dimension > 0.8 * choice.n_observations
