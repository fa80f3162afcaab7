"""Geodesics against dense Christoffel symbols and closed forms; the three posteriors against known laws."""

import copy

import pytest
import torch
from laplace import Laplace
from problems import classifier, joint_of, linear_regression, loader, regressor
from torch import nn

from laplace_fiber import baselines
from laplace_fiber.baselines import FisherRiemannianLaplace, LinearisedRiemannianLaplace, RiemannianLaplace
from laplace_fiber.baselines.geodesics import ObjectiveMetric, exponential_map
from laplace_fiber.baselines.ode import Tolerance
from laplace_fiber.baselines.output_metrics import FisherMetric, LinearisedMetric
from laplace_fiber.baselines.pieces import Pieces
from laplace_fiber.baselines.tangents import tangent_vectors

KINDS = ["classification", "regression"]


def small(kind):
    """A tanh network with few weights, away from any minimum, its joint density and data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    y = torch.arange(12) % 3 if kind == "classification" else torch.randn(12, 3, generator=generator).double()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    sigma = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64) if kind == "regression" else 1.0
    return joint_of(model, loader(x, y), kind, tau=0.3, sigma=sigma, temperature=0.7)


def objective(joint, data, origin=None):
    """J, or that of the network linearised at ``origin``, of one weight vector."""
    ((x, y),) = data.everything().blocks

    def value(theta):
        outputs = joint.network.one(theta, x)
        if origin is not None:
            at, push = torch.func.jvp(lambda t: joint.network.one(t, x), (origin,), (theta - origin,))
            outputs = at + push
        return joint.loss_of(outputs[None], y)[0] / joint.temperature + joint.prior_energy(theta[None])[0]

    return value


def fisher(joint, data):
    """Σ Jᵀ Λ J/T + τ, from dense Jacobians and Hessians."""
    ((x, y),) = data.everything().blocks

    def matrix(theta):
        total = joint.prior_precision.expand(len(theta)).diag()
        for point, target in zip(x, y, strict=True):

            def output(t, point=point):
                return joint.network.one(t, point[None])[0]

            def loss(f, target=target):
                return joint.loss_of(f[None, None], target[None])[0] / joint.temperature

            jacobian = torch.func.jacfwd(output)(theta)
            total = total + jacobian.T @ torch.func.hessian(loss)(output(theta)) @ jacobian
        return total

    return matrix


def christoffel(matrix, theta, v):
    """−Γ(v, v), and vᵀ M v."""
    derivative = torch.func.jacfwd(matrix)(theta)  # ∂_k M_ij at [i, j, k]
    lowered = torch.einsum("lij,i,j->l", derivative, v, v) - 0.5 * torch.einsum("ijl,i,j->l", derivative, v, v)
    return -torch.linalg.solve(matrix(theta), lowered), v @ matrix(theta) @ v


def metrics(name, joint, data, theta):
    """A metric of the package, and the same as a function that gives its dense matrix."""
    if name == "fisher":
        return FisherMetric(joint, theta, Pieces(data)), fisher(joint, data)
    origin = theta if name == "linearised" else None
    gradient = torch.func.grad(objective(joint, data, origin))

    def matrix(t):
        return torch.eye(len(t), dtype=t.dtype) + torch.outer(gradient(t), gradient(t))

    if name == "linearised":
        return LinearisedMetric(joint, theta, Pieces(data)), matrix
    return ObjectiveMetric(joint, theta, Pieces(data), 3), matrix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["objective", "linearised", "fisher"])
def test_accelerations_are_those_of_dense_christoffel_symbols(name, kind):
    joint, data = small(kind)
    theta, generator = joint.network.theta(), torch.Generator().manual_seed(1)
    points = theta + 0.3 * torch.randn(3, len(theta), generator=generator, dtype=torch.float64)
    velocities = torch.randn(3, len(theta), generator=generator, dtype=torch.float64)
    metric, matrix = metrics(name, joint, data, theta)
    found = metric.motion(points, velocities, torch.arange(3))
    for row in range(3):
        acceleration, speed = christoffel(matrix, points[row], velocities[row])
        torch.testing.assert_close(found.acceleration[row], acceleration, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found.squared_speed[row], speed)
    assert metric.evaluations == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["objective", "linearised", "fisher"])
def test_speed_does_not_change_along_geodesics(name, kind):
    joint, data = small(kind)
    theta = joint.network.theta()
    metric, _ = metrics(name, joint, data, theta)
    tangents = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = exponential_map(metric, theta, 0.5 * tangents, Tolerance(rtol=1e-5, atol=1e-5))
    assert bool(found.solution.finished.all())
    assert float(found.drift.abs().max()) < 1e-3
    assert float((found.ends - theta - 0.5 * tangents).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["objective", "linearised", "fisher"])
def test_networks_and_pieces_taken_apart_give_the_same(name):
    joint, data = small("classification")
    theta = joint.network.theta()
    velocities = torch.randn(3, len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points, rows = theta + 0.1 * velocities.flip(0), torch.arange(3)
    expected = metrics(name, joint, data, theta)[0].motion(points, velocities, rows)
    looped, _ = small("classification")
    looped.network.engine = "loop"
    metric = metrics(name, looped, data, theta)[0]
    metric.group = 2
    if name == "linearised":
        metric.jacobians = None
    else:
        metric.pieces.split(5)
    if name == "objective":
        metric.twice = False
    for one, other in zip(metric.motion(points, velocities, rows), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_subsets_are_scaled_to_all_data_and_belong_to_their_rows():
    joint, data = small("classification")
    ((x, y),) = data.everything().blocks
    theta, subsets = joint.network.theta(), torch.tensor([[0, 1, 5], [7, 2, 3], [11, 10, 4]])
    velocities = torch.randn(2, len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = torch.tensor([2, 0])
    found = ObjectiveMetric(joint, theta, Pieces(data, subsets), 3).motion(theta + velocities, velocities, rows)
    weights = torch.zeros(3, 12, dtype=torch.float64).scatter_(1, subsets, 4.0)
    linear = LinearisedMetric(joint, theta, Pieces(data), weights).motion(theta + velocities, velocities, rows)
    for place, row in enumerate(rows):
        few = loader(x[subsets[row]].repeat(4, 1), y[subsets[row]].repeat(4))  # each point four times: 12 again
        alone, data_alone = joint_of(joint.network.model, few, "classification", tau=0.3, temperature=0.7)
        for name, moved in (("objective", found), ("linearised", linear)):
            expected = metrics(name, alone, data_alone, theta)[0].motion(
                theta + velocities[place : place + 1], velocities[place : place + 1], torch.tensor([0])
            )
            torch.testing.assert_close(moved.acceleration[place], expected.acceleration[0])


def radii(model, theta, ends):
    return (ends - theta).norm(dim=1)


def test_the_first_metric_is_biased_for_a_gaussian_posterior_and_fisher_is_exact():
    # J = ½ |θ|² + const: along a ray the first metric is ds² = (1 + r²) dr², so that ½ (r √(1+r²) + arsinh r) = |v|.
    model = nn.Linear(6, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    data = loader(torch.zeros(8, 6, dtype=torch.float64), torch.zeros(8, 1, dtype=torch.float64))
    options = {"n_samples_fit": 400, "rtol": 1e-6, "atol": 1e-6}
    biased, exact = (M(model, "regression", **options) for M in (RiemannianLaplace, FisherRiemannianLaplace))
    biased.fit(data)
    exact.fit(data)
    r = biased.geodesics.thetas.norm(dim=1)
    length = biased.geodesics.tangents.norm(dim=1)
    torch.testing.assert_close(0.5 * (r * (1 + r**2).sqrt() + r.asinh()), length, rtol=1e-4, atol=0)
    assert float(biased.geodesics.thetas.square().mean()) < 0.5  # the posterior's variance is 1
    assert float(exact.geodesics.thetas.square().mean()) == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(exact.geodesics.thetas, exact.geodesics.tangents)


def test_fisher_samples_a_linear_model_with_its_posterior_covariance():
    model, data, hessian = linear_regression()
    la = FisherRiemannianLaplace(model, "regression", sigma_noise=0.5, prior_precision=0.7, n_samples_fit=4000)
    la.fit(data)
    centred = la.geodesics.thetas - la.mean
    expected = torch.linalg.inv(30 * hessian)
    torch.testing.assert_close(centred.T @ centred / 4000, expected, rtol=0, atol=0.1 * float(expected.max()))
    biased = RiemannianLaplace(model, "regression", sigma_noise=0.5, prior_precision=0.7, n_samples_fit=400)
    biased.fit(data)
    assert float((biased.geodesics.thetas - biased.mean).square().sum(1).mean()) < 0.7 * float(expected.trace())


class OneWeight(nn.Module):
    """f(w) = sinh w: observations of φ = sinh w say nothing else about w."""

    def __init__(self, outputs=1):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.8], dtype=torch.float64))
        self.outputs = outputs

    def forward(self, x):
        value = torch.sinh(self.w).expand(len(x), 1)
        return value if self.outputs == 1 else torch.cat([value, -value], 1)


def test_fisher_is_exact_in_other_coordinates():
    y = torch.full((50, 1), 0.8, dtype=torch.float64).sinh()
    la = FisherRiemannianLaplace(
        OneWeight(), "regression", prior_precision=1e-9, n_samples_fit=200, rtol=1e-8, atol=1e-8
    )
    la.fit(loader(torch.zeros(50, 1, dtype=torch.float64), y))
    phi = la.geodesics.thetas.sinh() - y[0]
    torch.testing.assert_close(phi, la.geodesics.tangents * torch.tensor(0.8).double().cosh(), rtol=1e-4, atol=1e-6)
    assert float(phi.square().mean()) == pytest.approx(1 / 50, rel=0.3)  # N(ȳ, 1/n), as the posterior of φ


def test_fisher_geodesics_of_classes_keep_equal_lengths():
    # One weight: ∫ √G along the curve is |v| √G(w*), with G = n Λ (df/dw)² + τ in two classes of logits ±sinh w.
    la = FisherRiemannianLaplace(OneWeight(2), "classification", n_samples_fit=20, rtol=1e-8, atol=1e-8)
    la.fit(loader(torch.zeros(30, 1, dtype=torch.float64), torch.arange(30) % 2))

    def root(w):
        p = torch.sigmoid(2 * w.sinh())
        return (30 * p * (1 - p) * (2 * w.cosh()) ** 2 + 1).sqrt()

    for end, v in zip(la.geodesics.thetas[:, 0], la.geodesics.tangents[:, 0], strict=True):
        grid = 0.8 + torch.linspace(0, 1, 4001, dtype=torch.float64) * (end - 0.8)
        length = torch.trapezoid(root(grid), grid)
        assert float(length) == pytest.approx(float(v * root(torch.tensor(0.8).double())), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_tangents_have_the_covariance_of_laplace_torch(kind):
    model, data = classifier() if kind == "classification" else regressor()
    sigma = 1.0 if kind == "classification" else 0.3
    options = {"sigma_noise": sigma, "prior_precision": 3.0, "temperature": 0.5}
    host = RiemannianLaplace(model, kind, **options)
    problem = problem_of(host, data)
    for structure in ("full", "diag", "kron"):
        theirs = Laplace(copy.deepcopy(model), kind, "all", structure, **options)
        theirs.fit(data)
        draws = tangent_vectors(problem, 20000, structure, 5)
        expected = theirs.posterior_precision
        expected = expected.to_matrix() if structure == "kron" else expected
        whitened = draws @ torch.linalg.cholesky(expected.diag() if structure == "diag" else expected)
        torch.testing.assert_close(
            whitened.T @ whitened / 20000, torch.eye(len(whitened.T)).double(), rtol=0, atol=0.06
        )
    exact = Laplace(copy.deepcopy(model), kind, "all", "full", **options)
    exact.fit(data)
    whitened = tangent_vectors(problem, 20000, "lowrank", 1000) @ torch.linalg.cholesky(exact.posterior_precision)
    torch.testing.assert_close(whitened.T @ whitened / 20000, torch.eye(len(whitened.T)).double(), rtol=0, atol=0.06)


def problem_of(host, data):
    from laplace_fiber.baselines.baseline import Problem
    from laplace_fiber.data import TrainingData

    training = TrainingData(data, host._device)
    return Problem(host._joint(training.n_data), host.network.theta(), training, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("subset", ["last_layer", torch.tensor([0, 3, 9, 20])], ids=str)
def test_tangents_of_subsets(subset):
    model, data = classifier()
    problem = problem_of(RiemannianLaplace(model, "classification", subset=subset), data)
    joint = problem.joint
    full = joint.network.positions()
    everything = problem_of(RiemannianLaplace(model, "classification"), data)
    ggn = FisherMetric(everything.joint, everything.theta, Pieces(everything.data)).matrix(everything.theta)
    for structure in ("full", "diag"):
        draws = tangent_vectors(problem, 20000, structure, 5)
        precision = ggn[full][:, full]
        precision = precision.diag().diag() if structure == "diag" else precision
        whitened = draws @ torch.linalg.cholesky(precision)
        torch.testing.assert_close(whitened.T @ whitened / 20000, torch.eye(len(full)).double(), rtol=0, atol=0.06)
    if isinstance(subset, torch.Tensor):
        with pytest.raises(ValueError, match="curvature"):
            tangent_vectors(problem, 3, "kron", 5)
    else:
        assert tangent_vectors(problem, 3, "kron", 5).shape == (3, len(full))


def test_geodesics_lower_the_loss_of_tangent_points():
    model, data = classifier()
    la = RiemannianLaplace(model, "classification", prior_precision=0.5, n_samples_fit=6)
    la.fit(data)
    joint = la._joint(la.n_data)
    batch = la._data.everything()
    assert la.statuses == ["finished"] * 6
    straight = joint.nll(la.mean + la.geodesics.tangents, batch).mean()
    assert float(joint.nll(la.geodesics.thetas, batch).mean()) < 0.5 * float(straight)


def test_predictions_of_network_and_linearisation_are_never_mixed():
    model, data = classifier()
    x = data.dataset.tensors[0][:4]
    network, linear = (
        M(model, "classification", n_samples_fit=8) for M in (RiemannianLaplace, LinearisedRiemannianLaplace)
    )
    network.fit(data)
    linear.fit(data)
    for la, wrong in ((network, "glm"), (linear, "nn")):
        for call in (la, la.functional_samples, la.predictive_samples, la.predictive):
            with pytest.raises(ValueError, match=f"pred_type: expected .* for {type(la).__name__}, got '{wrong}'"):
                call(x, pred_type=wrong)
        with pytest.raises(ValueError, match="pred_type"):
            la.optimize_prior_precision(method="gridsearch", pred_type=wrong, val_loader=data)
    samples = linear.functional_samples(x, n_samples=8)
    rows = linear.sample(8)
    at = model(x)
    expected = [
        at + torch.func.jvp(lambda t: linear.network.one(t, x), (linear.mean,), (r - linear.mean,))[1] for r in rows
    ]
    torch.testing.assert_close(samples, torch.stack(expected))
    torch.testing.assert_close(linear(x, n_samples=8), samples.softmax(-1).mean(0))
    torch.testing.assert_close(linear(x, link_approx="probit").sum(-1), torch.ones(4).double())
    linear.optimize_prior_precision(
        method="gridsearch", val_loader=data, grid_size=2, log_prior_prec_min=0, log_prior_prec_max=1, n_samples=8
    )


def test_moments_of_the_linearised_regression_are_those_of_its_samples():
    model, data = regressor()
    la = LinearisedRiemannianLaplace(model, "regression", sigma_noise=0.3, n_samples_fit=12, data="subset")
    la.fit(data)
    x = data.dataset.tensors[0][:4]
    samples = la.functional_samples(x, n_samples=12)
    mean, covariance = la(x)
    torch.testing.assert_close(mean, samples.mean(0))
    torch.testing.assert_close(covariance.diagonal(dim1=1, dim2=2), samples.var(0))
    joint_mean, joint_covariance = la(x, joint=True)
    torch.testing.assert_close(joint_mean, mean.flatten())
    torch.testing.assert_close(joint_covariance, samples.flatten(1).T.cov())


@pytest.mark.parametrize("treatment", ["drop", "euclidean", "raise"])
def test_failed_geodesics_are_flagged(treatment):
    model, data = regressor()
    la = RiemannianLaplace(
        model, "regression", sigma_noise=0.2, n_samples_fit=8, max_evaluations=230, on_failure=treatment
    )
    if treatment == "raise":
        with pytest.raises(RuntimeError, match=r"geodesics failed .* too many evaluations.*prior_precision"):
            la.fit(data)
        return
    with pytest.warns(
        UserWarning,
        match="of 8 geodesics failed .*too many evaluations.*"
        + ("θ\\* \\+ v" if treatment == "euclidean" else "left out"),
    ):
        la.fit(data)
    failed = [s == "too many evaluations" for s in la.statuses]
    assert 0 < sum(failed) < 8
    assert la.diagnostics["failed_samples"] == sum(failed)
    if treatment == "drop":
        assert len(la.geodesics.thetas) == 8 - sum(failed)
    else:
        straight = (la.geodesics.thetas == la.mean + la.geodesics.tangents).all(1)
        assert straight.tolist() == failed
    la.settings = type(la.settings)(max_evaluations=8, on_failure=treatment)
    if treatment == "drop":
        with pytest.raises(RuntimeError, match="no sample is left"):
            la.fit(data)


@pytest.mark.parametrize("method", [RiemannianLaplace, LinearisedRiemannianLaplace, FisherRiemannianLaplace])
def test_single_precision_and_double_inside(method):
    model, data = classifier()
    x, y = data.dataset.tensors
    plain, double = (method(model.float(), "classification", n_samples_fit=4, double=d) for d in (False, True))
    for la in (plain, double):
        la.fit(loader(x.float(), y))
        assert la.statuses == ["finished"] * 4
        assert la.geodesics.thetas.dtype == torch.float32
        assert la(x.float()).dtype == torch.float32
        assert la.diagnostics["speed_drift"] < 0.1
    torch.testing.assert_close(plain.geodesics.thetas, double.geodesics.thetas, rtol=0, atol=0.05)
    assert model[0].weight.dtype == torch.float32


def test_dict_batches_have_no_subsets_and_kinks_are_named():
    model, data = classifier()
    kinked = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with pytest.warns(UserWarning, match="ReLU: the loss has kinks"):
        RiemannianLaplace(kinked, "classification", n_samples_fit=2).fit(data)

    class OnDicts(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model

        def forward(self, batch):
            return self.body(batch["x"])

    x, y = data.dataset.tensors
    with pytest.raises(ValueError, match="data: expected inputs that are tensors"):
        RiemannianLaplace(OnDicts(), "classification", data="subset").fit([{"x": x, "labels": y}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "last_layer"}, "subset='last_layer'"),
        ({"curvature": "dense"}, "curvature: expected one of"),
        ({"data": "half"}, "data: expected"),
        ({"subset_size": 0}, "subset_size: expected a positive"),
        ({"on_failure": "hide"}, "on_failure: expected"),
        ({"rtol": 0.0}, "rtol: expected a positive"),
        ({"n_samples_fit": 0}, "n_samples_fit: expected a positive"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        baselines.RiemannianLaplace(classifier()[0], "classification", **options)


def test_limits_of_size():
    model, data = classifier()
    with pytest.raises(ValueError, match="subset_size: expected at most the 40"):
        RiemannianLaplace(model, "classification", data="subset", subset_size=41).fit(data)
    large = nn.Sequential(nn.Linear(2, 500), nn.Tanh(), nn.Linear(500, 3)).double()
    with pytest.raises(ValueError, match=r"at most 2000 moving weights .* subset="):
        FisherRiemannianLaplace(large, "classification").fit(data)
