"""The walk against closed forms, and its invariances."""

import pytest
import torch
from problems import PLAIN, classifier, flat_problem, joint_of, linear_regression, regressor
from torch import nn

from laplace_fiber import FixedRefinement, RefineToLevel, TrajectorySampler, typical_set_walk
from laplace_fiber.data import TrainingData
from laplace_fiber.descent import Descent, Level
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import Refining
from laplace_fiber.sharpness import sharpness


def walk_of(joint, training, sampler):
    with joint.network.evaluation():
        return sampler.walk(joint, joint.network.theta(), training)


def test_walk_on_a_quadratic_objective_has_its_closed_form():
    """Drift coordinate times α Σ_k (1 − ηλ)^{kM} in the eigenbasis of ∇²J/n; relative tolerance 1e-10."""
    model, data, hessian = linear_regression()
    joint, training = joint_of(model, data, "regression", tau=0.7, sigma=0.5)
    n_steps, m, eta, reach = 7, 3, 0.05, 2.0
    sampler = TrajectorySampler(n_particles=4, n_steps=n_steps, reach=reach, step_size=eta, **PLAIN)
    walk = walk_of(joint, training, sampler)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    k = torch.arange(1, n_steps + 1, dtype=torch.float64)
    contraction = ((1 - eta * eigenvalues[:, None]) ** (k * m)).sum(1)
    drift = sampler.directions(joint.prior_precision.expand(3)) @ vectors
    expected = drift * contraction * (reach / n_steps) @ vectors.T
    torch.testing.assert_close(walk.states[:, -1] - walk.states[:, 0], expected, rtol=1e-10, atol=1e-12)
    assert walk.gradient_norm < 1e-8


def test_walk_on_a_flat_objective_is_the_drift():
    model, data = flat_problem()
    joint, training = joint_of(model, data, "regression", tau=1e-14)
    sampler = TrajectorySampler(n_particles=3, n_steps=5, reach=4.0)  # its rule refines nothing that costs nothing
    walk = walk_of(joint, training, sampler)
    expected = joint.network.theta() + 4.0 * sampler.directions(torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(walk.states[:, -1], expected, rtol=0, atol=1e-9)


def test_free_spread_is_the_priors():
    """Without refinement the end points have variance 1/τ per weight (20,000 particles: standard error 1 %)."""
    model, _ = flat_problem(p=40)
    tau = torch.logspace(-1, 1, 40, dtype=torch.float64)
    sampler = TrajectorySampler(n_particles=20_000, n_steps=1, refinement=FixedRefinement(0))
    ends = sampler.directions(tau) * (1 / tau).sum().sqrt()
    # Normalising a draw of few dominating weights changes its law a little: 40 weights of these precisions by a tenth.
    torch.testing.assert_close(ends.square().mean(0) * tau, torch.ones(40, dtype=torch.float64), rtol=0.15, atol=0)
    assert float(ends.square().sum(1).mean()) == pytest.approx(float((1 / tau).sum()), rel=1e-9)
    del model


def test_sharpness_is_the_largest_eigenvalue():
    model, data, hessian = linear_regression()
    joint, training = joint_of(model, data, "regression", tau=0.7, sigma=0.5)
    largest = float(torch.linalg.eigvalsh(hessian)[-1])
    assert sharpness(joint, joint.network.theta(), training.everything()) == pytest.approx(largest, rel=2e-2)


@pytest.mark.parametrize("descent", ["monotone", "spectral", "quasi-newton"])
def test_refinement_never_raises_the_objective(descent):
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    walks = [
        walk_of(
            joint, training, TrajectorySampler(n_particles=5, n_steps=1, descent=descent, refinement=FixedRefinement(m))
        )
        for m in range(5)
    ]
    ends = torch.stack([walk.trace.objective[:, -1] for walk in walks])
    assert bool((ends[1:] <= ends[:-1]).all())
    assert bool((ends[-1] < ends[0]).all())


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
def test_chunking_does_not_change_the_walk(chunk_size):
    model, data = classifier()
    whole = walk_of(*joint_of(model, data, "classification"), TrajectorySampler(n_particles=5, n_steps=4))
    for of_joint, of_sampler in [(chunk_size, None), (None, chunk_size), (3, chunk_size)]:
        joint, training = joint_of(model, data, "classification", chunk_size=of_joint)
        parts = walk_of(joint, training, TrajectorySampler(n_particles=5, n_steps=4, chunk_size=of_sampler))
        torch.testing.assert_close(whole.states, parts.states, rtol=1e-9, atol=1e-9)
        assert parts.group_size == chunk_size


def test_a_particle_does_not_depend_on_how_many_others_walk():
    model, data = classifier()
    few, many = (
        walk_of(*joint_of(model, data, "classification"), TrajectorySampler(n_particles=n, n_steps=4)) for n in (2, 6)
    )
    torch.testing.assert_close(few.states, many.states[:2], rtol=1e-9, atol=1e-9)


def test_loop_and_vmap_agree():
    model, data = regressor()
    walks = [
        walk_of(*joint_of(model, data, "regression", engine=engine), TrajectorySampler(n_particles=3, n_steps=4))
        for engine in ("loop", "vmap")
    ]
    torch.testing.assert_close(walks[0].states, walks[1].states, rtol=1e-9, atol=1e-9)


def test_seeds():
    model, data = classifier()
    a, b, c = (
        walk_of(*joint_of(model, data, "classification"), TrajectorySampler(n_particles=3, n_steps=3, seed=seed)).states
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


def test_one_batch_of_all_data_is_the_full_batch():
    model, data = classifier()
    x, y = data.dataset.tensors
    one_batch = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))
    joint, full = joint_of(model, data, "classification")
    streamed = TrainingData(one_batch, torch.device("cpu"), batch="loader")
    sampler = TrajectorySampler(n_particles=3, n_steps=4)
    torch.testing.assert_close(walk_of(joint, full, sampler).states, walk_of(joint, streamed, sampler).states)


def test_minibatches_cycle_and_their_mean_gradient_is_the_full_one():
    """Batches of equal size average to the full-batch gradient to rounding; the loader's passes are shuffled anew."""
    model, data = classifier(n=48)
    x, y = data.dataset.tensors
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
    joint, full = joint_of(model, data, "classification")
    stream = TrainingData(shuffled, torch.device("cpu"), batch="loader")
    theta = joint.network.theta()[None] + 0.1
    passes = [[stream.next_batch() for _ in range(3)] for _ in range(2)]
    for batches in passes:
        mean = torch.stack([joint.value_and_grad(theta, batch)[1] for batch in batches]).mean(0)
        torch.testing.assert_close(mean, joint.value_and_grad(theta, full.everything())[1])
    assert not torch.equal(passes[0][0].blocks[0][1], passes[1][0].blocks[0][1])
    stream.restart()
    assert torch.equal(stream.next_batch().blocks[0][0], passes[0][0].blocks[0][0])


def test_minibatch_walk_stays_near_the_full_batch_walk():
    """Batches of a third of the data undo at least half of the loss that full batches undo."""
    model, data = classifier(n=96)
    x, y = data.dataset.tensors
    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    joint, full = joint_of(model, data, "classification")
    stream = TrainingData(batches, torch.device("cpu"), batch="loader")
    walks = [
        walk_of(joint, training, TrajectorySampler(n_particles=8, n_steps=10, refinement=FixedRefinement(steps)))
        for training, steps in ((full, 0), (full, 5), (stream, 5))
    ]
    free, whole, parts = (float(joint.nll(walk.states[:, -1], full.everything()).mean()) for walk in walks)
    assert parts < free - 0.5 * (free - whole)


def test_refine_to_level_stops_at_the_level():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    rule = RefineToLevel(nats_per_parameter=0.1, min_steps=0, max_steps=500)
    walk = walk_of(joint, training, TrajectorySampler(n_particles=6, n_steps=5, refinement=rule))
    batch = training.everything()
    excess = joint.n_data * (joint.nll(walk.states[:, -1], batch) - joint.nll(walk.states[:1, 0], batch))
    assert bool((excess <= 0.1 * min(40, joint.network.n_params) + 1e-9).all())
    assert float(excess.mean()) > 0.05 * 0.1 * 40
    at = Refining(0, torch.tensor([1.0, 3.0]), 0.5, 40, 100)
    assert rule.wants_more(at).tolist() == [False, True]


class ExplodesBeyond(nn.Module):
    """Linear in its weights as long as the first stays below a bound; NaN beyond."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.bound = bound

    def forward(self, x):
        return (x @ self.weight)[:, None] + torch.where(self.weight[0] > self.bound, torch.nan, 0.0)


def explosive(bound: float):
    x = torch.eye(4, dtype=torch.float64) * 1e-3
    return ExplodesBeyond(bound), torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, torch.zeros(4, 1, dtype=torch.float64)), batch_size=4
    )


def test_lost_particles_stop_at_their_last_good_state():
    model, data = explosive(0.5)
    sampler = TrajectorySampler(n_particles=8, n_steps=10)
    walk = walk_of(*joint_of(model, data, "regression"), sampler)
    lost = walk.lost_at <= 10
    assert 0 < int(lost.sum()) < 8
    assert bool(torch.isfinite(walk.states).all())
    assert bool((walk.states[..., 0] <= 0.5).all())
    for i in lost.nonzero().flatten().tolist():
        t = int(walk.lost_at[i])
        assert torch.equal(walk.states[i, t:], walk.states[i, t - 1].expand(11 - t, 4))


def test_particles_of_a_walk_to_the_typical_set_are_lost_where_no_shorter_drift_is_finite():
    """Half of them go where the objective is not: others keep their drifts."""
    model, data = explosive(0.0)
    sampler = typical_set_walk(n_particles=8, n_steps=3, thermal=None)
    joint, training = joint_of(model, data, "regression")
    walk = walk_of(joint, training, sampler)
    forwards = sampler.directions(torch.ones(4, dtype=torch.float64))[:, 0] > 0
    assert 0 < int(forwards.sum()) < 8
    assert (walk.lost_at == 1).tolist() == forwards.tolist()
    assert bool((walk.states[forwards] == joint.network.theta()).all())


def test_all_particles_lost_is_an_error():
    model, data = explosive(-0.5)
    with torch.no_grad():
        model.weight[0] = -1.0
    joint, training = joint_of(model, data, "regression")
    sampler = TrajectorySampler(n_particles=1, n_steps=10, reach=50.0, seed=0)
    if float(sampler.directions(torch.ones(4, dtype=torch.float64))[0, 0]) < 0:
        sampler = TrajectorySampler(n_particles=1, n_steps=10, reach=50.0, seed=1)
    with pytest.raises(RuntimeError, match=r"all 1 particles were lost .* smaller reach"):
        walk_of(joint, training, sampler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_particles": 0}, "n_particles: expected at least 1, got 0"),
        ({"n_steps": 0}, "n_steps"),
        ({"reach": -1.0}, "reach: expected a positive number or None, got -1"),
        ({"step_size": float("nan")}, "step_size"),
        ({"batch": "half"}, "batch: expected one of"),
        ({"descent": "up"}, "descent: expected one of"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        TrajectorySampler(**options)


def test_bad_rules():
    with pytest.raises(ValueError, match="0 or more refinement steps"):
        FixedRefinement(-1)
    with pytest.raises(ValueError, match="nats_per_parameter > 0"):
        RefineToLevel(nats_per_parameter=0.0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("after", [0, 1000])
def test_steps_into_spare_memory_are_the_same(monkeypatch, n, after):
    """Step sizes near the edge of stability: some steps are taken back, of some particles or of all."""
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    batch, origin = training.next_batch(), joint.network.theta()
    drifts = torch.randn(n, len(origin), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def ends():
        descent = Descent(joint, FixedRefinement(12), "monotone", Recorder(after))
        with joint.network.evaluation():
            eta = origin.new_tensor([30.0, 0.5, 3.0])[:n] / sharpness(joint, origin, batch)
            return descent.refine(Level.of(joint, batch, origin), 0.5, origin + 0.1 * drifts, eta), descent.counts

    expected, counts = ends()
    assert 0 < counts.rejected < counts.proposed
    monkeypatch.setattr("laplace_fiber.descent.WHOLE_ELEMENTS", 0)
    again, counts_again = ends()
    torch.testing.assert_close(tuple(again), tuple(expected), rtol=0, atol=0)
    assert counts_again == counts


# --- what a walk notes of itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_the_trace_holds_what_the_states_give(likelihood):
    model, data = regressor() if likelihood == "regression" else classifier()
    joint, training = joint_of(model, data, likelihood, tau=0.5, sigma=0.3 if likelihood == "regression" else 1.0)
    walk = walk_of(joint, training, TrajectorySampler(n_particles=3, n_steps=4))
    states, everything = walk.states, training.everything()
    objective = torch.stack([joint.objective(states[:, t], everything) for t in range(5)], 1).detach()
    torch.testing.assert_close(walk.trace.objective, objective)
    torch.testing.assert_close(walk.trace.nll, torch.stack([joint.nll(states[:, t], everything) for t in range(5)], 1))
    distance = (states - states[:, :1]).norm(dim=-1)
    torch.testing.assert_close(walk.trace.distance, distance)


def test_rejected_steps_of_all_drifts_make_up_the_share_of_the_walk():
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    sampler = TrajectorySampler(n_particles=3, n_steps=4, descent="monotone", step_size=30.0)
    walk = walk_of(joint, training, sampler)
    share = walk.trace.rejected_share
    assert share.shape == (5,)
    assert share[0] == 0
    assert share.min() >= 0
    assert share[1:].min() <= walk.rejected_share <= share.max()
    assert walk.rejected_share > 0
