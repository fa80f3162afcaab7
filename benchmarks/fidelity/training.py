"""Training to a mode of J: Adam, then L-BFGS, on all data, until the gradient vanishes."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.fidelity.problems import DTYPE, Data, Problem, Spec, architecture_of, data_of
from benchmarks.records import write_tensors
from laplace_fiber.log_joint import summed_loss


@dataclass(frozen=True)
class Schedule:
    """Steps of Adam and then, at most, of L-BFGS, which ends where no entry of ∇J/n_data exceeds ``tolerance``."""

    adam_steps: int = 1000
    lr: float = 1e-2
    lbfgs_steps: int = 2000
    tolerance: float = 1e-6


QUICK = Schedule(adam_steps=50, lbfgs_steps=50)


def make_problem(spec: Spec, data_dir: str | Path | None = None) -> Problem:
    """The problem with its network trained from its seed; networks are kept on disk."""
    data = data_of(spec, data_dir)
    model, _ = trained(spec, data, spec.seed)
    return Problem(spec, data, architecture_of(spec), model)


def trained(spec: Spec, data: Data, seed: int) -> tuple[nn.Module, float]:
    """A network at a mode of J, started from ``seed``, in eval mode, and the seconds that its training took."""
    architecture = architecture_of(spec)
    schedule = QUICK if spec.quick else Schedule()
    generator = torch.Generator().manual_seed(seed)
    n_inputs = data.train[0].shape[1]
    model = models.build(architecture, n_inputs, data.n_outputs, generator).to(DTYPE).eval()
    path = models.CACHE / f"fidelity-{spec.name}-{seed}-{digest([asdict(spec), asdict(schedule), seed], data)}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["weights"])
        return model, saved["seconds"]
    start = time.perf_counter()
    descend(model, data, spec.tau, schedule)
    seconds = time.perf_counter() - start
    write_tensors(path, {"weights": model.state_dict(), "seconds": seconds})
    return model, seconds


def objective(model: nn.Module, data: Data, tau: float) -> Tensor:
    """J/n_data. Differentiable."""
    x, y = data.train
    loss = summed_loss(model(x), y, data.likelihood, data.sigma)
    energy = torch.stack([p.square().sum() for p in model.parameters()]).sum()
    return (loss + 0.5 * tau * energy) / len(x)


def descend(model: nn.Module, data: Data, tau: float, schedule: Schedule) -> None:
    """Bring the network to a mode of J, in place."""
    adam = torch.optim.Adam(model.parameters(), lr=schedule.lr)
    for _ in range(schedule.adam_steps):
        adam.zero_grad()
        objective(model, data, tau).backward()
        adam.step()
    lbfgs = torch.optim.LBFGS(
        model.parameters(),
        max_iter=schedule.lbfgs_steps,
        tolerance_grad=schedule.tolerance,
        tolerance_change=0.0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        value = objective(model, data, tau)
        value.backward()
        return value

    lbfgs.step(closure)
    model.zero_grad()


def gradient_norm(problem: Problem) -> float:
    """|∇J| at the network's weights."""
    theta, joint = problem.theta[None], problem.joint
    _, grad = joint.value_and_grad(theta, problem.training_data.everything())
    return float(grad.norm()) * joint.n_data


def digest(settings: object, data: Data) -> str:
    """Of settings and training data."""
    content = b"".join(part.contiguous().numpy().tobytes() for part in data.train)
    return hashlib.sha256(json.dumps(settings).encode() + content).hexdigest()[:16]
