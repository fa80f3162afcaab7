"""Riemannian Laplace approximations: tangent vectors of the Laplace approximation, sent along geodesics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.baselines.geodesic_posterior import GeodesicPosterior, GeodesicSettings
from laplace_fiber.baselines.geodesics import Metric, ObjectiveMetric
from laplace_fiber.baselines.output_metrics import FisherMetric, LinearisedMetric
from laplace_fiber.baselines.pieces import Pieces
from laplace_fiber.baselines.tangents import Curvature, check_curvature, correlated, tangent_vectors
from laplace_fiber.linearised import linearised_samples, output_covariance
from laplace_fiber.weights import Inputs

FISHER_LIMIT = 2000
"""Weights up to which a dense Fisher metric is formed for every geodesic at every step."""

KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Threshold, nn.Hardshrink)


@dataclass(frozen=True, kw_only=True)
class RiemannianSettings(GeodesicSettings):
    """As :class:`GeodesicSettings`, for the metrics of the objective's graph.

    Parameters
    ----------
    curvature
        Structure of the Laplace approximation that tangent vectors are drawn from.
    rank
        Eigenpairs of ``curvature="lowrank"``.
    data
        Behind the metric: ``"full"``, or a fixed random ``"subset"`` for each sample, its loss scaled up.
    subset_size
        Points in each subset; ``None`` takes 150 (Bergamin et al. 2023, of 265), or half of the data if that is less.
    """

    curvature: Curvature = "auto"
    rank: int = 50
    data: Literal["full", "subset"] = "full"
    subset_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_curvature(self.curvature)
        self.require_positive("rank")
        if self.data not in ("full", "subset"):
            raise ValueError(f"data: expected 'full' or 'subset', got {self.data!r}.")
        if self.subset_size is not None:
            self.require_positive("subset_size")

    def points(self, n_data: int) -> int:
        """Size of each subset of so many data."""
        size = self.subset_size or min(150, -(-n_data // 2))
        if size > n_data:
            raise ValueError(f"subset_size: expected at most the {n_data} training points, got {size}.")
        return size


class ObjectivePosterior(GeodesicPosterior):
    """Tangent vectors of a Laplace approximation in any structure. Abstract."""

    settings_class = RiemannianSettings
    tunable: ClassVar = {"data": ("full", "subset")}

    def _tangents(self, problem: Problem) -> Float[Tensor, "s p"]:
        chosen = self.settings
        return tangent_vectors(problem, chosen.n_samples_fit, chosen.curvature, chosen.rank)

    def _subsets(self, problem: Problem) -> Int[Tensor, "s m"] | None:
        """A random subset of the data for each geodesic."""
        if self.settings.data == "full":
            return None
        n, n_geodesics, generator = problem.data.n_data, self.settings.n_samples_fit, problem.generator
        size = self.settings.points(n)
        draws = [torch.randperm(n, generator=generator, device=generator.device) for _ in range(n_geodesics)]
        return torch.stack(draws)[:, :size]


class RiemannianLaplace(ObjectivePosterior):
    """Riemannian Laplace: θ = Exp_θ*(v), v ~ N(0, C) with C the Laplace approximation's covariance.

    The exponential map is that of the metric I + ∇J ∇Jᵀ: c″ = −∇J ⟨c′, ∇²J c′⟩ / (1 + ‖∇J‖²), θ = c(1).
    Samples bend towards low loss. Even with infinitely many data they are narrower than the posterior (Yu et al.
    2024); :class:`FisherRiemannianLaplace` is not. Predictions use the network itself. Settings:
    :class:`RiemannianSettings`. The prior precision matters: choose it first, e.g. with a Gaussian flavour of
    laplace-torch, since geodesics with a weak prior are slow to follow.

    Source: Bergamin, Moreno-Muñoz, Hauberg and Arvanitidis (2023), *Riemannian Laplace approximations for Bayesian
    neural networks*, NeurIPS: their system of equations for c″, and a subset of the data per sample.
    """

    _key = ("all", "riemannian")
    pred_types = ("nn",)

    def _metric(self, problem: Problem, theta: Float[Tensor, " p"]) -> Metric:
        pieces = Pieces(problem.data, self._subsets(problem))
        if self.settings.double:
            pieces.cast(theta.dtype)
        return ObjectiveMetric(problem.joint, theta, pieces, self.settings.n_samples_fit)

    def fit_warnings(self) -> Sequence[str]:
        """Also: kinks, where the Hessian does not say how the gradient changes."""
        found = {type(m).__name__ for m in self.network.model.modules() if isinstance(m, KINKED)}
        if not found:
            return super().fit_warnings()
        return [
            *super().fit_warnings(),
            f"{' and '.join(sorted(found))}: the loss has kinks, whose curvature geodesics do not feel: they assume "
            "smooth activations such as tanh, GELU or SiLU.",
        ]


class LinearisedRiemannianLaplace(ObjectivePosterior):
    """Riemannian Laplace of the linearised network f(θ*) + J (θ − θ*): metric and predictions both use it.

    As :class:`RiemannianLaplace` with J(θ) the objective of the linearised network. Its samples mean nothing to the
    network itself, so that only ``pred_type="glm"`` exists. With all data it tends to be over-confident;
    ``data="subset"`` is the authors' remedy. Settings: :class:`RiemannianSettings`.

    Source: Bergamin et al. (2023), section on the linearised manifold.
    """

    _key = ("all", "riemannian_linearised")
    pred_types = ("glm",)

    def _metric(self, problem: Problem, theta: Float[Tensor, " p"]) -> Metric:
        pieces, subsets, weights = Pieces(problem.data), self._subsets(problem), None
        if self.settings.double:
            pieces.cast(theta.dtype)
        if subsets is not None:
            n = problem.data.n_data
            weights = theta.new_zeros(len(subsets), n).scatter_(1, subsets, n / subsets.shape[1])
        return LinearisedMetric(problem.joint, theta, pieces, weights)

    def _glm_predictive_distribution(
        self, x: Inputs, joint: bool = False, diagonal_output: bool = False
    ) -> tuple[Tensor, Tensor]:
        # Samples need not be centred at the trained weights: their own mean takes the place of f(x).
        mean, thetas = self._require_mean(), self.geodesics.thetas
        samples = linearised_samples(
            self.network, mean, thetas, x, keep_graph=self.enable_backprop, **self._model_kwargs
        )
        if samples.ndim != 3:
            raise ValueError(f"link_approx: expected 'mc' for outputs {tuple(samples.shape[1:])}, got another one.")
        centre = samples.mean(0)
        spread = (samples - centre).movedim(0, -1) / max(1, len(samples) - 1) ** 0.5
        if joint:
            return centre.flatten(), output_covariance(spread)
        return centre, spread @ spread.mT


class FisherRiemannianLaplace(GeodesicPosterior):
    """Riemannian Laplace with the Fisher metric: θ = Exp_θ*(v), v ~ N(0, G(θ*)⁻¹).

    G(θ) = Σ Jᵀ Λ J + diag(τ), Λ the Fisher information of the outputs, which is the Gauss-Newton matrix plus the
    prior's precision. Exact, with infinitely many data, wherever a change of coordinates makes the posterior Gaussian;
    for linear models with Gaussian noise always. The dense metric is formed at every step: up to 2,000 weights, more
    with ``subset=``. Settings: :class:`GeodesicSettings`.

    Source: Yu, Hartmann, Williams, Girolami and Klami (2024), *Riemannian Laplace approximation with the Fisher
    metric*, AISTATS: RLA-F, with the Fisher precision for the tangent vectors.
    """

    _key = ("all", "riemannian_fisher")
    settings_class = GeodesicSettings
    pred_types = ("nn",)

    def _metric(self, problem: Problem, theta: Float[Tensor, " p"]) -> FisherMetric:
        pieces = Pieces(problem.data)
        pieces.cast(theta.dtype)
        return FisherMetric(problem.joint, theta, pieces)

    def _tangents(self, problem: Problem) -> Float[Tensor, "s p"]:
        p = len(problem.theta)
        if p > FISHER_LIMIT:
            raise ValueError(
                f"FisherRiemannianLaplace: expected at most {FISHER_LIMIT} moving weights for a dense metric, got {p}; "
                "let fewer weights move with subset=, e.g. subset='last_layer', or use RiemannianLaplace."
            )
        precision = self._metric(problem, problem.theta).matrix(problem.theta)
        return correlated(precision, problem.normal(self.settings.n_samples_fit, p))
