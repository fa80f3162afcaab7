"""Dropout at prediction time against its moments, and its masks as functions of nothing but their seeds."""

import copy

import pytest
import torch
from problems import classifier, joint_of, loader
from torch import nn

from laplace_fiber.baselines import MCDropout
from laplace_fiber.baselines.mc_dropout import LAYERS, Masks


def dropped_linear(rate=0.3):
    """f(x) = w · drop(x), in train mode."""
    model = nn.Sequential(nn.Dropout(rate), nn.Linear(6, 1, bias=False)).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(1, 6, generator=generator, dtype=torch.float64))
    return model.train(), loader(x, x.sum(1, keepdim=True)), x


def fitted(model, data, likelihood="regression", **options):
    la = MCDropout(model, likelihood, **options)
    la.fit(data)
    return la


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_moments_of_a_linear_model(rate):
    """E f = w·x and Cov(f(x), f(x')) = p/(1−p) Σ w² x x': between inputs, too, as they share masks (2,000 masks)."""
    model, data, x = dropped_linear(rate)
    la = fitted(model, data)
    functions = la.functional_samples(x[:4], n_samples=2000)[..., 0]
    w = model[1].weight.detach()[0]
    scaled = x[:4] * w
    expected = rate / (1 - rate) * scaled @ scaled.T
    scale = float(expected.diagonal().max())
    torch.testing.assert_close(functions.mean(0), x[:4] @ w, rtol=0, atol=0.08 * scale**0.5)
    torch.testing.assert_close(torch.cov(functions.T), expected, rtol=0, atol=0.12 * scale)
    mean, variance = la(x[:4], n_samples=2000)
    torch.testing.assert_close(mean[:, 0], functions.mean(0))
    torch.testing.assert_close(variance[:, 0], functions.var(0))


def deep():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shared = nn.Dropout(0.4)
        return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), shared, nn.Linear(8, 8), nn.ReLU(), shared, nn.Linear(8, 3))


def test_samples_are_functions():
    """Whatever else is in the batch, in whatever order and however many samples: f(x) is the same."""
    model, (_, data) = deep().double(), classifier()
    la = fitted(model, data, "classification")
    x = data.dataset.tensors[0]
    together = la.functional_samples(x, n_samples=5)
    torch.testing.assert_close(la.functional_samples(x[7:9], n_samples=5), together[:, 7:9])
    torch.testing.assert_close(la.functional_samples(x.flip(0), n_samples=5).flip(1), together)
    torch.testing.assert_close(la.functional_samples(x, n_samples=3), together[:3])
    torch.testing.assert_close(la.functional_samples(x[[0, 0, 0]], n_samples=5)[:, 1:], together[:, [0, 0]])
    assert len({tuple(f.flatten().tolist()) for f in together}) == 5


def test_each_call_of_a_layer_has_its_own_mask():
    masks, layer, ones = Masks(3, shared=True), nn.Dropout(0.5), torch.ones(2, 40)
    first, second = masks(layer, ones), masks(layer, ones)
    assert not torch.equal(first, second)
    assert torch.equal(first[0], first[1])
    again = Masks(3, shared=True)
    again(layer, torch.ones(2, 7))
    assert torch.equal(again(layer, ones), second)  # whatever shape the call before had
    own = Masks(3, shared=False)(layer, ones)
    assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("layer", [nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout])
def test_channels_are_dropped_as_a_whole(layer):
    dims = {nn.Dropout1d: 1, nn.Dropout2d: 2}.get(layer, 3)
    y = Masks(0, shared=True)(layer(0.5), torch.ones(3, 50, *[4] * dims)).flatten(2)
    assert bool((y == y[:1, :, :1]).all())
    assert 10 < int((y[0, :, 0] == y.min()).sum()) < 40
    of_each = Masks(0, shared=False)(layer(0.5), torch.ones(3, 50, *[4] * dims)).flatten(2)
    assert bool((of_each == of_each[:, :, :1]).all())
    assert not torch.equal(of_each[0], of_each[1])


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rate", [0.2, 0.7, 1.0])
def test_values_are_those_of_the_layer_in_training(layer, rate):
    """The values that torch's own layer gives a constant: kept and dropped, scaled and shifted."""
    x = torch.full((2, 400, *{nn.Dropout1d: [1], nn.Dropout2d: [1, 1]}.get(layer, [1, 1, 1])), 1.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = layer(rate).train()(x).unique()
    torch.testing.assert_close(Masks(0, shared=False)(layer(rate), x).unique(), expected)


def test_rates():
    kept = Masks(0, shared=True)(nn.Dropout(0.15), torch.ones(1, 40_000)) > 0
    assert float(kept.double().mean()) == pytest.approx(0.85, abs=0.01)


def test_alpha_dropout_keeps_mean_and_variance():
    x = torch.randn(1, 400_000, generator=torch.Generator().manual_seed(0))
    y = Masks(1, shared=True)(nn.AlphaDropout(0.3), x)
    assert float(y.mean()) == pytest.approx(0, abs=0.01)
    assert float(y.var()) == pytest.approx(1, abs=0.02)


def test_the_model_keeps_its_modes_and_gets_no_hooks():
    model, data, x = dropped_linear()
    model[1].eval()
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    la = fitted(model, data, insert=0.2, min_steps=3, n_epochs=1)
    la(x, n_samples=3)
    with pytest.raises(RuntimeError):
        la(x[:, :2])
    assert [module.training for module in model] == [True, False]
    assert len(model[0]._forward_hooks) == 1
    assert not model[1]._forward_pre_hooks
    assert seen


def test_networks_without_dropout_are_refused_with_the_remedy():
    model, data = classifier()
    for network in (model, nn.Sequential(nn.Dropout(0.0), *model)):
        with pytest.raises(ValueError, match=r"trained with dropout .* insert=0\.1"):
            MCDropout(network, "classification").fit(data)


def test_inserted_dropout_is_trained_on_and_saved():
    """The weights are trained under inserted dropout: J with it on falls, and the model's own weights stay."""
    model, data = classifier()
    before = copy.deepcopy(model.state_dict())
    la = fitted(model, data, "classification", insert=0.5)
    assert (la._fitted.layer, la._fitted.rate) == ("2", 0.5)
    assert not torch.equal(la._fitted.theta, la.mean)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    joint, training = joint_of(model, data, "classification")

    def noisy(theta):
        with joint.network.evaluation(), torch.no_grad():
            values = []
            for seed in range(60):
                with la._dropping(Masks(seed, shared=False), la._fitted):
                    values.append(joint.objective(theta[None], training.everything()))
        return float(torch.cat(values).mean())

    assert noisy(la._fitted.theta) < noisy(la.mean) - 0.01
    x = data.dataset.tensors[0]
    other = MCDropout(model, "classification")  # the rate is the fit's
    other.load_state_dict(la.state_dict())
    assert torch.equal(other(x, n_samples=5), la(x, n_samples=5))


def test_inserted_dropout_stands_before_the_last_layer():
    """Masks of five hidden units: the variance over them is that of the last layer's linear formula."""
    model, data = classifier()
    la = fitted(model, data, "classification", insert=0.25, min_steps=5, n_epochs=1)
    x = data.dataset.tensors[0][:3]
    functions = la.functional_samples(x, n_samples=2000)
    named = la.network.named(la._fitted.theta)
    hidden = (x @ named["0.weight"].T + named["0.bias"]).tanh()
    expected = 0.25 / 0.75 * hidden.square() @ named["2.weight"].square().T
    torch.testing.assert_close(functions.var(0), expected, rtol=0.12, atol=0)


def test_no_weight_samples_and_no_linearisation():
    model, data, x = dropped_linear()
    la = fitted(model, data)
    with pytest.raises(NotImplementedError, match="functional_samples"):
        la.sample(3)
    for predict in (la, la.functional_samples, la.predictive_samples):
        with pytest.raises(ValueError, match=r"pred_type: expected .*nn"):
            predict(x, pred_type="glm")
    with pytest.raises(ValueError, match="subset: expected 'all'"):
        MCDropout(model, "regression", subset=["1"])


def test_divergence_is_an_error():
    model, data = classifier()
    with pytest.raises(RuntimeError, match=r"diverged by step .* smaller relative_step"):
        fitted(model, data, "classification", insert=0.2, relative_step=1e200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"insert": 0.0}, r"insert: expected a rate in \(0, 1\) or None, got 0.0"),
        ({"insert": 1.0}, "insert"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"min_steps": 0}, "min_steps"),
        ({"relative_step": -1.0}, "relative_step"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        MCDropout(classifier()[0], "classification", **options)
