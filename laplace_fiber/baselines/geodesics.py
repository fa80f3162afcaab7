"""Geodesics on the graph of the objective: in the metric M = I + g gᵀ with g = ∇J, for many of them at once.

With this metric (that of the surface (θ, J(θ)) in p + 1 dimensions) the geodesic equation needs one gradient and one
product with the Hessian H of J: c″ = −g ⟨c′, H c′⟩ / (1 + |g|²).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.baselines.ode import Solution, Tolerance, integrate
from laplace_fiber.baselines.pieces import Pieces
from laplace_fiber.data import Batch
from laplace_fiber.engines import CACHED_ELEMENTS, group_size, output_elements
from laplace_fiber.log_joint import LogJoint, summed_loss
from laplace_fiber.memory import of_kind
from laplace_fiber.weights import Inputs, difference_step

SHARE_OF_CACHE = 4
"""A second derivative takes so many times the memory of a first one."""


class Motion(NamedTuple):
    """Of points that move along geodesics."""

    acceleration: Float[Tensor, "k p"]
    squared_speed: Float[Tensor, " k"]
    """c′ᵀ M c′, which does not change along a geodesic."""


class Metric(ABC):
    """A Riemannian metric on weights. Abstract.

    Attributes
    ----------
    evaluations
        Rows evaluated so far.
    cost
        Of one evaluation, in gradients: here a gradient and a product with the Hessian.
    group
        Rows that are evaluated together.
    """

    def __init__(self) -> None:
        self.evaluations, self.cost, self.group = 0, 2, 1

    @abstractmethod
    def _motion(
        self, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], rows: Int[Tensor, " k"]
    ) -> Motion:
        """Acceleration and speed of some of the geodesics."""

    def motion(self, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], rows: Int[Tensor, " k"]) -> Motion:
        """Acceleration and speed of the geodesics with numbers ``rows``."""
        self.evaluations += len(points)
        parts = zip(*(part.split(self.group) for part in (points, velocities, rows)), strict=True)
        return Motion(*map(torch.cat, zip(*(self._motion(*part) for part in parts), strict=True)))


@dataclass(frozen=True)
class Geodesics:
    """Where geodesics lead.

    Attributes
    ----------
    ends
        c(1).
    solution
        How the integration went.
    drift
        Relative change of the speed along each geodesic, 0 if it were followed exactly.
    """

    ends: Float[Tensor, "s p"]
    solution: Solution
    drift: Float[Tensor, " s"]


def exponential_map(
    metric: Metric,
    origin: Float[Tensor, " p"],
    tangents: Float[Tensor, "s p"],
    tolerance: Tolerance,
    report: Callable[[Solution], None] | None = None,
) -> Geodesics:
    """Follow the geodesics with c(0) = ``origin`` and c′(0) = each of ``tangents`` until time 1."""
    p = len(origin)

    def field(states: Tensor, rows: Tensor) -> Tensor:
        points, velocities = states.split(p, dim=1)
        return torch.cat([velocities, metric.motion(points, velocities, rows).acceleration], 1)

    start = origin.expand_as(tangents)
    solution = integrate(field, torch.cat([start, tangents], 1), tolerance, report=report)
    everyone = torch.arange(len(tangents), device=origin.device)
    ends, velocities = solution.states.split(p, dim=1)
    before = metric.motion(start, tangents, everyone).squared_speed
    after = metric.motion(ends, velocities, everyone).squared_speed
    return Geodesics(ends, solution, (after / before).sqrt() - 1)


class ObjectiveMetric(Metric):
    """I + g gᵀ with the gradient g of J, whose data term may come from a fixed subset of the data per geodesic.

    Where a layer of the network has no second derivative, central differences of the gradient take its place.

    Parameters
    ----------
    joint
        The objective.
    theta
        Weights like those of the calls to come.
    pieces
        The data.
    n_rows
        Geodesics.
    """

    def __init__(self, joint: LogJoint, theta: Float[Tensor, " p"], pieces: Pieces, n_rows: int) -> None:
        super().__init__()
        self.joint, self.pieces = joint, pieces
        self.scale = joint.n_data / (pieces.size * joint.temperature)
        # Found with two rows of one point: whether the network can be batched, and differentiated twice.
        x, y = next(pieces.of(torch.zeros(1, dtype=torch.int64, device=theta.device)))
        two, ones = theta.repeat(2, 1), torch.ones_like(theta).repeat(2, 1)
        if isinstance(x, Tensor) and pieces.subsets is not None:
            x, y = x[0], y[0]
        joint.network.many(two, x)
        self.twice = _twice_differentiable(joint, two, ones, x, y)
        if isinstance(x, Tensor):
            per_point = max(1, output_elements(joint.network, x) // len(y))
            pieces.split(CACHED_ELEMENTS["cuda"] // (16 * per_point))
        self.group = joint.chunk_size or self._group(theta, n_rows, x, y)

    def _group(self, theta: Float[Tensor, " p"], n_rows: int, x: Inputs, y: Tensor) -> int:
        def run(thetas: Tensor) -> Tensor:
            return self._derivatives(thetas, torch.ones_like(thetas), lambda t: self.joint.losses(t, batch))[0]

        batch = Batch([(x, y)], len(y))
        together = group_size(self.joint.network, theta.repeat(min(8, n_rows), 1), n_rows, x, run)
        elements = max(1, output_elements(self.joint.network, x))
        cached = of_kind(CACHED_ELEMENTS, theta.device) // (SHARE_OF_CACHE * elements)
        return together if self.joint.network.engine == "vmap" else max(1, min(together, cached))

    def _motion(
        self, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], rows: Int[Tensor, " k"]
    ) -> Motion:
        pull = self.joint.prior_precision
        gradient, product = pull * (points - self.joint.prior_mean), pull * velocities
        for x, y in self.pieces.of(rows):
            first, second = self._derivatives(points, velocities, self._loss(x, y))
            gradient = gradient + self.scale * first
            product = product + self.scale * second
        return motion_on_graph(velocities, gradient, (velocities * product).sum(-1))

    def _loss(self, x: Inputs, y: Tensor) -> Callable[[Tensor], Tensor]:
        """Σ ℓ of each row on the piece."""
        joint = self.joint
        if self.pieces.subsets is None or not isinstance(x, Tensor):
            return lambda thetas: joint.losses(thetas, Batch([(x, y)], len(y)))

        def one(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return summed_loss(joint.network.one(theta, x), y, joint.likelihood, joint.sigma_noise)

        def each(thetas: Tensor) -> Tensor:
            if joint.network.batches and len(thetas) > 1:
                return vmap(one)(thetas, x, y)
            return torch.stack([one(*row) for row in zip(thetas, x, y, strict=True)])

        return each

    def _derivatives(
        self, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], loss: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "k p"], Float[Tensor, "k p"]]:
        """Gradient, and Hessian times velocity."""
        if self.twice:
            return _second_derivatives(points, velocities, loss)
        lengths = velocities.norm(dim=1, keepdim=True).clamp(min=torch.finfo(points.dtype).tiny ** 0.5)
        step = torch.stack([difference_step(point) for point in points])[:, None] / lengths
        forward, backward = (_gradient(points + s * step * velocities, loss) for s in (1, -1))
        return _gradient(points, loss), (forward - backward) / (2 * step)


def motion_on_graph(
    velocities: Float[Tensor, "k p"], gradient: Float[Tensor, "k p"], bend: Float[Tensor, " k"]
) -> Motion:
    """Motion in the metric I + g gᵀ, from g and ⟨c′, H c′⟩."""
    rate = bend / (1 + gradient.square().sum(-1))
    climb = (gradient * velocities).sum(-1)
    return Motion(-rate[:, None] * gradient, velocities.square().sum(-1) + climb.square())


def in_double(joint: LogJoint) -> LogJoint:
    """The same objective in float64, with a copy of the network."""
    network = copy.copy(joint.network)
    network.model = copy.deepcopy(network.model).double()
    return replace(
        joint,
        network=network,
        prior_precision=joint.prior_precision.double(),
        prior_mean=joint.prior_mean.double(),
        sigma_noise=torch.as_tensor(joint.sigma_noise).double(),
    )


def _second_derivatives(
    points: Tensor, velocities: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "k p"], Float[Tensor, "k p"]]:
    rows = points.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        (gradient,) = torch.autograd.grad(loss(rows).sum(), rows, create_graph=True)
        (product,) = torch.autograd.grad(gradient, rows, velocities)
    return gradient.detach(), product


def _gradient(points: Tensor, loss: Callable[[Tensor], Tensor]) -> Float[Tensor, "k p"]:
    rows = points.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(rows).sum(), rows)
    return gradient


def _twice_differentiable(joint: LogJoint, points: Tensor, velocities: Tensor, x: Inputs, y: Tensor) -> bool:
    try:
        _second_derivatives(points, velocities, lambda thetas: joint.losses(thetas, Batch([(x, y)], len(y))))
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError):
        return False
    return True
