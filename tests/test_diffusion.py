"""Laplace diffusions and the spectrum of the Gauss-Newton matrix, against dense matrices and exact Gaussians."""

import pytest
import torch
from problems import classifier, joint_of, linear_regression, loader, regressor
from torch import nn

from laplace_fiber import baselines
from laplace_fiber.baselines.diffusion import some_points
from laplace_fiber.curvature import subspace_ggn
from laplace_fiber.gauss_newton import ScaledGGN
from laplace_fiber.spectrum import ImageSpectrum, lanczos

POWER = {"rtol": 1e-7, "atol": 1e-9}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dense(joint, training):
    theta = joint.network.theta()
    eye = torch.eye(len(theta), dtype=theta.dtype)
    ggn = subspace_ggn(joint.network, theta, eye, training.epoch(), joint.likelihood)[0]
    return ggn / (joint.temperature * (joint.sigma_noise if joint.likelihood == "regression" else 1.0) ** 2)


def small(likelihood, few=False, **options):
    model, data = regressor() if likelihood == "regression" else classifier()
    if few:
        data = loader(*(t[:4] for t in data.dataset.tensors))
    joint, training = joint_of(model, data, likelihood, **options)
    return joint, training, joint.network.theta()


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
@pytest.mark.parametrize("few", [False, True], ids=["p rows", "fewer rows"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_all_eigenpairs_are_those_of_the_dense_matrix(likelihood, few, engine):
    sigma = 0.3 if likelihood == "regression" else 1.0
    joint, training, theta = small(likelihood, few, sigma=sigma, temperature=0.7, engine=engine)
    spectrum, ggn = ImageSpectrum(ScaledGGN(joint, theta, training), generator()), dense(joint, training)
    assert spectrum.exact
    assert spectrum.rank <= min(spectrum.n_rows, len(theta))
    expected = torch.linalg.eigvalsh(ggn).flip(0)[: spectrum.rank]
    torch.testing.assert_close(spectrum.values, expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(spectrum.vectors.T * spectrum.values @ spectrum.vectors, ggn, **POWER)
    gram = spectrum.vectors @ spectrum.vectors.T
    torch.testing.assert_close(gram, torch.eye(spectrum.rank, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
def test_lanczos_finds_the_same_eigenpairs_from_products_alone(likelihood):
    joint, training, theta = small(likelihood, temperature=0.7)
    scale = torch.linspace(0.5, 2, len(theta), dtype=torch.float64)
    options = {"cutoff": 1e-7}
    exact = ImageSpectrum(ScaledGGN(joint, theta, training, scale), generator(), **options)
    ours = ImageSpectrum(ScaledGGN(joint, theta, training, scale), generator(), **options, exact_limit=0)
    assert not ours.exact
    assert ours.rank == exact.rank
    torch.testing.assert_close(ours.values, exact.values, rtol=1e-6, atol=1e-9)
    gram = ours.vectors @ ours.vectors.T
    torch.testing.assert_close(gram, torch.eye(ours.rank, dtype=torch.float64), rtol=0, atol=1e-12)
    v = torch.randn(3, len(theta), generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(ours.inverse_root(v, 1.0), exact.inverse_root(v, 1.0), rtol=1e-3, atol=1e-4)


def test_lanczos_goes_on_after_repeated_eigenvalues_and_stays_in_the_image():
    q = torch.linalg.qr(torch.randn(30, 30, generator=generator(), dtype=torch.float64))[0]
    values = torch.tensor([5.0] * 4 + [2.0] * 3 + [0.5] + [0.0] * 22, dtype=torch.float64)
    matrix, draws = (q * values) @ q.T, generator(2)
    found, vectors, *_ = lanczos(lambda v: matrix @ v, lambda: torch.randn(30, generator=draws, dtype=q.dtype), 20)
    torch.testing.assert_close(found.flip(0), values[:8])
    torch.testing.assert_close(vectors @ q[:, 8:], torch.zeros(8, 22, dtype=q.dtype), rtol=0, atol=1e-10)


def test_truncated_lanczos_keeps_the_largest_and_nothing_of_the_kernel():
    joint, training, theta = small("classification")
    exact = ImageSpectrum(ScaledGGN(joint, theta, training), generator())
    few = ImageSpectrum(ScaledGGN(joint, theta, training), generator(), rank=12, exact_limit=0)
    torch.testing.assert_close(few.values[:2], exact.values[:2], rtol=1e-6, atol=0)
    torch.testing.assert_close(exact.image(few.vectors), few.vectors, rtol=0, atol=1e-8)


def test_lanczos_runs_on_convolutions_in_single_precision():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
        x, y = torch.randn(20, 1, 6, 6), torch.arange(20) % 3
    joint, training = joint_of(model, loader(x, y), "classification")
    exact = ImageSpectrum(ScaledGGN(joint, joint.network.theta(), training), generator())
    ours = ImageSpectrum(ScaledGGN(joint, joint.network.theta(), training), generator(), rank=30, exact_limit=0)
    torch.testing.assert_close(ours.values[:6], exact.values[:6], rtol=1e-3, atol=0)
    gram = ours.vectors @ ours.vectors.T
    torch.testing.assert_close(gram, torch.eye(ours.rank), rtol=0, atol=2e-6)


def test_no_curvature_means_no_image():
    model, data = nn.Linear(4, 1, bias=False).double(), torch.zeros(6, 4, dtype=torch.float64)
    joint, training = joint_of(model, loader(data, data[:, :1]), "regression")
    for limit in (100, 0):
        spectrum = ImageSpectrum(ScaledGGN(joint, joint.network.theta(), training), generator(), exact_limit=limit)
        v = torch.ones(4, dtype=torch.float64)
        assert spectrum.rank == 0
        assert torch.equal(spectrum.kernel(v), v)


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
def test_moves_in_the_kernel_leave_the_function_as_it_is_to_first_order(likelihood):
    joint, training, theta = small(likelihood)
    x = training.first[0]
    spectrum = ImageSpectrum(ScaledGGN(joint, theta, training), generator())
    v = torch.randn(len(theta), generator=generator(3), dtype=torch.float64)

    def change(direction, step):
        outputs = [joint.network.one(t, x) for t in (theta + step * direction, theta)]
        if likelihood == "classification":  # adding a constant to all logits changes nothing
            outputs = [f.log_softmax(-1) for f in outputs]
        return float((outputs[0] - outputs[1]).norm())

    kernel, image = spectrum.kernel(v), spectrum.image(v)
    assert kernel.norm() > 0.1
    assert change(kernel, 1e-4) < 1e-3 * change(image, 1e-4)
    assert change(kernel, 1e-4) < 0.02 * change(kernel, 1e-3) + 1e-9  # second order: a hundredth


def offsets_and_noise(la, n_steps):
    """Where each path ended, and the sum of its noise over √T, drawn again."""
    paths = len(la._fitted.thetas)
    draws = generator(la.seed)
    noise = torch.stack(
        [torch.randn(la.n_params, generator=draws, dtype=la.mean.dtype) for _ in range(paths * n_steps)]
    )
    return la._fitted.thetas - la.mean, noise.view(paths, n_steps, -1).sum(1) / n_steps**0.5


@pytest.mark.parametrize("n_steps", [1, 4])
def test_on_a_linear_model_it_is_the_exact_gaussian_whatever_the_number_of_steps(n_steps):
    model, data, hessian = linear_regression()
    la = baselines.LaplaceDiffusion(
        model, "regression", sigma_noise=0.5, prior_precision=0.7, n_steps=n_steps, n_samples_fit=5
    )
    la.fit(data)
    values, vectors = torch.linalg.eigh(30 * hessian)
    root = (vectors * values.rsqrt()) @ vectors.T
    torch.testing.assert_close(root @ root, torch.linalg.inv(30 * hessian))
    # The summed noise is standard normal if there are T steps of length T^-½; T − 1 of them would be too narrow.
    offsets, noise = offsets_and_noise(la, n_steps)
    torch.testing.assert_close(offsets, noise @ root)
    assert la.diagnostics["rank"] == 3


def test_one_step_is_the_laplace_approximation_restricted_to_the_image():
    model, data = classifier()
    tau = torch.linspace(0.5, 2, 33, dtype=torch.float64)
    la = baselines.LaplaceDiffusion(model, "classification", prior_precision=tau, n_steps=1, n_samples_fit=9)
    la.fit(data)
    joint, training = joint_of(model, data, "classification")
    ggn, scale = dense(joint, training), tau.rsqrt()
    values, vectors = torch.linalg.eigh(scale[:, None] * ggn * scale)
    kept = vectors[:, values > 1e-7]
    assert kept.shape[1] == la.diagnostics["rank"] < 33
    offsets, noise = offsets_and_noise(la, 1)
    root = scale[:, None] * kept * (values[values > 1e-7] + 1).rsqrt() @ kept.T
    torch.testing.assert_close(offsets, noise @ root.T, **POWER)
    # Of the Laplace approximation's covariance, this leaves out the prior's in the kernel, and nothing else.
    missing = torch.linalg.inv(ggn + tau.diag()) - root @ root.T
    projector = torch.eye(33, dtype=torch.float64) - kept @ kept.T
    torch.testing.assert_close(missing, scale[:, None] * projector * scale, **POWER | {"atol": 1e-6})


def test_one_step_in_the_kernel_is_the_prior_restricted_to_it():
    model, data = classifier()
    la = baselines.KernelDiffusion(model, "classification", prior_precision=4.0, n_steps=1, n_samples_fit=9)
    la.fit(data)
    joint, training = joint_of(model, data, "classification")
    values, vectors = torch.linalg.eigh(dense(joint, training) / 4)
    kernel = vectors[:, values <= 1e-7]
    assert kernel.shape[1] == 33 - la.diagnostics["rank"] > 0
    offsets, noise = offsets_and_noise(la, 1)
    torch.testing.assert_close(offsets, noise @ kernel @ kernel.T / 2, **POWER)


def test_steps_follow_the_local_matrix():
    model, data = classifier()
    options = {"n_samples_fit": 8, "prior_precision": 0.1}
    losses = []
    for n_steps in (1, 20):
        la = baselines.LaplaceDiffusion(model, "classification", n_steps=n_steps, **options)
        la.fit(data)
        joint, training = joint_of(model, data, "classification")
        losses.append(float(joint.data_term(la._fitted.thetas, training.everything()).mean()))
    assert losses[1] < 0.8 * losses[0]


def test_an_empty_kernel_is_said():
    model, data, _ = linear_regression()
    la = baselines.KernelDiffusion(model, "regression", n_steps=2, n_samples_fit=3)
    with pytest.warns(UserWarning, match="kernel is empty"):
        la.fit(data)
    torch.testing.assert_close(la.sample(3), la.mean.expand(3, -1))


def test_points_stand_for_all_data():
    _, training, _ = small("classification")
    chosen = some_points(training, 10, generator())
    assert sum(len(y) for batch in chosen for _, y in batch.blocks) == 10
    joint, _, theta = small("classification")
    total = torch.zeros(33, 33, dtype=torch.float64)
    draws, n = generator(), 100
    for _ in range(n):
        part = ImageSpectrum(ScaledGGN(joint, theta, some_points(training, 10, draws)), draws)
        total += part.vectors.T * part.values @ part.vectors / n
    expected = dense(joint, training)
    assert (total - expected).norm() < 0.15 * expected.norm()
    model, data = classifier()
    la = baselines.LaplaceDiffusion(model, "classification", batch="loader", n_points=20, n_steps=2, n_samples_fit=3)
    la.fit(data)
    assert la.sample(3).isfinite().all()


@pytest.mark.parametrize(
    ("setting", "value"), [("n_steps", 0), ("n_samples_fit", 0), ("n_points", -1), ("rank", 0), ("cutoff", -1.0)]
)
def test_settings_are_checked(setting, value):
    with pytest.raises(ValueError, match=setting):
        baselines.LaplaceDiffusion(classifier()[0], "classification", **{setting: value})


def test_undefined_curvature_is_an_error_with_a_remedy():
    joint, training, theta = small("classification")
    with pytest.raises(RuntimeError, match="higher prior precision"):
        ImageSpectrum(ScaledGGN(joint, theta * torch.nan, training), generator())
