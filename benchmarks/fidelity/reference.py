"""What posteriors are measured by: long Hamiltonian Monte Carlo, or exact draws where the posterior is Gaussian."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks import models
from benchmarks.fidelity.problems import DTYPE, Problem
from benchmarks.fidelity.training import digest, gradient_norm
from benchmarks.records import write_tensors
from laplace_fiber.baselines.baseline import Problem as Posterior
from laplace_fiber.baselines.convergence import ess, rank_normalised, rhat
from laplace_fiber.baselines.hmc import DualAveraging, Dynamics, HMCSettings
from laplace_fiber.curvature import subspace_ggn
from laplace_fiber.predictive import function_samples

TARGET = 1.01
"""R-hat below which chains have converged (Vehtari et al. 2021)."""

ENOUGH = 0.8
"""Effective samples that chains go on for, too, as a share of the draws that are kept."""

POINTS = 50
"""Inputs of each kind (training, inside, outside) at which functions are compared between chains, at most."""

COMPARED_DRAWS = 500
"""Draws of each chain, at most, that R-hat is computed from."""

FIRST_SEED = 1_000_000
"""Of the references' random numbers, for problems of seed 0."""

WARMUP_SHARE = 0.25
"""Share of the time that warming up may take."""


@dataclass(frozen=True)
class Effort:
    """What chains may spend.

    ``n_warmup`` trajectories of each chain adapt the step size; after ``n_first`` more ones, and whenever their number
    has grown by half, R-hat is looked at. ``approach`` are steps of Adam from a draw of the prior to a chain's start.
    ``max_leapfrog`` is above HMC's own default: with weak priors shorter trajectories are random walks, and R-hat stays
    far from 1 (Snelson, τ = 0.1, 1.29 with 200 steps after 120 s, 1.01 with 1000 after 150 s).
    """

    n_chains: int = 8
    n_warmup: int = 200
    n_first: int = 250
    n_kept: int = 1000
    approach: int = 300
    max_leapfrog: int = 1000


FULL = Effort()
QUICK = Effort(n_chains=2, n_warmup=10, n_first=20, n_kept=40, approach=20, max_leapfrog=100)


@dataclass(frozen=True)
class Reference:
    """Draws of the posterior.

    Attributes
    ----------
    thetas
        Equally likely weight vectors, those of one chain after another.
    info
        How they were made, and whether the chains have converged.
    """

    thetas: Float[Tensor, "s p"]
    info: dict[str, Any]

    @property
    def identity(self) -> str:
        """A digest of the draws, by which results tell what they were measured with."""
        return hashlib.sha256(self.thetas.numpy().tobytes()).hexdigest()[:16]

    @property
    def halves(self) -> tuple[Float[Tensor, "s p"], Float[Tensor, "s p"]]:
        """The draws of the first chains and those of the others."""
        half = len(self.thetas) // 2
        return self.thetas[:half], self.thetas[half:]


def reference(problem: Problem, limit: float) -> Reference:
    """Draws from disk, or new ones where there are none, or where chains may now run longer and have to."""
    effort = QUICK if problem.spec.quick else FULL
    key = digest([asdict(problem.spec), asdict(problem.architecture), asdict(effort)], problem.data)
    path = models.CACHE / f"fidelity-hmc-{problem.spec.stem}-{problem.spec.seed}-{key}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        found = Reference(saved["thetas"], json.loads(saved["info"]))
        if found.info["converged"] or found.info["limit_seconds"] >= limit:
            return found
    made = exact(problem, effort) if not problem.architecture.hidden else hmc(problem, effort, limit)
    made.info.update(mode(problem), limit_seconds=limit)
    write_tensors(path, {"thetas": made.thetas, "info": json.dumps(made.info)})
    return made


def exact(problem: Problem, effort: Effort) -> Reference:
    """Independent draws from the Gaussian posterior of a linear model with squared loss."""
    theta = problem.theta
    precision = gauss_newton(problem) + problem.spec.tau * torch.eye(len(theta), dtype=DTYPE)
    root = torch.linalg.cholesky(precision)
    noise = torch.randn(len(theta), effort.n_kept, generator=_generator(problem), dtype=DTYPE)
    draws = theta + torch.linalg.solve_triangular(root.mT, noise, upper=True).T
    return Reference(draws, {"kind": "exact", "converged": True, "rhat": 1.0, "ess": float(effort.n_kept)})


def hmc(problem: Problem, effort: Effort, limit: float) -> Reference:
    """Chains that go on until they have converged in function space, or until ``limit`` seconds have passed.

    R-hat and effective samples are the largest and the smallest one at training, inside and outside inputs. Chains
    start at networks of their own: draws of the prior, brought near modes.
    """
    start = time.perf_counter()
    chains = Chains(problem, effort)
    chains.warm_up(start + WARMUP_SHARE * limit)
    warmed = time.perf_counter()
    wanted = effort.n_first
    while True:
        chains.advance(wanted - len(chains.kept), start + limit)
        found = mixing(problem, chains.draws)
        converged = found["rhat"] < TARGET and found["ess"] >= ENOUGH * effort.n_kept
        if converged or time.perf_counter() - start > limit:
            break
        wanted = wanted * 3 // 2
    seconds = time.perf_counter() - start
    info = {
        "kind": "hmc",
        "converged": converged,
        **found,
        **chains.diagnostics(),
        "seconds": seconds,
        "warmup_seconds": warmed - start,
        "effort": asdict(effort),
    }
    thinned = _thinned(chains.draws, effort.n_kept // effort.n_chains)
    return Reference(thinned.flatten(0, 1).clone(), info)


class Chains:
    """Chains of Hamiltonian Monte Carlo, by the dynamics of :class:`laplace_fiber.baselines.HMC`, that can go on."""

    def __init__(self, problem: Problem, effort: Effort) -> None:
        posterior = Posterior(problem.joint, problem.theta, problem.training_data, _generator(problem))
        self.effort, self.settings = effort, HMCSettings(max_leapfrog=effort.max_leapfrog)
        self.dynamics = Dynamics(posterior, effort.n_chains)
        self.state = self.dynamics.at(starts(problem, effort, posterior))
        self.step = 0.0
        self.warmed = 0
        self.kept = list[Tensor]()
        self.probabilities, self.lengths, self.divergent = list[float](), list[int](), list[float]()

    @property
    def draws(self) -> Float[Tensor, "c d p"]:
        """All states after the warm-up."""
        return torch.stack(self.kept, 1)

    def warm_up(self, deadline: float) -> None:
        """Adapt the step size, until the deadline at most."""
        adaptation = DualAveraging(self.dynamics.first_step(self.state), self.settings.target_acceptance)
        while self.warmed < self.effort.n_warmup and (self.warmed < 10 or time.perf_counter() < deadline):
            self.step = adaptation.step
            adaptation.update(self._transition())
            self.warmed += 1
        self.step = adaptation.averaged

    def advance(self, n: int, deadline: float) -> None:
        """Keep n more states of each chain, or as many as there is time for (at least 8)."""
        for _ in range(n):
            if len(self.kept) >= 8 and time.perf_counter() > deadline:
                return
            self.probabilities.append(self._transition())
            self.kept.append(self.state.theta)

    def diagnostics(self) -> dict[str, float]:
        """Averages after the warm-up, and the length of the chains."""
        n = len(self.kept)
        return {
            "acceptance": sum(self.probabilities) / n,
            "divergent_share": sum(self.divergent[-n:]) / n,
            "leapfrog_steps": sum(self.lengths[-n:]) / n,
            "step_size": self.step,
            "n_warmup": self.warmed,
            "n_draws_per_chain": n,
        }

    def _transition(self) -> float:
        n_steps = self.settings.leapfrog_steps(self.step, self.dynamics.uniform())
        outcome = self.dynamics.transition(self.state, self.step, n_steps)
        self.state = outcome.state
        self.lengths.append(n_steps)
        self.divergent.append(float(outcome.divergent.double().mean()))
        return float(outcome.probability.mean())


def starts(problem: Problem, effort: Effort, posterior: Posterior) -> Float[Tensor, "c p"]:
    """Draws of the prior after some steps of Adam on J/n_data: apart from one another, but not in far tails."""
    theta = posterior.normal(effort.n_chains, len(problem.theta)) / problem.spec.tau**0.5
    rows = theta.requires_grad_()
    adam, batch = torch.optim.Adam([rows], lr=1e-2), problem.training_data.everything()
    for _ in range(effort.approach):
        rows.grad = problem.joint.evaluate(rows.detach(), batch).grad
        adam.step()
    return rows.detach()


def mixing(problem: Problem, chains: Float[Tensor, "c d p"]) -> dict[str, float]:
    """Largest R-hat at each kind of inputs and of all, and smallest effective sample size, in function space.

    Functions are outputs, or log-probabilities of classes; draws beyond 500 of each chain are thinned, so that ``ess``
    counts those at most.
    """
    thinned = _thinned(chains, COMPARED_DRAWS)
    data = problem.data
    found = dict[str, float]()
    sizes = list[float]()
    for kind, x in {"train": data.train[0], "inside": data.inside, "outside": data.outside}.items():
        some = x[torch.linspace(0, len(x) - 1, min(len(x), POINTS)).long()]
        outputs = function_samples(problem.joint.network, thinned.flatten(0, 1), some, chunk_size=500)
        values = outputs.log_softmax(-1) if problem.classes else outputs
        draws = values.reshape(*thinned.shape[:2], -1)
        found[f"rhat_{kind}"] = float(rhat(draws).nan_to_num(math.inf).max())
        sizes.append(float(ess(rank_normalised(draws)).nan_to_num(0.0).min()))
    return {**found, "rhat": max(found.values()), "ess": min(sizes)}


def gauss_newton(problem: Problem) -> Float[Tensor, "p p"]:
    """The Gauss-Newton matrix of the data term at the mode."""
    theta, data = problem.theta, problem.data
    every = torch.eye(len(theta), dtype=DTYPE)
    epoch = problem.training_data.epoch()
    return subspace_ggn(problem.joint.network, theta, every, epoch, data.likelihood)[0] / data.sigma**2


def mode(problem: Problem) -> dict[str, float]:
    """|∇J| at the mode, and half the effective number of parameters d = Σ λ/(λ + τ), the NLL excess of a Gaussian."""
    values = torch.linalg.eigvalsh(gauss_newton(problem)).clamp(min=0)
    half = 0.5 * float((values / (values + problem.spec.tau)).sum())
    return {"gradient_norm": gradient_norm(problem), "half_effective_parameters": half}


def _thinned(chains: Float[Tensor, "c d p"], n: int) -> Float[Tensor, "c e p"]:
    """At most n draws of each chain, equally spaced."""
    d = chains.shape[1]
    return chains if d <= n else chains[:, torch.linspace(0, d - 1, n).round().long()]


def _generator(problem: Problem) -> torch.Generator:
    # Not the methods' own random numbers, which would make their samples dependent on the reference's.
    return torch.Generator().manual_seed(FIRST_SEED + problem.spec.seed)
