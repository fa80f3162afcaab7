"""MMD against its definition, and between samples that differ by symmetries only."""

import math

import pytest
import torch
from torch import nn

from laplace_fiber.geometry import canonicalize, discrepancies, mmd
from laplace_fiber.weights import NetworkFunction


def normal(n, d, mean=0.0, seed=0):
    return mean + torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_estimate_is_its_definition():
    a, b = normal(4, 3), normal(5, 3, 0.5, seed=1)
    everything = [*a, *b]
    distances = sorted(float((u - v).norm()) for i, u in enumerate(everything) for v in everything[:i])
    median = distances[(len(distances) - 1) // 2]

    def k(u, v):
        return math.exp(-float((u - v).square().sum()) / (2 * (0.7 * median) ** 2))

    within_a = sum(k(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j) / (4 * 3)
    within_b = sum(k(u, v) for i, u in enumerate(b) for j, v in enumerate(b) if i != j) / (5 * 4)
    between = sum(k(u, v) for u in a for v in b) / (4 * 5)
    assert mmd(a, b, bandwidths=(0.7,)).squared == pytest.approx(within_a + within_b - 2 * between, rel=1e-10)


def test_it_is_zero_on_average_for_one_law_and_its_p_value_uniform():
    found = [mmd(normal(20, 4, seed=s), normal(25, 4, seed=1000 + s), n_permutations=99, seed=s) for s in range(60)]
    mean = sum(f.squared for f in found) / len(found)
    deviation = (sum(f.squared**2 for f in found) / len(found)) ** 0.5
    assert abs(mean) < 3 * deviation / len(found) ** 0.5
    assert 0.35 < sum(f.p_value for f in found) / len(found) < 0.65
    far = mmd(normal(20, 4), normal(25, 4, 1.0, seed=1), n_permutations=99)
    assert far.squared > 5 * deviation
    assert far.p_value == pytest.approx(0.01)


def test_samples_that_differ_by_symmetries_only():
    model = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    network = NetworkFunction(model)
    centre = normal(1, network.n_params, seed=3)[0]
    ours, theirs = (centre + 0.05 * normal(40, network.n_params, seed=s) for s in (4, 5))
    # The same law behind symmetries: units of the first layer scaled by 3, those of the second in reverse order.
    named = {name: torch.stack([network.named(t)[name] for t in theirs]) for name in network.names}
    named["0.weight"], named["0.bias"] = named["0.weight"] * 3, named["0.bias"] * 3
    named["2.weight"] = (named["2.weight"] / 3).flip(1)
    named["2.bias"], named["4.weight"] = named["2.bias"].flip(1), named["4.weight"].flip(2)
    hidden = torch.cat([named[name].flatten(1) for name in network.names], 1)
    x = normal(10, 2, seed=6)
    result = discrepancies(ours, hidden, network, x, reference=centre, n_permutations=99)
    assert result.weights.p_value == result.scaled.p_value == pytest.approx(0.01)
    assert min(result.weights.squared, result.scaled.squared) > 0.5
    assert abs(result.canonical.squared) < 0.02
    assert abs(result.functions.squared) < 0.02
    expected = [canonicalize(s, network, reference=centre) for s in (ours, theirs)]
    assert result.canonical.squared == pytest.approx(mmd(*expected).squared, abs=1e-8)
    text = str(result)
    assert len(text.splitlines()) == 5
    assert "all symmetries removed" in text


def test_samples_that_cannot_be_compared():
    with pytest.raises(ValueError, match="at least two samples"):
        mmd(normal(1, 2), normal(4, 2))
    with pytest.raises(ValueError, match="of one size"):
        mmd(normal(3, 2), normal(4, 3))
    with pytest.raises(ValueError, match="positive numbers"):
        mmd(normal(3, 2), normal(4, 2), bandwidths=(0.0,))
