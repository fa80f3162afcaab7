"""Two copies of one ReLU network whose hidden units are scaled: which posteriors take them for one function?"""

import copy

import pytest
import torch
from laplace import FullLaplace
from problems import FAST, loader
from torch import nn

from laplace_fiber import FiberLaplace, TrajectorySampler, typical_set_walk
from laplace_fiber.baselines import LaplaceDiffusion
from laplace_fiber.geometry import canonicalize
from laplace_fiber.paths import FORMS
from laplace_fiber.weights import NetworkFunction

SIGMA = 0.2
WALK = {"n_particles": 6, "n_steps": 5}
GRID = torch.linspace(-3, 3, 21, dtype=torch.float64)[:, None]


def copies():
    """A ReLU network trained for a moment on a sine, a copy with scaled units, the factor of each weight, the data."""
    x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
    data = loader(x, x.sin(), 20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = (model(x) - x.sin()).square().mean() / SIGMA**2
        (loss + sum(p.square().sum() for p in model.parameters()) / len(x)).backward()
        optimizer.step()
    model.zero_grad()
    first, second = (torch.exp(torch.linspace(-1.5, 1.5, n, dtype=torch.float64)) for n in (6, 5))
    scale = [first[:, None], first, second[:, None] / first, second, (1 / second)[None], torch.ones(1).double()]
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p, s in zip(other.parameters(), scale, strict=True):
            p.mul_(s)
    factors = torch.cat([s.expand(p.shape).flatten() for p, s in zip(model.parameters(), scale, strict=True)])
    torch.testing.assert_close(other(GRID), model(GRID))
    return (model, other), factors, data


def spreads(networks, data, build, precisions=(1.0, 1.0), **prediction):
    """Standard deviation of the function on the grid, under the posterior of each network."""
    found = []
    for network, precision in zip(networks, precisions, strict=True):
        la = build(network, prior_precision=precision)
        la.fit(data)
        found.append(la(GRID, **prediction)[1].flatten().sqrt())
    return found


def furthest(a, b):
    """The largest change, against the size of the whole."""
    return float((a - b).abs().max() / torch.maximum(a, b).max())


def fiber(sampler):
    return lambda network, **options: FiberLaplace(
        network, "regression", sigma_noise=SIGMA, sampler=sampler, autoencoder=FAST, **options
    )


def laplace(network, **options):
    return FullLaplace(network, "regression", sigma_noise=SIGMA, **options)


def diffusion(network, **options):
    return LaplaceDiffusion(network, "regression", sigma_noise=SIGMA, n_steps=5, n_samples_fit=20, **options)


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
@pytest.mark.parametrize("choice", [True, False])
def test_fiber_does_so_from_the_representative_of_minimum_norm_only(choice):
    networks, _, data = copies()
    fits = [fiber(TrajectorySampler(canonicalize=choice, **WALK))(network) for network in networks]
    for la in fits:
        la.fit(data)
    for form in FORMS:
        for la in fits:
            la.posterior = form
        change = furthest(*(la(GRID)[1].flatten().sqrt() for la in fits))
        assert change < 1e-5 if choice else change > 0.1


@pytest.mark.filterwarnings("ignore::UserWarning:laplace_fiber")  # four particles arrive nowhere
def test_so_does_the_walk_to_the_typical_set():
    """In short drifts: the long way back from far ones, over the kinks of ReLU, makes much of rounding."""
    networks, _, data = copies()
    on, off = (fiber(typical_set_walk(canonicalize=c, n_particles=4, n_steps=6, thermal=None)) for c in (True, False))
    assert furthest(*spreads(networks, data, on)) < 1e-4
    assert furthest(*spreads(networks, data, off)) > 0.1


def test_sampled_laplace_does_not():
    networks, _, data = copies()
    drawn = {"pred_type": "nn", "link_approx": "mc", "n_samples": 2000}
    found = []
    for network in networks:
        la = laplace(network, prior_precision=30.0)
        la.fit(data)
        found.append(la(GRID, generator=torch.Generator().manual_seed(0), **drawn)[1].flatten().sqrt())
    assert furthest(*found) > 0.2


def test_linearised_laplace_does_not_unless_the_prior_is_scaled_along_or_vanishes():
    networks, factors, data = copies()
    assert furthest(*spreads(networks, data, laplace, (1.0, 1.0))) > 0.1
    # J C Jᵀ = J (G + S diag(τ) S)⁻¹ Jᵀ for weights S θ: a prior of precision τ/s² is the same one.
    same = torch.full_like(factors, 1.0)
    assert furthest(*spreads(networks, data, laplace, (same, same / factors**2))) < 1e-5
    # On the data, without a prior: noise times the projection on the range of J, whatever the weights.
    apart = []
    for precision in (1e-2, 1e-4):
        inside = []
        for network in networks:
            la = laplace(network, prior_precision=precision)
            la.fit(data)
            inside.append(la(data.dataset.tensors[0])[1].flatten().sqrt())
        apart.append(furthest(*inside))
    assert apart[1] < 0.01
    assert apart[0] > 10 * apart[1]


def test_nor_does_laplace_diffusion():
    networks, factors, data = copies()
    assert furthest(*spreads(networks, data, diffusion)) > 0.1
    same = torch.full_like(factors, 1.0)
    assert furthest(*spreads(networks, data, diffusion, (same, same / factors**2))) < 1e-6


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
def test_the_mean_is_the_representative_and_is_saved_with_the_posterior():
    (_, model), _, data = copies()
    before = copy.deepcopy(model.state_dict())
    la = fiber(TrajectorySampler(canonicalize=True, **WALK))(model)
    la.fit(data)
    network = NetworkFunction(model)
    torch.testing.assert_close(la.mean, canonicalize(network.theta(), network, sign=False, permutation=False))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    mean, variance = la(GRID, pred_type="glm")
    torch.testing.assert_close(mean, model(GRID).detach())
    fresh = FiberLaplace(model, "regression", sigma_noise=SIGMA, autoencoder=FAST)
    fresh.load_state_dict(la.state_dict())
    assert fresh.sampler.canonicalize
    torch.testing.assert_close(fresh(GRID)[1], la(GRID)[1])
    torch.testing.assert_close(fresh(GRID, pred_type="glm")[1], variance)
    old = {name: value for name, value in la.state_dict().items() if name != "canonicalize"}
    with pytest.raises(ValueError, match="trained weights that the state was fitted at"):
        fresh.load_state_dict(old)  # a state of the model's own weights has to have these


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
def test_jacobians_of_a_backend_are_taken_at_the_mean():
    from laplace.curvature import CurvlinopsGGN

    (_, model), _, data = copies()
    sampler = TrajectorySampler(canonicalize=True, **WALK)
    ours, theirs = fiber(sampler)(model), fiber(sampler)(model, backend=CurvlinopsGGN)
    for la in (ours, theirs):
        la.fit(data)
    torch.testing.assert_close(theirs(GRID, pred_type="glm")[1], ours(GRID, pred_type="glm")[1])


def test_layers_that_cannot_be_scaled_are_named_before_the_walk():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3).double()

        def forward(self, x):
            return x + self.inner(x)

    model = nn.Sequential(nn.Linear(1, 3).double(), Doubled(), nn.Linear(3, 1).double())
    la = fiber(TrajectorySampler(canonicalize=True, **WALK))(model)
    with pytest.raises(ValueError, match="layer '1', a Doubled"):
        la.fit(copies()[2])
