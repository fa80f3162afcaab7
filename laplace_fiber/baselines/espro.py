"""Simplexes of low loss around trained networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Baseline, Problem, Settings
from laplace_fiber.baselines.several import first_and_others, weights_of
from laplace_fiber.batch_norm import own_buffers
from laplace_fiber.data import BatchChoice
from laplace_fiber.gradients import Gradients
from laplace_fiber.sharpness import sharpness

MOMENTUM = 0.9

TRIES = 4
"""Of one vertex, each with a quarter of the step size before."""

TOO_HIGH = 10
"""A vertex has diverged where J has risen by so many times what it does at the best one and at posterior samples."""

FLOOR = 0.1
"""Share of its first height at which a vertex is no longer pushed away harder, so that no step can be arbitrarily
long."""


@dataclass(frozen=True, kw_only=True)
class SimplexSettings(Settings):
    """Settings of simplexes. Numbers of vertices, points and epochs, momentum and schedule are the paper's.

    Parameters
    ----------
    n_vertices
        Vertices added to each trained network.
    n_points
        Points of the simplex that one step looks at.
    n_epochs
        Passes over the data for each vertex.
    min_steps
        Steps for each vertex where those passes have fewer.
    volume_weight
        c: how many nats of J a volume larger by the factor e is worth.
    relative_step
        First step size, in units of the inverse largest curvature that J/n_data has in the new vertex at the trained
        weights, and a quarter of that, and so on, for a vertex that diverges: curvature grows on the way out. The
        paper takes 0.01 on the mean loss of VGG16 for CIFAR, whatever the curvature.
    step_size
        The first step size itself, on the mean loss.
    """

    batch: BatchChoice = "loader"
    n_vertices: int = 4
    n_points: int = 5
    n_epochs: int = 10
    min_steps: int = 1000
    volume_weight: float = 1.0
    relative_step: float = 0.1
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_vertices", "n_points", "n_epochs", "min_steps", "relative_step")
        if self.step_size is not None:
            self.require_positive("step_size")
        if not self.volume_weight >= 0:
            raise ValueError(f"volume_weight: expected a number >= 0, got {self.volume_weight}.")


@dataclass(frozen=True)
class Simplexes:
    """Simplexes of one dimension, each given by its vertices; the first vertex is the trained network."""

    vertices: Float[Tensor, "m v p"]


class ESPRO(Baseline[SimplexSettings, Simplexes]):
    """Simplexes of low loss, grown vertex by vertex from trained networks; samples are uniform in one of them.

    With w₀ … w_(k−1) frozen, the vertex w_k starts at their mean and descends

    E_a[J(Σ_j a_j w_j)] − c log V(w₀, …, w_k),  a ~ Dirichlet(1, …, 1),  V = √det(E Eᵀ) / k!,  E = (w_j − w₀)_j.

    Source: Benton, Maddox, Lotfi and Wilson (2021), *Loss surface simplexes for mode connecting volumes and fast
    ensembling* (SPRO's loss with volume regularisation, and ESPRO). log V is, up to a constant, the entropy of the
    uniform law on the simplex: with c = 1, the default, the law nearest to the posterior in the Kullback-Leibler sense
    is sought, whatever the units of loss and weights. (For J = ½ h r² along an edge, r² = 3c/h, and samples have the
    second moment c/h about the trained weights.) The paper takes a constant over log V of a randomly initialised
    simplex instead, whose sign depends on the units; its code's values for CIFAR, counted as here, are about a
    thousandth.

    The volume has no gradient where w_k starts, so the vertex is moved off the existing simplex in a seeded random
    direction, by the height that is best where all directions are curved like the steepest. Prediction averages over
    points of all simplexes; pass several trained networks as ``model`` for one around each (the paper's ESPRO; from a
    single network its SPRO). Settings: :class:`SimplexSettings`.
    """

    _key = ("all", "espro")
    settings_class = SimplexSettings
    fit_class = Simplexes
    renews_statistics = True
    tunable: ClassVar = {"volume_weight": (1.0, 10.0, 100.0, 1000.0)}

    def __init__(self, model: nn.Module | Sequence[nn.Module], likelihood: str, *args: Any, **kwargs: Any) -> None:
        first, self._others = first_and_others(model)
        super().__init__(first, likelihood, *args, **kwargs)

    def _run(self, problem: Problem) -> tuple[Simplexes, dict[str, float]]:
        chosen, p = self.settings, problem.theta.numel()
        if chosen.n_vertices > p:
            raise ValueError(
                f"n_vertices: expected at most {p}, the number of moving weights, got {chosen.n_vertices}."
            )
        if own_buffers(self.model, self._others):
            raise ValueError(
                "model: expected networks with the same buffers, got others (batch-norm statistics, say), under which "
                "they cannot be trained on together; fit one ESPRO to each."
            )
        starts = weights_of(self.network, self._others)
        batch = problem.data.next_batch()
        curvature = starts.new_tensor([sharpness(problem.joint, start, batch, chosen.seed) for start in starts])
        gradients = problem.gradients(len(starts) * chosen.n_points)
        vertices = starts[:, None]
        steps = list[float]()
        for _ in range(chosen.n_vertices):
            growth = _Growth(problem, gradients, vertices, curvature, chosen)
            vertices = torch.cat([vertices, growth.run()[:, None]], 1)
            steps.append(float(growth.size.min()))
        objective = _objective(problem, vertices.flatten(0, 1)).view(vertices.shape[:2])
        diagnostics = {
            "gradient_evaluations": float(gradients.evaluations),
            "step_size": min(steps),
            "log_volume": float(log_volume(vertices).mean()),
            "vertex_excess": float((objective[:, 1:] - objective[:, :1]).mean()),
        }
        return Simplexes(vertices), diagnostics

    def _draw(self, fitted: Simplexes, n_samples: int, generator: torch.Generator) -> Float[Tensor, "s p"]:
        m, v, _ = fitted.vertices.shape
        which = torch.randint(m, (n_samples,), generator=generator, device=generator.device)
        weights = uniform_weights((n_samples, v), fitted.vertices, generator)
        thetas = torch.zeros_like(fitted.vertices[which, 0])
        for j in range(v):  # one after another: all vertices of all samples would take v times the memory
            thetas.addcmul_(weights[:, j, None], fitted.vertices[which, j])
        return thetas


class _Growth:
    """The training of one more vertex for each of m simplexes, side by side.

    Parameters
    ----------
    problem, gradients, settings
        Those of the fit.
    vertices
        The frozen ones.
    curvature
        The largest of J/n_data at each trained network.
    """

    def __init__(
        self,
        problem: Problem,
        gradients: Gradients,
        vertices: Float[Tensor, "m v p"],
        curvature: Float[Tensor, " m"],
        settings: SimplexSettings,
    ) -> None:
        self.problem, self.gradients, self.vertices, self.settings = problem, gradients, vertices, settings
        v = vertices.shape[1] + 1
        # E[a²] of one weight among v: the share of J's curvature that the vertex feels.
        curvature = curvature * (2 / (v * (v + 1)))
        given = settings.step_size
        self.size = settings.relative_step / curvature if given is None else torch.full_like(curvature, given)
        self.weight = settings.volume_weight / problem.joint.n_data
        self.height = ((self.weight or 1 / problem.joint.n_data) / curvature).sqrt()
        self.n_steps = max(settings.min_steps, settings.n_epochs * problem.data.steps_per_epoch)

    def run(self) -> Float[Tensor, "m p"]:
        """The new vertices."""
        for _ in range(TRIES):
            vertices = self._descend()
            if vertices is not None and self._has_low_loss(vertices):
                return vertices
            self.size = self.size / 4
        raise RuntimeError(
            f"ESPRO: expected a finite objective, but vertex {self.vertices.shape[1]} diverged with step sizes down to "
            f"{float(4 * self.size.max()):.3g}; use a smaller relative_step (now {self.settings.relative_step}) or "
            "volume_weight."
        )

    def _descend(self) -> Float[Tensor, "m p"] | None:
        """The vertices after all steps; None if the objective or a weight stops being finite."""
        m, v, p = self.vertices.shape
        centre = self.vertices.mean(1)
        # Kept apart from the centre, of which it may be a small part: steps are not lost in rounding.
        offset = self.height[:, None] * self._direction()
        velocity = torch.zeros_like(offset)
        bar = self.problem.steps(self.n_steps, f"ESPRO vertex {v}")
        for t in bar:
            a = uniform_weights((m, self.settings.n_points, v + 1), offset, self.problem.generator)
            points = torch.einsum("msv,mvp->msp", a, torch.cat([self.vertices, (centre + offset)[:, None]], 1))
            value, gradient, _ = self.gradients(points.flatten(0, 1), self.problem.data.next_batch())
            pull = torch.einsum("ms,msp->mp", a[..., -1], gradient.view(m, -1, p)) / self.settings.n_points
            push = volume_gradient(self.vertices, centre - self.vertices[:, 0] + offset, FLOOR * self.height)
            velocity = MOMENTUM * velocity + pull - self.weight * push
            offset = offset - (0.5 * (math.cos(math.pi * t / self.n_steps) + 1)) * self.size[:, None] * velocity
            if t % 100 == 0 or t == self.n_steps - 1:  # once in a while: looking at numbers waits for the device
                if not bool(torch.isfinite(value).all() and torch.isfinite(offset).all()):
                    return None
                bar.set_postfix(objective=f"{float(value.mean()):.4g}")
        return centre + offset

    def _has_low_loss(self, vertices: Float[Tensor, "m p"]) -> bool:
        """Whether J has not risen to where only steps that are too long can take a vertex."""
        m, v, p = self.vertices.shape
        after, before = _objective(self.problem, torch.cat([vertices, self.vertices.mean(1)])).view(2, m)
        best = self.settings.volume_weight * (v + 1) * (v + 2) / 4  # for a quadratic J, of the last height alone
        return bool((after - before <= TOO_HIGH * (best + p / 2)).all())

    def _direction(self) -> Float[Tensor, "m p"]:
        """A random unit vector, orthogonal to each simplex."""
        edges = (self.vertices[:, 1:] - self.vertices[:, :1]).double()
        vector = self.problem.normal(len(self.vertices), self.vertices.shape[-1]).double()
        basis = torch.linalg.qr(edges.mT)[0]
        for _ in range(2):  # the second time for what rounding left
            vector = vector - (basis @ (basis.mT @ vector[..., None]))[..., 0]
        return (vector / vector.norm(dim=-1, keepdim=True)).to(self.vertices)


def log_volume(vertices: Float[Tensor, "*m v p"]) -> Float[Tensor, "*m"]:
    """log of a simplex's volume, in float64 by the determinant of its edges' Gram matrix; −∞ for a flat one."""
    edges = (vertices[..., 1:, :] - vertices[..., :1, :]).double()
    return 0.5 * torch.linalg.slogdet(edges @ edges.mT).logabsdet - math.lgamma(edges.shape[-2] + 1)


def volume_gradient(
    vertices: Float[Tensor, "m v p"], edge: Float[Tensor, "m p"], floor: Float[Tensor, " m"]
) -> Float[Tensor, "m p"]:
    """Gradient of log V in one more vertex w₀ + ``edge``, with the square of ``floor`` added to its squared height.

    The last row of (E Eᵀ)⁻¹ E: the height's direction over the height.
    """
    edges = torch.cat([vertices[:, 1:] - vertices[:, :1], edge[:, None]], 1).double()
    gram = edges @ edges.mT
    gram[:, -1, -1] += floor.double().square()
    last = torch.zeros_like(gram[..., 0])
    last[:, -1] = 1
    return torch.einsum("mk,mkp->mp", torch.linalg.solve(gram, last), edges).to(edge)


def uniform_weights(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "*n v"]:
    """Barycentric coordinates of uniform points of a simplex: exponential numbers over their sum."""
    drawn = torch.empty(tuple(shape), dtype=like.dtype, device=like.device).exponential_(generator=generator)
    return drawn / drawn.sum(-1, keepdim=True)


def _objective(problem: Problem, thetas: Float[Tensor, "n p"]) -> Float[Tensor, " n"]:
    """J of each row, on all data."""
    joint = problem.joint
    shares = (joint.data_term(thetas, batch) * (batch.size / joint.n_data) for batch in problem.data.epoch())
    return sum(shares, start=joint.prior_energy(thetas))
