"""Hamiltonian Monte Carlo against Gaussian posteriors, another library's sampler, and the laws of its dynamics."""

import math
import warnings

import pytest
import torch
from problems import classifier, flat_problem, joint_of, linear_regression, loader
from torch import nn
from torch.nn import functional

from laplace_fiber.baselines import HMC
from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.baselines.convergence import ess
from laplace_fiber.baselines.hmc import DualAveraging, Dynamics, HMCSettings, State

MANY = {"n_chains": 100, "n_warmup": 15, "n_kept": 4000}


def dynamics_of(model, data, likelihood="classification", n_chains=3, **options):
    joint, training = joint_of(model, data, likelihood, **options)
    generator = torch.Generator().manual_seed(0)
    problem = Problem(joint, joint.network.theta(), training, generator)
    dynamics = Dynamics(problem, n_chains)
    return dynamics, dynamics.at(problem.theta + 0.1 * problem.normal(n_chains, len(problem.theta)))


def fitted_linear(**options):
    model, data, hessian = linear_regression()
    la = HMC(model, "regression", prior_precision=0.7, sigma_noise=0.5, **{**MANY, **options})
    la.fit(data)
    return la, hessian * len(data.dataset)


@pytest.mark.parametrize("start", ["trained", "prior"])
def test_gaussian_posterior(start):
    la, precision = fitted_linear(start=start)
    assert la.diagnostics["divergent_share"] == 0
    assert la.diagnostics["rhat"] < 1.1
    assert 0.6 < la.diagnostics["acceptance"] < 1
    # In coordinates in which the posterior is N(0, 1).
    white = (la.sample(4000) - la.mean) @ torch.linalg.cholesky(precision)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.09)
    torch.testing.assert_close(white.T.cov(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.12)


def test_the_temperature_of_the_likelihood_is_that_of_the_objective():
    la, _ = fitted_linear(temperature=4.0)
    _, data, _ = linear_regression()
    x = data.dataset.tensors[0]
    precision = x.T @ x / (4 * 0.5**2) + 0.7 * torch.eye(3, dtype=torch.float64)
    y = data.dataset.tensors[1]
    mean = torch.linalg.solve(precision, x.T @ y / (4 * 0.5**2))[:, 0]
    white = (la.sample(4000) - mean) @ torch.linalg.cholesky(precision)
    torch.testing.assert_close(white.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.09)
    torch.testing.assert_close(white.T.cov(), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.12)


def test_without_data_the_prior_is_sampled_in_its_own_units():
    model, data = flat_problem(4)
    tau = torch.tensor([1e-4, 1.0, 10.0, 1e4], dtype=torch.float64)
    la = HMC(model, "regression", prior_precision=tau, prior_mean=0.3, **MANY)
    la.fit(data)
    # Steps as large as the softest direction admits, though the precisions are eight orders of magnitude apart.
    assert la.diagnostics["leapfrog_steps"] < 5
    white = (la.sample(4000) - 0.3) * tau.sqrt()
    torch.testing.assert_close(white.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=0.09)
    torch.testing.assert_close(white.T.cov(), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.12)


def test_batches_of_the_loader_are_summed_exactly():
    options = {"n_chains": 3, "n_warmup": 3, "n_kept": 9, "step_size": 0.1}
    full, _ = fitted_linear(batch="full", **options)
    batched, _ = fitted_linear(batch="loader", **options)
    torch.testing.assert_close(batched.sample(9), full.sample(9))
    # The loader has batches of 16 and 14 points.
    assert batched.diagnostics["gradient_evaluations"] == 2 * full.diagnostics["gradient_evaluations"]


def test_value_and_gradient_are_those_of_the_whole_objective():
    model, data = classifier()
    dynamics, state = dynamics_of(model, data, tau=2.0)
    x, y = data.dataset.tensors
    theta = state.theta[1].clone().requires_grad_()
    loss = functional.cross_entropy(dynamics.joint.network.one(theta, x), y, reduction="sum")
    value = loss + 0.5 * 2.0 * theta.square().sum()
    torch.testing.assert_close(state.value[1], value.detach())
    torch.testing.assert_close(state.gradient[1], torch.autograd.grad(value, theta)[0])


def test_trajectories_are_reversible():
    dynamics, state = dynamics_of(*classifier())
    velocity = dynamics.velocity(3)
    there, turned = dynamics.leapfrog(state, velocity, 0.05, 30)
    assert not torch.allclose(there.theta, state.theta, atol=0.1)
    back, final = dynamics.leapfrog(there, -turned, 0.05, 30)
    torch.testing.assert_close(back.theta, state.theta)
    torch.testing.assert_close(-final, velocity)


def test_the_energy_is_conserved_to_second_order():
    dynamics, state = dynamics_of(*classifier(), tau=3.0)
    velocity = dynamics.velocity(3)
    energy = dynamics.energy(state, velocity)

    def error(step):
        return (dynamics.energy(*dynamics.leapfrog(state, velocity, step, round(0.64 / step))) - energy).abs()

    coarse, fine, finest = error(0.02), error(0.01), error(0.005)
    assert energy.isfinite().all()
    assert coarse.max() < 0.05
    for ratio in (coarse / fine, fine / finest):
        assert ((ratio > 3.5) & (ratio < 4.5)).all()


def test_velocities_follow_the_mass():
    tau = torch.tensor([0.01, 1.0, 25.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    dynamics, _ = dynamics_of(*flat_problem(), likelihood="regression", n_chains=1)
    dynamics.precision = tau
    torch.testing.assert_close(dynamics.velocity(20_000).std(0), tau.rsqrt(), rtol=0.03, atol=0)


def test_divergent_trajectories_are_rejected():
    dynamics, state = dynamics_of(*classifier())
    outcome = dynamics.transition(state, 1e3, 20)
    assert outcome.divergent.all()
    assert not outcome.probability.any()
    for now, before in zip(outcome.state, state, strict=True):
        assert torch.equal(now, before)
    lost = State(state.theta, state.value * torch.nan, state.gradient * torch.nan)
    assert dynamics.transition(lost, 0.1, 2).divergent.all()
    calm = dynamics.transition(state, 1e-3, 2)
    assert not calm.divergent.any()
    assert not torch.equal(calm.state.theta, state.theta)


def test_chains_accept_each_for_itself():
    dynamics, state = dynamics_of(*classifier(), n_chains=40)
    outcome = dynamics.transition(state, dynamics.first_step(state), 1)
    moved = (outcome.state.theta != state.theta).any(1)
    assert 0 < int(moved.sum()) < 40
    assert torch.equal(moved, (outcome.state.value != state.value))
    fresh = dynamics.at(outcome.state.theta)
    torch.testing.assert_close(outcome.state.value, fresh.value)
    torch.testing.assert_close(outcome.state.gradient, fresh.gradient)


def test_a_trajectory_as_long_as_a_period_needs_jitter():
    # One direction; eight leapfrog steps of 0.2 turn it by exactly 2π.
    stiffness = (2 * math.sin(math.pi / 8) / 0.2) ** 2
    x = torch.full((1, 1), math.sqrt(stiffness - 1), dtype=torch.float64)
    model, data = nn.Linear(1, 1, bias=False).double(), loader(x, torch.zeros(1, 1, dtype=torch.float64))
    options = {"step_size": 0.2, "trajectory_length": 1.6, "n_chains": 20, "n_warmup": 2, "n_kept": 400}
    sizes = {}
    for jitter in (0.0, 0.5):
        la = HMC(model, "regression", jitter=jitter, start="prior", **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            la.fit(data)
        sizes[jitter] = la.diagnostics["ess"]
    assert sizes[0.0] < 50 < 250 < sizes[0.5]


def test_numbers_of_steps():
    settings = HMCSettings(trajectory_length=1.0, max_leapfrog=50, jitter=0.2)
    assert [settings.leapfrog_steps(0.05, u) for u in (0.0, 0.5, 0.999)] == [16, 20, 24]
    assert settings.leapfrog_steps(0.001, 0.5) == 50
    assert settings.leapfrog_steps(7.0, 0.0) == 1


def test_dual_averaging_finds_the_step_of_the_target():
    adaptation = DualAveraging(0.01, 0.8)
    for _ in range(400):
        adaptation.update(math.exp(-((adaptation.step / 0.3) ** 2)))
    assert adaptation.averaged == pytest.approx(0.3 * math.sqrt(-math.log(0.8)), rel=0.03)


def nuts(potential, start, n_draws, warmup):
    """Draws of pyro's no-U-turn sampler from exp(−potential), which leaves the global random state as it was."""
    checked = torch.distributions.Distribution._validate_args
    infer = pytest.importorskip("pyro.infer")
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            kernel = infer.NUTS(potential_fn=lambda z: potential(z["w"]), max_tree_depth=5)
            run = infer.MCMC(kernel, n_draws, warmup, {"w": start}, disable_progbar=True)
            run.run()
            return run.get_samples()["w"]
    finally:
        torch.distributions.Distribution.set_default_validate_args(checked)


def agree(ours, theirs, sizes=(100, 40)):
    """Means and variances of ours and theirs (s q), within their Monte Carlo errors."""
    for power in (1, 2):
        centre = theirs.mean(0)
        a, b = ((draws - centre if power == 2 else draws) ** power for draws in (ours, theirs))
        sizes_a, sizes_b = ess(a.view(*sizes, -1)), ess(b[None])
        error = (a.var(0) / sizes_a + b.var(0) / sizes_b).sqrt()
        assert (((a.mean(0) - b.mean(0)) / error).abs() < 4.5).all()
        assert (error < 0.5 * b.std(0)).all()  # or the comparison would say nothing


def test_another_sampler_of_logistic_regression():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64) > 0).long()
    model = nn.Linear(2, 2).double()

    def potential(w):
        logits = x @ w[:4].view(2, 2).T + w[4:]
        return functional.cross_entropy(logits, y, reduction="sum") + 0.5 * 0.3 * w.square().sum()

    la = HMC(model, "classification", prior_precision=0.3, **MANY)
    la.fit(loader(x, y))
    theirs = nuts(potential, torch.zeros(6, dtype=torch.float64), 200, 80)
    agree(la._fitted.thetas, theirs)


def test_another_sampler_of_a_network():
    model, data = classifier(n=20, width=3)
    x, y = data.dataset.tensors

    def outputs(w, x):
        hidden = torch.tanh(x @ w[..., :6].unflatten(-1, (3, 2)).mT + w[..., None, 6:9])
        return hidden @ w[..., 9:18].unflatten(-1, (3, 3)).mT + w[..., None, 18:]

    def potential(w):
        return functional.cross_entropy(outputs(w, x), y, reduction="sum") + 0.5 * w.square().sum()

    la = HMC(model, "classification", **MANY)
    la.fit(data)
    theirs = nuts(potential, la.mean, 200, 80)
    at = torch.tensor([[0.0, 0.0], [1.5, -1.0], [-2.0, 3.0]], dtype=torch.float64)
    ours = la.network.many(la._fitted.thetas, at).detach()
    agree(ours.softmax(-1).flatten(1), outputs(theirs, at).softmax(-1).flatten(1))


def test_a_step_that_nothing_survives():
    model, data = classifier()
    with pytest.raises(RuntimeError, match=r"accepted.*smaller step_size"):
        HMC(model, "classification", step_size=50.0, n_warmup=2, n_kept=8).fit(data)


def test_warnings():
    model, data = classifier()
    stuck = HMC(model, "classification", step_size=1e-3, max_leapfrog=2, n_warmup=1, n_kept=80, start="prior")
    with pytest.warns(UserWarning, match=r"R-hat.*not converged"):
        stuck.fit(data)
    assert stuck.diagnostics["leapfrog_steps"] <= 3
    hasty = HMC(model, "classification", step_size=0.55, n_warmup=5, n_kept=28)
    with pytest.warns(UserWarning, match="acceptance of about 0.8"):
        hasty.fit(data)


def test_the_defaults_converge_without_a_warning():
    model, data = classifier(n=20, width=3)
    la = HMC(model, "classification", n_kept=240)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        la.fit(data)
    assert la.diagnostics["ess"] > 60
    assert la.diagnostics["step_size"] > 0.01


@pytest.mark.parametrize(
    "options",
    [
        {"n_chains": 0},
        {"n_warmup": 0},
        {"n_kept": -1},
        {"trajectory_length": 0.0},
        {"max_leapfrog": 0},
        {"jitter": 1.0},
        {"target_acceptance": 1.0},
        {"step_size": -0.1},
        {"start": "zero"},
        {"batch": "some"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_settings(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}: expected"):
        HMCSettings(**options)
