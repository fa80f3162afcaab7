"""Stochastic-gradient Markov chains: Langevin dynamics, with friction, and with cyclical step sizes.

All are one integrator of J's dynamics at inverse temperature 1/T, written for the mean loss U = J/n_data:
v ← (1 − a) v − ε ∇U(θ) + √(2 a ε T / n_data) ξ, θ ← θ + v. With a = 1 this is Langevin dynamics in J with the step
h = ε/n_data: θ ← θ − h ∇J + √(2 h T) ξ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.baselines.baseline import Problem, Settings
from laplace_fiber.baselines.convergence import function_space_mixing
from laplace_fiber.baselines.stored import StoredPosterior, StoredSamples
from laplace_fiber.data import BatchChoice
from laplace_fiber.sharpness import sharpness

LOOKS = 3
"""Batches, and random first directions, from which the largest curvature is looked for."""


@dataclass(frozen=True, kw_only=True)
class ChainSettings(Settings):
    """Settings of stochastic-gradient chains.

    Parameters
    ----------
    n_chains
        Chains, all started at the trained weights and run side by side on the same batches.
    n_steps
        Steps of each chain, burn-in included.
    burn_in
        Share of the steps after which states are kept.
    n_kept
        States kept of all chains together, equally spaced in the time Σ ε, as averages weighted by ε are (Welling and
        Teh, equation 11); in cyclical chains, equally spaced in the sampling stages.
    step_size
        ε, on the mean loss. ``None`` takes ``relative_step`` over the largest curvature at the trained weights.
    relative_step
        See ``step_size``. Steps above 2 diverge; at x, the variance in the stiffest direction is too large by the
        factor 1/(1 − x/2), and the noise of small batches adds to it, while small steps do not come far from the
        trained weights. The defaults were chosen by predictions near those of Hamiltonian Monte Carlo, for small
        networks on two moons and on a noisy sine.
    decay
        γ of the step sizes ε (1 + t/b)^-γ, b a tenth of the steps (Welling and Teh: 0.55); 0 keeps them.
    sampling_temperature
        T: 1 samples the posterior, less a colder one.
    """

    batch: BatchChoice = "loader"
    n_chains: int = 8
    n_steps: int = 4000
    burn_in: float = 0.25
    n_kept: int = 200
    step_size: float | None = None
    relative_step: float = 0.5
    decay: float = 0.0
    sampling_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_chains", "n_steps", "n_kept", "relative_step")
        if self.step_size is not None:
            self.require_positive("step_size")
        if not 0 <= self.burn_in < 1:
            raise ValueError(f"burn_in: expected a share in [0, 1), got {self.burn_in}.")
        if self.decay < 0 or self.sampling_temperature < 0:
            raise ValueError(
                f"decay, sampling_temperature: expected numbers >= 0, got {self.decay}, {self.sampling_temperature}."
            )

    @property
    def friction(self) -> float:
        """A: 1 for Langevin dynamics."""
        return 1.0

    def step_share(self, t: int) -> float:
        """Step t's size over the first one's."""
        return float((1 + 10 * t / self.n_steps) ** -self.decay)

    def noise_share(self, t: int) -> float:
        """Share of the noise that step t gets."""
        return 1.0

    def kept_steps(self) -> set[int]:
        """Steps after which every chain's state is kept."""
        first, per_chain = int(self.burn_in * self.n_steps), max(1, math.ceil(self.n_kept / self.n_chains))
        shares = torch.tensor([self.step_share(t) for t in range(first, self.n_steps)], dtype=torch.float64)
        time = shares.cumsum(0) / shares.sum()
        marks = torch.arange(1, per_chain + 1) / per_chain - 1e-6
        return {first + int(t) for t in torch.searchsorted(time, marks.double())}


@dataclass(frozen=True, kw_only=True)
class FrictionSettings(ChainSettings):
    """As :class:`ChainSettings`, with momentum.

    Parameters
    ----------
    relative_step
        As there; momentum makes each step go 1/a as far, and the factor is 1/(1 − x/(4 − 2a)).
    momentum
        1 − a, the share of the velocity that a step keeps (Chen et al.: 0.9).
    """

    relative_step: float = 0.25
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a share in [0, 1), got {self.momentum}.")

    @property
    def friction(self) -> float:
        """A, the share of the velocity that a step loses."""
        return 1 - self.momentum


@dataclass(frozen=True, kw_only=True)
class CyclicalSettings(FrictionSettings):
    """As :class:`FrictionSettings`, with step sizes that fall along a cosine in each cycle.

    Parameters
    ----------
    n_cycles
        Cycles; the first one is not left out, since chains start at trained weights.
    exploration
        First share of each cycle, without noise and without states kept: half, since chains that start at trained
        weights need less of it than time to sample.
    """

    relative_step: float = 1.0
    burn_in: float = 0.0
    n_cycles: int = 4
    exploration: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_cycles")
        if not 0 <= self.exploration < 1:
            raise ValueError(f"exploration: expected a share in [0, 1), got {self.exploration}.")
        if self.n_cycles > self.n_steps:
            raise ValueError(f"n_cycles: expected at most {self.n_steps} (one step each), got {self.n_cycles}.")

    def phase(self, t: int) -> float:
        """Position of step t in its cycle, in [0, 1)."""
        length = math.ceil(self.n_steps / self.n_cycles)
        return (t % length) / length

    def step_share(self, t: int) -> float:
        """Zhang et al. (2020), equation 1."""
        return 0.5 * (math.cos(math.pi * self.phase(t)) + 1)

    def noise_share(self, t: int) -> float:
        """None while exploring."""
        return float(self.phase(t) >= self.exploration)

    def kept_steps(self) -> set[int]:
        """Equally spaced among the sampling steps of all cycles."""
        sampling = [t for t in range(int(self.burn_in * self.n_steps), self.n_steps) if self.noise_share(t)]
        per_chain = min(len(sampling), max(1, math.ceil(self.n_kept / self.n_chains)))
        return {sampling[(i + 1) * len(sampling) // per_chain - 1] for i in range(per_chain)}


class ChainPosterior(StoredPosterior[ChainSettings]):
    """The integrator that the chains share. Abstract: methods set ``settings_class``."""

    tunable: ClassVar = {"relative_step": (0.25, 0.5, 0.1, 1.0, 0.025)}

    def _run(self, problem: Problem) -> tuple[StoredSamples, dict[str, float]]:
        chosen, joint = self.settings, problem.joint
        gradients = problem.gradients(chosen.n_chains)
        size = chosen.step_size
        if size is None:
            size = chosen.relative_step / _sharpest(problem, chosen.seed)
        problem.data.restart()  # after the looks at the first batches
        theta = problem.theta.repeat(chosen.n_chains, 1)
        velocity, kept, keep = torch.zeros_like(theta), list[Tensor](), chosen.kept_steps()
        # Samples of a Gaussian posterior are T/2 above the minimum for each weight.
        limit, excess = 0.0, 100 * max(chosen.sampling_temperature, 1.0) * theta.shape[1] / joint.n_data
        bar = problem.steps(chosen.n_steps, type(self).__name__)
        for t in bar:
            value, gradient, _ = gradients(theta, problem.data.next_batch())
            limit = limit or 10 * float(value.abs().max()) + excess
            self._check(value, limit, t, size)
            step, a = size * chosen.step_share(t), chosen.friction
            scale = math.sqrt(2 * a * step * chosen.sampling_temperature / joint.n_data) * chosen.noise_share(t)
            velocity = (1 - a) * velocity - step * gradient + scale * problem.normal(*theta.shape)
            theta = theta + velocity
            if t in keep:
                kept.append(theta)
                bar.set_postfix(objective=f"{float(value.mean()):.4g}")
        chains = torch.stack(kept, 1)
        diagnostics = {
            "gradient_evaluations": float(gradients.evaluations),
            "step_size": size,
            **function_space_mixing(joint, chains, problem.data, gradients.group),
        }
        return StoredSamples(chains.flatten(0, 1)), diagnostics

    def _check(self, value: Float[Tensor, " n"], limit: float, t: int, size: float) -> None:
        # Once in a while: the check waits for the device.
        if t % 100 and t != self.settings.n_steps - 1:
            return
        if not bool((value < limit).all()):
            raise RuntimeError(
                f"{type(self).__name__}: expected an objective as on a posterior's samples, below {limit:.3g} per data "
                f"point, but a chain diverged by step {t} with step size {size:.3g}; use a smaller relative_step (now "
                f"{self.settings.relative_step}) or step_size."
            )


def _sharpest(problem: Problem, seed: int) -> float:
    """The largest curvature of the mean loss at the trained weights.

    Of several looks the highest: batches differ, and power iteration can halt at a smaller eigenvalue.
    """
    looks = (sharpness(problem.joint, problem.theta, problem.data.next_batch(), seed + i) for i in range(LOOKS))
    return max(looks)


class SGLD(ChainPosterior):
    """Stochastic-gradient Langevin dynamics: θ ← θ − h ∇Ĵ(θ) + √(2h) ξ on batches.

    Source: Welling and Teh (2011), *Bayesian learning via stochastic gradient Langevin dynamics*, equation 4 (their ε
    is 2h). The noise of the batches adds to the injected one, so that small batches with large steps are too warm.
    Settings: :class:`ChainSettings`.
    """

    _key = ("all", "sgld")
    settings_class = ChainSettings


class SGHMC(ChainPosterior):
    """Stochastic-gradient Hamiltonian Monte Carlo: Langevin dynamics with momentum.

    Source: Chen, Fox and Guestrin (2014), *Stochastic gradient Hamiltonian Monte Carlo*, equation 15 with β̂ = 0.
    Settings: :class:`FrictionSettings`.
    """

    _key = ("all", "sghmc")
    settings_class = FrictionSettings


class CyclicalSGHMC(ChainPosterior):
    """SGHMC whose step size falls along a cosine again and again: large steps find modes, small ones sample them.

    Source: Zhang, Li, Zhang, Chen and Wilson (2020), *Cyclical stochastic gradient MCMC for Bayesian deep learning*,
    equation 1 and algorithm 1. Settings: :class:`CyclicalSettings`.
    """

    _key = ("all", "csghmc")
    settings_class = CyclicalSettings
