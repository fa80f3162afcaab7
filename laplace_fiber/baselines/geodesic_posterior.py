"""What posteriors whose samples are ends of geodesics have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from laplace_fiber.baselines.baseline import Problem, Settings
from laplace_fiber.baselines.geodesics import Geodesics, Metric, exponential_map, in_double
from laplace_fiber.baselines.ode import STATUSES, Solution, Tolerance
from laplace_fiber.baselines.stored import StoredPosterior, StoredSamples


@dataclass(frozen=True, kw_only=True)
class GeodesicSettings(Settings):
    """Settings of all samples along geodesics. Geodesics follow one fixed metric, so that ``batch`` has no effect.

    Parameters
    ----------
    n_samples_fit
        Geodesics, followed at fit (Bergamin et al. 2023: 50).
    rtol, atol
        Error control of each geodesic. 1e-2 has been seen to give worse samples than the tangent vectors themselves.
    max_evaluations
        Of the geodesic equation, for each sample.
    double
        Follow the geodesics in float64, with a copy of the network.
    on_failure
        What becomes of a sample whose integration fails: ``"drop"`` leaves it out, ``"euclidean"`` keeps θ* + v in its
        place, ``"raise"`` stops the fit. Failures are always counted, and told after the fit.
    """

    n_samples_fit: int = 50
    rtol: float = 1e-3
    atol: float = 1e-3
    max_evaluations: int = 5000
    double: bool = False
    on_failure: Literal["drop", "euclidean", "raise"] = "drop"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_samples_fit", "rtol", "atol", "max_evaluations")
        if self.on_failure not in ("drop", "euclidean", "raise"):
            raise ValueError(f"on_failure: expected 'drop', 'euclidean' or 'raise', got {self.on_failure!r}.")


@dataclass(frozen=True, kw_only=True)
class GeodesicSamples(StoredSamples):
    """Ends of geodesics that are kept as samples, and how each of all geodesics went.

    Attributes
    ----------
    thetas
        The samples.
    tangents
        Tangent vectors of all geodesics.
    status
        What became of each: indices into :data:`laplace_fiber.baselines.ode.STATUSES`.
    evaluations
        Of the geodesic equation, for each.
    drift
        Relative change of the speed along each; 0 on an exact geodesic.
    """

    tangents: Float[Tensor, "s p"] = field(default_factory=lambda: torch.zeros(0, 0))
    status: Int[Tensor, " s"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    evaluations: Int[Tensor, " s"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    drift: Float[Tensor, " s"] = field(default_factory=lambda: torch.zeros(0))


class GeodesicPosterior(StoredPosterior[Any]):
    """Samples c(1) of geodesics with c(0) = θ* and random c′(0). Abstract: methods define metric and tangents."""

    fit_class = GeodesicSamples

    @abstractmethod
    def _metric(self, problem: Problem, theta: Float[Tensor, " p"]) -> Metric:
        """The metric, for as many geodesics as the settings say."""

    @abstractmethod
    def _tangents(self, problem: Problem) -> Float[Tensor, "s p"]:
        """Velocities at the trained weights."""

    @property
    def geodesics(self) -> GeodesicSamples:
        """How each geodesic went. Raises ``RuntimeError`` before fit."""
        return cast("GeodesicSamples", self._require_fit())

    @property
    def statuses(self) -> list[str]:
        """What became of each geodesic: ``"finished"``, or why it failed."""
        return [STATUSES[int(number)] for number in self.geodesics.status]

    def _run(self, problem: Problem) -> tuple[StoredSamples, dict[str, float]]:
        chosen = self.settings
        tangents = self._tangents(problem)
        theta, start = problem.theta, tangents
        if chosen.double:
            problem = replace(problem, joint=in_double(problem.joint))
            theta, start = theta.double(), start.double()
        metric = self._metric(problem, theta)
        tolerance = Tolerance(rtol=chosen.rtol, atol=chosen.atol, max_evaluations=chosen.max_evaluations)
        with problem.steps(len(start), type(self).__name__) as bar:

            def show(solution: Solution) -> None:
                if problem.progress_bar:
                    ended = int((solution.status >= 0).sum())
                    bar.set_postfix(slowest=f"t={float(solution.times.min()):.3g}", refresh=False)
                    bar.update(ended - bar.n)

            found = exponential_map(metric, theta, start, tolerance, show)
        finished = found.solution.finished
        fitted = GeodesicSamples(
            thetas=self._samples_of(problem.theta, tangents, found),
            tangents=tangents,
            status=found.solution.status,
            evaluations=found.solution.evaluations,
            drift=found.drift.to(tangents),
        )
        return fitted, {
            "gradient_evaluations": float(metric.cost * metric.evaluations),
            "failed_samples": float((~finished).sum()),
            "largest_evaluations": float(found.solution.evaluations.max()),
            "speed_drift": float(found.drift[finished].abs().max()) if bool(finished.any()) else torch.nan,
        }

    def _samples_of(
        self, theta: Float[Tensor, " p"], tangents: Float[Tensor, "s p"], found: Geodesics
    ) -> Float[Tensor, "k p"]:
        """The samples, as the settings treat failures."""
        finished, ends = found.solution.finished, found.ends.to(tangents)
        failed = int((~finished).sum())
        if failed and self.settings.on_failure == "raise":
            raise RuntimeError(f"{type(self).__name__}: {_failures(found.solution.status)}; {_REMEDY}.")
        if self.settings.on_failure == "euclidean":
            return torch.where(finished[:, None], ends, theta + tangents)
        if failed == len(finished):
            raise RuntimeError(
                f"{type(self).__name__}: no sample is left: {_failures(found.solution.status)}; {_REMEDY}."
            )
        return ends[finished]

    def fit_warnings(self) -> Sequence[str]:
        """Failed geodesics, and what was done about them."""
        if not self.diagnostics["failed_samples"]:
            return super().fit_warnings()
        treated = "kept as θ* + v" if self.settings.on_failure == "euclidean" else "left out of the samples"
        return [*super().fit_warnings(), f"{_failures(self.geodesics.status)}, {treated}; {_REMEDY}."]


_REMEDY = (
    "use a larger prior_precision (optimize_prior_precision of a Gaussian flavour finds one), a larger "
    "max_evaluations, double=True or looser rtol and atol"
)


def _failures(status: Int[Tensor, " s"]) -> str:
    counts = [(int((status == number).sum()), name) for number, name in enumerate(STATUSES)][1:]
    reasons = ", ".join(f"{count} × {name}" for count, name in counts if count)
    return f"{sum(count for count, _ in counts)} of {len(status)} geodesics failed ({reasons})"
