"""Deep ensembles: networks of one architecture trained independently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Problem, Settings
from laplace_fiber.baselines.several import first_and_others, weights_of
from laplace_fiber.baselines.stored import StoredPosterior, StoredSamples
from laplace_fiber.baselines.training import Members, Plan, fresh_copy, own_random_state, train
from laplace_fiber.batch_norm import Buffers, own_buffers


@dataclass(frozen=True, kw_only=True)
class MemberSettings(Settings):
    """Settings of independently trained members. They do not apply to networks that are given.

    Parameters
    ----------
    n_members
        M (Lakshminarayanan et al.: 5).
    n_epochs, min_steps
        Passes over the data in a member's training, and the fewest steps whatever the size of the data: small data
        give few steps a pass.
    lr
        Step size of Adam at the start; it falls to 0 along a cosine. Adam does not depend on the loss's scale, which
        the noise and the temperature change. (Lakshminarayanan et al.: 0.1 for small regressions, else unstated.)
    initialise
        ``initialise(network)`` gives a network new weights in place; ``None`` calls its layers' ``reset_parameters``.
    train
        The user's own training: ``train(network)`` gets a freshly initialised copy of the model, in training mode, and
        returns it trained (or ``None``, having trained it in place). Objective and schedule are then its own.
    """

    n_members: int = 5
    n_epochs: int = 100
    min_steps: int = 2000
    lr: float = 0.01
    initialise: Callable[[nn.Module], object] | None = None
    train: Callable[[nn.Module], nn.Module | None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_members", "n_epochs", "min_steps", "lr")
        for name in ("initialise", "train"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ValueError(f"{name}: expected a function of a network, or None, got {getattr(self, name)!r}.")


def refuse_subsets(method: str, options: dict[str, Any]) -> None:
    """Members differ in all their weights."""
    subset = options.get("subset", "all")
    if not (isinstance(subset, str) and subset == "all"):
        raise ValueError(
            f"subset: expected 'all', got {subset!r}; the members of {method} differ in all their weights: freeze "
            "those to be shared with requires_grad_(False)."
        )


def new_members(problem: Problem, settings: MemberSettings, name: str) -> tuple[Float[Tensor, "m p"], Buffers, int]:
    """Weights of freshly trained members, the buffers of those that the user trained, and gradient evaluations."""
    network, generator = problem.joint.network, problem.generator
    seeds = torch.randint(2**31, (2, settings.n_members), generator=generator, device=generator.device).tolist()
    fresh = [fresh_copy(network.model, seed, settings.initialise) for seed in seeds[0]]
    if settings.train is not None:
        trained = list[nn.Module]()
        for i in problem.steps(settings.n_members, name):
            trained.append(_trained_by(settings.train, fresh[i], seeds[1][i]))
        return (*given_members(problem, trained), 0)
    thetas = weights_of(network, fresh)[1:]
    members = Members(problem, thetas, settings.batch)
    n_steps = max(settings.min_steps, settings.n_epochs * members.batches.per_epoch)
    remedy = f"use a smaller lr (now {settings.lr})"
    thetas = train(members, thetas, Plan(n_steps=n_steps, lr=settings.lr, name=name, remedy=remedy))
    return thetas, {}, members.evaluations


def given_members(problem: Problem, networks: Sequence[nn.Module]) -> tuple[Float[Tensor, "m p"], Buffers]:
    """Weights of trained networks like the model, and their buffers where they differ from its own."""
    network = problem.joint.network
    thetas = weights_of(network, networks)[1:]
    if not bool(torch.isfinite(thetas).all()):
        raise RuntimeError("members: expected trained networks with finite weights, got others; check their training.")
    return thetas, own_buffers(network.model, networks)


def _trained_by(function: Callable[[nn.Module], nn.Module | None], network: nn.Module, seed: int) -> nn.Module:
    with torch.enable_grad(), own_random_state(seed):
        returned = function(network)
    if returned is not None and not isinstance(returned, nn.Module):
        raise ValueError(f"train: expected the trained network or None, got a {type(returned).__name__}.")
    return network if returned is None else returned


class DeepEnsemble(StoredPosterior[MemberSettings]):
    """M networks trained from fresh initial weights on data in orders of their own: p(y|x) = (1/M) Σₘ p(y|x, θₘ).

    Each member minimises J, whose weight decay is the prior's. Given several trained networks as ``model``, these are
    the members and nothing is trained; each keeps its own buffers (batch-norm statistics among them).

    Source: Lakshminarayanan, Pritzel and Blundell (2017), *Simple and scalable predictive uncertainty estimation using
    deep ensembles*, algorithm 1, without its adversarial examples (an option there) and with J's noise in place of a
    predicted variance. Settings: :class:`MemberSettings`.

    Parameters
    ----------
    model
        A network whose architecture the members take, or a sequence of trained ones.
    likelihood, *args, **kwargs
        As in :class:`laplace_fiber.baselines.baseline.Baseline`; all weights move, there is no ``subset``.
    """

    _key = ("all", "ensemble")
    settings_class = MemberSettings
    renews_statistics = True
    tunable: ClassVar = {"lr": (0.01, 0.003, 0.001, 0.03)}

    def __init__(self, model: nn.Module | Sequence[nn.Module], likelihood: str, *args: Any, **kwargs: Any) -> None:
        refuse_subsets(type(self).__name__, kwargs)
        first, self._others = first_and_others(model)
        super().__init__(first, likelihood, *args, **kwargs)

    def _run(self, problem: Problem) -> tuple[StoredSamples, dict[str, float]]:
        if self._others:
            thetas, buffers = given_members(problem, [self.model, *self._others])
            evaluations = 0
        else:
            thetas, buffers, evaluations = new_members(problem, self.settings, type(self).__name__)
        return StoredSamples(thetas, buffers), {"gradient_evaluations": float(evaluations)}
