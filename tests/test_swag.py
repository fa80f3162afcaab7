"""SWAG: moments of given iterates and the covariance of samples, against their formulas."""

import copy
import math

import pytest
import torch
from problems import classifier, joint_of, linear_regression, regressor
from torch import nn

from laplace_fiber.baselines import SWAG, MultiSWAG
from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.baselines.minibatches import Minibatches
from laplace_fiber.baselines.swag import Collector, IterateMoments, MultiSWAGSettings, SWAGSettings
from laplace_fiber.data import TrainingData

FAST = {"n_collected": 4, "n_skipped": 1, "min_interval": 8}


def iterates(n=30, m=1, p=4):
    return torch.randn(n, m, p, generator=torch.Generator().manual_seed(0), dtype=torch.float64).cumsum(0)


def collected(path, max_rank=5, scale=0.5):
    collector = Collector(max_rank)
    for thetas in path:
        collector.add(thetas)
    return collector.moments(scale)


def covariance(fit, m=0):
    k = fit.deviations.shape[1]
    low_rank = fit.deviations[m].T @ fit.deviations[m] / (k - 1)
    return fit.scale * (fit.variances[m].diag() + low_rank)


def test_moments_are_those_of_the_iterates():
    path = iterates(m=2)
    fit = collected(path)
    torch.testing.assert_close(fit.means, path.mean(0))
    torch.testing.assert_close(fit.variances, path.square().mean(0) - path.mean(0).square())
    for k, t in enumerate(range(25, 30)):  # the last five, each less the mean up to and with it
        torch.testing.assert_close(fit.deviations[:, k], path[t] - path[: t + 1].mean(0))


def test_small_spreads_are_not_lost_to_rounding():
    path = (100 + 1e-3 * iterates()).float()
    expected = path.double().var(0, unbiased=False)
    torch.testing.assert_close(collected(path).variances.double(), expected, rtol=1e-2, atol=0)
    naive = path.square().mean(0) - path.mean(0).square()
    assert not torch.allclose(naive.double(), expected, rtol=0.5)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_samples_have_the_covariance_of_the_formula(scale):
    model, _, _ = linear_regression(d=4)
    fit = collected(iterates(), scale=scale)
    n = 100_000
    samples = SWAG(model, "regression")._draw(fit, n, torch.Generator().manual_seed(1))
    expected = covariance(fit)
    error = math.sqrt(2 / n) * float(expected.diagonal().max())  # standard deviation of a sample variance
    assert float((samples.mean(0) - fit.means[0]).abs().max()) < 5 * math.sqrt(float(expected.diagonal().max()) / n)
    torch.testing.assert_close(samples.T.cov(), expected, rtol=0, atol=5 * error)
    # What other readings of the formula would give lies far outside.
    k = fit.deviations.shape[1]
    low_rank = fit.deviations[0].T @ fit.deviations[0] / (k - 1)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).double()  # a draw of its own for each tensor
    variances = fit.variances[0]
    for wrong in (variances.square().diag() + low_rank, variances.diag() + low_rank * blocks):
        assert float((scale * wrong - expected).abs().max()) > 20 * error


def test_multi_swag_is_a_mixture_with_equal_shares():
    model, _, _ = linear_regression(d=4)
    path = iterates(m=2) + torch.tensor([0.0, 1000.0]).double()[:, None]
    fit = collected(path)
    samples = MultiSWAG(model, "regression")._draw(fit, 100_000, torch.Generator().manual_seed(1))
    second = samples[:, 0] > 500
    assert int(second.sum()) == 50_000
    for m, own in ((0, samples[~second]), (1, samples[second])):
        expected = covariance(fit, m)
        torch.testing.assert_close(own.T.cov(), expected, rtol=0, atol=0.03 * float(expected.diagonal().max()))


def test_iterates_of_a_linear_model_spread_about_its_minimum():
    model, data, _ = linear_regression()
    tight, wide = (
        SWAG(
            model,
            "regression",
            sigma_noise=0.5,
            prior_precision=0.7,
            n_collected=40,
            min_interval=10,
            relative_step=step,
        )
        for step in (0.02, 0.3)
    )
    for la in (tight, wide):
        la.fit(data)
        fit = la._fitted
        spread = fit.variances[0].sqrt()
        assert bool(((fit.means[0] - la.mean).abs() < spread).all())
        assert fit.deviations.shape == (1, 20, 3)
    assert float(wide._fitted.variances.sum()) > 4 * float(tight._fitted.variances.sum())
    assert tight.diagnostics["gradient_evaluations"] == 50 * 10


def test_full_batches_have_no_spread():
    # The gradient's noise is what SWAG lives from: at the minimum, full batches stay where they are.
    model, data, _ = linear_regression()
    options = {"sigma_noise": 0.5, "prior_precision": 0.7, **FAST}
    full, noisy = SWAG(model, "regression", batch="full", **options), SWAG(model, "regression", **options)
    full.fit(data), noisy.fit(data)
    assert float(full._fitted.variances.max()) < 1e-20 < float(noisy._fitted.variances.min())


def test_minibatches_are_at_most_a_tenth_and_in_orders_of_their_own():
    model, _ = classifier()
    x = torch.arange(50.0).double()[:, None].expand(50, 2)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(50).long()), batch_size=50)
    joint, training = joint_of(model, data, "classification")
    problem = Problem(joint, joint.network.theta(), training, torch.Generator().manual_seed(0))
    size = SWAGSettings().points_per_batch(problem)
    batches = Minibatches(problem, 2, "auto", size)
    assert (size, batches.per_epoch) == (5, 10)
    stacks = [next(batches) for _ in range(10)]
    orders = torch.cat([stack.x[..., 0] for stack in stacks], 1)
    assert all(torch.equal(order.sort().values, x[:, 0]) for order in orders)
    assert not torch.equal(*orders)


def test_iterates_follow_the_loop_where_vmap_is_refused():
    model, data = classifier()
    means = []
    for engine in ("vmap", "loop"):
        la = MultiSWAG([model, copy.deepcopy(model)], "classification", engine=engine, **FAST)
        la.fit(data)
        means.append(la._fitted.means)
    torch.testing.assert_close(*means)
    assert not torch.allclose(*means[0])  # two starts alike, minibatches in orders of their own


def test_several_networks_keep_their_place():
    models = [classifier()[0], classifier()[0]]
    with torch.no_grad():
        for p in models[1].parameters():
            p.mul_(-1)  # of tanh layers: another mode of hidden units, not of the data
        models[1][-1].weight.mul_(-1)
        models[1][-1].weight.mul_(-1)
    la = MultiSWAG(models, "classification", relative_step=1e-6, **FAST)
    la.fit(classifier()[1])
    starts = torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in models])
    torch.testing.assert_close(la._fitted.means, starts, rtol=0, atol=1e-2)


def test_dropout_is_on_while_iterates_are_made():
    plain, data = regressor()
    options = {"batch": "full", "relative_step": 0.01, **FAST}
    with_dropout = nn.Sequential(*plain[:-1], nn.Dropout(0.3), plain[-1]).eval()
    spreads = []
    for model in (plain, with_dropout):
        la = SWAG(model, "regression", **options)
        state = torch.get_rng_state()
        la.fit(data)
        assert torch.equal(state, torch.get_rng_state())
        last = la._fitted.deviations[0]
        spreads.append(float((last[1:] - last[:-1]).diff(dim=0).square().sum()))
    assert spreads[1] > 10 * spreads[0]


def test_the_scale_is_part_of_a_saved_fit():
    model, data = classifier()
    la = SWAG(model, "classification", scale=1.0, **FAST)
    la.fit(data)
    other = SWAG(model, "classification")
    other.load_state_dict(la.state_dict())
    assert torch.equal(other.sample(3), la.sample(3))
    assert isinstance(other._fitted, IterateMoments)


def test_large_steps_fail_with_a_remedy():
    model, data, _ = linear_regression()
    with pytest.raises(RuntimeError, match="relative_step"):
        SWAG(model, "regression", relative_step=100.0, n_collected=50).fit(data)


@pytest.mark.parametrize(
    "wrong",
    [{"n_collected": 1}, {"max_rank": 1}, {"n_skipped": -1}, {"scale": 0.0}, {"momentum": 1.0}, {"interval": 0}],
    ids=str,
)
def test_settings_are_checked(wrong):
    for settings in (SWAGSettings, MultiSWAGSettings):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            settings(**wrong)
    with pytest.raises(ValueError, match="n_members"):
        MultiSWAGSettings(n_members=0)


def test_training_data_stay_as_they_are():
    _, data = classifier()
    before = [t.clone() for t in data.dataset.tensors]
    TrainingData(data, torch.device("cpu"))
    SWAG(classifier()[0], "classification", **FAST).fit(data)
    assert all(torch.equal(a, b) for a, b in zip(before, data.dataset.tensors, strict=True))
