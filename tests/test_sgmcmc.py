"""Stochastic-gradient chains: their stationary variance on linear models, temperatures, schedules and what is kept."""

import math

import pytest
import torch
from problems import classifier, linear_regression, regressor

from laplace_fiber.baselines import SGHMC, SGLD, CyclicalSGHMC
from laplace_fiber.baselines.sgmcmc import ChainSettings, CyclicalSettings, FrictionSettings

TAU, SIGMA = 0.7, 0.5
MANY = {"n_chains": 2000, "n_steps": 240, "n_kept": 10_000, "batch": "full", "burn_in": 0.5}


def linear(method, d=2, **options):
    """A linear model's posterior by a method; its weights in the eigenvectors' basis, and ∇²J's eigenvalues."""
    model, data, hessian = linear_regression(d=d, tau=TAU, sigma=SIGMA)
    la = method(model, "regression", prior_precision=TAU, sigma_noise=SIGMA, **options)
    la.fit(data)
    values, vectors = torch.linalg.eigh(hessian * la.n_data)
    return la, (la._fitted.thetas - la.mean) @ vectors, values


def check_variances(centred, expected, rtol=0.08):
    torch.testing.assert_close(centred.square().mean(0), expected, rtol=rtol, atol=0)
    correlation = centred.T.corrcoef() - torch.eye(centred.shape[1], dtype=torch.float64)
    assert correlation.abs().max() < 0.06


@pytest.mark.parametrize("x", [0.1, 1.0, 1.5])
def test_the_stationary_variance_of_langevin_dynamics(x):
    la, centred, values = linear(SGLD, relative_step=x, **MANY)
    h = la.diagnostics["step_size"] / la.n_data
    assert h * values.max() == pytest.approx(x, rel=1e-3)
    check_variances(centred, 1 / (values * (1 - h * values / 2)))


@pytest.mark.parametrize(("x", "momentum"), [(0.1, 0.8), (2.5, 0.8), (1.0, 0.0)])
def test_the_stationary_variance_with_momentum(x, momentum):
    la, centred, values = linear(SGHMC, relative_step=x, momentum=momentum, **MANY)
    h = la.diagnostics["step_size"] / la.n_data
    check_variances(centred, 1 / (values * (1 - h * values / (4 - 2 * (1 - momentum)))))


def test_without_momentum_friction_is_langevin_dynamics():
    options = {"n_chains": 3, "n_steps": 40, "n_kept": 30, "relative_step": 0.3}
    langevin, _, _ = linear(SGLD, **options)
    friction, _, _ = linear(SGHMC, momentum=0.0, **options)
    torch.testing.assert_close(friction._fitted.thetas, langevin._fitted.thetas)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_the_variance_is_proportional_to_the_temperature(temperature):
    # A sampler whose noise is multiplied by a hundredth has a ten-thousandth of the variance.
    la, centred, values = linear(SGLD, relative_step=0.2, sampling_temperature=temperature, **MANY)
    h = la.diagnostics["step_size"] / la.n_data
    check_variances(centred, temperature / (values * (1 - h * values / 2)))


@pytest.mark.parametrize("method", [SGLD, SGHMC, CyclicalSGHMC])
def test_at_temperature_zero_chains_go_to_the_minimum(method):
    model, data, _ = linear_regression(d=2, tau=TAU, sigma=SIGMA)
    minimum = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(0.3)
    options = {"n_steps": 400, "n_chains": 2, "n_kept": 8, "relative_step": 0.5, "batch": "full", "burn_in": 0.9}
    la = method(model, "regression", prior_precision=TAU, sigma_noise=SIGMA, sampling_temperature=0.0, **options)
    la.fit(data)
    torch.testing.assert_close(la._fitted.thetas, minimum.expand(len(la._fitted.thetas), -1), rtol=0, atol=1e-5)


def test_batches_stand_for_all_data():
    # Without noise, two batches in turn lead to a cycle of two points, which solves linear equations.
    model, data, _ = linear_regression(d=2, tau=TAU, sigma=SIGMA)
    step, n = 0.05, len(data.dataset)
    kept = {"n_steps": 300, "n_chains": 1, "n_kept": 1, "step_size": step, "sampling_temperature": 0.0}
    la = SGLD(model, "regression", prior_precision=TAU, sigma_noise=SIGMA, batch="loader", **kept)
    la.fit(data)
    one = torch.eye(2, dtype=torch.float64)
    turn, shift = one, torch.zeros(2, dtype=torch.float64)
    for x, y in data:
        contraction = one - step * (x.T @ x / (SIGMA**2 * len(y)) + TAU / n * one)
        turn, shift = contraction @ turn, contraction @ shift + step * (x.T @ y)[:, 0] / (SIGMA**2 * len(y))
    torch.testing.assert_close(la._fitted.thetas[0], torch.linalg.solve(one - turn, shift))
    assert (la._fitted.thetas[0] - la.mean).abs().max() > 1e-3


def test_batches_add_noise_of_their_own():
    spread = {}
    for batch in ("full", "loader"):
        options = {**MANY, "n_chains": 40, "n_steps": 150, "n_kept": 3000, "batch": batch}
        _, centred, values = linear(SGLD, step_size=0.1, **options)
        spread[batch] = float((centred.square() * values).sum(-1).mean())
    assert spread["loader"] > 1.1 * spread["full"]


def test_the_step_is_safe_on_the_sharpest_of_the_first_batches():
    _, data, _ = linear_regression(d=2, tau=TAU, sigma=SIGMA)
    curvatures = []
    for x, y in data:
        hessian = x.T @ x / (SIGMA**2 * len(y)) + TAU / 30 * torch.eye(2, dtype=torch.float64)
        curvatures.append(float(torch.linalg.eigvalsh(hessian).max()))
    la, _, _ = linear(SGLD, relative_step=0.3, n_steps=5, batch="loader")
    assert la.diagnostics["step_size"] == pytest.approx(0.3 / max(curvatures), rel=1e-3)
    assert max(curvatures) > 1.05 * min(curvatures)


def test_polynomial_decay():
    settings = ChainSettings(n_steps=1000, decay=0.55)
    b = 100
    for t in (0, 50, 999):
        assert settings.step_share(t) == pytest.approx(((b + t) / b) ** -0.55)
    assert ChainSettings(n_steps=1000).step_share(999) == 1


def test_cycles():
    settings = CyclicalSettings(n_steps=103, n_cycles=4, exploration=0.5)
    for t in range(103):
        k = t + 1  # as the paper counts
        assert settings.step_share(t) == pytest.approx(0.5 * (math.cos(math.pi * ((k - 1) % 26) / 26) + 1))
        assert settings.noise_share(t) == (((k - 1) % 26) / 26 >= 0.5)
    sampling = {t for t in range(103) if settings.noise_share(t)}
    assert settings.kept_steps() < sampling
    assert {t // 26 for t in settings.kept_steps()} == {0, 1, 2, 3}
    assert CyclicalSettings(n_steps=103, n_cycles=4, n_kept=10_000).kept_steps() == sampling


def test_a_cycle_explores_without_noise():
    options = {"n_chains": 2, "n_steps": 20, "n_cycles": 2, "exploration": 0.9, "n_kept": 4, "relative_step": 0.1}
    la, centred, _ = linear(CyclicalSGHMC, **options)
    # Only the last step of each cycle has noise; before, the chains are at the minimum.
    assert la.settings.kept_steps() == {9, 19}
    assert centred.abs().max() < 0.2
    assert not torch.equal(centred[0], centred[2])


def test_kept_steps():
    assert sorted(ChainSettings(n_steps=40, n_chains=2, n_kept=12).kept_steps()) == [14, 19, 24, 29, 34, 39]
    assert ChainSettings(n_steps=5, n_chains=1, n_kept=100, burn_in=0.0).kept_steps() == set(range(5))
    assert ChainSettings(n_steps=7, n_chains=8, n_kept=1).kept_steps() == {6}


def test_kept_steps_weight_decaying_steps_by_their_size():
    settings = ChainSettings(n_steps=10_000, n_chains=1, n_kept=500, decay=0.55, burn_in=0.0)
    shares = torch.tensor([settings.step_share(t) for t in range(10_000)])
    ramp = torch.arange(10_000.0)
    kept = torch.tensor(sorted(settings.kept_steps()))
    assert len(kept) == 500
    weighted = float((shares * ramp).sum() / shares.sum())
    assert float(ramp[kept].mean()) == pytest.approx(weighted, rel=0.01)
    assert weighted < 4500


@pytest.mark.parametrize("method", [SGLD, SGHMC, CyclicalSGHMC])
def test_divergence_is_an_error(method):
    model, data = regressor()
    with pytest.raises(RuntimeError, match=r"diverged by step \d+.*smaller relative_step"):
        method(model, "regression", sigma_noise=0.01, relative_step=50.0, n_steps=30).fit(data)


def test_chains_lie_one_after_another_and_tell_how_they_mix():
    model, data = classifier()
    la = SGHMC(model, "classification", n_chains=3, n_steps=200, n_kept=60)
    la.fit(data)
    chains = la._fitted.thetas.view(3, 20, -1)
    # Neighbours of a chain are nearer than states of different chains at the same time.
    assert (chains[:, 1:] - chains[:, :-1]).norm(dim=-1).mean() < (chains - chains.roll(1, 0)).norm(dim=-1).mean()
    assert la.diagnostics["rhat"] > 1
    assert 1 < la.diagnostics["ess"] < 60
    assert la.diagnostics["gradient_evaluations"] == 600
    short = SGHMC(model, "classification", n_chains=3, n_steps=30, n_kept=6)
    short.fit(data)
    assert "rhat" not in short.diagnostics


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (ChainSettings, {"n_chains": 0}),
        (ChainSettings, {"n_steps": 0}),
        (ChainSettings, {"n_kept": 0}),
        (ChainSettings, {"relative_step": 0.0}),
        (ChainSettings, {"step_size": -1.0}),
        (ChainSettings, {"burn_in": 1.0}),
        (ChainSettings, {"decay": -0.1}),
        (ChainSettings, {"sampling_temperature": -1.0}),
        (FrictionSettings, {"momentum": 1.0}),
        (CyclicalSettings, {"n_cycles": 0}),
        (CyclicalSettings, {"exploration": 1.0}),
        (CyclicalSettings, {"n_cycles": 50, "n_steps": 40}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else next(iter(value)),
)
def test_settings(settings, options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.*: expected"):
        settings(**options)
