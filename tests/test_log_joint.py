"""The objective against its formula and against laplace-torch's conventions."""

import math
from dataclasses import replace

import pytest
import torch
from laplace import FullLaplace
from problems import classifier, joint_of, linear_regression, loader, regressor

from laplace_fiber.data import TrainingData
from laplace_fiber.log_joint import check_shapes


def test_objective_is_the_formula():
    model, data = regressor()
    x, y = data.dataset.tensors
    joint, training = joint_of(model, data, "regression", tau=0.3, sigma=0.4, temperature=2.0)
    theta = joint.network.theta() + 0.1
    squares = (joint.network.one(theta, x) - y).square().sum()
    expected = (0.5 * squares / (0.4**2 * 2.0) + 0.15 * theta.square().sum()) / len(x)
    torch.testing.assert_close(joint.objective(theta[None], training.everything())[0], expected)


def test_gradients_of_many_are_the_gradients_of_each():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification", chunk_size=2)
    generator = torch.Generator().manual_seed(0)
    thetas = torch.randn(5, joint.network.n_params, generator=generator, dtype=torch.float64)
    values, grads = joint.value_and_grad(thetas, training.everything())
    for theta, value, grad in zip(thetas, values, grads, strict=True):
        single = theta.clone().requires_grad_()
        objective = joint.objective(single[None], training.everything())[0]
        torch.testing.assert_close(objective.detach(), value)
        torch.testing.assert_close(torch.autograd.grad(objective, single)[0], grad)


def test_hessian_product_on_a_quadratic():
    model, data, hessian = linear_regression()
    joint, training = joint_of(model, data, "regression", tau=0.7, sigma=0.5)
    product = joint.hessian_product(joint.network.theta(), training.everything())
    columns = torch.stack([product(e) for e in torch.eye(3, dtype=torch.float64)])
    torch.testing.assert_close(columns, hessian)


def test_hessian_product_where_a_layer_has_no_second_derivative():
    """Central differences agree with the exact product to 1e-6; torch has no second derivative of EmbeddingBag."""
    model = torch.nn.Sequential(torch.nn.EmbeddingBag(5, 3), torch.nn.Linear(3, 2)).double()
    smooth = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Flatten(), torch.nn.Linear(3, 2)).double()
    smooth[0].weight, smooth[2].weight, smooth[2].bias = model[0].weight, model[1].weight, model[1].bias
    data = loader(torch.arange(10)[:, None] % 5, torch.arange(10) % 2)
    v = torch.nn.functional.normalize(torch.arange(1.0, 24.0, dtype=torch.float64), dim=0)
    products = []
    for network in (model, smooth):
        joint, training = joint_of(network, data, "classification")
        products.append(joint.hessian_product(joint.network.theta(), training.everything())(v))
    torch.testing.assert_close(products[0], products[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("likelihood", "sigma"), [("regression", 0.4), ("classification", 1.0)])
def test_likelihood_is_laplace_torchs(likelihood, sigma):
    model, data = regressor() if likelihood == "regression" else classifier()
    joint, training = joint_of(model, data, likelihood, sigma=sigma)
    host = FullLaplace(model, likelihood, sigma_noise=sigma)
    host.fit(data)
    ours = -joint.n_data * joint.nll(joint.network.theta()[None], training.everything())[0]
    if likelihood == "regression":
        # laplace-torch counts the normalising constant once per output, as here.
        assert training.n_data * 2 * math.log(0.4 * math.sqrt(2 * math.pi)) != 0
    torch.testing.assert_close(ours, host.log_likelihood.detach())


@pytest.mark.parametrize(
    ("outputs", "y", "likelihood", "message"),
    [
        (
            torch.zeros(4, 1),
            torch.zeros(4),
            "regression",
            r"expected targets shaped like the outputs \(4, 1\), got \(4,\)",
        ),
        (torch.zeros(4, 1), torch.zeros(4).long(), "classification", "two logits"),
        (torch.zeros(4, 2), torch.zeros(4), "classification", "use class indices"),
        (torch.zeros(4, 2), torch.zeros(4, 2).long(), "classification", "use class indices"),
        (torch.zeros(4, 2), torch.full((4,), 2), "classification", r"expected labels in \[0, 2\), got 2 to 2"),
    ],
)
def test_shapes_that_do_not_fit(outputs, y, likelihood, message):
    with pytest.raises(ValueError, match=message):
        check_shapes(outputs, y, likelihood)


def test_loaders():
    model, data = classifier()
    device = torch.device("cpu")
    with pytest.raises(ValueError, match="expected at least one data point, got an empty loader"):
        TrainingData(torch.utils.data.DataLoader([]), device)
    with pytest.raises(ValueError, match=r"expected batches \(x, y\) or dicts, got a tuple of length 3"):
        TrainingData([(torch.ones(1),) * 3], device)
    with pytest.raises(ValueError, match="expected targets in a tensor, got a ndarray; convert them"):
        TrainingData([(torch.ones(1, 1).numpy(), torch.ones(1).numpy())], device)
    with pytest.raises(ValueError, match=r"expected targets under 'labels', got the keys \['x', 'y'\]; set dict_key_y"):
        TrainingData([{"x": torch.ones(1), "y": torch.ones(1)}], device)
    with pytest.raises(KeyError):
        TrainingData([{"x": torch.ones(1), "y": torch.ones(1)}], device)
    dicts = [{"x": x, "target": y} for x, y in data]
    assert TrainingData(dicts, device, dict_key_y="target").n_data == len(data.dataset)
    del model


@pytest.mark.parametrize("n", [1, 3])
def test_many_weights_meet_their_prior_in_blocks(monkeypatch, n):
    """Blocks of 7 weights of a network of more, under a prior with a mean and a precision for each."""
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    generator = torch.Generator().manual_seed(0)
    p = joint.network.n_params
    thetas, mean = torch.randn(n, p, generator=generator).double(), torch.randn(p, generator=generator).double()
    precision = 1 + torch.rand(p, generator=generator).double()
    joint = replace(joint, prior_mean=mean, prior_precision=precision)
    whole, energy = joint.evaluate(thetas, training.everything()), joint.prior_energy(thetas)
    monkeypatch.setattr("laplace_fiber.log_joint.WHOLE_ELEMENTS", 0)
    monkeypatch.setattr("laplace_fiber.log_joint.BLOCK_ELEMENTS", 7 * n)
    torch.testing.assert_close(joint.evaluate(thetas, training.everything()), whole)
    torch.testing.assert_close(joint.prior_energy(thetas), energy)
    again = joint.prior_energy(thetas.clone().requires_grad_())
    torch.testing.assert_close(again.detach(), energy)
