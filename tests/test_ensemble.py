"""Deep ensembles and the training of their members."""

import copy

import pytest
import torch
from problems import classifier, joint_of, linear_regression, regressor
from torch import nn

from laplace_fiber.baselines import DeepEnsemble
from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.baselines.ensemble import MemberSettings
from laplace_fiber.baselines.training import Members, Plan, differs_in_training, fresh_copy, train

FAST = {"n_members": 3, "n_epochs": 1, "min_steps": 30}


def problem_of(model, data, likelihood="classification", **options):
    joint, training = joint_of(model, data, likelihood, **options)
    return Problem(joint, joint.network.theta(), training, torch.Generator().manual_seed(0))


def test_members_of_a_linear_model_reach_its_minimum():
    # One minimum of J, prior and noise included: every member must find it from its own initial weights.
    model, data, _ = linear_regression()
    trained = nn.utils.parameters_to_vector(model.parameters()).detach()
    options = {"sigma_noise": 0.5, "batch": "full", "lr": 0.1, "n_members": 2, "min_steps": 300}
    la = DeepEnsemble(model, "regression", prior_precision=0.7, **options)
    la.fit(data)
    torch.testing.assert_close(la.sample(2), trained.expand(2, 3), rtol=0, atol=1e-4)
    strong = DeepEnsemble(model, "regression", prior_precision=700.0, **options)
    strong.fit(data)
    x, y = data.dataset.tensors
    expected = torch.linalg.solve(x.T @ x / 0.25 + 700 * torch.eye(3).double(), x.T @ y / 0.25)[:, 0]
    torch.testing.assert_close(strong.sample(1)[0], expected, rtol=0, atol=1e-4)


def test_members_differ_and_fit():
    model, data = classifier()
    la = DeepEnsemble(model, "classification", n_members=3, min_steps=300)
    la.fit(data)
    distances = torch.cdist(la._fitted.thetas, torch.cat([la._fitted.thetas, la.mean[None]]))
    assert float((distances + 10 * torch.eye(3, 4)).min()) > 0.5
    x, y = data.dataset.tensors
    own = nn.functional.cross_entropy(model(x), y).detach()
    for outputs in la.functional_samples(x, n_samples=3):
        assert float(nn.functional.cross_entropy(outputs, y)) < float(own) + 0.15
    assert la.diagnostics["gradient_evaluations"] == 300 * 3


@pytest.mark.parametrize("batch", ["auto", "full", "loader"])
def test_training_together_is_training_one_by_one(batch):
    model, data = regressor()
    results = []
    for engine in ("vmap", "loop"):
        la = DeepEnsemble(model, "regression", batch=batch, engine=engine, chunk_size=2, **{**FAST, "min_steps": 40})
        la.fit(data)
        results.append(la._fitted.thetas)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-8)


def test_gradients_on_own_minibatches_are_those_of_the_objective():
    model, data = classifier()
    problem = problem_of(model, data, tau=3.0)
    thetas = problem.theta + 0.1 * problem.normal(2, len(problem.theta))
    members = Members(problem, thetas, "auto")
    copied = problem_of(model, data, tau=3.0)
    copied.normal(2, len(problem.theta))
    other = Members(copied, thetas, "auto")
    stack = next(other.batches)
    values, grads = members(thetas)
    for i in range(2):
        value, grad, _ = problem.joint.evaluate(thetas[i : i + 1], stack.row(i))
        torch.testing.assert_close(values[i : i + 1], value)
        torch.testing.assert_close(grads[i : i + 1], grad)


@pytest.mark.parametrize(("optimizer", "options"), [("adam", {}), ("sgd", {"momentum": 0.9})])
def test_rows_are_trained_as_torch_trains_a_network(optimizer, options):
    model, data = classifier()
    problem, n = problem_of(model, data), 40
    plan = Plan(n_steps=20, lr=0.02, optimizer=optimizer)
    rows = train(Members(problem, problem.theta.expand(2, -1), "full"), problem.theta.repeat(2, 1), plan)
    alone = copy.deepcopy(model)
    usual = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    steps = usual(alone.parameters(), lr=0.02, weight_decay=1 / n, **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, 20)
    x, y = data.dataset.tensors
    for _ in range(20):
        steps.zero_grad()
        nn.functional.cross_entropy(alone(x), y).backward()
        steps.step()
        schedule.step()
    expected = nn.utils.parameters_to_vector(alone.parameters()).detach()
    torch.testing.assert_close(rows, expected.expand(2, -1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("in_place", [True, False])
def test_the_users_own_training(in_place):
    model, data = classifier()
    seen = []

    def own(network):
        seen.append(network.training)
        noise = torch.randn(())  # from a random state of the member's own
        other = network if in_place else copy.deepcopy(network)
        with torch.no_grad():
            other[0].bias.fill_(float(noise))
        return None if in_place else other

    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    la = DeepEnsemble(model, "classification", n_members=3, train=own)
    la.fit(data)
    assert seen == [True] * 3
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    biases = torch.stack([la.network.named(theta)["0.bias"][0] for theta in la._fitted.thetas])
    assert len(biases.unique()) == 3
    again = DeepEnsemble(model, "classification", n_members=3, train=own)
    again.fit(data)
    assert torch.equal(again._fitted.thetas, la._fitted.thetas)


def test_the_users_training_is_checked():
    model, data = classifier()
    for wrong in (lambda network: 3, lambda network: nn.Linear(2, 3).double()):
        with pytest.raises(ValueError, match=r"train|architecture"):
            DeepEnsemble(model, "classification", n_members=2, train=wrong).fit(data)

    def diverge(network):
        with torch.no_grad():
            network[0].bias.fill_(torch.nan)

    with pytest.raises(RuntimeError, match="finite"):
        DeepEnsemble(model, "classification", n_members=2, train=diverge).fit(data)


def test_given_networks_are_the_members():
    (model, data), (other, _) = classifier(), classifier()
    with torch.no_grad():
        other[0].weight.add_(0.5)
    la = DeepEnsemble([model, other], "classification")
    la.fit(data)
    x = data.dataset[:5][0]
    torch.testing.assert_close(la(x, n_samples=2), (model(x).softmax(-1) + other(x).softmax(-1)).detach() / 2)
    assert la.diagnostics["gradient_evaluations"] == 0
    with pytest.raises(ValueError, match="architecture"):
        DeepEnsemble([model, classifier(width=6)[0]], "classification").fit(data)
    with pytest.raises(ValueError, match="empty"):
        DeepEnsemble([], "classification")


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 3).double()
        self.factor = nn.Parameter(torch.ones(1).double())

    def forward(self, x):
        return self.body(x) * self.factor


def test_layers_that_cannot_be_initialised_are_named():
    _, data = classifier()
    model = Scaled()
    with pytest.raises(ValueError, match=r"Scaled.*initialise="):
        DeepEnsemble(model, "classification", **FAST).fit(data)

    def initialise(network):
        network.body.reset_parameters()
        nn.init.normal_(network.factor)

    la = DeepEnsemble(model, "classification", initialise=initialise, **FAST)
    la.fit(data)
    assert la.sample(3).shape == (3, 10)
    model.factor.requires_grad_(False)  # what does not move needs no new value
    DeepEnsemble(model, "classification", **FAST).fit(data)


def test_fresh_copies_leave_the_model_and_the_random_state_alone():
    model, _ = classifier()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, same, second = (fresh_copy(model, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(first[0].weight, same[0].weight)
    assert not torch.equal(first[0].weight, second[0].weight)
    attention = fresh_copy(nn.MultiheadAttention(4, 2), 0)
    assert not attention.out_proj.bias.any()


def test_networks_that_differ_in_training_are_found():
    assert not differs_in_training(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Dropout(0.0)))
    for layer in (nn.Dropout(0.1), nn.BatchNorm1d(2), nn.LSTM(2, 2, 2, dropout=0.1), nn.MultiheadAttention(2, 1, 0.1)):
        assert differs_in_training(nn.Sequential(layer))


def test_members_with_dropout_are_trained_with_it():
    plain, data = classifier()
    model = nn.Sequential(*plain[:-1], nn.Dropout(0.5), plain[-1]).eval()
    problem = problem_of(model, data)
    members = Members(problem, problem.theta[None], "full")
    state = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(members(problem.theta[None])[0], members(problem.theta[None])[0])
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


def test_divergence_is_an_error_with_a_remedy():
    model, data = regressor()
    with pytest.raises(RuntimeError, match="smaller lr"):
        DeepEnsemble(model, "regression", lr=1e200, **FAST).fit(data)


@pytest.mark.parametrize(
    "wrong", [{"n_members": 0}, {"lr": -1.0}, {"n_epochs": 0}, {"train": 3}, {"initialise": "x"}], ids=str
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MemberSettings(**wrong)
