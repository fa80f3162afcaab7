"""The effective number of parameters, against closed forms and dense matrices."""

import pytest
import torch
from problems import classifier, fitted, joint_of, linear_regression, loader, regressor
from torch import nn

from laplace_fiber import EffectiveDimension, FiberLaplace, TrajectorySampler, baselines
from laplace_fiber.curvature import SubspaceCurvature, subspace_ggn
from laplace_fiber.effective_dimension import effective_dimension
from laplace_fiber.lanczos_quadrature import TOLERANCE, converged, estimated_tail, quadrature
from laplace_fiber.spectrum import Eigenpairs


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(value):
    return pytest.approx(float(value), rel=1e-7, abs=1e-9)


def precisions(n, seed=1):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 0.2


def posterior(likelihood="regression", **options):
    model, data = regressor() if likelihood == "regression" else classifier()
    noise = {"sigma_noise": 0.3} if likelihood == "regression" else {}
    sampler = TrajectorySampler(n_particles=3, n_steps=4)
    return fitted(model, data, likelihood, sampler=sampler, **{**noise, **options}), data


def dense_ggn(la, data):
    """H G over the moving weights from Jacobians of the network's outputs, without the code under test."""
    x, _ = data.dataset.tensors
    theta = la.mean
    jacobian = torch.autograd.functional.jacobian(lambda t: la.network.one(t, x), theta)
    if la.likelihood == "regression":
        inner = torch.diag(1 / la.sigma_noise.expand(jacobian.shape[1]).square()).expand(len(x), -1, -1)
    else:
        p = la.network.one(theta, x).detach().softmax(-1)
        inner = p.diag_embed() - p[:, :, None] * p[:, None, :]
    return torch.einsum("bcp,bcd,bdq->pq", jacobian, inner, jacobian) / la.temperature


def shares(ggn, tau):
    """The diagonal of D G D (D G D + 1)⁻¹."""
    scaled = ggn * tau.rsqrt()[:, None] * tau.rsqrt()
    return (scaled @ torch.linalg.inv(scaled + torch.eye(len(tau), dtype=tau.dtype))).diagonal()


def random_matrix(p=60, rank=40, seed=0):
    """A singular matrix whose eigenvalues fall from 1e4 to 1e-2."""
    q = torch.linalg.qr(normal(p, p, seed=seed))[0]
    values = torch.zeros(p, dtype=torch.float64)
    values[:rank] = torch.logspace(4, -2, rank, dtype=torch.float64)
    return (q * values) @ q.T, q.T, values


def nothing(p):
    empty = torch.zeros(0, dtype=torch.float64)
    return Eigenpairs(empty, torch.zeros(0, p, dtype=torch.float64), 0.0, empty)


def test_linear_regression_has_its_closed_form():
    tau, sigma = 0.7, 0.5
    model, data, _ = linear_regression(tau=tau, sigma=sigma)
    joint, training = joint_of(model, data, "regression", tau, sigma)
    x = data.dataset.tensors[0]
    values = torch.linalg.eigvalsh(x.T @ x / sigma**2).flip(0)
    result = effective_dimension(joint, joint.network.theta(), training)
    assert result.total == close((values / (values + tau)).sum())
    assert result.exact
    assert result.error == 0
    torch.testing.assert_close(result.values, values / tau)
    assert list(result.per_layer) == ["weight"]
    assert result.per_layer["weight"] == close(result.total)


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
@pytest.mark.parametrize("structure", ["scalar", "layerwise", "diag"])
def test_posteriors_agree_with_dense_matrices_for_every_prior(likelihood, structure):
    la, data = posterior(likelihood, temperature=0.6)
    la.prior_precision = precisions({"scalar": 1, "layerwise": la.n_layers, "diag": la.n_params}[structure])
    expected = shares(dense_ggn(la, data), la.prior_precision_diag)
    result = la.effective_dimension()
    assert result.total == close(expected.sum())
    sizes = [p.numel() for p in la.model.parameters()]
    assert list(result.per_layer) == [name for name, _ in la.model.named_parameters()]
    for ours, part in zip(result.per_layer.values(), expected.split(sizes), strict=True):
        assert ours == close(part.sum())


@pytest.mark.parametrize(
    "subset", ["last_layer", ["0"], torch.tensor([25, 3, 8, 21, 0])], ids=["last", "names", "index"]
)
def test_subsets_count_their_own_weights(subset):
    la, data = posterior(subset=subset)
    la.prior_precision = precisions(la.n_params)
    expected = shares(dense_ggn(la, data), la.prior_precision)
    result = la.effective_dimension()
    assert result.total == close(expected.sum())
    assert result.n_params == la.n_params
    owners = [name for name, p in la.model.named_parameters() for _ in range(p.numel())]
    moving = [owners[i] for i in la.network.positions()]
    assert set(result.per_layer) == set(moving)
    for name, ours in result.per_layer.items():
        assert ours == close(sum(float(e) for e, owner in zip(expected, moving, strict=True) if owner == name))


def test_settings_changed_after_fit_are_those_counted():
    la, data = posterior()
    before = la.effective_dimension().total
    la.sigma_noise, la.temperature = torch.tensor([0.1, 1.5], dtype=torch.float64), 2.0
    after = la.effective_dimension()
    assert after.total == close(shares(dense_ggn(la, data), la.prior_precision_diag).sum())
    assert abs(after.total - before) > 0.1


@pytest.mark.parametrize("limit", [3000, 0], ids=["dense", "lanczos"])
def test_at_a_share_is_the_number_for_the_narrower_prior(limit):
    model, data = classifier()

    def found(tau):
        joint, training = joint_of(model, data, "classification", tau)
        return effective_dimension(joint, joint.network.theta(), training, rank=4, exact_limit=limit)

    result = found(1.0)
    tolerance = 1e-8 if limit else 5e-3  # of quadratures stopped at a tolerance
    assert result.at(1.0) == pytest.approx(result.total, rel=1e-9)
    joint, training = joint_of(model, data, "classification", 1 / 0.4**2)
    if limit:
        assert result.at(0.4) == pytest.approx(found(1 / 0.4**2).total, rel=tolerance)
    exact = effective_dimension(joint, joint.network.theta(), training).total
    assert abs(result.at(0.4) - exact) <= tolerance * exact + result.error
    assert result.at(0.0) == 0


@pytest.mark.parametrize(("limit", "tolerance"), [(3000, 1e-8), (0, 0.05)], ids=["dense", "lanczos"])
def test_the_determinant_is_that_of_the_dense_matrix(limit, tolerance):
    model, data = classifier()
    joint, training = joint_of(model, data, "classification", 0.3)
    la = FiberLaplace(model, "classification", prior_precision=0.3)
    la.mean = joint.network.theta()
    result = effective_dimension(joint, joint.network.theta(), training, rank=10, exact_limit=limit)
    ggn = dense_ggn(la, data)
    for scale in (1.0, 0.5):
        dense = torch.logdet(torch.eye(len(ggn), dtype=ggn.dtype) + ggn * (scale**2 / 0.3))
        assert result.log_determinant(scale) == pytest.approx(float(dense), rel=tolerance)


@pytest.mark.parametrize("likelihood", ["regression", "classification"])
def test_lanczos_is_within_its_error_of_the_dense_number(likelihood):
    model, data = regressor() if likelihood == "regression" else classifier(width=12)
    joint, training = joint_of(model, data, likelihood, 0.3, 0.4 if likelihood == "regression" else 1.0)
    theta = joint.network.theta()
    exact = effective_dimension(joint, theta, training)
    runs = [effective_dimension(joint, theta, training, seed, rank=10, exact_limit=0) for seed in range(10)]
    assert not any(run.exact for run in runs)
    assert min(len(run.values) for run in runs) > 0
    assert max(len(run.values) for run in runs) < len(exact.values)  # the tail has something to do
    assert max(abs(run.total - exact.total) for run in runs) > 1e-6
    assert sum(abs(run.total - exact.total) <= run.error for run in runs) >= 8
    assert max(run.error for run in runs) < 0.3 * exact.total
    for run in runs:
        torch.testing.assert_close(run.values[:3], exact.values[:3], rtol=1e-4, atol=0)
        assert sum(run.per_layer.values()) == close(run.total)
        assert min(run.per_layer.values()) >= 0
    for name, share in exact.per_layer.items():
        assert sum(run.per_layer[name] for run in runs) / 10 == pytest.approx(share, rel=0.15, abs=0.15)


def test_lanczos_that_exhausts_the_image_has_no_error():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    theta = joint.network.theta()
    exact, ours = (effective_dimension(joint, theta, training, exact_limit=limit) for limit in (3000, 0))
    assert ours.total == pytest.approx(exact.total, abs=2e-3)
    assert abs(ours.total - exact.total) <= ours.error + 1e-6
    assert ours.error < 5e-3


def test_quadrature_is_above_the_true_value_by_its_gap_at_most():
    matrix, _, _ = random_matrix()
    eye = torch.eye(60, dtype=torch.float64)
    f = matrix @ torch.linalg.inv(matrix + eye)
    for seed in range(5):
        v = normal(60, seed=seed)
        part, true = quadrature(lambda u: matrix @ u, v), float(v @ f @ v)
        assert len(part.values) < 60
        assert -1e-9 <= part.value - true <= part.gap + 1e-9
        assert part.gap <= 1.1 * TOLERANCE * true
        assert float(part.root.square().sum()) == close(part.value)


def test_tail_of_all_probes_is_the_trace_and_the_diagonal_in_the_complement():
    matrix, vectors, values = random_matrix()
    leading = Eigenpairs(values[:5], vectors[:5], 0.0, torch.zeros(5, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    tail = estimated_tail(lambda u: matrix @ u, leading, generator, 150)
    rest = values[5:] / (values[5:] + 1)
    assert abs(tail.total - float(rest.sum())) <= tail.error
    assert tail.error < 0.05 * tail.total
    expected = rest @ vectors[5:].square()
    torch.testing.assert_close(tail.diagonal, expected, rtol=0.3, atol=0.1)
    everything = estimated_tail(lambda u: matrix @ u, nothing(60), torch.Generator().manual_seed(1), 150)
    assert abs(everything.total - float((values / (values + 1)).sum())) <= everything.error


def test_only_ritz_pairs_that_do_not_change_the_number_are_kept():
    values = torch.tensor([1e-30, 0.1, 5.0, 100.0], dtype=torch.float64)
    residuals = torch.tensor([0.0, 1e-1, 1e-3, 1e-3], dtype=torch.float64)
    kept = converged(Eigenpairs(values, torch.eye(4, dtype=torch.float64), 1e-12, residuals))
    assert kept.values.tolist() == [5.0, 100.0]
    # What the coupling of the pairs kept to the others changes is below the bound that the error takes.
    matrix = torch.diag(torch.tensor([3.0, 5.0, 100.0], dtype=torch.float64))
    for rho in (0.1, 1.0):
        coupled = matrix.clone()
        coupled[0, 1:] = coupled[1:, 0] = rho / 2**0.5
        change = [torch.linalg.inv(m + torch.eye(3, dtype=torch.float64)).trace() for m in (coupled, matrix)]
        bound = 3 * sum(rho**2 / 2 / (value + 1) for value in (5.0, 100.0))
        assert 0 < float(change[0] - change[1]) <= bound


@pytest.mark.parametrize("limit", [3000, 0], ids=["dense", "lanczos"])
def test_no_curvature_means_no_parameters(limit):
    model, zeros = nn.Linear(4, 1, bias=False).double(), torch.zeros(6, 4, dtype=torch.float64)
    joint, training = joint_of(model, loader(zeros, zeros[:, :1]), "regression")
    result = effective_dimension(joint, joint.network.theta(), training, exact_limit=limit)
    assert (result.total, result.error, result.per_layer) == (0, 0, {"weight": 0})
    assert result.at(0.5) == 0


@pytest.mark.parametrize("structure", ["scalar", "diag", "outputs"])
def test_subspace_number_is_that_of_the_projected_matrices(structure):
    la, data = posterior()
    if structure == "diag":
        la.prior_precision = precisions(la.n_params)
    if structure == "outputs":
        la.sigma_noise = torch.tensor([0.2, 0.7], dtype=torch.float64)
    basis = la._fitted.subspace.basis.double()
    assert len(basis) < la.n_params
    ggn = basis @ dense_ggn(la, data) @ basis.T
    prior = (basis * la.prior_precision_diag) @ basis.T
    result = la.effective_dimension()
    assert result.subspace_rank == len(basis)
    assert result.in_subspace == close((ggn @ torch.linalg.inv(ggn + prior)).trace())
    assert result.in_subspace < result.total


def test_subspace_of_all_directions_gives_the_whole_number():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification", 0.5)
    theta, tau = joint.network.theta(), precisions(joint.network.n_params)
    q = torch.linalg.qr(normal(len(theta), len(theta)))[0]
    curvature = SubspaceCurvature(subspace_ggn(joint.network, theta, q, training.epoch(), "classification"), q)
    one = torch.ones(1, dtype=torch.float64)
    total = effective_dimension(joint, theta, training).total
    assert float(curvature.effective_dimension(torch.full_like(tau, 0.5), one)) == close(total)
    model_ggn = q.T @ curvature.ggn[0] @ q
    assert float(curvature.effective_dimension(tau, one)) == close(shares(model_ggn, tau).sum())
    tau = tau.requires_grad_()
    curvature.effective_dimension(tau, one).backward()
    assert bool((tau.grad <= 0).any())


def test_printed_numbers_and_the_export():
    la, _ = posterior()
    result = la.effective_dimension()
    assert isinstance(result, EffectiveDimension)
    text = str(result)
    assert f"{result.total:.4g} of 26" in text
    assert f"of these in the walk's subspace: {result.in_subspace:.4g}" in text
    assert all(name in text for name in result.per_layer)
    joint, training = joint_of(la.model, la._data.loader, "regression")
    rough = effective_dimension(joint, la.mean, training, rank=3, exact_limit=0)
    assert f"± {rough.error:.2g} of 26" in str(rough)
    assert "subspace" not in str(rough)


def test_baselines_have_it_too_and_nothing_random_moves():
    model, data = classifier()
    la = baselines.SWAG(model, "classification", prior_precision=2.0, n_collected=2, interval=2)
    la.fit(data)
    state = torch.get_rng_state()
    result = la.effective_dimension()
    assert torch.equal(state, torch.get_rng_state())
    joint, training = joint_of(model, data, "classification", 2.0)
    assert result.total == close(effective_dimension(joint, la.mean, training).total)
    assert result.in_subspace is None


def test_errors_name_the_remedy():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    with pytest.raises(ValueError, match="probes >= 2"):
        effective_dimension(joint, joint.network.theta(), training, probes=1)
    with pytest.raises(ValueError, match="rank >= 1"):
        effective_dimension(joint, joint.network.theta(), training, rank=0)
    for limit in (3000, 0):
        with pytest.raises(RuntimeError, match="finite curvature"):
            effective_dimension(joint, joint.network.theta() * torch.nan, training, exact_limit=limit)
    with pytest.raises(RuntimeError, match="has not been fitted"):
        FiberLaplace(model, "classification").effective_dimension()
    la, data = posterior("classification")
    loaded = FiberLaplace(la.model, "classification")
    loaded.load_state_dict(la.state_dict())
    with pytest.raises(RuntimeError, match=r"call fit\(train_loader\)"):
        loaded.effective_dimension()
