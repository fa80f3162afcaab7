"""pred_type="glm": laplace-torch's formulas with the samples' own second moment, and finite differences."""

import copy

import pytest
import torch
from laplace import FullLaplace
from laplace.curvature import AsdlEF, AsdlGGN, BackPackEF, BackPackGGN, CurvlinopsEF, CurvlinopsGGN
from problems import classifier, fitted, regressor

from laplace_fiber.host import ELSEWHERE
from laplace_fiber.paths import FORMS


def jacobians(la, x):
    host = FullLaplace(copy.deepcopy(la.model), la.likelihood)
    return host.backend.jacobians(x)


@pytest.mark.parametrize("form", FORMS)
def test_second_moment_is_that_of_the_samples(form, regression):
    """60,000 draws: entries within 3 % of the largest variance."""
    la, _ = copy.deepcopy(regression)
    la.posterior = form
    factor = la.spread_factor()
    offsets = la.sample(60_000, torch.Generator().manual_seed(0)) - la.mean
    expected = offsets.T @ offsets / len(offsets)
    torch.testing.assert_close(factor.T @ factor, expected, rtol=0, atol=0.03 * float(expected.diagonal().max()))


def test_regression_shapes_and_values_are_laplace_torchs(regression):
    la, data = regression
    x = data.dataset.tensors[0][:7]
    js, f = jacobians(la, x)
    factor = la.spread_factor()
    covariance = torch.einsum("bcp,kp,kq,edq->bced", js, factor, factor, js)
    mean, variance = la(x, pred_type="glm", link_approx="probit")
    torch.testing.assert_close(mean, f)
    torch.testing.assert_close(variance, torch.stack([covariance[b, :, b] for b in range(7)]))
    joint_mean, joint = la(x, pred_type="glm", joint=True)
    torch.testing.assert_close(joint_mean, f.flatten())
    torch.testing.assert_close(joint, covariance.reshape(14, 14))
    diagonal = la(x, pred_type="glm", diagonal_output=True)[1]
    torch.testing.assert_close(diagonal, variance.diagonal(dim1=-2, dim2=-1))
    torch.testing.assert_close(la.functional_variance(js), variance)
    torch.testing.assert_close(la.functional_covariance(js), joint)


def test_links_are_laplace_torchs_at_the_same_moments(classification):
    """A Gaussian flavour whose functional variance is replaced by ours gives the same probabilities for each link."""
    la, data = classification
    x = data.dataset.tensors[0]
    host = FullLaplace(copy.deepcopy(la.model), "classification")
    host.fit(data)
    host.functional_variance = la.functional_variance
    for link in ("probit", "bridge", "bridge_norm"):
        torch.testing.assert_close(la(x, "glm", link_approx=link), host(x, "glm", link_approx=link))
    narrow = copy.deepcopy(la)
    narrow.prior_precision = 400.0  # where probit is a good approximation of the average over draws
    sampled = narrow(x, "glm", link_approx="mc", n_samples=4000)
    torch.testing.assert_close(sampled, narrow(x, "glm", link_approx="probit"), rtol=0, atol=0.03)


def test_samples_are_the_linearised_network(classification):
    la, data = classification
    x = data.dataset.tensors[0][:5]
    js, f = jacobians(la, x)
    offsets = la.sample(9) - la.mean
    expected = f + torch.einsum("bcp,sp->sbc", js, offsets)
    torch.testing.assert_close(la.functional_samples(x, pred_type="glm", n_samples=9), expected)
    torch.testing.assert_close(la.predictive_samples(x, pred_type="glm", n_samples=9), expected.softmax(-1))
    generators = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    a, b, c = (la(x, "glm", generator=g) for g in generators)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize("backend", [CurvlinopsGGN, CurvlinopsEF, BackPackGGN, BackPackEF, AsdlGGN, AsdlEF])
@pytest.mark.parametrize("subset", ["all", "last_layer", torch.tensor([2, 30, 11])], ids=str)
def test_curvature_backends_give_the_same_linearised_predictive(backend, subset):
    model, data = classifier()
    plain, with_backend = (fitted(copy.deepcopy(model), data, subset=subset, backend=b) for b in (None, backend))
    x = data.dataset.tensors[0]
    torch.testing.assert_close(with_backend(x, "glm", link_approx="probit"), plain(x, "glm", link_approx="probit"))


def test_gradients_in_the_input():
    model, data = regressor()
    la = fitted(model, data, "regression", enable_backprop=True)
    x = torch.tensor([[0.3]], dtype=torch.float64, requires_grad=True)
    step = 1e-6
    for index in range(2):
        (gradient,) = torch.autograd.grad(la(x, "glm")[index].sum(), x)
        above, below = (float(la((x + sign * step).detach(), "glm")[index].sum()) for sign in (1, -1))
        assert float(gradient) == pytest.approx((above - below) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("link", ["mc", "probit", "bridge"])
def test_gridsearch_for_the_linearised_predictive(link, classification):
    la, data = copy.deepcopy(classification)
    x, y = data.dataset.tensors

    def loss():
        return float(torch.nn.functional.nll_loss(la(x, "glm", link_approx=link).log(), y))

    before = loss()
    la.optimize_prior_precision("glm", "gridsearch", val_loader=data, link_approx=link, grid_size=5)
    assert loss() <= before + 1e-12


def test_what_belongs_to_gaussians_says_so(classification):
    la, _ = classification
    for name in ELSEWHERE:
        with pytest.raises(AttributeError, match=f"FiberLaplace is known by its samples and has no {name}; use "):
            getattr(la, name)
    with pytest.raises(AttributeError, match="has no attribute 'posterior_presicion'"):
        la.posterior_presicion  # noqa: B018
    with pytest.raises(NotImplementedError, match=r"no density; use sample\(\)"):
        la.log_prob(la.mean)
