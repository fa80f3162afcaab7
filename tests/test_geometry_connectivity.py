"""Losses on curves between weight vectors: known barriers, and none between copies that symmetries connect."""

import copy

import pytest
import torch
from problems import classifier, fitted, linear_regression, loader, regressor
from torch import nn

from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler
from laplace_fiber.geometry import ModeConnectivity, canonicalize, fiber_connectivity, network_connectivity
from laplace_fiber.geometry.joint_latent import latent_curves
from laplace_fiber.weights import NetworkFunction

STRAIGHT, MATCHED = "straight", "straight, matched"
ALONG, LATENT = "along the walk, through its start", "through the latent space"


def nll(model, data):
    x, y = data.dataset.tensors
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def permuted(model):
    """A copy with the units of its first hidden layer in reverse order."""
    result = copy.deepcopy(model)
    with torch.no_grad():
        result[0].weight.copy_(model[0].weight.flip(0)), result[0].bias.copy_(model[0].bias.flip(0))
        for layer in list(result)[1:]:
            if isinstance(layer, nn.BatchNorm1d):
                for t in [*layer.parameters(), layer.running_mean, layer.running_var]:
                    t.copy_(t.flip(0))
        last = [m for m in result if isinstance(m, nn.Linear)][1]
        last.weight.copy_(last.weight.flip(1))
    return result


def test_a_barrier_is_the_rise_above_the_line_between_the_ends():
    s = torch.linspace(0, 1, 5)
    losses = torch.tensor([[1.0, 2.0, 5.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 1.0, 0.0, 1.0, 2.0]])
    result = ModeConnectivity(s, {"curve": losses}, ("a note",))
    assert result.barriers()["curve"].tolist() == [3.0, 0.0, 0.0]
    lines = str(result).splitlines()
    assert lines[1].split() == ["curve", "3", "2", "3.67", "1", "3"]
    assert lines[-1] == "a note"


def test_copies_are_connected_once_they_are_matched():
    model, data = classifier()
    result = network_connectivity([model, permuted(model)], data, "classification", n_points=11)
    straight, matched = result.barriers()[STRAIGHT], result.barriers()[MATCHED]
    assert float(straight) > 0.1
    assert float(matched) < 1e-9
    for losses in result.curves.values():
        torch.testing.assert_close(
            losses[:, [0, -1]], torch.full((1, 2), nll(model, data)).double(), rtol=1e-6, atol=1e-6
        )
    middle = NetworkFunction(model)
    halfway = copy.deepcopy(model)
    nn.utils.vector_to_parameters((middle.theta() + NetworkFunction(permuted(model)).theta()) / 2, halfway.parameters())
    assert float(result.curves[STRAIGHT][0, 5]) == pytest.approx(nll(halfway, data))


def test_statistics_of_batch_norm_are_those_of_each_point():
    y = torch.arange(40) % 2
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + y[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    data = loader(x, y, 40)
    result = network_connectivity([model, permuted(model)], data, "classification")
    expected = nn.functional.cross_entropy(copy.deepcopy(model).train()(x), y).item()
    # Running variances are unbiased, those of a batch are not.
    assert float(result.curves[STRAIGHT][0, 0]) == pytest.approx(expected, rel=0.02)
    assert float(result.barriers()[MATCHED]) < 1e-9 < float(result.barriers()[STRAIGHT])


def test_a_linear_network_has_no_barriers():
    model, data, _ = linear_regression()
    la = fitted(model, data, "regression", sigma_noise=0.5)
    result = fiber_connectivity(la, data, n_pairs=4, n_points=9)
    assert float(result.barriers()[STRAIGHT].max()) < 1e-9  # the loss is convex
    assert set(result.curves) == {STRAIGHT, MATCHED, ALONG, LATENT}
    assert result.curves[STRAIGHT].shape == (4, 9)


def test_curves_of_a_walk_have_its_states_at_their_ends_and_its_start_in_the_middle():
    model, data = classifier()
    la = fitted(model, data)
    result = fiber_connectivity(la, data, n_pairs=100, n_points=9)
    assert len(result.curves[ALONG]) == 15
    start = torch.full((15,), nll(model, data), dtype=torch.float64)
    torch.testing.assert_close(result.curves[ALONG][:, 4], start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(result.curves[STRAIGHT][:, [0, -1]], result.curves[ALONG][:, [0, -1]])
    decoded = la._fitted.lines.coordinates(torch.arange(6), torch.ones(6, dtype=torch.float64))
    thetas = la._fitted.subspace.to_weights(decoded)
    losses = sorted({round(v, 8) for v in result.curves[LATENT][:, [0, -1]].flatten().tolist()})
    copies = [copy.deepcopy(model) for _ in thetas]
    for one, theta in zip(copies, thetas, strict=True):
        nn.utils.vector_to_parameters(theta, one.parameters())
    assert losses == pytest.approx(sorted(nll(one, data) for one in copies), rel=1e-5)


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
def test_two_networks_meet_in_a_latent_space_of_both_walks():
    model, data = regressor()
    other = canonicalize(permuted(model), sign=False)
    sampler = TrajectorySampler(n_particles=4, n_steps=5)
    plain = LatentAutoencoder(latent_size=8, width=64, n_steps=400)
    walks = [FiberLaplace(m, "regression", sigma_noise=0.3, sampler=sampler, autoencoder=plain) for m in (model, other)]
    for la in walks:
        la.fit(data)
    result = network_connectivity([model, other], data, "regression", sigma_noise=0.3, walks=walks, n_points=7)
    assert result.curves[LATENT].shape == (1, 7)
    # The ends are the walks' own, as far as the autoencoder reproduces them.
    curve = latent_curves(*walks, torch.tensor([0.0, 1.0], dtype=torch.float64))
    ends = torch.cat([la._fitted.subspace.to_weights(la._fitted.states[:1, -1]) for la in walks])
    assert bool(((curve - ends).norm(dim=1) < 0.3 * (ends[0] - ends[1]).norm()).all())
    assert bool(torch.isfinite(result.curves[LATENT]).all())


def test_bad_arguments_and_networks_without_matching():
    model, data = classifier()
    with pytest.raises(ValueError, match="at least two networks"):
        network_connectivity([model], data, "classification")
    with pytest.raises(ValueError, match="same weight tensors"):
        network_connectivity([model, nn.Linear(2, 3).double()], data, "classification")
    la = fitted(model, data)
    with pytest.raises(ValueError, match="three points"):
        fiber_connectivity(la, data, n_points=2)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, x):
            return self.body(x)

    wrapped = fitted(Wrapped(), data)
    result = fiber_connectivity(wrapped, data, n_pairs=2, n_points=5)
    assert MATCHED not in result.curves
    assert "the network itself" in str(result).splitlines()[-1]
