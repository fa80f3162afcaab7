"""Gauss-Newton curvature against laplace-torch's dense matrices."""

import copy

import pytest
import torch
from laplace import FullLaplace
from problems import classifier, joint_of, regressor

from laplace_fiber import LanczosGGN, low_rank_laplace
from laplace_fiber.curvature import SubspaceCurvature, subspace_ggn, subspace_jacobian


def problem(likelihood: str):
    return regressor() if likelihood == "regression" else classifier()


def dense(likelihood: str, **options):
    model, data = problem(likelihood)
    host = FullLaplace(copy.deepcopy(model), likelihood, **options)
    host.fit(data)
    # The host accumulates its matrix through float32 unit vectors; its Jacobians are in float64.
    jacobians, outputs = host.backend.jacobians(data.dataset.tensors[0])
    inner = torch.eye(outputs.shape[1], dtype=torch.float64).expand(len(outputs), -1, -1)
    if likelihood == "classification":
        probabilities = outputs.softmax(-1)
        inner = probabilities.diag_embed() - probabilities[:, :, None] * probabilities[:, None, :]
    exact = torch.einsum("bcp,bcd,bdq->pq", jacobians, inner, jacobians)
    torch.testing.assert_close(host.H, exact, rtol=1e-4, atol=1e-5)
    host.H = exact
    return host, model, data


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_subspace_ggn_is_the_projected_dense_one(likelihood, engine):
    host, model, data = dense(likelihood)
    joint, training = joint_of(model, data, likelihood, engine=engine)
    p = joint.network.n_params
    basis = torch.linalg.qr(torch.randn(p, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0].T
    ours = subspace_ggn(joint.network, joint.network.theta(), basis, training.epoch(), likelihood)
    torch.testing.assert_close(ours[0], basis @ host.H @ basis.T, rtol=1e-8, atol=1e-8)
    if likelihood == "regression":
        apart = subspace_ggn(joint.network, joint.network.theta(), basis, training.epoch(), likelihood, per_output=True)
        assert len(apart) == 2
        torch.testing.assert_close(apart.sum(0), ours[0])


def test_subspace_jacobian_is_the_projected_dense_one():
    host, model, data = dense("regression")
    x = data.dataset.tensors[0]
    joint, _ = joint_of(model, data, "regression")
    basis = torch.eye(joint.network.n_params, dtype=torch.float64)[::3]
    jacobian, outputs = subspace_jacobian(joint.network, joint.network.theta(), basis, x, chunk_size=2)
    expected, f = host.backend.jacobians(x)
    torch.testing.assert_close(jacobian, expected @ basis.T)
    torch.testing.assert_close(outputs, f)


def test_log_determinant_ratio_for_one_and_for_many_precisions():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 6, 6, generator=generator, dtype=torch.float64)
    tau = torch.rand(6, generator=generator, dtype=torch.float64) + 0.5
    eye = torch.eye(6, dtype=torch.float64)
    for ggn, factor in (((root @ root.mT)[:1], [2.0]), (root @ root.mT, [2.0, 0.3])):
        for precision in (tau, torch.full_like(tau, 0.7)):
            h = torch.tensor(factor, dtype=torch.float64)
            scaled = (h[:, None, None] * ggn).sum(0)
            expected = torch.logdet(scaled + precision.diag()) - precision.log().sum()
            torch.testing.assert_close(SubspaceCurvature(ggn, eye).log_determinant_ratio(precision, h), expected)


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
def test_lanczos_eigenpairs_are_the_largest_of_the_dense_matrix(likelihood):
    host, model, data = dense(likelihood)
    vectors, values, loss = LanczosGGN(model, likelihood, rank=4).eig_lowrank(data)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(host.H).flip(0)[:4], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(host.H @ vectors, vectors * values, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, torch.as_tensor(host.loss, dtype=torch.float64))


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
def test_low_rank_laplace_of_full_rank_is_full_laplace(likelihood):
    host, model, data = dense(likelihood, prior_precision=2.0)
    low_rank = low_rank_laplace(copy.deepcopy(model), likelihood, rank=10_000, prior_precision=2.0)
    low_rank.fit(data)
    x = data.dataset.tensors[0]
    theirs, ours = host(x), low_rank(x)
    for a, b in zip(theirs, ours, strict=True) if likelihood == "regression" else [(theirs, ours)]:
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(host.log_marginal_likelihood(), low_rank.log_marginal_likelihood(), rtol=1e-6, atol=1e-5)
    draws = low_rank.sample(20_000, generator=torch.Generator().manual_seed(0))
    variance = host.posterior_covariance.diagonal()
    torch.testing.assert_close(draws.var(0), variance, rtol=0.06, atol=0)


def test_rank_must_be_positive():
    with pytest.raises(ValueError, match="expected at least 1 eigenpair, got 0"):
        LanczosGGN(classifier()[0], "classification", rank=0)
