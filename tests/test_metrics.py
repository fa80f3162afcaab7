"""Scores against closed forms, torchmetrics, numerical integration and brute force."""

import math

import pytest
import torch
import torchmetrics
from torch.distributions import Normal

from laplace_fiber import metrics
from laplace_fiber.metrics import TargetDistribution


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def class_samples():
    """Probabilities of 7 samples, 200 inputs and 4 classes, with labels that follow them."""
    probs = torch.randn(7, 200, 4, generator=generator(), dtype=torch.float64).mul(2).softmax(-1)
    return probs, torch.multinomial(probs.mean(0), 1, generator=generator()).flatten()


def test_class_scores_equal_torchmetrics(class_samples):
    probs, y = class_samples
    scores = metrics.classification(probs, y)
    mean = probs.mean(0)
    error = {
        norm: 100 * torchmetrics.functional.calibration_error(mean, y, "multiclass", 10, norm, num_classes=4)
        for norm in ("l1", "max")
    }
    assert scores["ece"] == pytest.approx(error["l1"].item(), rel=1e-5)
    assert scores["mce"] == pytest.approx(error["max"].item(), rel=1e-5)
    assert scores["accuracy"] == pytest.approx((mean.argmax(-1) == y).double().mean().item())
    assert scores["nll"] == pytest.approx(torch.nn.functional.nll_loss(mean.log(), y).item())
    assert scores["brier"] == pytest.approx((mean - torch.eye(4)[y]).square().sum(-1).mean().item())


def test_scores_per_sample_are_means_over_single_samples(class_samples):
    probs, y = class_samples
    single = [metrics.classification(p.unsqueeze(0), y) for p in probs]
    scores = metrics.classification(probs, y)
    for name in ("nll", "ece", "mce", "brier", "accuracy"):
        assert scores[f"{name}_per_sample"] == pytest.approx(sum(s[name] for s in single) / len(single))


def test_a_probability_of_zero_gives_a_finite_loss():
    assert metrics.classification(torch.tensor([[[1.0, 0.0]]]), torch.tensor([1]))["nll"] == pytest.approx(
        87.3, abs=0.1
    )


def test_averaged_classes_have_no_scores_per_sample(class_samples):
    probs, y = class_samples
    scores = metrics.evaluate(probs.mean(0), y)
    expected = metrics.classification(probs, y)
    assert scores == {name: pytest.approx(v) for name, v in expected.items() if not name.endswith("_per_sample")}


def test_reliability_diagrams_show_what_the_calibration_error_sums(class_samples):
    probs, y = class_samples
    diagram = metrics.reliability(probs, y)
    expected, observed, share = (torch.tensor(diagram[name]) for name in ("expected", "observed", "share"))
    assert share.sum().item() == pytest.approx(1)
    error = 100 * (share * (expected - observed).abs()).sum().item()
    assert error == pytest.approx(metrics.classification(probs, y)["ece"], rel=1e-5)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_gaussian_scores_equal_the_closed_form():
    mean, variance, y = normal(50, 1, seed=0), normal(50, 1, seed=1).square(), normal(50, 1, seed=2)
    sigma = 0.3
    scores = metrics.gaussian(mean, variance, y, sigma)
    assert scores["nll"] == pytest.approx(
        -Normal(mean, (variance + sigma**2).sqrt()).log_prob(y).mean().item(), rel=1e-5
    )
    assert scores["rmse"] == pytest.approx((mean - y).square().mean().sqrt().item(), rel=1e-5)


def test_many_samples_reach_the_gaussian_closed_form():
    mean, variance, y = (torch.randn(20, 1, generator=generator(k)) for k in range(3))
    variance = variance.square()
    quantiles = Normal(0, 1).icdf((torch.arange(400) + 0.5) / 400)
    f = mean + variance.sqrt() * quantiles[:, None, None]
    closed, sampled = metrics.gaussian(mean, variance, y, 0.5), metrics.regression(f, y, 0.5)
    for name in ("nll", "nll_per_sample", "rmse", "crps", "crps_per_sample", "calibration_error"):
        assert sampled[name] == pytest.approx(closed[name], rel=0.03)


def test_one_sample_is_a_gaussian_without_variance():
    f, y = normal(30, 1, seed=0), normal(30, 1, seed=1)
    one, closed = metrics.regression(f.unsqueeze(0), y, 0.7), metrics.gaussian(f, torch.zeros_like(f), y, 0.7)
    for name in closed:
        assert one[name] == pytest.approx(closed[name])


@pytest.mark.parametrize(
    ("pit", "expected"),
    [
        (torch.linspace(0, 1, 20_001, dtype=torch.float64), 0.0),  # calibrated
        (torch.full((10,), 0.5, dtype=torch.float64), 50.0),  # targets always at the median
        (torch.zeros(10, dtype=torch.float64), 50.0),  # targets never inside
    ],
)
def test_coverage_error(pit, expected):
    assert metrics.coverage_error(pit).item() == pytest.approx(expected, abs=0.01)


def integrated_crps(cdf, y: float) -> float:
    """∫ (F(z) − 1{z ≥ y})² dz by the midpoint rule."""
    edges = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    z = (edges[1:] + edges[:-1]) / 2
    return float((cdf(z) - (z >= y).double()).square().sum() * (edges[1] - edges[0]))


def test_crps_of_mixtures_equals_the_integral():
    means, y, sigma = normal(5, 3, seed=1) * 2, normal(3, seed=2) * 2, 0.4
    scores = metrics.mixture_crps(means[:, :, None], torch.tensor([sigma], dtype=torch.float64), y[:, None])[:, 0]
    for i in range(3):
        expected = integrated_crps(lambda z, i=i: Normal(means[:, i, None], sigma).cdf(z).mean(0), float(y[i]))
        assert scores[i].item() == pytest.approx(expected, abs=1e-4)
    whole = metrics.regression(means[:, :, None], y[:, None], sigma)
    assert whole["crps"] == pytest.approx(scores.mean().item())
    single = [metrics.gaussian_crps(y - m, torch.tensor(sigma, dtype=torch.float64)).mean().item() for m in means]
    assert whole["crps_per_sample"] == pytest.approx(sum(single) / 5)


@pytest.mark.parametrize(("mean", "scale", "y"), [(0.0, 1.0, 0.3), (-2.0, 0.2, 1.0), (1.0, 3.0, -4.0)])
def test_crps_of_a_gaussian_equals_the_integral(mean, scale, y):
    expected = integrated_crps(lambda z: Normal(torch.tensor(mean, dtype=torch.float64), scale).cdf(z), y)
    score = metrics.gaussian_crps(torch.tensor(y - mean, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    assert score.item() == pytest.approx(expected, abs=1e-4)


def test_crps_does_not_depend_on_the_blocks_it_is_computed_in(monkeypatch):
    f, y = normal(7, 11, 2, seed=1), normal(11, 2, seed=2)
    whole = metrics.regression(f, y, 0.5)["crps"]
    monkeypatch.setattr(metrics, "PAIRS_AT_ONCE", 200)
    assert metrics.regression(f, y, 0.5)["crps"] == pytest.approx(whole)


def test_several_outputs_add_up_in_the_nll():
    f, y, noise = normal(4, 6, 2, seed=1), normal(6, 2, seed=2), torch.tensor([0.3, 1.5])
    scores = metrics.regression(f, y, noise)
    joint = Normal(f, noise.double()).log_prob(y).sum(-1)
    assert scores["nll"] == pytest.approx(-(joint.logsumexp(0) - math.log(4)).mean().item())
    columns = [metrics.regression(f[..., [k]], y[:, [k]], float(noise[k])) for k in (0, 1)]
    assert scores["crps"] == pytest.approx(sum(c["crps"] for c in columns) / 2)
    mean, variance = f.mean(0), f.var(0)
    closed = [metrics.gaussian(mean[:, [k]], variance[:, [k]], y[:, [k]], float(noise[k])) for k in (0, 1)]
    both = metrics.gaussian(mean, variance, y, noise)
    for name in ("nll", "nll_per_sample"):
        assert both[name] == pytest.approx(closed[0][name] + closed[1][name])


def test_targets_with_their_own_variance_are_scored_as_gaussians():
    mean, variance, y = normal(20, 2, seed=0), normal(20, 2, seed=1).square(), normal(20, 2, seed=2)
    scores = metrics.evaluate(TargetDistribution(mean, variance + 0.09), y, sigma=17.0)  # this noise is not added
    expected = metrics.gaussian(mean, variance, y, 0.3)
    assert scores == {name: pytest.approx(v) for name, v in expected.items() if not name.endswith("_per_sample")}


@pytest.mark.parametrize("kind", ["samples", "function", "targets"])
def test_the_nll_alone_is_that_of_all_scores(kind):
    f, y = normal(5, 9, 1, seed=0), normal(9, 1, seed=1)
    forms = {"samples": f, "function": (f[0], f[1] ** 2), "targets": TargetDistribution(f[0], f[1] ** 2)}
    assert metrics.negative_log_likelihood(forms[kind], y, 0.4) == metrics.evaluate(forms[kind], y, 0.4)["nll"]


def test_the_nll_alone_is_that_of_all_scores_for_classes(class_samples):
    probs, y = class_samples
    for prediction in (probs, probs.mean(0)):
        assert metrics.negative_log_likelihood(prediction, y) == pytest.approx(metrics.evaluate(prediction, y)["nll"])


def test_reliability_of_intervals_is_their_coverage():
    mean, y = torch.zeros(20_000, 1, dtype=torch.float64), normal(20_000, 1)
    for prediction in ((mean, mean + 0.75), TargetDistribution(mean, mean + 1), mean[None]):
        sigma = 0.5 if isinstance(prediction, tuple) else 1.0
        diagram = metrics.reliability(prediction, y, sigma)
        assert diagram["observed"] == pytest.approx(diagram["expected"], abs=0.02)


# --- out of distribution ---------------------------------------------------------------------------------------------


def test_detection_equals_brute_force_and_torchmetrics():
    inside, outside = normal(60, seed=0).mul(2).round(), normal(40, seed=1).mul(2).add(1).round()  # many ties
    wins = (outside[:, None] > inside).double() + 0.5 * (outside[:, None] == inside).double()
    area = metrics.detection_auroc(inside, outside)
    assert area == pytest.approx(wins.mean().item())
    both = torch.cat([inside, outside])
    squeezed = (both - both.min()) / (both.max() - both.min())
    truth = torch.cat([torch.zeros(60), torch.ones(40)]).long()
    assert area == pytest.approx(torchmetrics.functional.auroc(squeezed, truth, task="binary").item(), abs=1e-6)
    assert metrics.detection_auroc(inside * 1e6, outside * 1e6) == area


def test_uncertainty_is_entropy_or_variance():
    probs = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]])
    assert metrics.uncertainty(probs, classes=True).tolist() == pytest.approx([math.log(2), math.log(2)])
    assert metrics.uncertainty(probs[0], classes=True).tolist() == pytest.approx([math.log(2), 0.0])
    f = normal(6, 4, 2)
    torch.testing.assert_close(metrics.uncertainty(f, classes=False), f.var(0, correction=0).sum(-1))
    torch.testing.assert_close(metrics.uncertainty((f[0], f[1].square()), classes=False), f[1].square().sum(-1))
