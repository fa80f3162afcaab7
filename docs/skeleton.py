"""Anchored ensembles: a posterior in one file, to copy and change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from laplace_fiber.baselines.baseline import Problem, Settings
from laplace_fiber.baselines.stored import StoredPosterior, StoredSamples


@dataclass(frozen=True, kw_only=True)
class AnchoredSettings(Settings):
    """Settings of anchored ensembles.

    Parameters
    ----------
    n_members
        Networks trained, each towards an anchor of its own.
    n_steps, lr
        Steps of Adam, and its step size at the start; it falls to 0 along a cosine.
    """

    n_members: int = 10
    n_steps: int = 1000
    lr: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_members", "n_steps", "lr")


class AnchoredEnsemble(StoredPosterior[AnchoredSettings]):
    """M minima of J with the prior's mean replaced by draws from the prior: aₘ ~ N(μ₀, diag(1/τ)).

    Where the data say nothing, a member stays at its anchor, so that members spread there as the prior does.

    Source: Pearce, Leibfried and Brintrup (2020), *Uncertainty in neural networks: approximately Bayesian ensembling*.
    Settings: :class:`AnchoredSettings`.
    """

    _key = ("all", "anchored")
    settings_class = AnchoredSettings
    tunable: ClassVar = {"lr": (0.01, 0.003, 0.03)}

    def _run(self, problem: Problem) -> tuple[StoredSamples, dict[str, float]]:
        """Train all members at once, from their anchors; their weights are the samples."""
        chosen, joint = self.settings, problem.joint
        tau = joint.prior_precision
        pulls = problem.normal(chosen.n_members, len(problem.theta)) * tau.rsqrt()  # aₘ − μ₀
        thetas = joint.prior_mean + pulls
        optimizer = torch.optim.Adam([thetas], lr=chosen.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.n_steps)
        gradients = problem.gradients(chosen.n_members)
        for _ in problem.steps(chosen.n_steps, "AnchoredEnsemble"):
            evaluation = gradients(thetas, problem.data.next_batch())
            thetas.grad = evaluation.grad - tau * pulls / joint.n_data  # the prior pulls to aₘ, not to μ₀
            optimizer.step()
            schedule.step()
        if not bool(thetas.isfinite().all()):
            raise RuntimeError(
                f"AnchoredEnsemble: expected finite weights, got others; use a smaller lr (now {chosen.lr})."
            )
        return StoredSamples(thetas), {"gradient_evaluations": float(gradients.evaluations)}
