"""Temperature scaling and its counterpart for targets, against known answers."""

import math

import pytest
import torch

from laplace_fiber.calibration import (
    TEMPERATURES,
    Calibration,
    fit_temperature,
    fit_variance_factor,
    log_probabilities,
    target_moments,
)
from laplace_fiber.metrics import TargetDistribution, classification, evaluate


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(n: int = 20_000, n_classes: int = 4):
    """Logits, and labels drawn from their softmax."""
    logits = 2 * normal(n, n_classes)
    y = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(1)).flatten()
    return logits, y


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_known_temperature_is_recovered(temperature):
    logits, y = labelled()
    assert fit_temperature(temperature * logits, y) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_minimises_the_validation_loss():
    logits, y = labelled(200)
    best = fit_temperature(3 * logits, y)

    def loss(t):
        return torch.nn.functional.cross_entropy(3 * logits / t, y).item()

    assert loss(best) < min(loss(0.999 * best), loss(1.001 * best))


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_equal_logits_and_shifts_change_nothing(shift):
    logits, y = labelled(500)
    assert fit_temperature(logits + shift, y) == pytest.approx(fit_temperature(logits, y))
    assert fit_temperature(torch.full_like(logits, shift), y) == 1.0


def test_separable_data_meet_the_bound_with_a_warning():
    logits, y = torch.eye(3, dtype=torch.float64).repeat(5, 1), torch.arange(3).repeat(5)
    with pytest.warns(UserWarning, match="too few"):
        assert fit_temperature(logits, y) == pytest.approx(TEMPERATURES[0])
    with pytest.warns(UserWarning, match="too few"):
        assert fit_temperature(-logits, y) == pytest.approx(TEMPERATURES[1])


@pytest.mark.parametrize("logits", [torch.tensor([[0.0, torch.nan]]), torch.zeros(0, 2)])
def test_unusable_logits_are_refused(logits):
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(logits, torch.zeros(len(logits), dtype=torch.int64))


def test_accuracy_never_changes_and_the_loss_falls():
    logits, y = labelled(1000)
    probs = torch.stack([(4 * logits + normal(1000, 4, seed=s)).softmax(-1) for s in range(3)])
    calibration = Calibration(probs, y)
    before, after = classification(probs, y), evaluate(calibration(probs), y)
    assert calibration.value > 2
    assert after["accuracy"] == before["accuracy"]
    assert after["nll"] < before["nll"]
    assert after["ece"] < before["ece"]
    assert torch.equal(calibration(probs).argmax(-1), probs.mean(0).argmax(-1))


def test_probabilities_of_zero_stay_finite():
    assert log_probabilities(torch.tensor([[1.0, 0.0]])).isfinite().all()


def test_a_known_variance_is_recovered():
    mean, y = torch.zeros(50_000, 1, dtype=torch.float64), 3 * normal(50_000, 1)
    assert fit_variance_factor(mean, mean + 0.25, y) == pytest.approx(36, rel=0.03)
    calibration = Calibration((mean, mean + 0.16), y, sigma=0.3)
    assert calibration.value == pytest.approx(36, rel=0.03)
    calibrated = calibration((mean, mean + 0.16))
    assert isinstance(calibrated, TargetDistribution)
    assert calibrated.variance[0].item() == pytest.approx(9, rel=0.03)
    assert evaluate(calibrated, y)["nll"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 9), abs=0.02)


def test_moments_of_samples_are_those_of_the_mixture():
    f = normal(5, 7, 1)
    moments = target_moments(f, 0.5)
    torch.testing.assert_close(moments.mean, f.mean(0))
    torch.testing.assert_close(moments.variance, f.var(0, correction=0) + 0.25)
    assert target_moments(moments, 17.0) is moments


def test_perfect_predictions_are_refused():
    with pytest.raises(ValueError, match="factor"):
        fit_variance_factor(torch.zeros(3, 1), torch.ones(3, 1), torch.zeros(3, 1))
