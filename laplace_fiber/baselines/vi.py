"""Mean-field variational inference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from laplace_fiber.baselines.baseline import Baseline, Problem, Settings
from laplace_fiber.data import BatchChoice
from laplace_fiber.log_joint import LogJoint, log_normaliser


@dataclass(frozen=True, kw_only=True)
class VariationalSettings(Settings):
    """Settings of mean-field variational inference.

    Parameters
    ----------
    n_steps
        Steps of Adam, whose step sizes fall to zero along a cosine.
    n_mc
        Weight samples that one step looks at, in pairs μ ± σ ε: an even number.
    learning_rate
        Adam's first step size for ρ, which is log σ while σ is small: so many logarithmic units a step. μ moves by
        ``learning_rate`` times the root mean square of the trained weights.
    initial_sigma
        First σ, over the root mean square of the trained weights. Small, so that the fit starts where the network
        works (Blundell et al. start from random weights instead; from trained ones as in Krishnan et al. 2020).
    """

    batch: BatchChoice = "loader"
    n_steps: int = 5000
    n_mc: int = 8
    learning_rate: float = 0.03
    initial_sigma: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_steps", "n_mc", "learning_rate", "initial_sigma")
        if self.n_mc % 2:
            raise ValueError(f"n_mc: expected an even number, since weights are drawn in pairs, got {self.n_mc}.")


@dataclass(frozen=True)
class Gaussian:
    """Independent normal weights."""

    mu: Float[Tensor, " p"]
    sigma: Float[Tensor, " p"]


class MeanFieldVI(Baseline[VariationalSettings, Gaussian]):
    """Independent normal weights with the least Kullback-Leibler divergence from the posterior.

    Maximises the evidence lower bound −E_q[Σ ℓ / temperature] − KL(q ‖ N(μ₀, 1/τ)) over q = N(μ, σ²), σ = log(1 + e^ρ),
    with reparameterised weights μ + σ ε and the divergence in closed form (τ is a precision: the prior's standard
    deviation is τ^-½).

    Source: Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), *Weight uncertainty in neural networks*, equation 1
    and section 3.2. Each σ is that of a weight with all others held fixed, and wide networks are drawn to the prior:
    the method is known to underfit. Diagnostics hold the bound as ``elbo`` (mean of the last tenth of the steps, in
    nats). Settings: :class:`VariationalSettings`.
    """

    _key = ("all", "vi")
    settings_class = VariationalSettings
    fit_class = Gaussian
    tunable: ClassVar = {"learning_rate": (0.03, 0.1, 0.01)}

    def _run(self, problem: Problem) -> tuple[Gaussian, dict[str, float]]:
        chosen, joint = self.settings, problem.joint
        gradients = problem.gradients(chosen.n_mc)
        scale = float(problem.theta.square().mean().sqrt()) or float(joint.prior_precision.rsqrt().mean())
        mu = problem.theta.clone()
        rho = torch.full_like(mu, math.log(math.expm1(chosen.initial_sigma * scale)))
        groups = [{"params": [mu], "lr": chosen.learning_rate * scale}, {"params": [rho], "lr": chosen.learning_rate}]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.n_steps)
        last, bounds = chosen.n_steps - max(1, chosen.n_steps // 10), list[Tensor]()
        bar = problem.steps(chosen.n_steps, "MeanFieldVI")
        for t in bar:
            sigma = functional.softplus(rho)
            half = problem.normal(chosen.n_mc // 2, mu.numel())
            noise = torch.cat([half, -half])
            thetas = mu + sigma * noise
            _, gradient, data_term = gradients(thetas, problem.data.next_batch())
            # In nats, beside which Adam's small constant is small, and without the prior's part, which is known.
            slope = joint.n_data * gradient - joint.prior_precision * (thetas - joint.prior_mean)
            divergence, of_mu, of_sigma = divergence_from_prior(mu, sigma, joint)
            mu.grad = slope.mean(0) + of_mu
            rho.grad = ((slope * noise).mean(0) + of_sigma) * rho.sigmoid()
            optimizer.step()
            schedule.step()
            bound = -data_term.mean() - divergence
            if t >= last:
                bounds.append(bound)
            if t % 100 == 0:  # once in a while: looking at numbers waits for the device
                bar.set_postfix(elbo=f"{self._checked(bound, t):.4g}")
        elbo = self._checked(torch.stack(bounds).mean(), chosen.n_steps)
        if joint.likelihood == "regression":
            elbo -= joint.n_data * float(log_normaliser(joint.sigma_noise, problem.data.first[1]))
        return Gaussian(mu, functional.softplus(rho)), {
            "gradient_evaluations": float(gradients.evaluations),
            "elbo": elbo,
        }

    def _draw(self, fitted: Gaussian, n_samples: int, generator: torch.Generator) -> Float[Tensor, "s p"]:
        shape = (n_samples, fitted.mu.numel())
        noise = torch.randn(shape, generator=generator, dtype=fitted.mu.dtype, device=fitted.mu.device)
        return noise.mul_(fitted.sigma).add_(fitted.mu)

    def _checked(self, bound: Float[Tensor, ""], t: int) -> float:
        if not bool(torch.isfinite(bound)):
            raise RuntimeError(
                f"MeanFieldVI: expected a finite evidence bound, got {float(bound)} at step {t}; use a smaller "
                f"learning_rate (now {self.settings.learning_rate}) or initial_sigma (now "
                f"{self.settings.initial_sigma})."
            )
        return float(bound)


def divergence_from_prior(
    mu: Float[Tensor, " p"], sigma: Float[Tensor, " p"], joint: LogJoint
) -> tuple[Float[Tensor, ""], Float[Tensor, " p"], Float[Tensor, " p"]]:
    """KL(N(μ, σ²) ‖ N(μ₀, 1/τ)) = Σ ½ (τ σ² + τ (μ − μ₀)² − 1 − log τ σ²), its gradients in μ and in σ."""
    tau, offset = joint.prior_precision, mu - joint.prior_mean
    share = tau * sigma.square()
    value = 0.5 * (share + tau * offset.square() - 1 - share.log()).sum()
    return value, tau * offset, tau * sigma - 1 / sigma
