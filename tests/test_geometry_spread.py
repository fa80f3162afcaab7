"""The image and the kernel of the Gauss-Newton matrix, against dense float64; where posteriors spread."""

import pytest
import torch
from laplace import FullLaplace, Laplace
from problems import fitted, loader
from torch import nn

from laplace_fiber import baselines
from laplace_fiber.geometry import GGNSpectrum, spread_report
from laplace_fiber.weights import NetworkFunction


def dense_ggn(model, x, likelihood):
    """Σ Jᵀ H J point by point, by one backward pass per output."""
    parameters, total = list(model.parameters()), 0.0
    for point in x:
        outputs = model(point[None])[0]
        rows = [torch.autograd.grad(f, parameters, retain_graph=True) for f in outputs]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
        p = outputs.detach().softmax(-1)
        hessian = torch.eye(len(p), dtype=p.dtype) if likelihood == "regression" else p.diag() - p[:, None] * p
        total = total + jacobian.T @ hessian @ jacobian
    return total


def problem(likelihood, n):
    """An untrained network of random weights, whose Gauss-Newton matrix is well conditioned, and n random points."""
    generator = torch.Generator().manual_seed(3)
    n_outputs = 2 if likelihood == "regression" else 3
    model = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, n_outputs)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = model(x).detach() if likelihood == "regression" else torch.arange(n) % 3
    return model, loader(x, y, 4)


@pytest.mark.parametrize("exact_limit", [3000, 0], ids=["dense", "lanczos"])
@pytest.mark.parametrize(("likelihood", "n"), [("regression", 5), ("classification", 6), ("classification", 40)])
def test_the_split_is_that_of_the_dense_matrix(likelihood, n, exact_limit):
    model, data = problem(likelihood, n)
    spectrum = GGNSpectrum(model, data, likelihood=likelihood, exact_limit=exact_limit)
    ggn = dense_ggn(model, data.dataset.tensors[0], likelihood)
    values, vectors = torch.linalg.eigh(ggn)
    kept = values > 1e-9 * values.max()
    assert spectrum.exact == bool(exact_limit)
    guessed = GGNSpectrum(model, data, exact_limit=exact_limit)
    assert torch.equal(guessed.eigenvalues, spectrum.eigenvalues)
    assert spectrum.rank == int(kept.sum())
    torch.testing.assert_close(spectrum.eigenvalues, values[kept].flip(0), rtol=1e-5, atol=1e-8)
    v = torch.randn(3, len(ggn), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image = v @ vectors[:, kept] @ vectors[:, kept].T
    torch.testing.assert_close(spectrum.image(v), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(spectrum.kernel(v[0]), v[0] - image[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("likelihood", ["regression", "classification"])
def test_the_rank_is_at_most_points_times_outputs(likelihood, n):
    model, data = problem(likelihood, n)
    spectrum = GGNSpectrum(model, data, likelihood=likelihood)
    n_outputs = 2 if likelihood == "regression" else 3
    assert spectrum.n_rows == n * n_outputs
    # Equal shifts of all logits cost no cross-entropy.
    bound = min(spectrum.n_weights, n * (n_outputs if likelihood == "regression" else n_outputs - 1))
    assert spectrum.rank <= bound
    assert spectrum.rank == torch.linalg.matrix_rank(dense_ggn(model, data.dataset.tensors[0], likelihood))
    assert str(spectrum.rank) in str(spectrum)


def test_kernel_directions_leave_the_outputs_as_they_are_to_first_order():
    model, data = problem("regression", 4)
    x = data.dataset.tensors[0]
    spectrum = GGNSpectrum(model, data, likelihood="regression")
    network = NetworkFunction(model)
    theta = network.theta()
    v = torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def moved(direction, length):
        with torch.no_grad():
            return float((network.one(theta + length * direction, x) - model(x)).norm())

    kernel, image = spectrum.kernel(v), spectrum.image(v)
    assert moved(kernel, 1e-4) < 1e-3 * moved(image, 1e-4)
    assert moved(kernel, 1e-4) == pytest.approx(moved(kernel, 5e-5) * 4, rel=0.1)  # what is left is of second order


def test_a_few_pairs_and_bad_arguments():
    model, data = problem("classification", 10)
    assert GGNSpectrum(model, data, 3, likelihood="classification").rank == 3
    with pytest.raises(ValueError, match="rank: expected at least 1"):
        GGNSpectrum(model, data, 0, likelihood="classification")
    with pytest.raises(ValueError, match="regression: expected targets"):
        GGNSpectrum(model, data, likelihood="regression")


def test_spread_of_a_gaussian_is_that_of_its_covariance():
    model, data = problem("regression", 5)
    la = FullLaplace(model, "regression", sigma_noise=0.2, prior_precision=3.0)
    la.fit(data)
    spectrum = GGNSpectrum(model, data, likelihood="regression")
    report = spread_report(la, data, n_samples=2000)
    network, linearised = report.rows
    image = (1 / (spectrum.eigenvalues / 0.2**2 + 3)).sum()
    kernel = (spectrum.n_weights - spectrum.rank) / 3
    assert network.kernel_share == pytest.approx(float(kernel / (kernel + image)), abs=0.02)
    assert network.spread == pytest.approx(float((kernel + image).sqrt()), rel=0.05)
    assert network.kernel_share == linearised.kernel_share
    assert linearised.kernel_change < 1e-6 * linearised.image_change
    assert linearised.change == pytest.approx(linearised.image_change, rel=1e-6)
    assert linearised.kernel_nll == pytest.approx(report.trained_nll, rel=1e-6)
    assert network.kernel_change > linearised.change  # the network does move under it
    assert network.nll > linearised.nll > report.trained_nll
    # J C Jᵀ, by the closed form: U (Λ/σ² + τ)⁻¹ Uᵀ between Jacobians, whose squares are the eigenvalues.
    expected = (spectrum.eigenvalues / (spectrum.eigenvalues / 0.2**2 + 3)).sum() / spectrum.n_rows
    assert linearised.change == pytest.approx(float(expected.sqrt()), rel=0.05)


def test_one_table_for_all_kinds_of_posteriors():
    model, data = problem("classification", 8)
    ours = fitted(model, data)
    diffusion = baselines.LaplaceDiffusion(model, "classification", n_samples_fit=4, n_steps=5)
    inside = baselines.KernelDiffusion(model, "classification", n_samples_fit=4, n_steps=5)
    gaussians = [Laplace(model, "classification", "all", "kron"), Laplace(model, "classification", "last_layer")]
    for la in (diffusion, inside, *gaussians):
        la.fit(data)
    last = baselines.LaplaceDiffusion(model, "classification", subset="last_layer", n_samples_fit=4, n_steps=5)
    last.fit(data)
    named = {"fiber": ours, "diffusion": diffusion, "kernel": inside, "kron": gaussians[0], "last": gaussians[1]}
    before = torch.get_rng_state()
    report = spread_report(named | {"diffusion of the last": last}, data, n_samples=10)
    assert torch.equal(torch.get_rng_state(), before)
    shares = {row.posterior: row.kernel_share for row in report.rows}
    assert 0 <= shares["diffusion"] < shares["kernel"] <= 1
    lines = str(report).splitlines()
    assert len(lines) == 4 + 12
    assert len({len(line) for line in lines[3:]}) == 1
    assert "at most N·O = 24" in lines[0]
    with pytest.raises(ValueError, match="call fit"):
        spread_report(baselines.LaplaceDiffusion(model, "classification"), data)
    with pytest.raises(ValueError, match="at least one posterior"):
        spread_report({}, data)
