"""Recorded functions against the plain ones, and what of them is run how often."""

import shutil

import pytest
import torch
from problems import classifier, joint_of, loader, regressor
from torch import nn

from laplace_fiber import FiberLaplace, FixedRefinement, TrajectorySampler, recording
from laplace_fiber.captured import Captured, captured_if_it_pays
from laplace_fiber.recording import Recorded, Recorder
from laplace_fiber.weights import NetworkFunction


class Residual(nn.Module):
    """Batch norm, writing in place, and a skip connection."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.second, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.calls = 0
        self.first.register_forward_hook(self.count)

    def count(self, *_):
        self.calls += 1

    def forward(self, x):
        h = self.relu(self.norm(self.first(x)))
        out = self.second(h)
        out += h
        return self.last(self.relu(out).mean((2, 3)))


def images(n: int = 10):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64), torch.arange(n) % 3


def residual() -> Residual:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Residual().double()


@pytest.mark.parametrize("subset", ["all", "last_layer", ["second", "last"], ["norm"]])
@pytest.mark.parametrize("rows", [1, 3])
def test_recorded_gradients_equal_plain_ones(subset, rows):
    """To 1e-12, for weights and data that the recording has not seen, with layers that write in place."""
    model, (x, y) = residual(), images()
    joint, training = joint_of(model, loader(x, y), "classification", subset=subset, engine="vmap")
    with joint.network.evaluation():
        theta = joint.network.theta() * torch.linspace(0.9, 1.1, rows, dtype=torch.float64)[:, None]
        batch = training.everything()

        def evaluate(moving, fixed):
            return tuple(joint.evaluate(moving[0], batch.with_tensors(fixed)))

        recorded = Recorded(evaluate, [theta], batch.tensors())
        other = [t.flip(0) for t in batch.tensors()]
        for weights, data in [(theta, batch.tensors()), (1.3 * theta, batch.tensors()), (0.7 * theta, other)]:
            for _ in range(2):
                for new, old in zip(recorded([weights], data), evaluate([weights], data), strict=True):
                    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def test_layers_below_the_moving_ones_run_once_per_batch():
    model, (x, y) = residual(), images()
    joint, training = joint_of(model, loader(x, y), "classification", subset="last_layer", engine="loop")
    batch = training.everything()
    with joint.network.evaluation():
        theta = joint.network.theta()[None]
        convolutions = 0

        class Counting(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                nonlocal convolutions
                convolutions += func is torch.ops.aten.convolution.default
                return func(*args, **(kwargs or {}))

        recorded = Recorded(lambda m, f: tuple(joint.evaluate(m[0], batch.with_tensors(f))), [theta], batch.tensors())
        with Counting():
            for k in range(5):
                recorded([theta * (1 + k)], batch.tensors())
        assert convolutions == 2
        with Counting():
            recorded([theta], [t.clone() for t in batch.tensors()])
        assert convolutions == 4


def test_data_written_over_are_seen():
    recorded = Recorded(lambda m, f: (m[0] * f[0].exp(),), [torch.ones(3)], [x := torch.zeros(3)])
    assert torch.equal(recorded([torch.ones(3)], [x])[0], torch.ones(3))
    x += 1
    torch.testing.assert_close(recorded([torch.ones(3)], [x])[0], torch.ones(3).exp())


def test_a_function_that_writes_over_its_data_is_run_whole():
    def scaled(moving, fixed):
        copy = fixed[0] * 1
        copy += moving[0]
        return (copy * 2,)

    recorded = Recorded(scaled, [torch.ones(2)], [x := torch.ones(2)])
    for k in range(3):
        assert torch.equal(recorded([torch.full((2,), float(k))], [x])[0], torch.full((2,), 2.0 + 2 * k))


def test_recorder_waits_and_leaves_alone_what_it_cannot_record():
    calls = 0

    def branches(moving, fixed):
        nonlocal calls
        calls += 1
        return (moving[0] + 1 if bool(moving[0].sum() > 0) else moving[0] - 1,)

    def smooth(moving, fixed):
        nonlocal calls
        calls += 1
        return (moving[0] + 1,)

    for function, expected_calls in [(smooth, 4), (branches, 12)]:
        recorder, calls = Recorder(after=2), 0
        for k in range(10):
            assert torch.equal(recorder("f", function, [torch.tensor([1.0])], [])[0], torch.tensor([2.0])), k
        assert calls == expected_calls  # two plain ones, one to compare with, one to record
        assert recorder("f", function, [torch.tensor([[1.0]])], [])[0].shape == (1, 1)  # another shape: counted anew
    assert torch.equal(recorder("f", branches, [torch.tensor([-1.0])], [])[0], torch.tensor([-2.0]))


def test_fewer_rows_are_filled_up_to_a_recording(monkeypatch):
    calls = 0

    def product(moving, fixed):
        nonlocal calls
        calls += 1
        return moving[0] @ fixed[0] * moving[1], moving[0].sum(1)

    fixed = [torch.randn(3, 2, generator=torch.Generator().manual_seed(0))]

    def check(recorder, rows, expected_calls):
        moving, before = [torch.arange(3.0 * rows).view(rows, 3), torch.tensor(2.0)], calls
        results = recorder.by_rows("f", product, moving, fixed)
        assert calls - before == expected_calls
        for result, expected in zip(results, product(moving, fixed), strict=True):
            torch.testing.assert_close(result, expected)

    recorder = Recorder(after=0)
    check(recorder, 8, expected_calls=2)  # one to compare with, one to record
    work = next(iter(recorder._recorded.values())).work
    assert work == 8 * (2 * 3 * 2 + 2 + 2 + 1)  # a product with its result, scaled, and the sums
    for rows in (8, 5, 2, 1):
        check(recorder, rows, expected_calls=0)
    restored = Recorder(after=0)
    restored.calls = dict(recorder.calls)
    check(restored, 5, expected_calls=2)  # of eight rows, as before

    monkeypatch.setattr(recording, "CALL_WORK", work)
    monkeypatch.setattr(recording, "NARROWER_AFTER", {False: 2})
    recorder = Recorder(after=0)
    for rows, expected in [(8, 2), *5 * [(4, 0)], (4, 2), (4, 0), (3, 0)]:
        check(recorder, rows, expected)  # half of each call is for nothing, until that makes more than two
    monkeypatch.setattr(recording, "CALL_WORK", work / 8)
    recorder = Recorder(after=0)
    for rows, expected in [(8, 2), (7, 1), (7, 1), (7, 2)]:
        check(recorder, rows, expected)


def test_results_that_differ_from_the_plain_ones_are_not_used():
    """A function with a memory of its own is recorded at one of its states: the comparison finds out."""
    state = iter(range(100))

    def remembers(moving, fixed):
        return (moving[0] + next(state),)

    recorder = Recorder(after=0)
    results = [float(recorder("f", remembers, [torch.zeros(())], [])[0]) for _ in range(3)]
    assert results == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("descent", ["plain", "monotone", "spectral", "quasi-newton"])
def test_a_recorded_walk_is_the_plain_walk(descent, monkeypatch):
    """States agree to 1e-8 of the reach with steps recorded from the first one on, or never."""
    model, data = classifier()
    walks = []
    for after in (0, 10**9):
        monkeypatch.setattr("laplace_fiber.walk.RECORD_AFTER", after)
        joint, training = joint_of(model, data, "classification")
        sampler = TrajectorySampler(n_particles=9, n_steps=4, refinement=FixedRefinement(5), descent=descent)
        with joint.network.evaluation():
            walks.append(sampler.walk(joint, joint.network.theta(), training))
    torch.testing.assert_close(walks[0].states, walks[1].states, rtol=0, atol=1e-8 * walks[0].reach)
    assert walks[0].gradient_evaluations == walks[1].gradient_evaluations


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled_steps_give_the_same_walk():
    model, data = regressor()
    joint, training = joint_of(model, data, "regression", sigma=0.3)
    with joint.network.evaluation():
        plain, compiled = (
            TrajectorySampler(n_particles=3, n_steps=2, refinement=FixedRefinement(2), compile=choice).walk(
                joint, joint.network.theta(), training
            )
            for choice in (False, True)
        )
    torch.testing.assert_close(plain.states, compiled.states, rtol=0, atol=1e-8 * plain.reach)


def test_a_failing_compiler_is_told_and_done_without(monkeypatch):
    def fails(*_args, **_kwargs):
        raise RuntimeError("no C++ compiler\nof any kind")

    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    monkeypatch.setattr(torch, "compile", fails)
    sampler = TrajectorySampler(n_particles=3, n_steps=2, compile=True)
    with joint.network.evaluation(), pytest.warns(UserWarning, match=r"torch.compile failed .*no C\+\+ compiler\)"):
        walk = sampler.walk(joint, joint.network.theta(), training)
    assert bool(torch.isfinite(walk.coordinates).all())


def test_repeated_predictions_are_recorded_and_stay_the_same(classification):
    """After 32 groups of a shape; a frozen weight that is written to is noticed."""
    la, data = classification
    x = data.dataset.tensors[0]
    first = la(x)
    for _ in range(40):
        torch.testing.assert_close(la(x), first, rtol=1e-10, atol=1e-12)
    assert any(value is not None for value in la._recorder._recorded.values())
    x = x.clone()
    torch.testing.assert_close(la(x + 1), FiberLaplace.__call__(la, x.add_(1)), rtol=1e-10, atol=1e-12)

    model, (images_, labels) = residual(), images()
    part = FiberLaplace(model, "classification", subset="last_layer", engine="vmap")
    part.fit(loader(images_, labels))
    for _ in range(40):
        before = part(images_)
    with torch.no_grad():
        model.first.weight.mul_(3)
    fresh = FiberLaplace(model, "classification", subset="last_layer", engine="vmap")
    fresh.load_state_dict(part.state_dict())
    torch.testing.assert_close(part(images_), fresh(images_), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(part(images_), before)


def test_predictions_of_a_last_layer_run_the_body_once(monkeypatch):
    monkeypatch.setattr("laplace_fiber.predictive.WORTH_SETTING_APART", 0.0)
    model, (x, y) = residual(), images()
    la = FiberLaplace(model, "classification", subset="last_layer", chunk_size=5)
    la.fit(loader(x, y))
    expected = FiberLaplace(model, "classification", subset="last_layer", engine="vmap")
    expected.load_state_dict(la.state_dict())
    model.calls = 0
    torch.testing.assert_close(la(x), expected(x), rtol=1e-10, atol=1e-12)
    # One group of five plainly; one row plainly, to compare, and once to record. The other 95 rows never.
    network = NetworkFunction(model, "last_layer")
    assert network.is_part
    assert model.calls <= 5 + 1 + 1 + 20


@pytest.mark.parametrize(
    ("worth", "convolutional", "compiles"), [(1e9, False, False), (-1.0, False, True), (-1.0, True, False)]
)
def test_long_walks_are_compiled_without_being_asked(worth, convolutional, compiles, monkeypatch):
    """As the first drift tells; the compiler is replaced by one that only says that it was called."""
    compiled = []
    monkeypatch.setattr("laplace_fiber.walk.WORTH_COMPILING", worth)
    monkeypatch.setattr(torch, "compile", lambda graph, **_: compiled.append(graph) or graph)
    model, data = classifier()
    if convolutional:  # evaluated together all the same
        model = nn.Sequential(
            nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 2, 1).double(), nn.Flatten(), nn.Linear(4, 3).double()
        )
        monkeypatch.setattr("laplace_fiber.engines._seconds_per_row", lambda _run, rows: 1 / len(rows))
    joint, training = joint_of(model, data, "classification")
    sampler = TrajectorySampler(n_particles=3, n_steps=3, refinement=FixedRefinement(2))
    with joint.network.evaluation():
        assert sampler.walk(joint, joint.network.theta(), training).group_size == 3
    assert bool(compiled) == compiles


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("subset", ["all", ["second", "last"]])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_recordings_on_a_gpu_are_captured_and_equal_plain_calls(subset, autocast):
    """For weights and data that the capture has not seen, in results that the next call leaves alone."""
    model, (x, y) = residual().float().cuda(), images()
    joint, training = joint_of(model, loader(x.float(), y), "classification", subset=subset, autocast=autocast)
    with joint.network.evaluation():
        theta, batch = joint.network.theta()[None], training.everything()

        def evaluate(moving, fixed):
            return tuple(joint.evaluate(moving[0], batch.with_tensors(fixed)))

        recorded = Recorded(evaluate, [theta], batch.tensors())
        assert isinstance(recorded._head, Captured)
        cases = [(scale * theta, [t.flip(0) for t in batch.tensors()]) for scale in (1.0, 1.3, 0.7)]
        results = [recorded([weights], data) for weights, data in cases]
        tolerance = 1e-4 if autocast is None else 3e-2
        for (weights, data), result in zip(cases, results, strict=True):
            for new, old in zip(result, evaluate([weights], data), strict=True):
                torch.testing.assert_close(new, old, rtol=tolerance, atol=tolerance)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_waits_for_the_gpu_is_not_captured():
    def nonzero(x):
        return (x.nonzero(),)

    inputs = [torch.tensor([0.0, 1.0], device="cuda")]
    assert captured_if_it_pays(nonzero, inputs, work=1.0) is nonzero
    assert torch.equal(nonzero(*inputs)[0], torch.ones(1, 1, dtype=torch.int64, device="cuda"))
    assert isinstance(captured_if_it_pays(lambda x: (2 * x,), inputs, work=1.0), Captured)
    assert not isinstance(captured_if_it_pays(lambda x: (2 * x,), inputs, work=1e13), Captured)


def test_nothing_is_captured_on_a_cpu():
    def double(x):
        return (2 * x,)

    assert captured_if_it_pays(double, [torch.ones(2)], work=1.0) is double
