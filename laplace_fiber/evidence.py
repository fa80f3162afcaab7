"""Prior precision and noise from Laplace's evidence, before anything is sampled.

With λ the eigenvalues of D G D (D = diag(τ)^-½ and G the Gauss-Newton matrix for the present τ and σ) and factors t of
τ and s of σ, the logarithm of the evidence at weights θ is, up to a constant,

−E_D(θ)/s² − N log s − t E_W(θ) − ½ Σ log(1 + λ/(t s²)),  E_D = Σ ℓ / temperature,  E_W = ½ (θ − μ₀)ᵀ diag(τ) (θ − μ₀),

N being the number of data points times outputs, and s = 1 in classification. It is largest where 2 t E_W = γ and
2 E_D/s² = N − γ, with γ = Σ λ/(λ + t s²) the effective number of parameters.

Source: MacKay (1992), *A practical Bayesian framework for backpropagation networks*, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.balance import balance
from laplace_fiber.data import TrainingData
from laplace_fiber.distributed import Ranks
from laplace_fiber.effective_dimension import EffectiveDimension, effective_dimension
from laplace_fiber.log_joint import LogJoint, log_normaliser
from laplace_fiber.typical_set import AT_MINIMUM, SATURATED, minimum_near

ROUNDS, TOLERANCE = 30, 0.01
"""Rounds at most, and the relative change of τ and σ² from one to the next that ends them."""

LARGEST = 1e8
"""Factor beyond which τ and σ are not changed: without curvature, at θ = μ₀, or without an error in the outputs, the
evidence has no maximum."""

HALVINGS = 80


@dataclass(frozen=True)
class EvidenceChoice:
    """Prior precision and noise that the evidence prefers; ``print`` it.

    Attributes
    ----------
    precision_factor, noise_factor
        What τ and σ were multiplied by.
    prior_precision, sigma_noise
        The values chosen, averaged over weights and over outputs where there are several.
    log_evidence
        Laplace's log p(D | τ, σ), temperature included as in laplace-torch.
    effective_dimension
        d_eff at the weights that the evidence was computed at.
    n_observations
        Data points times outputs.
    rounds, converged
        Rounds of choosing τ and σ and descending to the minimum of their J; and whether the last changed both by less
        than one percent.
    imbalance
        Of data and prior gradient at these weights: 0 at a minimum of J, 1 far from it.
    """

    precision_factor: float
    noise_factor: float
    prior_precision: float
    sigma_noise: float | None
    log_evidence: float
    effective_dimension: float
    n_observations: int
    rounds: int
    converged: bool
    imbalance: float

    def applied_to(self, joint: LogJoint) -> LogJoint:
        """The objective with the factors in its prior precision and noise."""
        precision, noise = joint.prior_precision * self.precision_factor, joint.sigma_noise * self.noise_factor
        return replace(joint, prior_precision=precision, sigma_noise=noise)

    def shared(self, ranks: Ranks, device: torch.device) -> EvidenceChoice:
        """With the factors of the first rank: processors may differ in rounding."""
        pair = torch.tensor([self.precision_factor, self.noise_factor], dtype=torch.float64, device=device)
        ranks.share_first([pair])
        return replace(self, precision_factor=float(pair[0]), noise_factor=float(pair[1]))

    def warnings(self) -> Iterator[str]:
        """One sentence for each assumption of Laplace's evidence that does not hold."""
        if not self.converged:
            yield (
                f"The evidence's choice has not converged in {self.rounds} rounds (prior precision "
                f"{self.prior_precision:.3g}): fit again to go on from it, or choose it on validation data."
            )
        if any(not 1.01 / LARGEST < factor < LARGEST / 1.01 for factor in (self.precision_factor, self.noise_factor)):
            yield (
                "The evidence has no maximum: the data determine no weights, or are fitted without an error; set "
                "prior_precision and sigma_noise yourself."
            )
        if self.imbalance > AT_MINIMUM:
            yield (
                f"The evidence was computed at weights that are not at a minimum of J (imbalance "
                f"{self.imbalance:.2f}), which it assumes: train longer with these values, or use batch='full'."
            )
        if self.effective_dimension > SATURATED * self.n_observations:
            yield (
                f"The evidence's choice leaves {self.effective_dimension:.4g} parameters that {self.n_observations} "
                "observations determine: too many for it to be trusted; choose prior_precision on validation data."
            )

    def __str__(self) -> str:
        noise = "" if self.sigma_noise is None else f", noise {self.sigma_noise:.3g} (times {self.noise_factor:.3g})"
        end = "converged" if self.converged else "not converged"
        return (
            f"evidence: prior precision {self.prior_precision:.3g} (times {self.precision_factor:.3g}){noise}, "
            f"{end} in {self.rounds} rounds, log evidence {self.log_evidence:.5g}"
        )


def maximise_evidence(
    joint: LogJoint, theta: Float[Tensor, " p"], data: TrainingData, seed: int = 0
) -> tuple[EvidenceChoice, Float[Tensor, " p"]]:
    """Choose a factor of τ, and in regression one of σ, in turn with the minimum of J near the trained weights.

    The first choice is made at the trained weights as they are: they tell more than the minimum for a τ and σ that
    nobody chose. Where a step does not see all data, it is the only one. Returns the minimum, too.

    Parameters
    ----------
    joint
        The objective, with the values to begin with. Precisions per layer or weight, and noises per output, keep their
        ratios.
    theta
        The trained weights.
    data
        All training data.
    seed
        Of what is random in the curvature.
    """
    regression, first = joint.likelihood == "regression", joint
    losses = joint.unit_losses(theta, data.epoch())
    n_observations = joint.n_data * (losses.numel() if regression else 1)
    t, s, rounds, converged = 1.0, 1.0, 0, False
    while True:
        dimension = effective_dimension(joint, theta, data, seed)
        misfit, energy = _misfit(joint, losses), float(joint.prior_energy(theta[None]))
        change = factors(dimension, misfit, energy, n_observations if regression else None)
        change = (_bounded(t * change[0]) / t, _bounded(s * change[1]) / s)
        t, s, rounds = t * change[0], s * change[1], rounds + 1
        joint = replace(first, prior_precision=first.prior_precision * t, sigma_noise=first.sigma_noise * s)
        converged = max(abs(math.log(change[0])), 2 * abs(math.log(change[1]))) < TOLERANCE
        if converged or rounds == ROUNDS or not data.full:
            break
        theta = minimum_near(theta, joint, data.everything())
        losses = joint.unit_losses(theta, data.epoch())
    data.restart()
    scale = 1 / (change[0] ** 0.5 * change[1])
    normaliser = joint.n_data * float(log_normaliser(joint.sigma_noise, losses[None])) if regression else 0.0
    likelihood = -_misfit(joint, losses) - normaliser
    choice = EvidenceChoice(
        t,
        s,
        float(joint.prior_precision.mean()),
        float(torch.as_tensor(joint.sigma_noise).mean()) if regression else None,
        likelihood - change[0] * energy - 0.5 * dimension.log_determinant(scale),
        dimension.at(scale),
        n_observations,
        rounds,
        converged or not data.full,
        balance(joint, theta, data.everything() if data.full else data.some(joint.n_data)).imbalance,
    )
    return choice, theta


def factors(
    dimension: EffectiveDimension, misfit: float, energy: float, n_observations: int | None
) -> tuple[float, float]:
    """t and s with the largest evidence at fixed weights, where 2 t E_W = γ and 2 E_D/s² = N − γ.

    Both follow from a = t s²: γ depends on it alone, and a = 2 E_D γ(a) / (2 E_W (N − γ(a))), in classification
    a = γ(a) / (2 E_W). The right side falls with a: bisection in log a finds the only solution.

    Parameters
    ----------
    dimension
        The eigenvalues λ.
    misfit, energy
        E_D and E_W for the present τ and σ.
    n_observations
        N; None in classification.
    """
    tiny = torch.finfo(torch.float64).tiny

    def noise(a: float) -> float:
        """s²."""
        if n_observations is None:
            return 1.0
        free = max(n_observations - dimension.at(a**-0.5), 1e-3 * n_observations)
        return max(2 * misfit, tiny) / free

    def precision(a: float) -> float:
        """t."""
        return dimension.at(a**-0.5) / max(2 * energy, tiny)

    solution = _root(lambda log_a: math.log(max(precision(math.exp(log_a)) * noise(math.exp(log_a)), tiny)) - log_a)
    a = math.exp(solution)
    variance = noise(a)
    return a / variance, variance**0.5


def _root(falling: Callable[[float], float]) -> float:
    """Where a falling function is zero, in a range that no factor of a precision leaves."""
    low, high = -2 * math.log(LARGEST), 2 * math.log(LARGEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / LARGEST), LARGEST)


def _misfit(joint: LogJoint, losses: Float[Tensor, " c"]) -> float:
    """Σ ℓ / temperature from the losses at σ = 1."""
    if joint.likelihood != "regression":
        return float(losses.sum()) / joint.temperature
    sigma = torch.as_tensor(joint.sigma_noise, dtype=losses.dtype, device=losses.device)
    return float((losses / sigma.square()).sum()) / joint.temperature
