"""The evidence, and the effective number of parameters, in the subspace of a posterior's walk."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from laplace_fiber.curvature import SubspaceCurvature, subspace_ggn
from laplace_fiber.effective_dimension import PROBES, EffectiveDimension
from laplace_fiber.posterior import SampledPosterior
from laplace_fiber.subspace import Subspace


class SubspaceEvidence(SampledPosterior):
    """A posterior whose fit spans a subspace, with Laplace's evidence restricted to that."""

    _curvature: SubspaceCurvature | None = None

    @property
    @abstractmethod
    def _subspace(self) -> Subspace:
        """That of the fit; ``RuntimeError`` before."""

    def log_marginal_likelihood(
        self, prior_precision: Tensor | None = None, sigma_noise: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Laplace's evidence restricted to the subspace of the walk.

        log p(D | θ_MAP) − ½ (θ_MAP − μ₀)ᵀ diag(τ) (θ_MAP − μ₀) − ½ log det(I + H V G Vᵀ / τ), with V the subspace and G
        the Gauss-Newton matrix at the MAP. Differentiable in both arguments, which are stored when given. The first
        call after a fit passes once over the training data for each of the subspace's dimensions.
        """
        self._require_mean()
        if prior_precision is not None:
            self.prior_precision = prior_precision
        if sigma_noise is not None:
            self.check_noise_applies(sigma_noise)
            self.sigma_noise = sigma_noise
        ratio = self._subspace_curvature().log_determinant_ratio(self.prior_precision_diag, self._H_factor.reshape(-1))
        evidence: Tensor = self.log_likelihood - 0.5 * self.scatter - 0.5 * ratio.to(self._require_mean())
        return evidence

    def effective_dimension(self, rank: int | None = None, probes: int = PROBES) -> EffectiveDimension:
        """As for every posterior, with the number for the posterior in the walk's subspace alone (``in_subspace``)."""
        result = super().effective_dimension(rank, probes)
        curvature = self._subspace_curvature()
        inside = curvature.effective_dimension(self.prior_precision_diag, self._H_factor.reshape(-1))
        return replace(result, in_subspace=float(inside), subspace_rank=len(curvature.basis))

    def _subspace_curvature(self) -> SubspaceCurvature:
        per_output = self.sigma_noise.ndim > 0
        if self._curvature is None or (per_output and len(self._curvature.ggn) == 1):
            if self._data is None:
                raise RuntimeError(
                    "log_marginal_likelihood: expected the training data of a fit, got a loaded state without the "
                    "curvature; call it once before state_dict(), or fit again."
                )
            theta, basis = self._require_mean(), self._subspace.basis
            ggn = subspace_ggn(self.network, theta, basis, self._data.epoch(), self._loss_likelihood, per_output)
            self._curvature = SubspaceCurvature(ggn, basis)
        return self._curvature
