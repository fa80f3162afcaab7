"""Ordinary training of several weight vectors side by side: minimisation of J/n_data on minibatches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.baselines.minibatches import Minibatches, Stack
from laplace_fiber.data import Batch, BatchChoice
from laplace_fiber.gradients import RECORD_AFTER, recorded_evaluation
from laplace_fiber.log_joint import LogJoint, summed_loss
from laplace_fiber.recording import Recorder

CHECK_EVERY = 100
"""Steps between checks for divergence."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How weights are trained.

    Attributes
    ----------
    n_steps, lr
        Steps and their size.
    optimizer, momentum
        ``"adam"``, or ``"sgd"`` with momentum.
    cosine
        Whether the step size falls to 0 along a cosine.
    name
        Of the method, for the progress bar and errors.
    remedy
        What to do when the training diverges.
    """

    n_steps: int
    lr: float
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.9
    cosine: bool = True
    name: str = "training"
    remedy: str = "use a smaller lr"

    def optimizer_of(self, weights: Float[Tensor, "m p"]) -> torch.optim.Optimizer:
        """Both work on each number by itself, so rows do not interact. Weight decay is J's own."""
        if self.optimizer == "adam":
            return torch.optim.Adam([weights], lr=self.lr)
        return torch.optim.SGD([weights], lr=self.lr, momentum=self.momentum)

    def lr_at(self, t: int) -> float:
        """Size of step t."""
        return self.lr * (0.5 * (1 + math.cos(math.pi * t / self.n_steps)) if self.cosine else 1.0)


class Members:
    """Objective and gradient of m weight vectors, each on the next minibatch of its own.

    Together by vmap. One after another where the network is convolutional (on a CPU), cannot be batched, or behaves
    otherwise in training than in evaluation (dropout, batch norm): then on copies of the model in training mode.

    Attributes
    ----------
    evaluations
        Gradients so far, of one weight vector on one minibatch.
    joints
        The objective of each weight vector.
    """

    def __init__(
        self, problem: Problem, thetas: Float[Tensor, "m p"], batch: BatchChoice, batch_size: int | None = None
    ) -> None:
        self.problem, self.joint, self.evaluations = problem, problem.joint, 0
        self.random = differs_in_training(self.joint.network.model)
        self.joints = [in_training(self.joint) if self.random else self.joint for _ in thetas]
        self.batches = Minibatches(problem, len(thetas), batch, batch_size)
        self._recorder = Recorder(RECORD_AFTER)
        self._together = not self.random and len(thetas) > 1 and self.joint.network.resolved_engine() == "vmap"

    def __call__(self, thetas: Float[Tensor, "m p"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m p"]]:
        """J/n_data and its gradient, estimated from the minibatches."""
        self.evaluations += len(thetas)
        batch = self._next()
        if self._together and isinstance(batch, Stack):
            try:
                return self._stacked(thetas, batch)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, NotImplementedError):
                self._together = False  # one after another, where an error of the network itself is raised again
        if self._together and isinstance(batch, Batch):
            rows = thetas.split(self.joint.chunk_size or len(thetas))
            return _joined([self._evaluated(self.joint, group, batch) for group in rows])
        batches = [batch if isinstance(batch, Batch) else batch.row(i) for i in range(len(thetas))]
        each = zip(self.joints, thetas.split(1), batches, strict=True)
        return _joined([self._evaluated(joint, theta, own) for joint, theta, own in each])

    def _next(self) -> Stack | Batch:
        """The next minibatch; batch norm in training mode has no use for a single point."""
        batch = next(self.batches)
        while self.random and isinstance(batch, Batch) and batch.size == 1 < self.joint.n_data:
            batch = next(self.batches)
        return batch

    def _evaluated(self, joint: LogJoint, thetas: Float[Tensor, "k p"], batch: Batch) -> tuple[Tensor, Tensor]:
        # Recordings would repeat what training mode draws or writes to buffers.
        result = (
            joint.evaluate(thetas, batch) if self.random else recorded_evaluation(joint, self._recorder, thetas, batch)
        )
        return result.value, result.grad

    def _stacked(self, thetas: Float[Tensor, "m p"], stack: Stack) -> tuple[Tensor, Tensor]:
        def evaluate(moving: Sequence[Tensor], fixed: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return stacked_evaluation(self.joint, moving[0], Stack(fixed[0], fixed[1]))

        size = self.joint.chunk_size or len(thetas)
        groups = zip(thetas.split(size), stack.x.split(size), stack.y.split(size), strict=True)
        results = [self._recorder("stacked", evaluate, (rows,), (x, y)) for rows, x, y in groups]
        return _joined([(value, grad) for value, grad in results])


def stacked_evaluation(
    joint: LogJoint, thetas: Float[Tensor, "m p"], stack: Stack
) -> tuple[Float[Tensor, " m"], Float[Tensor, "m p"]]:
    """J/n_data and its gradient for each weight vector on its own minibatch, batched by vmap over both."""

    def loss(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return summed_loss(joint.network.one(theta, x), y, joint.likelihood, joint.sigma_noise)

    rows = thetas.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule
        value = vmap(loss)(rows, stack.x, stack.y) / (joint.temperature * stack.y.shape[1])
        value = value + joint.prior_energy(rows) / joint.n_data
        (grad,) = torch.autograd.grad(value.sum(), rows)
    return value.detach(), grad


def train(
    members: Members,
    thetas: Float[Tensor, "m p"],
    plan: Plan,
    after_step: Callable[[int, Float[Tensor, "m p"]], None] | None = None,
) -> Float[Tensor, "m p"]:
    """The weights after the plan's steps; ``after_step`` sees them after each one, and must not keep them uncopied.

    Raises
    ------
    RuntimeError
        The objective or its gradient is not finite.
    """
    weights = thetas.clone()
    optimizer = plan.optimizer_of(weights)
    seed = int(torch.randint(2**31, (1,), generator=members.problem.generator, device=weights.device))
    bar = members.problem.steps(plan.n_steps, plan.name)
    with own_random_state(seed) if members.random else nullcontext():
        for t in bar:
            value, weights.grad = members(weights)
            if t % CHECK_EVERY == 0 or t == plan.n_steps - 1:
                _check(value, weights.grad, plan, t)
                bar.set_postfix(objective=f"{float(value.mean()):.4g}")
            optimizer.param_groups[0]["lr"] = plan.lr_at(t)
            optimizer.step()
            if after_step is not None:
                after_step(t, weights)
    if not bool(torch.isfinite(weights).all()):
        raise RuntimeError(_diverged(plan, plan.n_steps))
    return weights.detach()


def differs_in_training(model: nn.Module) -> bool:
    """Whether the network has dropout, or normalisation with running statistics."""
    return any(
        (isinstance(m, _DropoutNd) and m.p > 0)
        or (isinstance(m, _NormBase) and m.track_running_stats)
        or (isinstance(m, (nn.RNNBase, nn.MultiheadAttention)) and m.dropout > 0)
        for m in model.modules()
    )


def in_training(joint: LogJoint) -> LogJoint:
    """The objective on a copy of the model in training mode, whose buffers may be written to."""
    network = copy.copy(joint.network)
    network.model, network.engine = copy.deepcopy(network.model).train(), "loop"
    return replace(joint, network=network)


def fresh_copy(model: nn.Module, seed: int, initialise: Callable[[nn.Module], object] | None = None) -> nn.Module:
    """A copy of the model in training mode with new initial weights, by its layers' ``reset_parameters``.

    Raises
    ------
    ValueError
        A layer with trainable weights of its own cannot reset them, and no function to ``initialise`` is given.
    """
    fresh = copy.deepcopy(model).train()
    with own_random_state(seed):
        if initialise is not None:
            initialise(fresh)
            return fresh
        for name, module in reversed(list(fresh.named_modules())):  # a layer may set its parts' weights once more
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
            elif any(p.requires_grad for p in module.parameters(recurse=False)):
                raise ValueError(
                    f"initialise: expected layers with reset_parameters(), got {name or 'the network'!r} "
                    f"({type(module).__name__}) with weights of its own and none; pass initialise=, a function that "
                    "gives a network new initial weights in place."
                )
    return fresh


@contextmanager
def own_random_state(seed: int) -> Iterator[None]:
    """The global random state seeded while inside, as it was afterwards."""
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed_all(seed)
        yield


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([value for value, _ in parts]), torch.cat([grad for _, grad in parts])


def _check(value: Float[Tensor, " m"], grad: Float[Tensor, "m p"], plan: Plan, t: int) -> None:
    # Once in a while: the check waits for the device.
    if not bool(torch.isfinite(value).all() and torch.isfinite(grad).all()):
        raise RuntimeError(_diverged(plan, t))


def _diverged(plan: Plan, t: int) -> str:
    return (
        f"{plan.name}: expected a finite objective, but the training diverged by step {t} with step size "
        f"{plan.lr:.3g}; {plan.remedy}."
    )
