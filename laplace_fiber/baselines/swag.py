"""SWAG: a Gaussian from the iterates of stochastic gradient descent, and mixtures of several."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Baseline, Problem, Settings
from laplace_fiber.baselines.ensemble import MemberSettings, given_members, new_members, refuse_subsets
from laplace_fiber.baselines.several import first_and_others
from laplace_fiber.baselines.training import Members, Plan, own_random_state, train
from laplace_fiber.batch_norm import tracking_layers
from laplace_fiber.paths import shuffled_rows
from laplace_fiber.sharpness import sharpness


@dataclass(frozen=True, kw_only=True)
class SWAGSettings(Settings):
    """Settings of SWAG.

    Parameters
    ----------
    n_collected
        Iterates that the moments are taken of (Maddox et al. collect for 40 to 140 epochs).
    n_skipped
        Intervals before the first one, in which SGD forgets the trained weights.
    interval
        Steps from one iterate to the next. ``None``: a pass over the data, and at least ``min_interval`` steps.
    min_interval
        See ``interval``; small data give few steps a pass.
    max_rank
        K, the number of latest deviations kept (Maddox et al.: 20).
    scale
        Factor of the covariance; at the default ½ it is half the diagonal and half the low-rank one (their equation 1).
    step_size
        Of SGD with momentum. ``None`` takes ``relative_step`` over the largest curvature of J/n_data at the trained
        weights. (Maddox et al.: 0.01 to 0.05, chosen for each network on validation data.)
    relative_step
        See ``step_size``. Its value matters most: on a quadratic objective with noise like the curvature, the variance
        in the stiffest direction is the posterior's at about 2(1 − momentum)/10 = 0.02 (minibatches of a tenth of the
        data), and flatter directions are the nearer to theirs the larger the step; networks leave their minimum from
        0.2 to 1 on.
    momentum
        Of SGD (Maddox et al.: 0.9).
    batch_size
        Points in a minibatch. ``None`` takes the loader's, but at most a tenth of the data: SWAG's spread comes from
        the gradient's noise, of which full batches have none. Only for data in memory (see ``batch``).
    """

    n_collected: int = 60
    n_skipped: int = 10
    interval: int | None = None
    min_interval: int = 20
    max_rank: int = 20
    scale: float = 0.5
    step_size: float | None = None
    relative_step: float = 0.05
    momentum: float = 0.9
    batch_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("min_interval", "scale", "relative_step")
        self.require_positive(*(n for n in ("interval", "step_size", "batch_size") if getattr(self, n) is not None))
        for name, least in (("n_collected", 2), ("max_rank", 2), ("n_skipped", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a share in [0, 1), got {self.momentum}.")

    def points_per_batch(self, problem: Problem) -> int:
        """Size of minibatches of data in memory."""
        return self.batch_size or max(2, min(len(problem.data.first[1]), problem.data.n_data // 10))


@dataclass(frozen=True, kw_only=True)
class MultiSWAGSettings(SWAGSettings, MemberSettings):
    """Settings of SWAG around each of several networks, and of their training where a single one is given."""


@dataclass(frozen=True)
class IterateMoments:
    """Moments of the iterates around m networks.

    Attributes
    ----------
    means, variances
        Over all iterates (the variance with divisor T).
    deviations
        The latest iterates less the running mean at their time.
    scale
        Factor of the covariance that they give.
    """

    means: Float[Tensor, "m p"]
    variances: Float[Tensor, "m p"]
    deviations: Float[Tensor, "m k p"]
    scale: float


class Collector:
    """Running moments of iterates, by updates that lose no digits where the spread is small beside the weights."""

    def __init__(self, max_rank: int) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())
        self.deviations: deque[Float[Tensor, "m p"]] = deque(maxlen=max_rank)

    def add(self, thetas: Float[Tensor, "m p"]) -> None:
        """Take in one more iterate of each network."""
        if self.count == 0:
            self.mean, self.squares = torch.zeros_like(thetas), torch.zeros_like(thetas)
        self.count += 1
        before = thetas - self.mean
        self.mean = self.mean + before / self.count
        after = thetas - self.mean
        self.squares = self.squares + before * after
        self.deviations.append(after)

    def moments(self, scale: float) -> IterateMoments:
        """Of all iterates so far."""
        return IterateMoments(self.mean, self.squares / self.count, torch.stack(tuple(self.deviations), 1), scale)


SWAGSettingsType = TypeVar("SWAGSettingsType", bound=SWAGSettings)


class IterateGaussians(Baseline[SWAGSettingsType, IterateMoments]):
    """Gaussians from iterates, as many as there are networks. Abstract: methods define ``_run``."""

    fit_class = IterateMoments
    renews_statistics = True
    tunable: ClassVar = {"relative_step": (0.05, 0.1, 0.2, 0.02, 0.5)}

    def _collect(self, problem: Problem, thetas: Float[Tensor, "m p"]) -> tuple[IterateMoments, dict[str, float]]:
        """SGD at a constant step size from each row, side by side."""
        chosen, collector = self.settings, Collector(self.settings.max_rank)
        members = Members(problem, thetas, chosen.batch, chosen.points_per_batch(problem))
        size = chosen.step_size or chosen.relative_step / self._largest_curvature(problem, members, thetas)
        interval = chosen.interval or max(chosen.min_interval, members.batches.per_epoch)
        first = chosen.n_skipped * interval

        def collect(t: int, weights: Float[Tensor, "m p"]) -> None:
            if t >= first and (t + 1) % interval == 0:
                collector.add(weights.detach())

        plan = Plan(
            n_steps=(chosen.n_skipped + chosen.n_collected) * interval,
            lr=size,
            optimizer="sgd",
            momentum=chosen.momentum,
            cosine=False,
            name=type(self).__name__,
            remedy=f"use a smaller relative_step (now {chosen.relative_step}) or step_size",
        )
        train(members, thetas, plan, collect)
        return collector.moments(chosen.scale), {"gradient_evaluations": float(members.evaluations), "step_size": size}

    def _largest_curvature(self, problem: Problem, members: Members, thetas: Float[Tensor, "m p"]) -> float:
        batch, seed = problem.data.next_batch(), self.settings.seed
        with own_random_state(seed) if members.random else nullcontext():
            return max(sharpness(joint, row, batch, seed) for joint, row in zip(members.joints, thetas, strict=True))

    def _draw(self, fitted: IterateMoments, n_samples: int, generator: torch.Generator) -> Float[Tensor, "s p"]:
        means, rank = fitted.means, fitted.deviations.shape[1]
        component = shuffled_rows(len(means), n_samples, generator)

        def normal(width: int) -> Tensor:
            shape = (n_samples, width)
            return torch.randn(shape, generator=generator, dtype=means.dtype, device=means.device)

        diagonal = fitted.variances.clamp(min=1e-30).sqrt()[component] * normal(means.shape[1])
        # One draw for all tensors of the network: their correlations are what the low rank is kept for.
        z, low_rank = normal(rank), torch.zeros_like(diagonal)
        for m in range(len(means)):
            own = component == m
            low_rank[own] = z[own] @ fitted.deviations[m] / math.sqrt(rank - 1)
        return means[component] + math.sqrt(fitted.scale) * (diagonal + low_rank)


class SWAG(IterateGaussians[SWAGSettings]):
    """N(θ̄, s (diag(σ²) + DᵀD/(K − 1))) with s = ½, from iterates of SGD at a constant step size.

    θ̄ and σ² are mean and variance of all iterates, D's rows the last K deviations from the running mean. A sample is
    θ̄ + √s (σ z₁ + Dᵀz₂/√(K − 1)), with one z₂ for all weights. Iterates start at the trained weights and follow J.
    Networks with dropout or batch norm run in training mode, and each sample's predictions take batch-norm statistics
    recomputed from the training data.

    Source: Maddox, Garipov, Izmailov, Vetrov and Wilson (2019), *A simple baseline for Bayesian uncertainty in deep
    learning*, equation 1 and algorithm 1. Settings: :class:`SWAGSettings`.
    """

    _key = ("all", "swag")
    settings_class = SWAGSettings

    def _run(self, problem: Problem) -> tuple[IterateMoments, dict[str, float]]:
        return self._collect(problem, problem.theta[None])


class MultiSWAG(IterateGaussians[MultiSWAGSettings]):
    """SWAG around each of M independently trained networks: (1/M) Σₘ N(θ̄ₘ, Cₘ).

    Source: Wilson and Izmailov (2020), *Bayesian deep learning and a probabilistic perspective of generalization*,
    section 4. Settings: :class:`MultiSWAGSettings`.

    Parameters
    ----------
    model
        A sequence of trained networks, or one whose architecture M freshly trained ones take, as in
        :class:`laplace_fiber.baselines.ensemble.DeepEnsemble`.
    likelihood, *args, **kwargs
        As in :class:`laplace_fiber.baselines.baseline.Baseline`; all weights move, there is no ``subset``.
    """

    _key = ("all", "multiswag")
    settings_class = MultiSWAGSettings

    def __init__(self, model: nn.Module | Sequence[nn.Module], likelihood: str, *args: Any, **kwargs: Any) -> None:
        refuse_subsets(type(self).__name__, kwargs)
        first, self._others = first_and_others(model)
        super().__init__(first, likelihood, *args, **kwargs)

    def _run(self, problem: Problem) -> tuple[IterateMoments, dict[str, float]]:
        if self._others:
            thetas, buffers = given_members(problem, [self.model, *self._others])
            evaluations = 0
        else:
            thetas, buffers, evaluations = new_members(problem, self.settings, type(self).__name__)
        # Batch-norm statistics are recomputed; samples have no other buffers than the model's.
        own = [name for name in buffers if name.rpartition(".")[0] not in tracking_layers(self.network.model)]
        if own:
            raise ValueError(f"model: expected networks that share the buffers {own}, got others; use DeepEnsemble.")
        fitted, diagnostics = self._collect(problem, thetas)
        return fitted, {**diagnostics, "gradient_evaluations": diagnostics["gradient_evaluations"] + evaluations}
