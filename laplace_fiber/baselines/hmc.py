"""Hamiltonian Monte Carlo on all the data: slow, exact in the limit, and the reference that others are measured by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.baselines.baseline import Problem, Settings
from laplace_fiber.baselines.convergence import function_space_mixing
from laplace_fiber.baselines.stored import StoredPosterior, StoredSamples
from laplace_fiber.data import BatchChoice
from laplace_fiber.hamiltonian import Hamiltonian, Outcome, State

TOO_FAR = 0.2
"""Distance of the acceptance from its target that a user is told of."""

UNCONVERGED = 1.1
"""R-hat that a user is told of."""


@dataclass(frozen=True, kw_only=True)
class HMCSettings(Settings):
    """Settings of :class:`HMC`. Lengths and steps are in units of the prior's standard deviation.

    Parameters
    ----------
    batch
        How the exact gradient is summed: over all data at once (``"full"``), or over the batches of one pass of the
        loader (``"loader"``: less memory, as many evaluations as batches).
    n_chains
        Chains, run side by side.
    n_warmup
        Trajectories of each chain that are left out; they adapt the step size.
    n_kept
        States kept of all chains together, one for each later trajectory.
    trajectory_length
        π/2 carries a state to an independent one under the prior (Izmailov et al. 2021, section 3).
    max_leapfrog
        Steps of a trajectory, at most (before jitter); where the step size asks for more, trajectories are shorter.
    jitter
        The number of steps is drawn anew for each trajectory, within this share around its mean: a fixed one may be
        the period of some direction. At 0.5 no direction of a Gaussian posterior keeps a correlation above 0.1.
    target_acceptance
        Share of trajectories accepted, to which dual averaging brings the step size.
    step_size
        A fixed step size; ``None`` adapts it.
    start
        Chains start at the ``"trained"`` weights, all alike, or at draws from the ``"prior"``: a harder test of
        convergence, and a longer way.
    """

    batch: BatchChoice = "full"
    n_chains: int = 4
    n_warmup: int = 50
    n_kept: int = 400
    trajectory_length: float = math.pi / 2
    max_leapfrog: int = 200
    jitter: float = 0.5
    target_acceptance: float = 0.8
    step_size: float | None = None
    start: Literal["trained", "prior"] = "trained"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_chains", "n_warmup", "n_kept", "trajectory_length", "max_leapfrog")
        if self.step_size is not None:
            self.require_positive("step_size")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter: expected a share in [0, 1), got {self.jitter}.")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(f"target_acceptance: expected a share in (0, 1), got {self.target_acceptance}.")
        if self.start not in ("trained", "prior"):
            raise ValueError(f"start: expected 'trained' or 'prior', got {self.start!r}.")

    def leapfrog_steps(self, step_size: float, uniform: float) -> int:
        """Steps of one trajectory, jittered by a uniform number in [0, 1)."""
        mean = min(self.trajectory_length / step_size, self.max_leapfrog)
        return max(1, round(mean * (1 + self.jitter * (2 * uniform - 1))))


class Dynamics(Hamiltonian):
    """Motion of several chains in the objective of the whole data."""

    def __init__(self, problem: Problem, n_chains: int) -> None:
        super().__init__(problem.joint.prior_precision.to(problem.theta))
        self.problem, self.joint = problem, problem.joint
        self.gradients = problem.gradients(n_chains)

    def at(self, theta: Float[Tensor, "c p"]) -> State:
        """J and its gradient: batches weighted by their sizes add up to all data, with the prior counted once."""
        value, gradient = torch.zeros_like(theta[:, 0], dtype=torch.float64), torch.zeros_like(theta)
        for batch in self.problem.data.epoch():
            part = self.gradients(theta, batch)
            value += batch.size * part.value
            gradient = torch.add(gradient, part.grad, alpha=batch.size)
        return State(theta, value, gradient)

    def velocity(self, n_chains: int) -> Float[Tensor, "c p"]:
        """Drawn from N(0, 1/τ)."""
        return self.problem.normal(n_chains, len(self.problem.theta)) / self.precision.sqrt()

    def transition(self, state: State, step: float, n_steps: int) -> Outcome:
        """A trajectory with a new velocity."""
        velocity = self.velocity(len(state.theta))
        return self.move(state, velocity, self._uniform(len(velocity)), step, n_steps)

    def first_step(self, state: State) -> float:
        """A step size at which one step is accepted in about half of the cases (Hoffman and Gelman, algorithm 4)."""
        step, direction = 0.1, 0
        for _ in range(60):
            probability = float(self.transition(state, step, 1).probability.mean())
            now = 1 if probability > 0.5 else -1
            if direction and now != direction:
                return step
            direction, step = now, step * 2.0**now
            if step > 4:  # no direction is softer than the prior's
                return step
        raise RuntimeError(
            f"HMC: expected a finite energy after a small step, got none down to a step size of {step:.3g}; use a "
            "larger prior_precision or a float64 model."
        )

    def _uniform(self, *shape: int) -> Float[Tensor, "..."]:
        generator, device = self.problem.generator, self.problem.theta.device
        return torch.rand(shape, generator=generator, dtype=torch.float64, device=device)

    def uniform(self) -> float:
        """One number in [0, 1)."""
        return float(self._uniform())


class DualAveraging:
    """Step sizes that bring the acceptance to a target: Hoffman and Gelman (2014), equation 6 and section 3.2.1."""

    def __init__(self, first: float, target: float) -> None:
        self.centre, self.target = math.log(10 * first), target
        self.t, self.error, self.log_mean = 0, 0.0, math.log(first)
        self.step = first

    def update(self, acceptance: float) -> None:
        """Take in the acceptance at :attr:`step` and choose the next one."""
        self.t += 1
        share = 1 / (self.t + 10)
        self.error = (1 - share) * self.error + share * (self.target - acceptance)
        log_step = self.centre - math.sqrt(self.t) / 0.05 * self.error
        weight = self.t**-0.75
        self.log_mean = weight * log_step + (1 - weight) * self.log_mean
        self.step = math.exp(log_step)

    @property
    def averaged(self) -> float:
        """The step size to go on with."""
        return math.exp(self.log_mean)


class HMC(StoredPosterior[HMCSettings]):
    """Hamiltonian Monte Carlo: long leapfrog trajectories in J, with exact gradients, accepted with min(1, e^−ΔH).

    H(θ, v) = J(θ) + ½ vᵀ diag(τ) v. After fit, ``diagnostics`` tells the acceptance, the share of divergent
    trajectories, the step size and the mean number of steps, and in function space (at up to 50 training inputs) the
    largest R-hat and the smallest effective sample size; fit warns where these say that the chains did not converge.

    Source: Neal (2011), *MCMC using Hamiltonian dynamics*, section 3; trajectory lengths of Izmailov, Vikram, Hoffman
    and Wilson (2021), *What are Bayesian neural network posteriors really like?*, section 3; step sizes of Hoffman and
    Gelman (2014), *The No-U-Turn sampler*, section 3.2, by the mean acceptance of all chains.
    Settings: :class:`HMCSettings`.
    """

    _key = ("all", "hmc")
    settings_class = HMCSettings
    tunable: ClassVar = {"max_leapfrog": (200, 600)}

    def _run(self, problem: Problem) -> tuple[StoredSamples, dict[str, float]]:
        chosen, dynamics = self.settings, Dynamics(problem, self.settings.n_chains)
        state = dynamics.at(self._start(problem))
        first = chosen.step_size or dynamics.first_step(state)
        adaptation = DualAveraging(first, chosen.target_acceptance)
        n_draws = math.ceil(chosen.n_kept / chosen.n_chains)
        kept, lengths = list[Tensor](), list[int]()
        probabilities, divergent = list[Tensor](), list[Tensor]()
        bar = problem.steps(chosen.n_warmup + n_draws, "HMC")
        for t in bar:
            warming = t < chosen.n_warmup
            step = chosen.step_size or (adaptation.step if warming else adaptation.averaged)
            n_steps = chosen.leapfrog_steps(step, dynamics.uniform())
            outcome = dynamics.transition(state, step, n_steps)
            state, acceptance = outcome.state, float(outcome.probability.mean())
            bar.set_postfix(acceptance=f"{acceptance:.2f}", step=f"{step:.2g}", leapfrog=n_steps)
            if warming:
                adaptation.update(acceptance)
                continue
            kept.append(state.theta)
            probabilities.append(outcome.probability)
            divergent.append(outcome.divergent)
            lengths.append(n_steps)
        chains = torch.stack(kept, 1)
        diagnostics = {
            "gradient_evaluations": float(dynamics.gradients.evaluations),
            "acceptance": float(torch.stack(probabilities).mean()),
            "divergent_share": float(torch.stack(divergent).double().mean()),
            "step_size": step,
            "leapfrog_steps": sum(lengths) / len(lengths),
            **function_space_mixing(problem.joint, chains, problem.data, dynamics.gradients.group),
        }
        _check_moved(diagnostics)
        return StoredSamples(chains.flatten(0, 1)), diagnostics

    def _start(self, problem: Problem) -> Float[Tensor, "c p"]:
        n, theta, joint = self.settings.n_chains, problem.theta, problem.joint
        if self.settings.start == "trained":
            return theta.repeat(n, 1)
        return joint.prior_mean.to(theta) + problem.normal(n, len(theta)) / joint.prior_precision.to(theta).sqrt()

    def fit_warnings(self) -> Sequence[str]:
        """Of chains that did not converge, and of step sizes that did not."""
        found, target = self.diagnostics, self.settings.target_acceptance
        messages = []
        if found.get("rhat", 1.0) > UNCONVERGED:
            messages.append(
                f"HMC: expected R-hat below {UNCONVERGED} in function space, got {found['rhat']:.3g}: the chains have "
                "not converged; raise n_warmup and n_kept, or max_leapfrog if leapfrog_steps is at it."
            )
        if abs(found["acceptance"] - target) > TOO_FAR:
            messages.append(
                f"HMC: expected an acceptance of about {target}, got {found['acceptance']:.2f}; raise n_warmup, or set "
                "step_size."
            )
        return messages


def _check_moved(diagnostics: dict[str, float]) -> None:
    if diagnostics["acceptance"] < 1e-3:
        raise RuntimeError(
            f"HMC: expected accepted trajectories, got an acceptance of {diagnostics['acceptance']:.2g} with step size "
            f"{diagnostics['step_size']:.3g}; set a smaller step_size, or raise n_warmup."
        )
