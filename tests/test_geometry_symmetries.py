"""Symmetries of hidden units taken away: the same function, one representative, or an error that names the layer."""

import copy
import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from laplace_fiber.geometry import canonicalize
from laplace_fiber.weights import NetworkFunction

PROPERTY = settings(
    deadline=None, max_examples=30, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
SAME = {"rtol": 1e-9, "atol": 1e-9}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "tanh": nn.Tanh,
    "identity": nn.Identity,
    "gelu": nn.GELU,
    "prelu": nn.PReLU,
}


def randomised(model, seed):
    """The model in float64 and eval mode with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        for name, b in model.named_buffers():
            if b.is_floating_point():
                b.copy_(torch.randn(b.shape, generator=generator, dtype=b.dtype))
                if name.endswith("var"):
                    b.abs_().add_(0.1)
    return model


def mlp(widths, activation, bias=True, seed=0, norm=False):
    layers = []
    for a, b in itertools.pairwise(widths):
        block = [
            nn.Linear(a, b, bias=bias),
            *([nn.BatchNorm1d(b)] if norm else []),
            ACTIVATIONS[activation](),
            nn.Dropout(0.3),
        ]
        layers.append(nn.Sequential(*block) if len(layers) % 2 else block)
    flat = [m for part in layers for m in (part if isinstance(part, list) else [part])]
    return randomised(nn.Sequential(*flat, nn.Linear(widths[-1], 2, bias=bias)), seed)


def convolutional(activation=nn.ReLU, pool=nn.MaxPool2d, norm=True, seed=0):
    blocks = [nn.Conv2d(2, 3, 3, padding=1), *([nn.BatchNorm2d(3)] if norm else []), activation(), pool(2)]
    blocks += [nn.Conv2d(3, 4, 3), activation(), *([nn.BatchNorm2d(4)] if norm else []), nn.Flatten(), nn.Linear(16, 5)]
    return randomised(nn.Sequential(*blocks, activation(), nn.Linear(5, 3)), seed)


def images(n=6):
    return torch.randn(n, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def vectors(n=7, d=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def theta_of(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def rescaled(model, seed=0, power=3.0):
    """A copy of a ReLU network of linear layers, its units scaled at random and permuted."""
    generator = torch.Generator().manual_seed(seed)
    result = copy.deepcopy(model)
    linear = [m for m in result.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for before, after in itertools.pairwise(linear):
            factor = torch.exp(power * torch.randn(before.out_features, generator=generator, dtype=torch.float64))
            order = torch.randperm(before.out_features, generator=generator)
            before.weight.copy_((before.weight * factor[:, None])[order])
            if before.bias is not None:
                before.bias.copy_((before.bias * factor)[order])
            after.weight.copy_((after.weight / factor)[:, order])
    return result


@PROPERTY
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.booleans(),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_fully_connected_networks_keep_their_function(hidden, activation, bias, seed, norm):
    model = mlp([3, *hidden], activation, bias, seed, norm)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    result = canonicalize(model)
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in before.items())
    torch.testing.assert_close(result(vectors()), model(vectors()), **SAME)
    again = canonicalize(result)
    torch.testing.assert_close(theta_of(again), theta_of(result), rtol=1e-8, atol=1e-8)
    other = mlp([3, *hidden], activation, bias, seed + 1, norm)
    matched = canonicalize(model, reference=other)
    torch.testing.assert_close(matched(vectors()), model(vectors()), **SAME)


@PROPERTY
@given(
    st.sampled_from([nn.ReLU, nn.Tanh, nn.LeakyReLU]),
    st.sampled_from([nn.MaxPool2d, nn.AvgPool2d]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_convolutional_networks_keep_their_function(activation, pool, norm, seed):
    model = convolutional(activation, pool, norm, seed)
    result = canonicalize(model)
    torch.testing.assert_close(result(images()), model(images()), **SAME)
    assert not torch.allclose(theta_of(result), theta_of(model))
    # Statistics of data, too: what stands in front of a batch norm has only been permuted.
    torch.testing.assert_close(copy.deepcopy(result).train()(images()), copy.deepcopy(model).train()(images()), **SAME)
    matched = canonicalize(model, reference=convolutional(activation, pool, norm, seed + 1))
    torch.testing.assert_close(matched(images()), model(images()), **SAME)


def test_the_representative_has_the_smallest_norm():
    model = mlp([3, 5, 4, 6], "relu", seed=2)
    result = canonicalize(model, sign=False, permutation=False)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    logs = [torch.zeros(m.out_features, dtype=torch.float64, requires_grad=True) for m in linear[:-1]]

    def norm():
        into = [torch.zeros(3, dtype=torch.float64), *logs]
        out = [*logs, torch.zeros(2, dtype=torch.float64)]
        weights = [
            (m.weight * (b[:, None] - a[None]).exp()).square().sum() for m, a, b in zip(linear, into, out, strict=True)
        ]
        return sum(weights) + sum((m.bias * b.exp()).square().sum() for m, b in zip(linear, out, strict=True))

    optimizer = torch.optim.LBFGS(logs, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        norm().backward()
        return norm()

    optimizer.step(closure)
    assert float(theta_of(result).square().sum()) == pytest.approx(norm().item(), rel=1e-8)
    assert theta_of(result).norm() < theta_of(model).norm()


def test_copies_that_differ_by_symmetries_have_one_representative():
    model = mlp([3, 6, 5], "relu", seed=4)
    for seed in range(3):
        other = rescaled(model, seed)
        assert not torch.allclose(theta_of(other), theta_of(model))
        torch.testing.assert_close(other(vectors()), model(vectors()), **SAME)
        torch.testing.assert_close(theta_of(canonicalize(other)), theta_of(canonicalize(model)), rtol=1e-7, atol=1e-9)


def test_signs_of_tanh_units():
    model = mlp([3, 6, 5], "tanh", seed=4)
    other = copy.deepcopy(model)
    linear = [m for m in other.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for before, after in itertools.pairwise(linear):
            flips = torch.where(torch.arange(before.out_features) % 2 == 0, -1.0, 1.0).double()
            before.weight.mul_(flips[:, None]), before.bias.mul_(flips), after.weight.mul_(flips)
    torch.testing.assert_close(other(vectors()), model(vectors()), **SAME)
    result = canonicalize(other)
    torch.testing.assert_close(theta_of(result), theta_of(canonicalize(model)), **SAME)
    assert bool((result[0].weight.sum(1) + result[0].bias > 0).all())
    # Nothing is scaled where the activation is not homogeneous.
    assert float(theta_of(result).norm()) == pytest.approx(float(theta_of(model).norm()))


@pytest.mark.parametrize(("activation", "hidden"), [("relu", [8, 7]), ("gelu", [8, 7]), ("tanh", [12])])
def test_matching_finds_the_permutation_of_a_noisy_copy(activation, hidden):
    model = mlp([3, *hidden], activation, seed=5)
    reference = theta_of(canonicalize(model, sign=False, permutation=False))
    noise = 1e-3 * torch.randn(len(reference), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shuffled = canonicalize(reference + noise, model, scaling=False)
    assert float((shuffled - reference).norm()) > 1
    found = canonicalize(shuffled, model, scaling=False, reference=reference)
    torch.testing.assert_close(found, reference + noise, **SAME)


def test_matching_never_moves_away():
    model = mlp([3, 8, 7], "relu", seed=5)
    network = NetworkFunction(model)
    thetas = torch.randn(5, network.n_params, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    balanced = canonicalize(thetas, network, permutation=False)
    matched = canonicalize(thetas, network, reference=balanced[0])
    before, after = ((rows - balanced[0]).norm(dim=1) for rows in (balanced, matched))
    assert bool((after <= before + 1e-12).all())
    assert bool((after[1:] < before[1:]).all())
    with torch.no_grad():
        for row, given_row in zip(matched, thetas, strict=True):
            torch.testing.assert_close(network.one(row, vectors()), network.one(given_row, vectors()), **SAME)


def test_samples_are_treated_as_networks_are():
    model = mlp([3, 6, 5], "leaky", seed=6)
    network = NetworkFunction(model)
    thetas = torch.randn(4, network.n_params, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together = canonicalize(thetas, network)
    for row, theta in zip(together, thetas, strict=True):
        one = copy.deepcopy(model)
        nn.utils.vector_to_parameters(theta, one.parameters())
        torch.testing.assert_close(row, theta_of(canonicalize(one)), **SAME)
        torch.testing.assert_close(canonicalize(theta, model), row, **SAME)
    assert canonicalize(thetas.float(), network).dtype == torch.float32


def test_units_whose_weights_do_not_all_move_stay():
    model = mlp([3, 6, 5], "relu", seed=6)
    last = NetworkFunction(model, "last_layer")
    theta = last.theta()[None]
    assert torch.equal(canonicalize(theta, last), theta)
    model[0].weight.requires_grad_(False)
    part = NetworkFunction(model)
    moved = canonicalize(part.theta(), part)
    with torch.no_grad():
        torch.testing.assert_close(part.one(moved, vectors()), model(vectors()), **SAME)
    assert not torch.equal(moved, part.theta())


def test_units_that_add_nothing_have_no_norm():
    model = mlp([3, 4, 3], "relu", seed=7)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0.0, 0.0
        linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
        linear[1].weight[:, 2] = 0.0
    result = canonicalize(model, permutation=False)
    torch.testing.assert_close(result(vectors()), model(vectors()), **SAME)
    after = [m for m in result.modules() if isinstance(m, nn.Linear)]
    assert float(after[1].weight[:, 1].norm()) == float(after[0].weight[2].norm()) == float(after[0].bias[2]) == 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inner(x)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (nn.Sequential(nn.Linear(3, 4), Residual(), nn.Linear(4, 2)), "'1'"),
        (nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), nn.Linear(4, 2)), "'0.1'"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(4, 2)), "'1'"),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Linear(4, 2)), "'2'"),
        (nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)), "'1'"),
        (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2)), "'0'"),
        (Residual(), "the network itself"),
    ],
)
def test_layers_that_are_not_understood_are_named(model, named):
    with pytest.raises(ValueError, match=named):
        canonicalize(model)


def test_a_layer_that_is_called_twice():
    activation, inner = nn.Tanh(), nn.Linear(4, 4)
    model = randomised(nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 2)), 0)
    torch.testing.assert_close(canonicalize(model)(vectors()), model(vectors()), **SAME)
    with pytest.raises(ValueError, match=r"'3'.*used before"):
        canonicalize(nn.Sequential(nn.Linear(3, 4), inner, activation, inner))


def test_what_samples_cannot_carry():
    model = convolutional()
    network = NetworkFunction(model)
    with pytest.raises(ValueError, match="permutation=False"):
        canonicalize(network.theta(), network)
    moved = canonicalize(network.theta(), network, permutation=False)
    with torch.no_grad():
        torch.testing.assert_close(network.one(moved, images()), model(images()), **SAME)
    assert moved.norm() < network.theta().norm()
    with pytest.raises(ValueError, match="second argument"):
        canonicalize(network.theta())
    with pytest.raises(ValueError, match="indices as subset"):
        canonicalize(torch.zeros(2), NetworkFunction(model, torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="of the same shape; pass a network like it"):
        canonicalize(mlp([3, 4], "relu"), reference=mlp([3, 5], "relu"))
    with pytest.raises(ValueError, match="one vector of"):
        canonicalize(network.theta(), network, reference=torch.zeros(3), permutation=False)


def test_a_chain_of_ten_layers_with_large_factors_converges():
    model = mlp([3, *[4] * 10], "relu", seed=8)
    other = rescaled(model, 1, power=6.0)
    first, second = (theta_of(canonicalize(m, permutation=False)) for m in (model, other))
    assert math.isclose(float(first.norm()), float(second.norm()), rel_tol=1e-9)
    torch.testing.assert_close(canonicalize(other)(vectors()), model(vectors()), rtol=1e-6, atol=1e-6)
