"""The walk against a Python loop over particles that takes the same steps with ``torch.optim.SGD``.

Both drift the same 32 particles in the same directions and take the same steps on the same batches; that they arrive at
the same weights is checked. Times are those between the beginnings of two drifts of one walk, so that compilation,
recording and the trial of group sizes, which come once per walk, are left out; they are reported apart. The matrix
products of a step alone, forwards and backwards and nothing else, bound what any way built on the library's batched
products could reach.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.report import markdown_table
from benchmarks.speed.common import Options, cell, in_turn, ratio, spread
from benchmarks.speed.problems import NOISE, curve, images, lenet, mlp, moons, small_convolutions
from benchmarks.speed.products import StepProducts
from laplace_fiber import FixedRefinement, TrajectorySampler
from laplace_fiber.data import TrainingData
from laplace_fiber.descent import DescentKind
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.refinement import Refining
from laplace_fiber.weights import NetworkFunction

N_PARTICLES = 32
STEPS_PER_DRIFT = 20
DRIFT = 0.01
"""Length of a drift: small, so that plain descent is stable and rounding stays small."""

PRIOR_PRECISION = 1.0
START_BATCHES = 2
"""Batches that a walk takes before its first drift: for its first gradient, and for the curvature there."""

TOLERANCE = 1e-3
"""Largest difference between the final weights of two ways, over the length of the displacement."""

VARIANTS: dict[str, tuple[DescentKind, bool]] = {
    "plain": ("plain", False),
    "monotone": ("monotone", False),
    "plain compiled": ("plain", True),
    "monotone compiled": ("monotone", True),
}


@dataclass(frozen=True)
class Case:
    """A network, its data, and how many drifts are made; the first ``before`` of them are not timed."""

    network: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    before: int
    timed: int
    batch: Literal["full", "loader"] = "full"
    batch_size: int = 64
    step_size: float = 0.01
    compiled: bool = True

    @property
    def drifts(self) -> int:
        """Of a walk; one more than those before its end, since a drift is timed by the beginning of the next one."""
        return self.before + self.timed + 1


_BANANA = partial(mlp, 2, (16, 16), 2, "tanh")

# Steps are recorded within the first drifts, evaluations at the 33rd if all particles go together: drifts before.
CASES = {
    "regression": Case(partial(mlp, 1, (32, 32, 32), 1), partial(curve, 150), 34, 40, step_size=1e-3),
    "banana b32": Case(_BANANA, partial(moons, 3710), 34, 60, "loader", 32),
    "banana full": Case(_BANANA, partial(moons, 3710), 4, 10),
    "lenet": Case(lenet, partial(images, 640), 2, 2, "loader", step_size=3e-4),
    "mnist paper net": Case(small_convolutions, partial(images, 640), 2, 4, "loader"),
}
QUICK_CASES = {
    "regression": Case(partial(mlp, 1, (32, 32, 32), 1), partial(curve, 150), 3, 1, step_size=1e-3, compiled=False),
    "banana b32": Case(_BANANA, partial(moons, 320), 3, 1, "loader", 32),
    "mnist paper net": Case(small_convolutions, partial(images, 32), 1, 1, "loader", 16, compiled=False),
}
REPEATS = 3


@dataclass(frozen=True)
class Walked:
    """One walk: seconds before the timed drifts beyond what they take, microseconds per step, and where it led."""

    start_seconds: float
    microseconds: float
    end: Tensor
    group_size: int = 1


@dataclass(frozen=True)
class _Watched(FixedRefinement):
    """The same refinement, with the time at which each drift's steps begin."""

    began: dict[float, float] = field(default_factory=dict, compare=False, repr=False)

    def wants_more(self, at: Refining) -> Bool[Tensor, " n"]:
        """All of them."""
        if at.step == 0:
            self.began.setdefault(at.progress, time.perf_counter())
        return super().wants_more(at)


class Problem:
    """A case made ready: objective, data and origin."""

    def __init__(self, case: Case) -> None:
        self.case, self.model = case, case.network()
        x, y = case.data()
        loader = DataLoader(TensorDataset(x, y), batch_size=case.batch_size)
        self.data = TrainingData(loader, x.device, case.batch)
        self.likelihood = "regression" if y.is_floating_point() else "classification"
        self.noise = NOISE if y.is_floating_point() else 1.0
        self.network = NetworkFunction(self.model)
        precision, mean = torch.full((1,), PRIOR_PRECISION), torch.zeros(1)
        self.joint = LogJoint(self.network, self.likelihood, self.data.n_data, precision, mean, self.noise)
        self.theta = self.network.theta()

    def sampler(self, descent: DescentKind, compiled: bool) -> TrajectorySampler:
        """The walk's settings."""
        return TrajectorySampler(
            N_PARTICLES,
            self.case.drifts,
            reach=DRIFT * self.case.drifts,
            refinement=_Watched(STEPS_PER_DRIFT),
            step_size=self.case.step_size,
            descent=descent,
            compile=compiled,
            batch=self.case.batch,
        )

    def walk(self, descent: DescentKind, compiled: bool) -> Walked:
        """With laplace-fiber."""
        sampler = self.sampler(descent, compiled)
        begin = time.perf_counter()
        with self.network.evaluation():
            result = sampler.walk(self.joint, self.theta, self.data)
        refinement = sampler.refinement
        assert isinstance(refinement, _Watched)
        ends = result.subspace.to_weights(result.coordinates[:, -1])
        return self._walked(begin, list(refinement.began.values()), ends, result.group_size)

    def loop(self, fused: bool = False) -> Walked:
        """With one copy of the network and one optimizer per particle, as it is by default or fused."""
        models = [copy.deepcopy(self.model) for _ in range(N_PARTICLES)]
        optimizers = [self._optimizer(model, fused) for model in models]
        shapes = [p.shape for p in self.model.parameters()]
        rows = self.sampler("plain", False).directions(self.joint.prior_precision.expand(len(self.theta))) * DRIFT
        drifts = [
            [part.view(shape) for part, shape in zip(row.split([s.numel() for s in shapes]), shapes, strict=True)]
            for row in rows
        ]
        self.data.restart()
        for _ in range(START_BATCHES):
            self.data.next_batch()
        batches = [self.data.next_batch().blocks[0] for _ in range(self.case.drifts)]
        began = []
        begin = time.perf_counter()
        for x, y in batches:
            began.append(time.perf_counter())
            for model, optimizer, drift in zip(models, optimizers, drifts, strict=True):
                with torch.no_grad():
                    for parameter, part in zip(model.parameters(), drift, strict=True):
                        parameter.add_(part)
                for _ in range(STEPS_PER_DRIFT):
                    optimizer.zero_grad()
                    self._loss(model(x), y).backward()
                    optimizer.step()
        ends = torch.stack([nn.utils.parameters_to_vector(m.parameters()).detach() for m in models])
        return self._walked(begin, began, ends)

    def _optimizer(self, model: nn.Module, fused: bool) -> torch.optim.Optimizer:
        decay = PRIOR_PRECISION / self.data.n_data  # the prior
        return torch.optim.SGD(model.parameters(), self.case.step_size, weight_decay=decay, fused=fused or None)

    def _loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        if self.likelihood == "classification":
            return functional.cross_entropy(outputs, y)
        return functional.mse_loss(outputs, y) * (0.5 / self.noise**2)

    def _walked(self, begin: float, began: list[float], ends: Tensor, group_size: int = 1) -> Walked:
        first, last = began[self.case.before], began[-1]
        per_drift = (last - first) / self.case.timed
        per_step = per_drift / (N_PARTICLES * STEPS_PER_DRIFT)
        return Walked(first - begin - self.case.before * per_drift, 1e6 * per_step, ends - self.theta, group_size)


def measure(options: Options) -> dict[str, Any]:
    """All cases."""
    cases, repeats = (QUICK_CASES, 1) if options.quick else (CASES, REPEATS)
    # A cache of its own, so that the first compilation is one.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            return {name: _measured(Problem(case), repeats) for name, case in cases.items()}
        finally:
            del os.environ["TORCHINDUCTOR_CACHE_DIR"]


def _measured(problem: Problem, repeats: int) -> dict[str, Any]:
    ways: dict[str, Callable[[], Walked]] = {"sgd": problem.loop, "fused sgd": partial(problem.loop, fused=True)}
    problem.data.restart()
    products = StepProducts.of(problem.model, N_PARTICLES, len(problem.data.next_batch().blocks[0][1]))
    variants = {name: v for name, v in VARIANTS.items() if problem.case.compiled or not v[1]}
    ways |= {name: partial(problem.walk, *settings) for name, settings in variants.items()}
    first = {name: results[0] for name, results in in_turn(ways, 1).items()}
    differences = {name: _difference(first["sgd"], first[name], name) for name in variants if "plain" in name}
    if products is not None:
        ways["products"] = lambda: Walked(0.0, products.microseconds(), problem.theta[:0])
    walked = in_turn(ways, repeats)
    times = {name: [w.microseconds for w in walks] for name, walks in walked.items()}
    extra = [100 * (m / p - 1) for m, p in zip(times["monotone"], times["plain"], strict=True)]
    return {
        "n_weights": len(problem.theta),
        "n_data": problem.data.n_data,
        "microseconds_per_particle_step": {name: spread(values) for name, values in times.items()},
        "times_as_fast_as_sgd": {name: ratio(times["sgd"], times[name]) for name in variants},
        "times_as_fast_as_fused_sgd": {name: ratio(times["fused sgd"], times[name]) for name in variants},
        "monotone_extra_percent": spread(extra),
        "first_start_seconds": {name: first[name].start_seconds for name in variants},
        "later_start_seconds": {name: spread([w.start_seconds for w in walked[name]]) for name in variants},
        "sgd_over_products": ratio(times["sgd"], times["products"]) if products else None,
        "group_sizes": {name: sorted({w.group_size for w in walked[name]}) for name in variants},
        "difference_from_sgd": differences,
        "repeats": repeats,
    }


def _difference(loop: Walked, walk: Walked, name: str) -> dict[str, float]:
    """How far the final weights are apart.

    Raises
    ------
    RuntimeError
        Further than the tolerance.
    """
    apart = loop.end - walk.end
    relative = float((apart.norm(dim=1) / loop.end.norm(dim=1)).max())
    if not relative < TOLERANCE:
        raise RuntimeError(
            f"{name}: expected the weights of the loop within {TOLERANCE}, got {relative:.2g} of its way."
        )
    return {"largest": float(apart.abs().max()), "relative": relative}


def table(results: dict[str, Any]) -> str:
    """Microseconds per particle and step, and how many times as fast as the loop."""
    header = ["case", "SGD loop, µs", "plain, µs", "times as fast", "as fused", "monotone over plain, %"]
    header += ["compiled, times as fast", "compiled monotone", "compilation, s", "particles together"]
    header += ["products alone, µs", "times as fast"]
    rows = []
    for name, r in results.items():
        micros, fast = r["microseconds_per_particle_step"], r["times_as_fast_as_sgd"]
        row = [cell(micros["sgd"], ".0f"), cell(micros["plain"], ".1f"), cell(fast["plain"])]
        row += [cell(r.get("times_as_fast_as_fused_sgd", {}).get("plain")), cell(r["monotone_extra_percent"], ".1f")]
        row += [cell(fast.get("plain compiled")), cell(fast.get("monotone compiled"))]
        compilation = r["first_start_seconds"].get("plain compiled")
        row += ["–" if compilation is None else f"{compilation:.1f}", ", ".join(map(str, r["group_sizes"]["plain"]))]
        row += [cell(micros.get("products"), ".1f"), cell(r.get("sgd_over_products"))]
        rows.append([name, *row])
    lead = f"{N_PARTICLES} particles, {STEPS_PER_DRIFT} steps after each drift; median (range) over repeats. "
    lead += "As fused: times as fast as a loop with SGD(fused=True). Products alone: a step's batched matrix products "
    lead += "and nothing else, the bound of what can be built on them."
    return f"{lead}\n\n{markdown_table(header, rows)}"
