"""Dropout at prediction time: functions rather than weight vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Baseline, Problem, Settings
from laplace_fiber.data import BatchChoice
from laplace_fiber.sharpness import sharpness
from laplace_fiber.weights import Inputs, NetworkFunction

MOMENTUM = 0.9

LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

WHOLE_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)

SELF_NORMALISING = (nn.AlphaDropout, nn.FeatureAlphaDropout)

DROPPED = -1.7580993408473766
"""What alpha dropout puts in place of a dropped value: the lower limit of the SELU function."""


@dataclass(frozen=True, kw_only=True)
class DropoutSettings(Settings):
    """Settings of dropout at prediction time.

    Parameters
    ----------
    insert
        Rate of dropout inserted before the last layer, besides the network's own; weights are then trained on. Gal
        and Ghahramani take rates from 0.05 to 0.5, of networks trained with them.
    n_epochs
        Passes over the data in which the weights get used to inserted dropout.
    min_steps
        Steps where those passes have fewer.
    relative_step
        First step size of that training (momentum 0.9, cosine), over the inverse largest curvature of J/n_data.
    """

    batch: BatchChoice = "loader"
    insert: float | None = None
    n_epochs: int = 10
    min_steps: int = 500
    relative_step: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("n_epochs", "min_steps", "relative_step")
        if self.insert is not None and not 0 < self.insert < 1:
            raise ValueError(f"insert: expected a rate in (0, 1) or None, got {self.insert}.")


@dataclass(frozen=True)
class DropoutFit:
    """The weights that dropout is applied to, and the layer before which it is inserted, if any, at which rate."""

    theta: Float[Tensor, " p"]
    layer: str = ""
    rate: float = 0.0


class MCDropout(Baseline[DropoutSettings, DropoutFit]):
    """The network with dropout left on: f(x) under random masks z, f(θ, x; z), z ~ Bernoulli(1 − p).

    Source: Gal and Ghahramani (2016), *Dropout as a Bayesian approximation*, section 4. A sample is one mask
    for each call of a dropout layer, shared by all inputs and whatever else is in their batch, so that samples are
    functions. (Weights of layers below dropped units could be written as weight samples; those around attention or
    pooling could not, so there is no ``sample()``: use :meth:`functional_samples`.)

    Left on are ``nn.Dropout``, ``Dropout1d`` to ``3d``, ``AlphaDropout`` and ``FeatureAlphaDropout``, with the first
    dimension of their inputs as the batch; dropout inside other layers (``nn.MultiheadAttention``, ``nn.LSTM``) is not.
    A network that was trained without dropout does not become uncertain by it: fit refuses networks without such
    layers, unless ``insert`` puts one before the last layer and trains the weights on (a copy; the model is only read).
    Settings: :class:`DropoutSettings`.
    """

    _key = ("all", "mc_dropout")
    settings_class = DropoutSettings
    fit_class = DropoutFit
    pred_types = ("nn",)
    tunable: ClassVar = {"insert": (None, 0.1, 0.05, 0.2)}

    def __init__(self, model: nn.Module, likelihood: str, *args: Any, **kwargs: Any) -> None:
        subset = kwargs.get("subset", "all")
        if not (isinstance(subset, str) and subset == "all"):
            raise ValueError(f"subset: expected 'all', since masks do not choose among weights, got {subset!r}.")
        super().__init__(model, likelihood, *args, **kwargs)

    def _run(self, problem: Problem) -> tuple[DropoutFit, dict[str, float]]:
        chosen = self.settings
        if chosen.insert is None:
            if not dropout_layers(self.model):
                raise ValueError(
                    "model: expected a network trained with dropout (nn.Dropout with p > 0), got one without; pass "
                    "insert=0.1, say, to put dropout before its last layer and train the weights on."
                )
            return DropoutFit(problem.theta), {"gradient_evaluations": 0.0}
        network = NetworkFunction(self.model, "last_layer")
        network.check_last_layer(problem.data.first[0])
        start = DropoutFit(problem.theta, network.last_layer or "", chosen.insert)
        fitted, evaluations = self._train_on(problem, start)
        return fitted, {"gradient_evaluations": float(evaluations)}

    def _train_on(self, problem: Problem, fitted: DropoutFit) -> tuple[DropoutFit, int]:
        """The fit after descending J under fresh masks for every step and input, and how many steps."""
        chosen, joint, theta = self.settings, problem.joint, fitted.theta[None]
        batch = problem.data.next_batch()
        size = chosen.relative_step / sharpness(joint, problem.theta, batch, chosen.seed)
        n_steps = max(chosen.min_steps, chosen.n_epochs * problem.data.steps_per_epoch)
        velocity, bar = torch.zeros_like(theta), problem.steps(n_steps, "MCDropout")
        for t in bar:
            masks = Masks(_seeds(1, problem.generator)[0], shared=False)
            with self._dropping(masks, fitted):
                value, gradient, _ = joint.evaluate(theta, problem.data.next_batch())
            velocity = MOMENTUM * velocity + gradient
            theta = theta - 0.5 * (math.cos(math.pi * t / n_steps) + 1) * size * velocity
            if t % 100 == 0 or t == n_steps - 1:
                if not bool(torch.isfinite(value).all() and torch.isfinite(theta).all()):
                    raise RuntimeError(
                        f"MCDropout: expected a finite objective, but training with inserted dropout diverged by "
                        f"step {t}; use a smaller relative_step (now {chosen.relative_step}) or insert (now "
                        f"{chosen.insert})."
                    )
                bar.set_postfix(objective=f"{float(value):.4g}")
        return replace(fitted, theta=theta[0]), n_steps

    def _draw(self, fitted: DropoutFit, n_samples: int, generator: torch.Generator) -> NoReturn:
        raise NotImplementedError(
            "sample: MCDropout samples functions by masks, not weight vectors; use functional_samples(x)."
        )

    def _network_functions(
        self, inputs: Inputs, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        fitted = self._require_fit()
        seeds = _seeds(n_samples, self._generator(generator, n_samples, self.seed))
        with self.network.evaluation(), torch.set_grad_enabled(self.enable_backprop):
            return torch.stack([self._function(fitted, seed, inputs, **model_kwargs) for seed in seeds])

    def _function(self, fitted: DropoutFit, seed: int, inputs: Inputs, **model_kwargs: Any) -> Float[Tensor, "b *c"]:
        with self._dropping(Masks(seed, shared=True), fitted):
            return self.network.one(fitted.theta, inputs, **model_kwargs)

    @contextmanager
    def _dropping(self, masks: Masks, fitted: DropoutFit) -> Iterator[None]:
        """Dropout by ``masks`` while inside; the model's hooks are as before afterwards."""
        # In evaluation mode a dropout layer's output is its input.
        hooks = [layer.register_forward_hook(lambda m, _, x: masks(m, x)) for layer in dropout_layers(self.model)]
        if fitted.layer:
            inserted, last = nn.Dropout(fitted.rate), self.model.get_submodule(fitted.layer)
            hooks.append(last.register_forward_pre_hook(lambda _, args: _first_dropped(masks, inserted, args)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class Masks:
    """Dropout by masks that depend on a seed, the number of the call and the shape of what is dropped, nothing else.

    Parameters
    ----------
    seed
        Of all masks.
    shared
        One mask for all inputs of a batch, instead of one for each.
    """

    def __init__(self, seed: int, shared: bool) -> None:
        self.seed, self.shared, self.calls = seed, shared, 0

    def __call__(self, layer: nn.Module, x: Float[Tensor, "b *f"]) -> Float[Tensor, "b *f"]:
        """What the layer makes of x in training mode."""
        rate = _rate(layer)
        kept = self._kept(layer, x)
        if not isinstance(layer, SELF_NORMALISING):
            return x * (kept / (1 - rate) if rate < 1 else kept)
        # Scaled and shifted such that values of mean 0 and variance 1 keep them.
        scale = ((1 - rate) * (1 + rate * DROPPED**2)) ** -0.5 if rate < 1 else 0.0
        return scale * (x * kept + DROPPED * (1 - kept) - DROPPED * rate)

    def _kept(self, layer: nn.Module, x: Float[Tensor, "b *f"]) -> Float[Tensor, "..."]:
        """1 where values are kept and 0 where they are dropped."""
        shape = [1 if self.shared else len(x), *x.shape[1:]]
        if isinstance(layer, WHOLE_CHANNELS):
            shape[2:] = [1] * len(shape[2:])
        # By the call's number: masks of one layer do not depend on the shapes that others are given.
        generator = torch.Generator(x.device).manual_seed((self.seed * 1_000_003 + self.calls) % 2**63)
        self.calls += 1
        drawn = torch.rand(shape, generator=generator, device=x.device)
        return (drawn >= _rate(layer)).to(x.dtype)


def dropout_layers(model: nn.Module) -> list[nn.Module]:
    """The model's dropout layers that drop anything."""
    return [layer for layer in model.modules() if isinstance(layer, LAYERS) and _rate(layer) > 0]


def _first_dropped(masks: Masks, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args:
        raise RuntimeError("insert: expected a last layer that is called with its input as the first argument.")
    return masks(layer, args[0]), *args[1:]


def _rate(layer: nn.Module) -> float:
    rate: float = getattr(layer, "p")  # noqa: B009  (modules' attributes are typed as tensors)
    return rate


def _seeds(n: int, generator: torch.Generator) -> list[int]:
    return torch.randint(2**62, (n,), generator=generator, device=generator.device).tolist()
