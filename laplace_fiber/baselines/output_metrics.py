"""Metrics on weights that come from the network's outputs: the linearised objective's, and Fisher's."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.baselines.geodesics import Metric, Motion, motion_on_graph
from laplace_fiber.baselines.pieces import Pieces
from laplace_fiber.curvature import subspace_jacobian
from laplace_fiber.engines import output_elements
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.output_loss import OutputLoss
from laplace_fiber.weights import Inputs, NetworkFunction, difference_step

LARGEST_JACOBIANS = 2**25
"""Numbers in the Jacobians that are held at once."""


class LinearisedMetric(Metric):
    """I + g gᵀ for the objective of the linearised network f(θ*) + J (θ − θ*), whose Hessian has no second derivatives.

    Small Jacobians are held, others applied as products.

    Parameters
    ----------
    joint, origin
        The objective, and the weights θ* at which the network is linearised.
    pieces
        All data.
    weights
        For each geodesic, how often each data point counts; ``None`` counts all once.
    """

    def __init__(
        self,
        joint: LogJoint,
        origin: Float[Tensor, " p"],
        pieces: Pieces,
        weights: Float[Tensor, "s n"] | None = None,
    ) -> None:
        super().__init__()
        self.joint, self.origin, self.weights, self.loss = joint, origin, weights, OutputLoss(joint)
        held = origin.new_zeros(())
        outputs = [joint.network.one(origin, x).detach() for x, _ in pieces.blocks]
        self.blocks = [(x, y, f) for (x, y), f in zip(pieces.blocks, outputs, strict=True)]
        self.jacobians: list[Tensor] | None = None
        if sum(f.numel() for f in outputs) * len(origin) <= LARGEST_JACOBIANS:
            self.jacobians = [_jacobians(joint.network, origin[None], x)[0] for x, _ in pieces.blocks]
            held = held + 1
        largest = max(f.numel() if bool(held) else output_elements(joint.network, x) for x, _, f in self.blocks)
        self.group = joint.chunk_size or max(1, LARGEST_JACOBIANS // (4 * largest))

    def _motion(
        self, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], rows: Int[Tensor, " k"]
    ) -> Motion:
        pull, first = self.joint.prior_precision, 0
        gradient = pull * (points - self.joint.prior_mean)
        bend = (pull * velocities.square()).sum(-1)
        directions = torch.cat([points - self.origin, velocities])
        for number, (_, y, f) in enumerate(self.blocks):
            moved, u = self._outputs(number, directions).chunk(2)
            slope, curvature = self.loss.slope(f + moved, y), (u * self.loss.bent(f + moved, u)).flatten(2).sum(-1)
            if self.weights is not None:
                weights = self.weights[rows, first : first + len(y)]
                slope, curvature = slope * weights.reshape(*weights.shape, *(1,) * (f.ndim - 1)), curvature * weights
            gradient, bend = gradient + self._pulled_back(number, slope), bend + curvature.sum(-1)
            first += len(y)
        return motion_on_graph(velocities, gradient, bend)

    def _outputs(self, number: int, directions: Float[Tensor, "m p"]) -> Float[Tensor, "m b *c"]:
        """J d for each direction."""
        x, _, f = self.blocks[number]
        if self.jacobians is not None:
            return (directions @ self.jacobians[number].flatten(0, -2).T).unflatten(1, f.shape)
        return subspace_jacobian(self.joint.network, self.origin, directions, x)[0].movedim(-1, 0)

    def _pulled_back(self, number: int, slopes: Float[Tensor, "k b *c"]) -> Float[Tensor, "k p"]:
        """Jᵀ s for each row."""
        if self.jacobians is not None:
            return slopes.flatten(1) @ self.jacobians[number].flatten(0, -2)
        theta = self.origin.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self.joint.network.one(theta, self.blocks[number][0])
            rows = [torch.autograd.grad(outputs, theta, s, retain_graph=True)[0] for s in slopes]
        return torch.stack(rows)


class FisherMetric(Metric):
    """G(θ) = Σ J(θ)ᵀ Λ(θ) J(θ) + diag(τ): Fisher information of the likelihood, and the prior's precision.

    G is pulled back from the outputs, where Λ is the Hessian of log Σ exp or constant. So its geodesics obey
    c″ = −G⁻¹ Σ Jᵀ (Λ f̈ + ½ Λ′[u, u]) with u = J c′ and f̈ the second derivative of the outputs along c′: the third
    derivatives of classes' log-likelihoods take the place of Christoffel symbols. Systems are solved in float64.

    Parameters
    ----------
    joint, theta
        The objective, and weights like those of the calls to come.
    pieces
        The data.
    """

    def __init__(self, joint: LogJoint, theta: Float[Tensor, " p"], pieces: Pieces) -> None:
        super().__init__()
        self.joint, self.pieces, self.loss = joint, pieces, OutputLoss(joint)
        x, y = pieces.blocks[0]
        outputs = max(1, joint.network.one(theta, x).numel() // len(y))
        per_point, self.cost = outputs * len(theta), outputs + 2
        pieces.split(LARGEST_JACOBIANS // per_point)
        together = LARGEST_JACOBIANS // (per_point * max(len(y) for _, y in pieces.blocks) + 2 * len(theta) ** 2)
        self.group = joint.chunk_size or max(1, together)

    def matrix(self, theta: Float[Tensor, " p"]) -> Float[Tensor, "p p"]:
        """G at one weight vector, in float64."""
        total = self.joint.prior_precision.double().expand(len(theta)).diag()
        for x, _ in self.pieces.blocks:
            outputs = self.joint.network.one(theta, x).detach()
            total = total + _gram(self.loss.root(outputs[None], _jacobians(self.joint.network, theta[None], x)))[0]
        return total

    def _motion(
        self, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], rows: Int[Tensor, " k"]
    ) -> Motion:
        tau = self.joint.prior_precision
        metric = tau.double().expand(points.shape[1]).diag().repeat(len(points), 1, 1)
        force = torch.zeros_like(points)
        for x, _ in self.pieces.of(rows):
            f, u, bend = _along(self.joint.network, points, velocities, x)
            jacobians = _jacobians(self.joint.network, points, x)
            pushed = self.loss.bent(f, bend) + self.loss.twist(f, u)
            force = force + (pushed.flatten(1)[:, None] @ jacobians.flatten(1, -2))[:, 0]
            metric += _gram(self.loss.root(f, jacobians))
        factor, _ = torch.linalg.cholesky_ex(torch.nan_to_num(metric, nan=torch.inf))
        acceleration = -torch.cholesky_solve(force.double()[..., None], factor)[..., 0]
        speed = torch.einsum("kp,kpq,kq->k", velocities.double(), metric, velocities.double())
        return Motion(acceleration.to(points), speed.to(points))


def _gram(roots: Float[Tensor, "k *n p"]) -> Float[Tensor, "k p p"]:
    flat = roots.flatten(1, -2).double()
    return flat.mT @ flat


def _jacobians(network: NetworkFunction, points: Float[Tensor, "k p"], x: Inputs) -> Float[Tensor, "k b *c p"]:
    """∂f/∂θ at each weight vector and data point: backwards where vmap can take data points apart, else forwards."""
    basis = torch.eye(points.shape[1], dtype=points.dtype, device=points.device)

    def backwards(theta: Tensor) -> Tensor:
        return vmap(jacrev(lambda t, point: network.one(t, point[None])[0]), (None, 0))(theta, x)

    def forwards(theta: Tensor) -> Tensor:
        return vmap(lambda v: jvp(lambda t: network.one(t, x), (theta,), (v,))[1], out_dims=-1)(basis)

    if network.batches:
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                return vmap(backwards if isinstance(x, Tensor) else forwards)(points)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, NotImplementedError):
            pass
    return torch.stack([subspace_jacobian(network, theta, basis, x)[0] for theta in points])


def _along(
    network: NetworkFunction, points: Float[Tensor, "k p"], velocities: Float[Tensor, "k p"], x: Inputs
) -> tuple[Float[Tensor, "k b *c"], Float[Tensor, "k b *c"], Float[Tensor, "k b *c"]]:
    """f, and its first and second derivatives along the velocities."""

    def at(theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        outputs, first = jvp(lambda t: network.one(t, x), (theta,), (v,))[:2]
        return outputs, first

    def exact(theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (outputs, first), (_, second) = jvp(lambda t: at(t, v), (theta,), (v,))[:2]
        return outputs, first, second

    def by_differences(theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = difference_step(theta) / v.norm().clamp(min=torch.finfo(v.dtype).tiny ** 0.5)
        directions = torch.stack([v])
        outputs, first = _first(theta, directions)
        after, before = (_first(theta + s * step * v, directions)[1] for s in (1, -1))
        return outputs, first, (after - before) / (2 * step)

    def _first(theta: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        jacobian, outputs = subspace_jacobian(network, theta, directions, x)
        return outputs, jacobian[..., 0]

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        try:
            if network.batches:
                return vmap(exact)(points, velocities)
            parts = [exact(*row) for row in zip(points, velocities, strict=True)]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, NotImplementedError):
            parts = [by_differences(*row) for row in zip(points, velocities, strict=True)]
    f, u, bend = (torch.stack(part) for part in zip(*parts, strict=True))
    return f, u, bend
