"""Simplexes against geometry, and against the best ones of quadratic objectives."""

import math

import pytest
import torch
from problems import classifier, flat_problem, joint_of, linear_regression, loader
from torch import nn

from laplace_fiber.baselines import ESPRO
from laplace_fiber.baselines.espro import Simplexes, log_volume, uniform_weights, volume_gradient

NOISE = {"sigma_noise": 0.5, "prior_precision": 0.7}


def random_simplexes(m=2, v=4, p=7, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(m, v, p, generator=generator, dtype=torch.float64)


def cayley_menger(vertices):
    """Volume by distances alone."""
    v = len(vertices)
    bordered = torch.ones(v + 1, v + 1, dtype=torch.float64) - torch.eye(v + 1, dtype=torch.float64)
    bordered[:v, :v] = torch.cdist(vertices, vertices).square()
    k = v - 1
    return (torch.linalg.det(bordered).abs() / (2**k * math.factorial(k) ** 2)).sqrt()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_volumes_of_corners(k):
    """The corner of a cube with edges of length 2 has volume 2^k / k!, wherever it stands and in any dimension."""
    vertices = torch.zeros(k + 1, k + 2, dtype=torch.float64)
    vertices[1:, :k] = 2 * torch.eye(k, dtype=torch.float64)
    rotation = torch.linalg.qr(random_simplexes(1, k + 2, k + 2)[0])[0]
    assert float(log_volume((vertices + 3) @ rotation).exp()) == pytest.approx(2**k / math.factorial(k), rel=1e-12)


@pytest.mark.parametrize("v", [2, 3, 6])
def test_volumes_are_those_of_cayley_and_menger(v):
    vertices = random_simplexes(3, v)
    expected = torch.stack([cayley_menger(one) for one in vertices])
    torch.testing.assert_close(log_volume(vertices).exp(), expected)


def test_volumes_of_small_simplexes_in_float32():
    """Edges of 1e-3, four of them: the squared volume, 1e-27, is far below what float32 determinants can tell."""
    vertices = random_simplexes(1, 5, scale=1e-3)[0]
    assert float(log_volume(vertices.float())) == pytest.approx(float(log_volume(vertices)), abs=1e-5)
    assert log_volume(torch.ones(3, 5)) == -math.inf


def test_the_volumes_gradient():
    vertices = random_simplexes()
    last = vertices[:, -1].clone().requires_grad_()
    (expected,) = torch.autograd.grad(log_volume(torch.cat([vertices[:, :-1], last[:, None]], 1)).sum(), last)
    edge = vertices[:, -1] - vertices[:, 0]
    torch.testing.assert_close(volume_gradient(vertices[:, :-1], edge, torch.zeros(2)), expected)
    at_the_mean = vertices[:, :-1].mean(1) - vertices[:, 0]
    bounded = volume_gradient(vertices[:, :-1], at_the_mean, torch.full((2,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(bounded, torch.zeros_like(bounded), rtol=0, atol=1e-9)


def test_samples_are_uniform_in_the_simplex():
    """Mean and covariance of the uniform law: those of the vertices, the latter over v + 1. Standard errors 1 %."""
    model, _ = flat_problem(p=7)
    la = ESPRO(model, "regression")
    vertices = random_simplexes(1, 4)
    samples = la._draw(Simplexes(vertices), 40_000, torch.Generator().manual_seed(0))
    covariance = torch.cov(vertices[0].T, correction=0) / 5
    scale = float(covariance.diagonal().max())
    torch.testing.assert_close(samples.mean(0), vertices[0].mean(0), rtol=0, atol=0.02 * scale**0.5)
    torch.testing.assert_close(torch.cov(samples.T), covariance, rtol=0, atol=0.03 * scale)
    weights = uniform_weights((20_000, 3), vertices, torch.Generator().manual_seed(0))
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000, dtype=torch.float64))
    # Uniform, not merely of the right moments: a weight's distribution function is 1 − (1 − a)².
    for a in (0.1, 0.5, 0.9):
        assert float((weights[:, 0] < a).double().mean()) == pytest.approx(1 - (1 - a) ** 2, abs=0.012)


def test_samples_come_from_all_simplexes_alike():
    model, _ = flat_problem(p=7)
    vertices = torch.stack([random_simplexes(1, 3)[0] + shift for shift in (0.0, 100.0, 200.0)])
    samples = ESPRO(model, "regression")._draw(Simplexes(vertices), 6000, torch.Generator().manual_seed(0))
    near = (samples.mean(1) / 100).round().long()
    torch.testing.assert_close(near.bincount() / 6000, torch.full((3,), 1 / 3), rtol=0, atol=0.02)


def test_vertices_of_a_linear_model():
    """Where J is ½ θᵀ A θ, vertex k stands off by √(c k (k + 1) / 2 + …) along the k-th flattest direction.

    From E[a aᵀ] = (1 + 1ᵀ1) / (v (v + 1)): the vertex balances the sum of all by itself, so it starts opposite to half
    the first edge, and its height h obeys h A h 2 / (v (v + 1)) = c. Relative tolerance 10 %: steps are random.
    """
    weight = 3.0
    model, data, hessian = linear_regression()
    eigenvalues, directions = torch.linalg.eigh(30 * hessian)
    la = ESPRO(
        model, "regression", n_vertices=2, volume_weight=weight, batch="full", n_points=10, min_steps=400, **NOISE
    )
    la.fit(data)
    edges = (la._fitted.vertices[0, 1:] - la.mean) @ directions
    first, second = (3 * weight / eigenvalues[0]).sqrt(), (6 * weight / eigenvalues[1]).sqrt()
    signs = edges[[0, 1], [0, 1]].sign()
    expected = torch.zeros(2, 3, dtype=torch.float64)
    expected[0, 0], expected[1, 0], expected[1, 1] = first * signs[0], -first / 2 * signs[0], second * signs[1]
    torch.testing.assert_close(edges, expected, rtol=0, atol=0.1 * float(second))
    assert la.diagnostics["log_volume"] == pytest.approx(float((first * second / 2).log()), abs=0.1)


def steep_and_flat():
    """Inputs in three of eight dimensions: J is steep in three weights and has the prior's curvature in five."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(64, 8, dtype=torch.float64)
    x[:, :3] = 3 * torch.randn(64, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    return model, loader(x, torch.zeros(64, 1, dtype=torch.float64))


def test_simplexes_grow_along_flat_directions_only():
    model, data = steep_and_flat()
    la = ESPRO(model, "regression", n_vertices=2, min_steps=400)
    la.fit(data)
    edges = la._fitted.vertices[0, 1:] - la.mean
    assert float(edges[:, :3].norm(dim=1).max()) < 0.05 * float(edges[:, 3:].norm(dim=1).min())
    steep, flat = (3 / (64 * 9.0)) ** 0.5, 3**0.5  # heights at which one vertex is at rest
    assert float(edges[0].norm()) > 0.4 * flat > 5 * steep


def test_more_weight_gives_more_volume_and_none_the_least():
    model, data = classifier()
    volumes, excesses = [], []
    for weight in (0.0, 1.0, 10.0):
        la = ESPRO(model, "classification", n_vertices=2, n_epochs=1, min_steps=80, volume_weight=weight)
        la.fit(data)
        volumes.append(la.diagnostics["log_volume"])
        excesses.append(la.diagnostics["vertex_excess"])
    assert volumes[0] < volumes[1] - 1 < volumes[2] - 2
    assert excesses[1] < excesses[2]


def test_vertices_have_low_loss():
    """J at each vertex is within a few nats of its minimum, and at random points as far away much higher."""
    model, data = classifier()
    la = ESPRO(model, "classification", n_vertices=2, min_steps=250)
    la.fit(data)
    joint, training = joint_of(model, data, "classification")
    vertices = la._fitted.vertices[0]
    generator = torch.Generator().manual_seed(0)
    away = torch.randn(50, vertices.shape[1], generator=generator, dtype=torch.float64)
    away *= (vertices[1:] - vertices[0]).norm(dim=1).mean() / away.norm(dim=1, keepdim=True)
    with joint.network.evaluation(), torch.no_grad():
        values = 40 * joint.objective(torch.cat([vertices, vertices[0] + away]), training.everything())
    excess = values[1:3] - values[0]
    assert float(excess.max()) < 12
    assert float(excess.mean()) == pytest.approx(la.diagnostics["vertex_excess"])
    assert float((values[3:] - values[0]).mean()) > 2 * float(excess.mean())


def test_one_simplex_around_each_of_several_networks():
    models = [classifier()[0] for _ in range(2)]
    data = classifier()[1]
    with torch.no_grad():
        models[1][0].weight.neg_()
        models[1][0].bias.neg_()
        models[1][2].weight.neg_()
    la = ESPRO(models, "classification", n_vertices=2, min_steps=30)
    la.fit(data)
    vertices = la._fitted.vertices
    assert vertices.shape == (2, 3, la.n_params)
    for network, vertex in zip(models, vertices[:, 0], strict=True):
        assert torch.equal(nn.utils.parameters_to_vector(network.parameters()), vertex)
    alone = ESPRO(models[0], "classification", n_vertices=2, min_steps=30)
    alone.fit(data)
    assert la.diagnostics["gradient_evaluations"] == 2 * alone.diagnostics["gradient_evaluations"] == 2 * 2 * 30 * 5


def test_networks_with_other_statistics_are_refused():
    models = [nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double() for _ in range(2)]
    models[1][1].running_mean.add_(1)
    with pytest.raises(ValueError, match="same buffers"):
        ESPRO(models, "classification").fit(classifier()[1])


def test_too_many_vertices_are_refused():
    model, data, _ = linear_regression(d=3)
    with pytest.raises(ValueError, match="n_vertices: expected at most 3"):
        ESPRO(model, "regression", n_vertices=4).fit(data)


def test_divergence_is_an_error():
    model, data = classifier()
    with pytest.raises(RuntimeError, match=r"diverged with step sizes down to .* smaller relative_step"):
        ESPRO(model, "classification", n_vertices=1, step_size=1e200, min_steps=5).fit(data)


def test_vertices_that_diverge_are_grown_again_with_smaller_steps():
    model, data, hessian = linear_regression()
    largest = float(torch.linalg.eigvalsh(hessian)[-1]) / 3  # curvature felt by the first vertex; steps of 3.8 / it end
    la = ESPRO(
        model, "regression", n_vertices=1, batch="full", step_size=60 / largest, min_steps=600, n_epochs=1, **NOISE
    )
    la.fit(data)
    assert la.diagnostics["step_size"] in [pytest.approx(60 / 4**tries / largest) for tries in (2, 3)]
    assert la.diagnostics["gradient_evaluations"] > 2 * 5 * 600
    assert la.diagnostics["vertex_excess"] < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_vertices": 0}, "n_vertices"),
        ({"n_points": 0}, "n_points"),
        ({"n_epochs": 0}, "n_epochs"),
        ({"min_steps": -1}, "min_steps"),
        ({"relative_step": 0.0}, "relative_step"),
        ({"step_size": -1.0}, "step_size"),
        ({"volume_weight": -1.0}, "volume_weight: expected a number >= 0, got -1.0"),
        ({"volume_weight": float("nan")}, "volume_weight"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        ESPRO(classifier()[0], "classification", **options)
