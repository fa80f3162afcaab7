"""Warnings of networks whose loss or gradient is not what a fit takes it for."""

import warnings

import pytest
import torch
from problems import classifier, fitted
from torch import nn

from laplace_fiber.baselines import SWAG
from laplace_fiber.network_checks import network_warnings
from laplace_fiber.weights import NetworkFunction


class Net(nn.Module):
    """Two layers; what stands between them or behind them is given."""

    def __init__(self, between=nn.Identity(), behind=nn.Identity()):  # noqa: B008  (they have no state)
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(2, 3).double(), nn.Linear(3, 2).double()
        self.between, self.behind = between, behind

    def forward(self, x):
        return self.behind(self.last(self.between(self.first(x))))


class Does(nn.Module):
    """A layer without weights."""

    def __init__(self, what):
        super().__init__()
        self.forward = what


SOFTMAX = nn.Softmax(dim=-1)
DETACHED = Does(lambda h: h.detach())
NOISE = Does(lambda h: h + 0.1 * torch.randn_like(h))
X = torch.linspace(-2, 2, 20, dtype=torch.float64).view(10, 2)


@pytest.fixture(autouse=True)
def _own_random_state():
    with torch.random.fork_rng():
        yield


def said(model, likelihood="classification", x=X, **options):
    network = NetworkFunction(model, **options)
    before = torch.get_rng_state()
    with network.evaluation():
        result = list(network_warnings(network, network.theta(), x, likelihood))
    assert torch.equal(torch.get_rng_state(), before)
    return result


def test_probabilities_in_place_of_logits():
    (message,) = said(Net(behind=SOFTMAX))
    assert "sum to one" in message
    assert not said(Net(behind=SOFTMAX), "regression")
    assert not said(Net(behind=nn.LogSoftmax(dim=-1)))


def test_random_outputs():
    (message,) = said(Net(NOISE))
    assert "differ from call to call" in message
    assert not said(Net(nn.Dropout(0.5)))


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_weights_without_gradient_are_named(likelihood):
    (message,) = said(Net(DETACHED), likelihood)
    assert "depend on first.weight, first.bias, but have no gradient" in message
    assert not said(Net(DETACHED), likelihood, subset=["last"])


def test_outputs_that_are_detached_altogether():
    (message,) = said(Net(behind=DETACHED))
    assert all(name in message for name in ("first.weight", "first.bias", "last.weight", "last.bias"))


def test_gradients_that_are_zero_for_a_reason():
    unused, closed = Net(), Net()
    unused.never = nn.Linear(2, 2).double()
    with torch.no_grad():
        closed.last.weight.zero_()  # as adapters begin: the first layer has no effect yet
    assert not said(unused)
    assert not said(closed)


def test_outputs_that_ignore_the_weights():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
            self.kept = self.weight.detach().T

        def forward(self, x):
            return x @ self.kept

    (message,) = said(Cached())
    assert "do not depend on the moving weights" in message
    assert not said(Cached(), subset=torch.tensor([1]))  # a single weight may well have no effect


@pytest.mark.parametrize("method", ["fiber", "swag"])
def test_fits_say_it_once(method):
    _, data = classifier(n_classes=2)
    model = Net(behind=SOFTMAX)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        if method == "fiber":
            fitted(model, data)
        else:
            SWAG(model, "classification", n_collected=3, n_skipped=1, interval=1).fit(data)
    messages = [str(w.message) for w in found if "sum to one" in str(w.message)]
    assert len(messages) == 1
