"""Mixtures of Laplace approximations against laplace-torch's Gaussians and the moments of a mixture."""

import copy
import io

import pytest
import torch
from laplace import Laplace
from problems import classifier, linear_regression, loader, regressor
from torch import nn

from laplace_fiber import baselines
from laplace_fiber.baselines.mixture import FULL_LIMIT


def several(make, n=3, shift=0.3):
    """A problem's network and others near it, and the loader."""
    model, data = make()
    models = [model]
    for seed in range(1, n):
        other = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(shift * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        models.append(other)
    return models, data


def mixture(models, data, likelihood="classification", **options):
    la = baselines.LaplaceMixture(models, likelihood, **options)
    la.fit(data)
    return la


def hosts(models, data, curvature, likelihood="classification", **options):
    found = [Laplace(copy.deepcopy(m), likelihood, "all", curvature, **options) for m in models]
    for host in found:
        host.fit(data)
    return found


def test_one_component_on_a_linear_model_has_the_exact_covariance():
    model, data, hessian = linear_regression()
    la = mixture(model, data, "regression", sigma_noise=0.5, prior_precision=0.7)
    root = la._fitted.spread(0, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(30 * hessian))
    off = la.sample(20_000) - la.mean
    whitened = torch.linalg.cholesky(30 * hessian).T
    drawn = whitened @ (off.T @ off / len(off)) @ whitened.T
    torch.testing.assert_close(drawn, torch.eye(3, dtype=torch.float64), rtol=0, atol=0.04)


@pytest.mark.parametrize("curvature", ["full", "kron", "diag"])
@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_components_are_laplace_torchs_gaussians(curvature, likelihood):
    models, data = several(classifier if likelihood == "classification" else regressor, 2)
    noise = {"sigma_noise": 0.3} if likelihood == "regression" else {}
    options = {"prior_precision": 2.0, "temperature": 0.8, **noise}
    la = mixture(models, data, likelihood, curvature=curvature, **options)
    eye = torch.eye(la.n_params, dtype=torch.float64)
    for k, host in enumerate(hosts(models, data, curvature, likelihood, **options)):
        root = la._fitted.spread(k, eye)
        precision = host.posterior_precision
        if curvature == "diag":
            precision = precision.diag()
        elif curvature == "kron":
            precision = precision.to_matrix()
        # The host sums its full matrix through single precision.
        torch.testing.assert_close(root @ root.T @ precision, eye, rtol=0, atol=1e-4)
        torch.testing.assert_close(la._fitted.means[k], host.mean)


def test_samples_come_from_each_component_equally_often():
    models, data = several(classifier, 3, shift=50.0)
    la = mixture(models, data, prior_precision=10.0)
    thetas = la.sample(31)
    nearest = torch.cdist(thetas, la._fitted.means).argmin(1)
    assert sorted(nearest.bincount(minlength=3).tolist()) == [10, 10, 11]
    assert nearest.tolist() != sorted(nearest.tolist())


def test_sample_moments_are_those_of_the_mixture():
    models, data = several(classifier, 3, shift=0.5)
    la = mixture(models, data, prior_precision=5.0)
    thetas, means = la.sample(30_000), la._fitted.means
    eye = torch.eye(la.n_params, dtype=torch.float64)
    within = sum((r := la._fitted.spread(k, eye)) @ r.T for k in range(3)) / 3
    off = means - means.mean(0)
    expected = within + off.T @ off / 3
    torch.testing.assert_close(thetas.mean(0), means.mean(0), rtol=0, atol=0.03)
    assert (thetas.T.cov() - expected).norm() < 0.04 * expected.norm()


@pytest.mark.parametrize("link", ["probit", "bridge"])
def test_linearised_classes_average_the_components(link):
    models, data = several(classifier, 3)
    x = data.dataset.tensors[0]
    expected = sum(h(x, link_approx=link) for h in hosts(models, data, "diag")) / 3
    la = mixture(models, data, curvature="diag")
    torch.testing.assert_close(la(x, pred_type="glm", link_approx=link), expected, rtol=1e-5, atol=1e-6)


def test_linearised_outputs_have_the_moments_of_the_mixture():
    models, data = several(regressor, 3, shift=0.1)
    x = data.dataset.tensors[0][:4]
    la = mixture(models, data, "regression", curvature="diag", sigma_noise=0.3)
    parts = [h(x) for h in hosts(models, data, "diag", "regression", sigma_noise=0.3)]
    mean = sum(m for m, _ in parts) / 3
    covariance = sum(v + (m - mean)[..., :, None] * (m - mean)[..., None, :] for m, v in parts) / 3
    ours = la(x, pred_type="glm")
    torch.testing.assert_close(ours, (mean, covariance), rtol=1e-6, atol=1e-8)
    diagonal = la(x, pred_type="glm", diagonal_output=True)[1]
    torch.testing.assert_close(diagonal, covariance.diagonal(dim1=1, dim2=2), rtol=1e-6, atol=1e-8)
    flat, joint = la(x, pred_type="glm", joint=True)
    torch.testing.assert_close(flat, mean.flatten())
    for i in range(4):
        torch.testing.assert_close(joint[2 * i : 2 * i + 2, 2 * i : 2 * i + 2], covariance[i], rtol=1e-6, atol=1e-8)
    samples = la.functional_samples(x, pred_type="glm", n_samples=20_000)
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(samples.var(0), diagonal, rtol=0.06, atol=1e-3)


def test_linearised_samples_are_around_their_own_component():
    models, data = several(classifier, 2, shift=1.0)
    la = mixture(models, data, prior_precision=1e8)  # all samples at their component's mean
    x = data.dataset.tensors[0][:5]
    for pred_type in ("nn", "glm"):
        outputs = la.functional_samples(x, pred_type=pred_type, n_samples=4)
        distances = torch.stack([(outputs - m(x).detach()).flatten(1).norm(dim=1) for m in models])
        assert (distances.min(0).values < 1e-2).all()
        assert sorted(distances.argmin(0).tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("curvature", ["full", "kron", "diag"])
def test_states_of_several_go_through_a_file(curvature):
    models, data = several(classifier, 2)
    la, file = mixture(models, data, curvature=curvature), io.BytesIO()
    torch.save(la.state_dict(), file)
    file.seek(0)
    other = baselines.LaplaceMixture(models[0], "classification")
    other.load_state_dict(torch.load(file, weights_only=True))
    x = data.dataset.tensors[0]
    for pred_type in ("nn", "glm"):
        assert torch.equal(other(x, pred_type=pred_type, n_samples=9), la(x, pred_type=pred_type, n_samples=9))


def test_auto_takes_what_the_network_allows():
    x, y = torch.randn(12, 2, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 2
    wide = nn.Sequential(nn.Linear(2, 500), nn.Tanh(), nn.Linear(500, 2))
    normed = nn.Sequential(nn.Linear(2, 500), nn.LayerNorm(500), nn.Linear(500, 2))
    assert sum(p.numel() for p in wide.parameters()) > FULL_LIMIT
    kinds = [set().union(*mixture(m, loader(x, y))._fitted.roots[0]) for m in (classifier()[0].float(), wide, normed)]
    assert kinds == [{"values", "left"}, {"values", "left", "right"}, {"values"}]


def test_what_cannot_be_is_refused_before_any_work():
    models, data = several(classifier, 2)
    with pytest.raises(ValueError, match="curvature"):
        baselines.LaplaceMixture(models, "classification", curvature="lowrank")
    with pytest.raises(ValueError, match="whole layers"):
        mixture(models[0], data, curvature="kron", subset=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="prior precision"):
        mixture(models[0], data, curvature="kron", prior_precision=torch.ones(33))
    with pytest.raises(ValueError, match="architecture"):
        baselines.LaplaceMixture([models[0], classifier(width=7)[0]], "classification")
    with pytest.raises(ValueError, match="share"):
        baselines.LaplaceMixture(models, "classification", subset="last_layer")
    normed = [nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2)]
    normed[1][1].running_mean.add_(1)
    with pytest.raises(ValueError, match="buffers"):
        baselines.LaplaceMixture(normed, "classification")
    with pytest.raises(ValueError, match="empty"):
        baselines.LaplaceMixture([], "classification")
