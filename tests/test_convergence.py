"""R-hat and effective sample size: chains of known autocorrelation, chains that do not mix, and pyro's figures."""

import math

import pytest
import torch
from problems import classifier, flat_problem, joint_of, regressor

from laplace_fiber.baselines.convergence import (
    autocovariance,
    ess,
    function_space_mixing,
    rank_normalised,
    rhat,
    split,
    split_rhat,
)


def autoregressive(rho: float, n_chains: int = 8, n_draws: int = 2000, n_quantities: int = 10):
    """Stationary chains x_t = ρ x_{t−1} + √(1 − ρ²) ξ."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n_chains, n_draws, n_quantities, generator=generator, dtype=torch.float64)
    states = [noise[:, 0]]
    for t in range(1, n_draws):
        states.append(rho * states[-1] + math.sqrt(1 - rho**2) * noise[:, t])
    return torch.stack(states, 1)


@pytest.mark.parametrize("rho", [0.9, 0.5, 0.0, -0.5])
def test_known_autocorrelations(rho):
    draws = autoregressive(rho)
    expected = 8 * 2000 * (1 - rho) / (1 + rho)
    torch.testing.assert_close(ess(draws).mean(), torch.tensor(expected, dtype=torch.float64), rtol=0.1, atol=0)
    assert rhat(draws).max() < 1.02
    lag_one = autocovariance(draws).mean(0)[1] / draws.var((0, 1))
    torch.testing.assert_close(lag_one, torch.full_like(lag_one, rho), rtol=0, atol=0.03)


def test_autocovariances_are_the_plain_sums():
    draws = autoregressive(0.5, 2, 7, 1)
    centred = draws - draws.mean(1, keepdim=True)
    plain = torch.stack([(centred[:, : 7 - t] * centred[:, t:]).sum(1) / 7 for t in range(7)], 1)
    torch.testing.assert_close(autocovariance(draws), plain)


def test_figures_of_another_library():
    stats = pytest.importorskip("pyro.ops.stats")
    draws = autoregressive(0.7, 4, 2000)
    draws[0] += 0.1
    torch.testing.assert_close(split_rhat(draws), stats.split_gelman_rubin(draws))
    # Its autocovariances are smaller by the factor 1 − 1/d.
    torch.testing.assert_close(ess(draws), stats.effective_sample_size(split(draws)), rtol=0.05, atol=0)


def mixed():
    return torch.randn(4, 100, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_chains_that_do_not_mix():
    shifted, scaled, drifting, stuck = mixed(), mixed(), mixed(), mixed()
    shifted[0] += 3
    scaled[0] *= 10  # the means agree: only folding shows it
    drifting += torch.linspace(0, 5, 100)[:, None]  # the chains agree: only splitting shows it
    stuck[:] = torch.arange(4.0)[:, None, None] + 1e-3 * stuck
    for draws in (shifted, drifting, stuck):
        assert rhat(draws) > 1.2
        assert ess(draws) < 40
    assert rhat(scaled) > 1.2 > 1.05 > split_rhat(scaled)
    assert rhat(mixed()) < 1.03


def test_half_chains():
    draws = torch.arange(5.0)[None, :, None]
    assert split(draws)[..., 0].tolist() == [[0.0, 1.0], [3.0, 4.0]]


def test_ranks_do_not_see_the_scale_and_share_ties():
    draws = mixed()
    torch.testing.assert_close(rank_normalised(draws.exp()), rank_normalised(draws))
    assert rank_normalised(torch.zeros(2, 3, 1)).unique().numel() == 1
    ranks = rank_normalised(torch.tensor([[[1.0], [2.0]], [[2.0], [5.0]]]))[..., 0]
    expected = torch.special.ndtri((torch.tensor([[1, 2.5], [2.5, 4]]) - 0.375) / 4.25)
    torch.testing.assert_close(ranks, expected)


def test_quantities_that_do_not_vary_have_no_figures():
    assert rhat(torch.ones(2, 10, 1)).isnan()
    assert ess(torch.ones(2, 10, 1)).isnan()


@pytest.mark.parametrize("problem", ["classification", "regression"])
def test_functions_mix_where_symmetric_weights_do_not(problem):
    model, data = classifier() if problem == "classification" else regressor()
    joint, training = joint_of(model, data, problem)
    generator = torch.Generator().manual_seed(0)
    theta = joint.network.theta()
    noise = 0.1 * torch.randn(2, 40, len(theta), generator=generator, dtype=torch.float64)
    chains = theta + noise
    # A tanh network is the same function with the signs of all its hidden units turned.
    named = dict(zip(joint.network.names, joint.network.sizes, strict=True))
    hidden = torch.cat([torch.full((n,), 1.0 if k == "2.bias" else -1.0) for k, n in named.items()]).double()
    chains[1] *= hidden
    assert rhat(chains[..., :3]).max() > 1.5
    found = function_space_mixing(joint, chains, training)
    assert found["rhat"] < 1.1
    assert found["ess"] > 30
    assert function_space_mixing(joint, chains, training, chunk_size=7) == pytest.approx(found)
    chains[1] += 0.5
    assert function_space_mixing(joint, chains, training)["rhat"] > 1.2


def test_short_chains_tell_nothing_and_chains_that_stand_still_tell_it():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    still = joint.network.theta().expand(2, 10, -1)
    assert function_space_mixing(joint, still, training) == {"rhat": math.inf, "ess": 2.0}
    assert function_space_mixing(joint, still[:, :7], training) == {}
    joint, training = joint_of(*flat_problem(), "regression")
    moving = torch.arange(20.0).double().view(2, 10, 1) + joint.network.theta()
    assert function_space_mixing(joint, moving, training) == {}
