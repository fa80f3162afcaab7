"""Diffusions in weight space that follow the Gauss-Newton matrix from point to point, in its image or its kernel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.baselines.baseline import Problem, Settings
from laplace_fiber.baselines.stored import StoredPosterior, StoredSamples
from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.gauss_newton import ScaledGGN
from laplace_fiber.spectrum import ImageSpectrum

MANY_SAMPLES, FEW_SAMPLES, QUICK_SIZE = 50, 5, 1000
"""Samples where a decomposition takes a fraction of a second (up to the given size), and where it does not."""


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(Settings):
    """Settings of the diffusions.

    Parameters
    ----------
    n_steps
        T, the steps of each sample's path, each with a Gauss-Newton matrix of its own (Roy et al.: 20; 10 and 25 for
        single networks).
    n_samples_fit
        Paths, each of which ends in one sample. ``None`` takes 50, or the 5 of Roy et al. where a matrix of more than
        1,000 rows has to be decomposed for every step.
    n_points
        Training points that each matrix is summed over: all of them, or so many that are drawn anew for every step and
        stand for all. ``None`` always takes all, as Roy et al. do.
    rank
        At most this many eigenpairs, the largest. ``None`` takes all where p, or data points times outputs, is at most
        3,000, and 100 Ritz pairs of Lanczos elsewhere (Roy et al.: 1,000, on a large GPU).
    cutoff
        Eigenvalues up to this share of the prior precision belong to the kernel (Roy et al.: 1e-7).
    """

    n_steps: int = 20
    n_samples_fit: int | None = None
    n_points: int | None = 4000
    rank: int | None = None
    cutoff: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_steps")
        self.require_positive(*(n for n in ("n_samples_fit", "n_points", "rank") if getattr(self, n) is not None))
        if not self.cutoff >= 0:
            raise ValueError(f"cutoff: expected a number >= 0, got {self.cutoff}.")


class DiffusionPosterior(StoredPosterior[DiffusionSettings]):
    """The walk that both diffusions share. Abstract: methods define ``_step``.

    Weights are measured in standard deviations of the prior, D = diag(τ)^-½, which makes the prior precision 1.
    """

    settings_class = DiffusionSettings
    tunable: ClassVar = {"n_steps": (20, 10, 40)}

    @abstractmethod
    def _step(self, spectrum: ImageSpectrum, noise: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        """A step of a path with T = 1, in standard deviations of the prior, for standard normal noise."""

    def _run(self, problem: Problem) -> tuple[StoredSamples, dict[str, float]]:
        chosen, scale = self.settings, problem.joint.prior_precision.rsqrt()
        every = chosen.n_points is None or chosen.n_points >= problem.data.n_data

        def local(theta: Tensor) -> ImageSpectrum:
            points = problem.data if every else some_points(problem.data, chosen.n_points or 0, problem.generator)
            ggn = ScaledGGN(problem.joint, theta, points, scale)
            return ImageSpectrum(ggn, problem.generator, rank=chosen.rank, cutoff=chosen.cutoff)

        first = local(problem.theta)
        evaluations, rank, paths = first.evaluations, 0, self._n_paths(first)
        kept, bar = list[Tensor](), problem.steps(paths * chosen.n_steps, type(self).__name__)
        theta = problem.theta
        for step in bar:
            begins = step % chosen.n_steps == 0
            theta = problem.theta if begins else theta
            known = begins and (every or step == 0)
            spectrum = first if known else local(theta)
            evaluations += 0 if known else spectrum.evaluations
            rank += spectrum.rank
            noise = problem.normal(len(theta))
            theta = theta + scale * self._step(spectrum, noise) / chosen.n_steps**0.5
            if (step + 1) % chosen.n_steps == 0:
                kept.append(theta)
            bar.set_postfix(rank=spectrum.rank)
        return StoredSamples(torch.stack(kept)), {
            "gradient_evaluations": evaluations,
            "rank": rank / (paths * chosen.n_steps),
            "exact": float(first.exact),
        }

    def _n_paths(self, first: ImageSpectrum) -> int:
        quick = first.exact and min(first.n_rows, self.n_params) <= QUICK_SIZE
        return self.settings.n_samples_fit or (MANY_SAMPLES if quick else FEW_SAMPLES)


class LaplaceDiffusion(DiffusionPosterior):
    """Laplace diffusion: T small Gaussian steps, each in the image of the Gauss-Newton matrix where it starts.

    θ ← θ + T^-½ U (Λ + α)^-½ ε with (Λ, U) the eigenpairs of G(θ) above zero and α the prior precision (with one
    precision τ per weight, those of diag(τ)^-½ G diag(τ)^-½). One step (T = 1) is a sample of the Laplace
    approximation without the part in the kernel of G, where it follows the prior and the network breaks down.

    Source: Roy, Miani, Ek, Hennig, Pförtner, Tatzel and Hauberg (2024), *Reparameterization invariance in approximate
    Bayesian inference*, section 5. Their code takes T − 1 steps of length T^-½, which loses the factor 1 − 1/T in
    variance, and starts Lanczos from the step's own noise: the signs of the vectors then depend on it, and steps have a
    mean, which adds up over the path. Here there are T steps with noise of their own, mapped by the symmetric root, in
    which signs do not matter; Ritz vectors lie in the image by construction.
    Settings: :class:`DiffusionSettings`.
    """

    _key = ("all", "diffusion")

    def _step(self, spectrum: ImageSpectrum, noise: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        # With noise in all p dimensions, the signs and the order of eigenvectors do not matter.
        return spectrum.inverse_root(noise, 1.0)


class KernelDiffusion(DiffusionPosterior):
    """The kernel's diffusion: T small steps of the prior's size that leave the outputs on the data as they are.

    θ ← θ + (α T)^-½ (I − U Uᵀ) ε with U the eigenvectors of G(θ) above zero: infinitesimal reparametrisations of the
    network, the directions that the data say nothing about. It shows how much of a posterior's spread is of that kind,
    and varies away from the data only. Where p is large and Lanczos does not reach the whole image, steps also keep the
    rest of it.

    Source: as for :class:`LaplaceDiffusion`, section 5 (there "kernel"). Settings: :class:`DiffusionSettings`.
    """

    _key = ("all", "diffusion_kernel")

    def _step(self, spectrum: ImageSpectrum, noise: Float[Tensor, " p"]) -> Float[Tensor, " p"]:
        # Twice, for noise whose kernel part is much the smaller one.
        return spectrum.kernel(spectrum.kernel(noise))

    def fit_warnings(self) -> Sequence[str]:
        """That there is no kernel to move in."""
        if self.diagnostics["rank"] < self.n_params:
            return ()
        return (
            "The Gauss-Newton matrix has full rank: its kernel is empty, and all samples are the trained weights; use "
            "LaplaceDiffusion, or a network with more weights than data points times outputs.",
        )


def some_points(data: TrainingData, n: int, generator: torch.Generator) -> list[Batch]:
    """At least one and at most about n training points: drawn at random, or the loader's next batches."""
    if not data.full:
        batches = [data.next_batch()]
        while sum(batch.size for batch in batches) < n:
            batches.append(data.next_batch())
        return batches
    everything, kept = data.everything(), list[Batch]()
    for i in torch.randperm(len(everything.blocks), generator=generator, device=generator.device).tolist():
        x, y = everything.blocks[i]
        missing = n - sum(batch.size for batch in kept)
        if missing <= 0:
            break
        if isinstance(x, Tensor) and missing < len(y):
            rows = torch.randperm(len(y), generator=generator, device=generator.device)[:missing]
            x, y = x[rows], y[rows]
        kept.append(Batch([(x, y)], len(y)))
    return kept
