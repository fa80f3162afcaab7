"""What the compared methods have in common beyond the interface of a posterior: settings, refits, saved states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from laplace_fiber.batch_norm import Buffers, outputs_with_buffers, recomputed_statistics, tracking_layers
from laplace_fiber.data import BatchChoice, TrainingData, batches_of, moved, pairs
from laplace_fiber.gradients import Gradients
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.posterior import SampledPosterior
from laplace_fiber.shown import changed
from laplace_fiber.weights import Inputs


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all methods have.

    Parameters
    ----------
    seed
        Of everything random in the fit, and of samples drawn without a generator.
    batch
        Data behind one gradient: ``"full"``, the ``"loader"``'s batches, or ``"auto"``: full up to 10,000 points.
    """

    seed: int = 0
    batch: BatchChoice = "auto"

    def __post_init__(self) -> None:
        if self.batch not in ("auto", "full", "loader"):
            raise ValueError(f"batch: expected 'auto', 'full' or 'loader', got {self.batch!r}.")

    def require_positive(self, *names: str) -> None:
        """Refuse settings that are not positive."""
        for name in names:
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}.")


@dataclass(frozen=True)
class Problem:
    """What a method is given to fit.

    Attributes
    ----------
    joint
        The objective J and its gradient.
    theta
        The trained weights.
    data
        The training data; ``data.next_batch()`` follows ``settings.batch``.
    generator
        For everything random.
    progress_bar
        Whether to show progress.
    """

    joint: LogJoint
    theta: Float[Tensor, " p"]
    data: TrainingData
    generator: torch.Generator
    progress_bar: bool = False

    def gradients(self, n_rows: int) -> Gradients:
        """Gradients of so many weight vectors at once."""
        return Gradients(self.joint, self.theta.expand(n_rows, -1), self.data.next_batch())

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.generator, dtype=self.theta.dtype, device=self.theta.device)

    def steps(self, n: int, description: str) -> tqdm[int]:
        """``range(n)`` with a progress bar."""
        return tqdm(range(n), desc=description, disable=not self.progress_bar, leave=None)


SettingsType = TypeVar("SettingsType", bound=Settings)
Fit = TypeVar("Fit")


class Baseline(SampledPosterior, Generic[SettingsType, Fit]):
    """A method that FiberLaplace is compared with. Abstract: methods define ``_run`` and ``_draw``.

    The prior, the noise and the temperature enter through J alone. After fit they cannot be changed without another
    fit: predictions warn when they were, and ``optimize_prior_precision(method="gridsearch")`` fits anew for each of
    its values.

    Parameters
    ----------
    settings
        Settings of the method; single ones may be given by name instead.
    model, likelihood, *args, **kwargs
        As in :class:`laplace_fiber.host.HostedPosterior`.
    """

    settings_class: ClassVar[type[Any]]
    fit_class: ClassVar[type[Any]]
    """What ``_run`` returns: a dataclass of tensors, numbers, strings, and lists and dicts of them."""

    tunable: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Values worth trying for the settings that matter most, the default's neighbours first."""

    renews_statistics: ClassVar[bool] = False
    """Whether each sample's predictions need batch-norm statistics of its own, those of the training data under it."""

    def __init__(
        self, model: nn.Module, likelihood: str, *args: Any, settings: SettingsType | None = None, **kwargs: Any
    ) -> None:
        own = {f.name: kwargs.pop(f.name) for f in fields(self.settings_class) if f.name in kwargs}
        if settings is not None and not isinstance(settings, self.settings_class):
            raise TypeError(f"settings: expected {self.settings_class.__name__}, got {type(settings).__name__}.")
        self.settings: SettingsType = replace(settings or self.settings_class(), **own)
        super().__init__(model, likelihood, *args, **kwargs)
        self._fitted: Fit | None = None
        self._fitted_at: dict[str, Tensor] = {}
        self._statistics_loader: Iterable[Any] | None = None

    @property
    def seed(self) -> int:
        """``settings.seed``."""
        return self.settings.seed

    @property
    def batch(self) -> BatchChoice:
        """``settings.batch``."""
        return self.settings.batch

    def settings_shown(self) -> dict[str, Any]:
        """Those that differ from their defaults."""
        return changed(self.settings)

    @abstractmethod
    def _run(self, problem: Problem) -> tuple[Fit, dict[str, float]]:
        """Fit; what samples are drawn from, and the diagnostics, ``gradient_evaluations`` among them."""

    @abstractmethod
    def _draw(self, fitted: Fit, n_samples: int, generator: torch.Generator) -> Float[Tensor, "s p"]:
        """Weight samples."""

    def _fit(self, theta: Float[Tensor, " p"], joint: LogJoint, data: TrainingData, progress_bar: bool) -> None:
        data.restart()
        generator = torch.Generator(self._device).manual_seed(self.seed)
        fitted, self.diagnostics = self._run(Problem(joint, theta, data, generator, progress_bar))
        self._statistics_loader = data.loader
        self._fitted, self._fitted_at = self._completed(fitted), self._conditions()

    def _forget_fit(self) -> None:
        self.mean = self._fitted = None

    def sample(self, n_samples: int = 100, generator: torch.Generator | None = None) -> Float[Tensor, "s p"]:
        """Draw weight samples, one per row; without a generator (on the model's device) the same ones every time.

        Raises ``RuntimeError`` before fit and ``ValueError`` for ``n_samples`` below 1 or a generator elsewhere.
        """
        generator = self._generator(generator, n_samples, self.seed)
        return self._draw(self._require_fit(), n_samples, generator)

    def renew_statistics(self, train_loader: Iterable[Any]) -> None:
        """Recompute the batch-norm statistics of weight samples from these data, at once or when samples are drawn.

        For a loaded state whose samples are not stored, or other data than those of the fit. Without effect for
        networks without batch norm, and for methods whose samples keep the model's own statistics.

        Raises
        ------
        RuntimeError
            The posterior has not been fitted.
        """
        fitted = self._require_fit()
        self._statistics_loader = train_loader
        self._forget_predictions()
        self._fitted = self._completed(fitted, anew=True)

    @property
    def refits_candidates(self) -> bool:
        """Always."""
        return True

    def settle_prior_precision(self) -> None:
        """Fit anew if the present prior precision is not the one fitted last.

        Raises
        ------
        RuntimeError
            The training data are not at hand, as after ``load_state_dict``.
        """
        if not self._changes():
            return
        if self._data is None:
            raise RuntimeError(
                "optimize_prior_precision: expected the training data of a fit, got a loaded state; "
                f"{type(self).__name__} is fitted for every value: call fit(train_loader) first."
            )
        self.fit(self._data.loader)

    def state_dict(self) -> dict[str, Any]:
        """Everything that predictions need, as tensors, numbers, strings, and lists and dicts of them.

        Save with ``torch.save`` and load with ``torch.load(weights_only=True)``.
        """
        fitted: Any = self._require_fit()
        return {
            **self._hosted_state(),
            "fitted": {f.name: getattr(fitted, f.name) for f in fields(fitted)},
            "fitted_at": dict(self._fitted_at),
            "seed": self.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved fit, for the same model (weights included) and the same subset.

        Raises
        ------
        ValueError
            Another class, version, likelihood or set of weights, or a model whose trained weights differ.
        """
        mean = self._take_hosted_state(state_dict)
        self.settings = replace(self.settings, seed=state_dict["seed"])
        self._fitted = self.fit_class(**moved(state_dict["fitted"], mean.device))
        self._fitted_at = moved(state_dict["fitted_at"], mean.device)
        self._statistics_loader = None

    def _completed(self, fitted: Fit, anew: bool = False) -> Fit:
        """A fit with the batch-norm statistics of stored samples, where it lacks them or they are wanted anew."""
        return fitted

    def _forget_predictions(self) -> None:
        super()._forget_predictions()
        self._kept_statistics: tuple[int, Buffers] | None = None

    @property
    def _has_statistics(self) -> bool:
        return self.renews_statistics and bool(tracking_layers(self.network.model))

    def _network_functions(
        self, inputs: Inputs, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        if not self._has_statistics:
            return super()._network_functions(inputs, n_samples, generator, **model_kwargs)
        thetas = self.sample(n_samples, generator)
        kept = self._kept_statistics if generator is None else None
        statistics = kept[1] if kept and kept[0] == n_samples else self._statistics_of(thetas)
        if generator is None:
            self._kept_statistics = n_samples, statistics
        return outputs_with_buffers(self.network, thetas, statistics, inputs, self.enable_backprop, **model_kwargs)

    def _statistics_of(self, thetas: Float[Tensor, "s p"]) -> Buffers:
        """Batch-norm statistics of the training data at each weight vector."""
        if self._statistics_loader is None:
            raise RuntimeError(
                f"{type(self).__name__}: expected training data for the batch-norm statistics of new samples, got a "
                "loaded state, which has none; call la.renew_statistics(train_loader) first."
            )
        batches = batches_of(self._statistics_loader, self.seed)
        return recomputed_statistics(self.network, thetas, pairs(batches, self._device, self.dict_key_y))

    def _conditions(self) -> dict[str, Tensor]:
        """What a fit depends on besides model, data and settings."""
        values = {
            "prior_precision": self.prior_precision,
            "prior_mean": torch.as_tensor(self.prior_mean),
            "sigma_noise": self.sigma_noise,
            "temperature": torch.tensor(self.temperature),
        }
        return {name: value.detach().clone() for name, value in values.items()}

    def _changes(self) -> list[str]:
        """Names of conditions that differ from those at fit."""
        now, then = self._conditions(), self._fitted_at
        return [name for name in now if not bool(torch.allclose(now[name].double(), then[name].double(), rtol=1e-5))]

    def _require_fit(self) -> Fit:
        self._require_mean()
        if self._fitted is None:  # mean and fit are set together
            raise RuntimeError(f"{type(self).__name__} has a mean but no fit: call fit(train_loader).")
        self._say_changed(self._changes())
        return self._fitted
