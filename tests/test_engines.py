"""How many weight vectors are evaluated together, and within how much memory."""

import pytest
import torch
from problems import FAST, classifier, joint_of, loader
from torch import nn

from laplace_fiber import FiberLaplace, TrajectorySampler, engines, memory
from laplace_fiber.engines import CACHED_ELEMENTS, group_size, in_groups, output_elements
from laplace_fiber.gradients import evaluation_group
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.weights import NetworkFunction

CPU = torch.device("cpu")


def mlp(width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 3))


def sized(network: NetworkFunction, n: int = 32, b: int = 10, run=None) -> int:
    theta = network.theta().repeat(engines.TRIAL_ROWS, 1)
    x = torch.zeros(b, 2)
    with network.evaluation():
        return group_size(network, theta, n, x, run or (lambda rows: network.many(rows, x)))


def test_outputs_are_counted():
    network = NetworkFunction(mlp())
    with network.evaluation():
        assert output_elements(network, torch.zeros(10, 2)) == 10 * (16 + 16 + 3)
    assert not any(m._forward_hooks for m in network.model.modules())


def test_an_engine_that_was_chosen_is_kept():
    assert sized(NetworkFunction(mlp(), engine="loop")) == 1
    assert sized(NetworkFunction(mlp(), engine="vmap")) == 32
    assert sized(NetworkFunction(mlp()), n=1) == 1


def test_groups_fit_into_memory(monkeypatch):
    """Half of what is available, counting three times the layers' outputs and five times the weights."""
    network = NetworkFunction(mlp(), engine="vmap")
    row = 4 * (3 * 350 + 5 * network.n_params)
    for rows in (1, 5, 16):
        monkeypatch.setattr(engines, "available_bytes", lambda _device, rows=rows: 2 * rows * row)
        assert sized(network) == {1: 1, 5: 5, 16: 16}[rows]
    monkeypatch.setattr(engines, "available_bytes", lambda _device: 0)
    assert sized(network) == 1


def test_groups_stay_in_the_cache(monkeypatch):
    """Of about equal size: 32 rows of which 12 fit are three groups of 11."""
    monkeypatch.setitem(engines.CACHED_ELEMENTS, "cpu", 12 * 350)
    monkeypatch.setattr(engines, "_seconds_per_row", lambda _run, rows: 1.0)
    assert sized(NetworkFunction(mlp())) == 11
    monkeypatch.setitem(engines.CACHED_ELEMENTS, "cpu", 100)
    assert sized(NetworkFunction(mlp())) == 1


@pytest.mark.parametrize(("alone", "together", "size"), [(1.0, 1.0, 32), (0.8, 1.0, 32), (0.7, 1.0, 1)])
def test_the_loop_is_taken_where_it_is_clearly_faster(alone, together, size, monkeypatch):
    monkeypatch.setattr(engines, "_seconds_per_row", lambda _run, rows: alone if len(rows) == 1 else together)
    assert sized(NetworkFunction(mlp())) == size


@pytest.mark.parametrize(("alone", "together", "expected"), [(1.0, 1.0, 1), (1.0, 0.8, 1), (1.0, 0.7, 32)])
def test_convolutions_on_a_cpu_loop_unless_batching_is_clearly_faster(alone, together, expected, monkeypatch):
    monkeypatch.setattr(engines, "_seconds_per_row", lambda _run, rows: alone if len(rows) == 1 else together)
    network = NetworkFunction(nn.Sequential(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.Linear(4, 2)))
    x = torch.zeros(3, 1, 2)
    with network.evaluation():
        assert group_size(network, network.theta().repeat(8, 1), 32, x, lambda rows: network.many(rows, x)) == expected


def test_convolutions_are_tried_as_they_will_be_recorded(monkeypatch):
    """``joint.evaluate`` runs twice for each size, to be recorded and checked against; further calls do without."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 2)).double()
    x, y = torch.randn(12, 1, 6, 6, dtype=torch.float64), torch.arange(12) % 2
    joint, data = joint_of(network, loader(x, y), "classification")
    evaluated, timed = [], []
    plain = LogJoint.evaluate
    monkeypatch.setattr(LogJoint, "evaluate", lambda self, rows, b: evaluated.append(len(rows)) or plain(self, rows, b))

    def seconds(run, rows):
        for _ in range(5):
            run(rows)
        timed.append(len(rows))
        return 1.0 if len(rows) == 1 else 0.5

    monkeypatch.setattr(engines, "_seconds_per_row", seconds)
    with joint.network.evaluation():
        assert evaluation_group(joint, joint.network.theta().repeat(6, 1), data.next_batch()) == 6
    assert timed == [1, 6]
    assert sorted(evaluated) == [1, 1, 6, 6]


def test_the_real_timer_runs_and_a_network_that_cannot_be_batched_loops():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x):
            return self.linear(x) if bool(self.linear.weight.sum() > 0) else -self.linear(x)

    assert sized(NetworkFunction(mlp())) in (1, 32)
    network = NetworkFunction(Branches())
    with pytest.warns(UserWarning, match="vmap cannot batch this network"):
        assert sized(network) == 1


def test_a_group_that_does_not_fit_is_halved():
    sizes = []

    def evaluate(rows):
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        sizes.append(len(rows))
        return rows * 2

    rows = torch.arange(20.0)[:, None]
    assert torch.equal(torch.cat(list(in_groups(rows.split(10), evaluate))), 2 * rows)
    assert max(sizes) == 2  # ten, five, two
    with pytest.raises(torch.OutOfMemoryError):
        list(in_groups([rows], lambda _rows: evaluate(torch.zeros(9, 1))))


def test_predictions_survive_too_little_memory(classification, monkeypatch):
    la, data = classification
    x, expected = data.dataset.tensors[0], None
    expected = la(x)
    many = NetworkFunction.many

    def limited(self, thetas, inputs, **kwargs):
        if len(thetas) > 9:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return many(self, thetas, inputs, **kwargs)

    monkeypatch.setattr(NetworkFunction, "many", limited)
    la._forget_predictions()
    la._together[("samples", tuple(x.shape), 100)] = 100
    torch.testing.assert_close(la(x), expected)


def test_samples_are_decoded_once_for_repeated_calls(monkeypatch):
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(n_particles=4, n_steps=3), autoencoder=FAST)
    la.fit(data)
    x, decoded = data.dataset.tensors[0], []
    to_weights = type(la._fitted.subspace).to_weights

    def counting(self, coordinates):
        decoded.append(len(coordinates))
        return to_weights(self, coordinates)

    monkeypatch.setattr(type(la._fitted.subspace), "to_weights", counting)
    first = la(x)
    assert torch.equal(la(x), first)
    assert torch.equal(la(x[:5]), la(x[:5]))
    samples = la.sample(100)
    assert sum(decoded) == 100
    samples.zero_()  # the caller's own
    assert torch.equal(la(x), first)
    la(x, generator=torch.Generator())
    assert sum(decoded) == 200
    la.posterior = "states"
    assert not torch.equal(la(x), first)
    la.posterior, la.prior_precision = "latent", 50.0
    assert not torch.equal(la(x), first)
    assert sum(decoded) == 400


def test_large_samples_are_not_kept_but_decoded_in_groups(classification, monkeypatch):
    la, data = classification
    expected = la(data.dataset.tensors[0])
    la._forget_predictions()
    monkeypatch.setattr("laplace_fiber.fiber.KEPT_BYTES", 0)
    torch.testing.assert_close(la(data.dataset.tensors[0]), expected)
    assert la._kept is None
    groups = list(la.sample_groups(10, 4))
    assert [len(group) for group in groups] == [4, 4, 2]
    assert torch.equal(torch.cat(groups), la.sample(10))


def test_available_memory(tmp_path, monkeypatch):
    here = memory.available_bytes(CPU)
    assert 2**20 < here < 2**50
    monkeypatch.setattr(memory, "_number_behind", lambda key, _file: 1000 if key else None)
    assert memory.available_bytes(CPU) == 1000 * 1024
    monkeypatch.setattr(
        memory, "_number_behind", lambda key, file: 1000 if key else {"max": 800, "current": 500}[file.suffix[1:]]
    )
    assert memory.available_bytes(CPU) == 300
    monkeypatch.setattr(memory, "_number_behind", lambda _key, _file: None)
    assert memory.available_bytes(CPU) == memory.UNKNOWN


def test_autocast_walks_in_lower_precision_and_keeps_weights_in_full():
    """Close to the walk in full precision; bfloat16 has eight bits."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=generator)
    model, data = mlp(), loader(x, (x[:, 0] > 0).long())
    walks = []
    for autocast in (None, torch.bfloat16):
        sampler = TrajectorySampler(n_particles=4, n_steps=5, autocast=autocast)
        la = FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST)
        la.fit(data)
        assert la.mean.dtype == torch.float32
        walks.append(la._fitted.subspace.to_weights(la._fitted.states[:, -1]))
    assert not torch.equal(*walks)
    torch.testing.assert_close(*walks, rtol=0, atol=0.2 * float(walks[0].norm(dim=1).max()))
    with pytest.raises(ValueError, match=r"autocast: expected torch\.bfloat16"):
        TrajectorySampler(autocast=torch.int8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_everything_runs_on_cuda(autocast):
    x = torch.randn(40, 2)
    y = (x[:, 0] > 0).long()
    la = FiberLaplace(
        mlp().cuda(), "classification", sampler=TrajectorySampler(n_particles=4, n_steps=5, autocast=autocast)
    )
    la.fit(loader(x, y))
    assert la.sample(3).is_cuda
    assert la(x).shape == (40, 3)
    assert la(x, pred_type="glm", link_approx="probit").shape == (40, 3)
    la.optimize_prior_precision(method="gridsearch", val_loader=loader(x, y), grid_size=3)
    again = FiberLaplace(la.model, "classification")
    again.load_state_dict(la.state_dict())
    torch.testing.assert_close(again(x), la(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_walk_on_cuda_is_the_walk_on_the_cpu():
    model, data = classifier()
    ends = []
    for device in ("cpu", "cuda"):
        joint, training = joint_of(model.to(device), data, "classification")
        with joint.network.evaluation():
            ends.append(
                TrajectorySampler(n_particles=4, n_steps=3).walk(joint, joint.network.theta(), training).states.cpu()
            )
    torch.testing.assert_close(*ends, rtol=0, atol=1e-6)


class Centred(nn.Module):
    """A network whose outputs depend on all inputs at once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0)


@pytest.mark.parametrize("apart", [True, False])
def test_inputs_go_in_parts_that_stay_in_the_cache_unless_they_depend_on_each_other(apart, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Centred() if not apart else nn.Sequential(Centred().layer, nn.Tanh())
    x = torch.linspace(-1, 1, 300, dtype=torch.float64).reshape(100, 3)
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(n_particles=4, n_steps=3), autoencoder=FAST)
    la.fit(loader(x, torch.arange(100) % 2))
    whole = la(x)
    assert la._together[("inputs", tuple(x.shape))] is None
    monkeypatch.setitem(CACHED_ELEMENTS, "cpu", 70)
    la._forget_predictions()
    torch.testing.assert_close(la(x), whole, rtol=1e-12, atol=1e-12)
    assert la._together[("inputs", tuple(x.shape))] == (17 if apart else None)


def test_a_short_prediction_is_tried_out_when_it_comes_again(monkeypatch):
    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(n_particles=4, n_steps=3), autoencoder=FAST)
    la.fit(data)
    x, trials = data.dataset.tensors[0], []

    def seconds(_run, rows):
        trials.append(len(rows))
        return 1.0

    monkeypatch.setattr(engines, "_seconds_per_row", seconds)
    first = la(x)
    assert not trials
    torch.testing.assert_close(la(x), first)
    assert trials
    tried = len(trials)
    la(x)
    assert len(trials) == tried
    monkeypatch.setattr("laplace_fiber.posterior.WORTH_A_TRIAL", 0)
    la(x[:5])
    assert len(trials) > tried
