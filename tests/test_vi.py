"""Mean-field variational inference against linear models, where the best Gaussian is known."""

import math

import pytest
import torch
from problems import classifier, flat_problem, joint_of, linear_regression, loader
from torch.distributions import Normal, kl_divergence

from laplace_fiber.baselines import MeanFieldVI
from laplace_fiber.baselines.vi import Gaussian, divergence_from_prior

NOISE = {"sigma_noise": 0.5, "prior_precision": 0.7}


def test_the_divergence_and_its_gradients():
    """τ is a precision: the prior's standard deviation is τ^-½ (a variance in its place passes only for τ = 1)."""
    model, data = flat_problem()
    joint, _ = joint_of(model, data, "regression", tau=4.0)
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_()
    sigma = torch.rand(6, generator=generator, dtype=torch.float64).add(0.1).requires_grad_()
    expected = kl_divergence(Normal(mu, sigma), Normal(torch.zeros(6, dtype=torch.float64), 0.5)).sum()
    value, of_mu, of_sigma = divergence_from_prior(mu, sigma, joint)
    torch.testing.assert_close(value, expected)
    for own, other in zip((of_mu, of_sigma), torch.autograd.grad(expected, (mu, sigma)), strict=True):
        torch.testing.assert_close(own, other)


def correlated():
    """A linear model whose weights' posterior is correlated: conditional variances are half of the marginal ones."""
    model, data, _ = linear_regression()
    x, y = data.dataset.tensors
    return model, loader(x + x.roll(1, 1), y)


def log_evidence(model, data, tau, sigma, temperature=1.0):
    """log ∫ exp(−J) N(θ | 0, 1/τ) normalised, for the linear model; the noise's normaliser is not tempered."""
    x, y = data.dataset.tensors
    n, d = x.shape
    precision = x.T @ x / (sigma**2 * temperature) + tau * torch.eye(d, dtype=torch.float64)
    theta = torch.linalg.solve(precision, x.T @ y / (sigma**2 * temperature))
    j = (y - x @ theta).square().sum() / (2 * sigma**2 * temperature) + 0.5 * tau * theta.square().sum()
    log_determinant = torch.logdet(precision) - d * math.log(tau)
    evidence = -j - 0.5 * log_determinant - n * math.log(sigma * math.sqrt(2 * math.pi))
    return float(evidence), theta[:, 0], precision


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_best_gaussian_of_a_linear_model(temperature):
    """μ is the MAP, σ² one over the precision's diagonal (6 %), the bound short of the evidence by KL(q ‖ p)."""
    model, data = correlated()
    evidence, theta, precision = log_evidence(model, data, 0.7, 0.5, temperature)
    with torch.no_grad():
        model.weight.copy_(theta[None] + 0.3)  # not where it ends
    la = MeanFieldVI(model, "regression", batch="full", n_steps=800, n_mc=32, temperature=temperature, **NOISE)
    la.fit(data)
    mu, sigma = la._fitted.mu, la._fitted.sigma
    best = precision.diagonal().rsqrt()
    torch.testing.assert_close(mu, theta, rtol=0, atol=1e-3 * float(best.min()))
    torch.testing.assert_close(sigma.square(), best.square(), rtol=0.06, atol=0)
    assert bool((best.square() < 0.8 * torch.linalg.inv(precision).diagonal()).all())  # not the marginal variances
    short = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))  # of the two Gaussians
    assert la.diagnostics["elbo"] == pytest.approx(evidence - float(short), abs=0.1)
    assert la.diagnostics["gradient_evaluations"] == 800 * 32


def test_without_data_the_prior_comes_back():
    """From the trained weights (zero here, so that they have no scale) and a prior around 2."""
    model, data = flat_problem()
    with torch.no_grad():
        model.weight.zero_()
    tau = torch.tensor([0.25, 1, 4, 4, 1, 0.25], dtype=torch.float64)
    la = MeanFieldVI(model, "regression", n_steps=800, prior_precision=tau, prior_mean=2.0)
    la.fit(data)
    torch.testing.assert_close(la._fitted.mu, torch.full_like(tau, 2.0), rtol=0, atol=1e-2)
    torch.testing.assert_close(la._fitted.sigma, tau.rsqrt(), rtol=0.02, atol=0)


def test_samples_are_those_of_the_gaussian():
    """40,000 samples: standard errors 0.5 % of each σ, and 0.7 % of correlations."""
    model, _ = flat_problem()
    mu = torch.arange(6, dtype=torch.float64)
    sigma = torch.logspace(-2, 1, 6, dtype=torch.float64)
    samples = MeanFieldVI(model, "regression")._draw(Gaussian(mu, sigma), 40_000, torch.Generator().manual_seed(0))
    standard = (samples - mu) / sigma
    torch.testing.assert_close(standard.mean(0), torch.zeros_like(mu), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(standard.T), torch.eye(6, dtype=torch.float64), rtol=0, atol=0.03)


def test_more_steps_raise_the_bound():
    model, data = classifier()
    bounds = []
    for n_steps in (20, 500):
        la = MeanFieldVI(model, "classification", n_steps=n_steps)
        la.fit(data)
        bounds.append(la.diagnostics["elbo"])
    assert bounds[1] > bounds[0] + 10
    assert bool((la._fitted.sigma > 0).all())


def test_divergence_is_an_error():
    model, data = classifier()
    with pytest.raises(RuntimeError, match=r"finite evidence bound.* smaller learning_rate"):
        MeanFieldVI(model, "classification", learning_rate=1e200, n_steps=5).fit(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps"),
        ({"n_mc": 3}, "n_mc: expected an even number, since weights are drawn in pairs, got 3"),
        ({"n_mc": 0}, "n_mc"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"initial_sigma": -1.0}, "initial_sigma"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        MeanFieldVI(classifier()[0], "classification", **options)
