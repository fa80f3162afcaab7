"""The network as a function of its weights: subsets, engines, and a model that comes back as it was."""

import copy

import pytest
import torch
from problems import classifier, fitted, regressor
from torch import nn

from laplace_fiber.weights import NetworkFunction


def test_function_at_its_own_weights_is_the_network():
    model, data = regressor()
    x = data.dataset.tensors[0]
    network = NetworkFunction(model)
    with torch.no_grad():
        torch.testing.assert_close(network.one(network.theta(), x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("subset", ["all", "last_layer", ["0"], ["0", "2"], torch.tensor([3, 0, 40, 17])], ids=str)
def test_subsets_move_their_weights_and_no_others(subset):
    """Against the model with its weights changed in place."""
    model, data = classifier(width=8)
    x = data.dataset.tensors[0]
    network = NetworkFunction(model, subset)
    theta = network.theta() + torch.arange(1.0, network.n_params + 1, dtype=torch.float64)
    changed = copy.deepcopy(model)
    if isinstance(subset, torch.Tensor):
        flat = nn.utils.parameters_to_vector(changed.parameters()).detach()
        flat[subset] = theta
        nn.utils.vector_to_parameters(flat, changed.parameters())
    else:
        modules = {"all": ["0", "2"], "last_layer": ["2"]}.get(subset, subset) if isinstance(subset, str) else subset
        weights = [p for name in modules for p in changed.get_submodule(name).parameters()]
        assert network.n_params == sum(p.numel() for p in weights)
        nn.utils.vector_to_parameters(theta, weights)
    with torch.no_grad():
        torch.testing.assert_close(network.one(theta, x), changed(x))
        torch.testing.assert_close(network.many(theta.repeat(3, 1), x), changed(x).expand(3, -1, -1))


def test_a_mask_is_its_indices():
    model, _ = classifier()
    mask = torch.arange(33) % 4 == 1
    by_mask, by_index = NetworkFunction(model, mask), NetworkFunction(model, mask.nonzero().flatten())
    assert torch.equal(by_mask.theta(), by_index.theta())
    assert by_mask.n_params == int(mask.sum())


def test_frozen_weights_do_not_move():
    model, _ = classifier()
    model[0].weight.requires_grad_(False)
    network = NetworkFunction(model)
    assert "0.weight" not in network.names
    assert network.n_params == sum(p.numel() for p in model.parameters()) - model[0].weight.numel()


def test_tied_weights_count_once_and_move_together():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    network = NetworkFunction(model)
    assert network.n_params == 16
    x = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    w = (2 * network.theta()).view(4, 4)
    torch.testing.assert_close(network.one(2 * network.theta(), x), (x @ w.T).tanh() @ w.T)


class Branching(nn.Module):
    """Control flow that depends on values: vmap cannot batch it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        y = self.layer(x)
        return y if float(y.sum()) > 0 else 2 * y


def test_networks_that_vmap_cannot_batch_are_looped_with_one_warning():
    network = NetworkFunction(Branching())
    thetas, x = network.theta().repeat(3, 1), torch.ones(4, 2)
    with pytest.warns(UserWarning, match=r"vmap cannot batch this network \(.*\): looping"):
        first = network.many(thetas, x)
    assert network.resolved_engine() == "loop"
    torch.testing.assert_close(network.many(thetas, x), first)


def test_an_error_of_the_network_itself_is_raised():
    network = NetworkFunction(nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network.many(network.theta().repeat(2, 1), torch.ones(4, 3))


def test_convolutions_are_looped_on_a_cpu():
    assert NetworkFunction(nn.Sequential(nn.Conv2d(1, 2, 3))).resolved_engine() == "loop"
    assert NetworkFunction(nn.Linear(2, 2)).resolved_engine() == "vmap"


class Reordered(nn.Module):
    """Registers its first layer last."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(3, 2), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.body(x))


def test_last_layer_must_run_last():
    network = NetworkFunction(Reordered(), "last_layer")
    with pytest.raises(ValueError, match=r"expected 'body' .* to run last, got 'head'.*subset=\['head'\]"):
        network.check_last_layer(torch.ones(1, 2))
    NetworkFunction(classifier()[0], "last_layer").check_last_layer(torch.ones(1, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        ("first", "expected 'all', 'last_layer', a list of module names or an index tensor, got 'first'"),
        (["nowhere"], r"no module named \['nowhere'\] in the model; its modules are"),
        (["1"], "expected trainable weights in"),
        (torch.tensor([True, False]), "or a mask of all 33 trainable weights, got shape"),
        (torch.tensor([0, 0]), "expected distinct indices in"),
        (torch.tensor([10_000]), "expected distinct indices in"),
    ],
    ids=str,
)
def test_bad_subsets(subset, message):
    with pytest.raises(ValueError, match=message):
        NetworkFunction(classifier()[0], subset)


def test_nothing_trainable_is_an_error():
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="Expected a model with trainable weights, got none"):
        NetworkFunction(model)


def batch_norm_net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)).double()
    model[1].running_mean += 0.3
    return model


def test_the_model_is_returned_as_it_was():
    """Weights, buffers, modes of each module, requires_grad, gradients, attributes and the global random state."""
    model = batch_norm_net().train()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    _, data = classifier()
    before, gradients = copy.deepcopy(model), [p.grad for p in model.parameters()]
    attributes, random_state = set(vars(model)), torch.get_rng_state()
    la = fitted(model, torch.utils.data.DataLoader(data.dataset, batch_size=16, shuffle=True))
    la(data.dataset.tensors[0])
    la.optimize_prior_precision(method="gridsearch", val_loader=data, grid_size=3)
    la.log_marginal_likelihood()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert set(vars(model)) == attributes
    for (name, tensor), original in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, original), name
    for parameter, original in zip(model.parameters(), before.parameters(), strict=True):
        assert parameter.requires_grad == original.requires_grad
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert bool((model[0].weight.grad == 7.0).all())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(not m._forward_hooks for m in model.modules())


def test_the_model_is_returned_as_it_was_after_an_error():
    model = batch_norm_net().train()
    la = fitted(model, classifier()[1])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        la(torch.ones(3, 5, dtype=torch.float64))
    assert all(m.training for m in model.modules())


def test_train_mode_and_eval_mode_give_the_same_answers():
    _, data = classifier()
    x = data.dataset.tensors[0]
    in_train, in_eval = fitted(batch_norm_net().train(), data), fitted(batch_norm_net().eval(), data)
    assert torch.equal(in_train(x), in_eval(x))
