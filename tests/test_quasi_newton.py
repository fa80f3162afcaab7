"""What refinement remembers of the curvature, against the dense recursion of BFGS."""

import pytest
import torch
from problems import joint_of, loader
from torch import nn

from laplace_fiber import quasi_newton
from laplace_fiber.data import TrainingData
from laplace_fiber.descent import Descent, Level
from laplace_fiber.quasi_newton import KEPT_AFTER, PAIRS, CurvatureMemory, memory_to_keep
from laplace_fiber.recording import Recorder
from laplace_fiber.refinement import FixedRefinement, Refinement, RefineToLevel


def dense(pairs, scale, p):
    """H after BFGS updates of scale · I by the pairs, oldest first (Nocedal and Wright, equation 6.17)."""
    h, unit = scale * torch.eye(p, dtype=torch.float64), torch.eye(p, dtype=torch.float64)
    for s, y in pairs:
        left = unit - torch.outer(s, y) / (s @ y)
        h = left @ h @ left.T + torch.outer(s, s) / (s @ y)
    return h


@pytest.mark.parametrize("n_steps", [0, 3, PAIRS + 5])
def test_directions_are_those_of_dense_updates(n_steps):
    generator, n, p = torch.Generator().manual_seed(0), 3, 6
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    root = draw(p, p)
    curvature = root @ root.T + torch.eye(p, dtype=torch.float64)
    memory, pairs = CurvatureMemory(draw(n, p)), [[] for _ in range(n)]
    for step in range(n_steps):
        rows = torch.tensor([0, 2]) if step == 1 else torch.arange(n)
        moved = draw(len(rows), p)
        turned = moved @ curvature
        if step == 2:
            turned[0] = -turned[0]  # negative curvature is left out
        bent, scale = memory.add(rows, moved, turned, torch.ones(len(rows), dtype=torch.bool))
        assert bent.tolist() == [step != 2, *[True] * (len(rows) - 1)]
        torch.testing.assert_close(scale, (moved * turned).sum(1) / turned.square().sum(1))
        for i in range(n):
            where = (rows == i).nonzero().flatten()
            known = len(where) and bool(bent[where])
            pairs[i].append((moved[where[0]], turned[where[0]]) if known else None)
    grad, scale = draw(n, p), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found = memory.direction(torch.arange(n), grad, scale)
    for i in range(n):
        recent = [pair for pair in pairs[i] if pair][-PAIRS:]
        torch.testing.assert_close(found[i], dense(recent, float(scale[i]), p) @ grad[i])


def test_steps_that_are_not_finite_are_not_remembered():
    memory = CurvatureMemory(torch.zeros(2, 4, dtype=torch.float64))
    turned = torch.ones(2, 4, dtype=torch.float64)
    turned[0, 1] = torch.nan
    bent, _ = memory.add(torch.arange(2), torch.ones(2, 4, dtype=torch.float64), turned, torch.tensor([False, True]))
    assert bent.tolist() == [False, True]
    result = memory.direction(torch.arange(2), torch.ones(2, 4, dtype=torch.float64), torch.ones(2).double())
    assert bool(result.isfinite().all())
    assert torch.equal(result[0], torch.ones(4, dtype=torch.float64))


def test_curvature_outlasts_a_drift_where_many_steps_were_needed():
    """Of the particle with one step more than the limit, not of that with as many."""
    ones = torch.ones(1, 4, dtype=torch.float64)
    memory, steep = CurvatureMemory(ones.repeat(2, 1)), torch.tensor([1])
    for step in range(KEPT_AFTER + 1):
        rows = steep if step == 0 else torch.arange(2)
        memory.add(rows, ones.repeat(len(rows), 1), 4 * ones.repeat(len(rows), 1), torch.ones(len(rows)).bool())
    memory.share[steep] = 0.5
    memory.begin(torch.arange(2))
    assert memory.share.tolist() == [1, 1]
    directions = memory.direction(torch.arange(2), ones.repeat(2, 1), torch.ones(2).double())
    torch.testing.assert_close(directions, torch.cat([ones, ones / 4]))
    memory.begin(torch.arange(2))  # without a step since
    assert torch.equal(memory.direction(torch.arange(2), ones.repeat(2, 1), torch.ones(2).double()), ones.repeat(2, 1))


def test_large_memories_do_not_outlast_a_drift(monkeypatch):
    theta = torch.zeros(3, 5)
    monkeypatch.setattr(quasi_newton, "KEPT_NUMBERS", 2 * PAIRS * 6 * 5)
    assert memory_to_keep(theta, 6).moved.shape == (3, PAIRS, 5)
    assert memory_to_keep(theta, 7) is None


def ill_conditioned():
    """A quadratic objective of condition 100 in ten dimensions, all data, its minimum, and five points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 10, generator=generator, dtype=torch.float64) * torch.logspace(0, -1, 10, dtype=torch.float64)
    y = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    model, start = nn.Linear(10, 1, bias=False).double(), torch.randn(5, 10, generator=generator, dtype=torch.float64)
    joint, training = joint_of(model, loader(x, y), "regression", 1e-3)
    best = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(10, dtype=torch.float64), x.T @ y).T
    return joint, TrainingData(training.loader, x.device, "full").everything(), best, start


class OnlyWantsMore(Refinement):
    """The same rule without a level that steps could be shortened to."""

    max_steps = 60

    def __init__(self, rule):
        self.wants_more = rule.wants_more


def test_steps_that_go_past_the_level_end_at_it():
    """Their length is not that of the gradient at the start (step sizes between small and large)."""
    joint, batch, best, start = ill_conditioned()
    rule = RefineToLevel(0.3)
    target = 0.3 * 10 * 0.5
    with joint.network.evaluation():
        level = Level.of(joint, batch, best[0])
        excess, evaluated = {}, {}
        for name, refinement in (("returned", rule), ("past", OnlyWantsMore(rule))):
            descent = Descent(joint, refinement, "quasi-newton", Recorder(32))
            sizes = torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
            ends = descent.refine(level, 0.5, start.clone(), sizes)
            excess[name], evaluated[name] = ends.data_term - level.data_term, descent.counts.evaluated
            found = joint.evaluate(ends.theta, batch)
            for mine, theirs in zip((ends.value, ends.grad, ends.data_term), found, strict=True):
                torch.testing.assert_close(mine, theirs)
    assert bool((excess["returned"] <= target).all())
    assert bool((excess["returned"] >= 0.9 * target).all())
    assert int((excess["past"] < 0.9 * target).sum()) >= 3
    assert evaluated["returned"] <= evaluated["past"] + 3 * 5


def test_few_steps_minimise_an_ill_conditioned_quadratic():
    joint, batch, best, start = ill_conditioned()
    lowest = joint.objective(best, batch)
    gaps = {}
    with joint.network.evaluation():
        level = Level.of(joint, batch, best[0])
        for kind in ("spectral", "quasi-newton"):
            descent = Descent(joint, FixedRefinement(40), kind, Recorder(32))
            ends = descent.refine(level, 1.0, start.clone(), start.new_full((5,), 0.5))
            gaps[kind] = float((ends.value - lowest).max())
            assert descent.counts.evaluated == 5 * 41
            torch.testing.assert_close(ends.value, joint.objective(ends.theta, batch))
    assert gaps["quasi-newton"] < 1e-7
    assert gaps["quasi-newton"] < 1e-3 * gaps["spectral"]
