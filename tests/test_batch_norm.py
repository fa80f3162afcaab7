"""Batch-norm statistics of weight samples: those of the data under each sample, never written to the model."""

import copy
import io

import pytest
import torch
from problems import classifier, loader
from torch import nn
from torch.optim.swa_utils import update_bn

from laplace_fiber.baselines import SWAG, DeepEnsemble, MultiSWAG
from laplace_fiber.batch_norm import outputs_with_buffers, own_buffers, recomputed_statistics, tracking_layers
from laplace_fiber.data import batches_of, pairs
from laplace_fiber.weights import NetworkFunction

FAST = {"n_collected": 3, "n_skipped": 1, "min_interval": 6, "relative_step": 0.5}


def normalised(dropout: float = 0.0, **options):
    """A network with batch norm trained for a moment, and its loader."""
    _, data = classifier()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(2, 5), nn.BatchNorm1d(5, **options), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)]
        model = nn.Sequential(*layers).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            x, y = data.dataset.tensors
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    model.zero_grad()
    return model.eval(), data


def moved_network(model, theta):
    other = copy.deepcopy(model)
    nn.utils.vector_to_parameters(theta, other.parameters())
    return other


def some_thetas(network, n=3):
    noise = torch.randn(n, network.n_params, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return network.theta() + 0.3 * noise


def batches(data):
    return pairs(batches_of(data), torch.device("cpu"))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.3}, {"momentum": None}, {"affine": False}], ids=str)
def test_statistics_are_those_of_update_bn(options):
    model, data = normalised(**options)
    network = NetworkFunction(model)
    thetas = some_thetas(network)
    found = recomputed_statistics(network, thetas, batches(data))
    assert set(found) == {"1.running_mean", "1.running_var"}
    for i, theta in enumerate(thetas):
        expected = moved_network(model, theta)
        update_bn(data, expected)
        torch.testing.assert_close(found["1.running_mean"][i], expected[1].running_mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["1.running_var"][i], expected[1].running_var, rtol=1e-12, atol=1e-12)
        outputs = outputs_with_buffers(
            network, theta[None], {n: v[i : i + 1] for n, v in found.items()}, data.dataset[:5][0]
        )
        torch.testing.assert_close(outputs[0], expected.eval()(data.dataset[:5][0]))


def test_the_model_keeps_its_own():
    model, data = normalised(dropout=0.5, momentum=0.3)
    model.train()
    before, modules = (
        copy.deepcopy(model.state_dict()),
        [(m.training, getattr(m, "momentum", 0)) for m in model.modules()],
    )
    network, state = NetworkFunction(model), torch.get_rng_state()
    recomputed_statistics(network, some_thetas(network), batches(data))
    assert torch.equal(state, torch.get_rng_state())
    assert modules == [(m.training, getattr(m, "momentum", 0)) for m in model.modules()]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_only_batch_norm_runs_in_training_mode():
    model, data = normalised(dropout=0.5)
    model.append(nn.BatchNorm1d(3).double())  # behind the dropout
    network = NetworkFunction(model)
    first, second = (recomputed_statistics(network, network.theta()[None], batches(data)) for _ in range(2))
    assert torch.equal(first["5.running_var"], second["5.running_var"])


def test_single_points_are_left_out():
    model, data = normalised()
    x, y = data.dataset.tensors
    network = NetworkFunction(model)
    theta = network.theta()[None]
    even = recomputed_statistics(network, theta, batches(loader(x[:32], y[:32])))
    odd = recomputed_statistics(network, theta, batches(loader(x[:33], y[:33])))
    assert all(torch.equal(even[n], odd[n]) for n in even)
    with pytest.raises(RuntimeError, match="batch_size"):
        recomputed_statistics(network, theta, batches(loader(x, y, batch_size=1)))


def test_layers_without_statistics_have_none():
    assert not tracking_layers(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))
    assert list(tracking_layers(nn.BatchNorm1d(2))) == [""]
    bare = nn.BatchNorm1d(2).double()
    found = recomputed_statistics(NetworkFunction(bare), torch.ones(1, 4).double(), batches(normalised()[1]))
    assert set(found) == {"running_mean", "running_var"}


def test_own_buffers_are_those_that_differ():
    model, _ = normalised()
    model.register_buffer("constant", torch.ones(2))
    other = copy.deepcopy(model)
    other[1].running_mean += 1
    found = own_buffers(model, [model, other])
    assert set(found) == {"1.running_mean"}
    torch.testing.assert_close(found["1.running_mean"][1] - found["1.running_mean"][0], torch.ones(5).double())


@pytest.mark.parametrize("method", [SWAG, DeepEnsemble])
def test_predictions_take_each_samples_statistics(method):
    model, data = normalised()
    options = FAST if method is SWAG else {"n_members": 3, "min_steps": 30, "n_epochs": 1}
    la = method(model, "classification", **options)
    la.fit(data)
    x = data.dataset[:5][0]
    outputs = la.functional_samples(x, n_samples=3)
    for theta, output in zip(la.sample(3), outputs, strict=True):
        expected = moved_network(model, theta)
        update_bn(data, expected)
        torch.testing.assert_close(output, expected.eval()(x))
        frozen = moved_network(model, theta).eval()(x)
        assert not torch.allclose(output, frozen, rtol=1e-3)
    assert torch.equal(la.functional_samples(x, n_samples=3), outputs)


def test_default_draws_keep_their_statistics(monkeypatch):
    model, data = normalised()
    la = SWAG(model, "classification", **FAST)
    la.fit(data)
    calls = []
    plain = la._statistics_of
    monkeypatch.setattr(la, "_statistics_of", lambda thetas: calls.append(len(thetas)) or plain(thetas))
    x = data.dataset[:5][0]
    la(x, n_samples=3), la(x[:2], n_samples=3)
    assert calls == [3]
    la(x, n_samples=4), la(x, n_samples=4, generator=torch.Generator().manual_seed(1))
    assert calls == [3, 4, 4]


def test_networks_without_batch_norm_pay_nothing(monkeypatch):
    model, data = classifier()
    la = SWAG(model, "classification", **FAST)
    la.fit(data)
    monkeypatch.setattr(la, "_statistics_of", None)
    assert la(data.dataset[:5][0], n_samples=3).shape == (5, 3)


@pytest.mark.parametrize("method", [SWAG, DeepEnsemble])
def test_loaded_states(method):
    model, data = normalised()
    options = FAST if method is SWAG else {"n_members": 3, "min_steps": 30, "n_epochs": 1}
    la, file = method(model, "classification", **options), io.BytesIO()
    la.fit(data)
    torch.save(la.state_dict(), file)
    file.seek(0)
    other, x = method(model, "classification"), data.dataset[:5][0]
    with pytest.raises(RuntimeError, match="fit"):
        other.renew_statistics(data)
    other.load_state_dict(torch.load(file, weights_only=True))
    if method is SWAG:
        with pytest.raises(RuntimeError, match="renew_statistics"):
            other(x)
        other.renew_statistics(data)
    assert torch.equal(other(x, n_samples=3), la(x, n_samples=3))
    inputs, targets = data.dataset.tensors
    other.renew_statistics(loader(inputs + 3, targets))
    assert not torch.allclose(other(x, n_samples=3), la(x, n_samples=3))


def test_given_networks_keep_their_statistics():
    model, data = normalised()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.mul_(-1)
        other[1].running_mean.add_(0.4)
    la = DeepEnsemble([model, other], "classification")
    la.fit(data)
    x = data.dataset[:5][0]
    torch.testing.assert_close(la(x, n_samples=2), (model(x).softmax(-1) + other(x).softmax(-1)) / 2)


def test_other_buffers_belong_to_their_network():
    model, data = normalised()
    model.register_buffer("constant", torch.ones(2))
    other = copy.deepcopy(model)
    other.constant += 1
    DeepEnsemble([model, other], "classification").fit(data)
    with pytest.raises(ValueError, match="constant"):
        MultiSWAG([model, other], "classification", **FAST).fit(data)
