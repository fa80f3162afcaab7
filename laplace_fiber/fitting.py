"""What fitting a posterior has in common for all methods: the data, the checks, and nothing left half done."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import BatchChoice, TrainingData
from laplace_fiber.effective_dimension import PROBES, EffectiveDimension, effective_dimension
from laplace_fiber.host import HostedPosterior
from laplace_fiber.log_joint import LogJoint, check_shapes
from laplace_fiber.network_checks import network_warnings
from laplace_fiber.shown import arguments


class FittedPosterior(HostedPosterior, ABC):
    """A posterior that is fitted to all the training data at once. Abstract.

    Attributes
    ----------
    diagnostics
        After fit: numbers that tell its cost and quality, ``gradient_evaluations`` (of the loss on one batch, for one
        weight vector) among them.
    """

    _shown: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that ``repr`` tells."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """Of everything random in the fit, and of samples drawn without a generator."""

    @property
    @abstractmethod
    def batch(self) -> BatchChoice:
        """Data behind one gradient."""

    @abstractmethod
    def _fit(self, theta: Float[Tensor, " p"], joint: LogJoint, data: TrainingData, progress_bar: bool) -> None:
        """Fit around the trained weights. Called in the network's evaluation mode, after all checks."""

    def _forget_fit(self) -> None:
        """Be as before the first fit: called when one is interrupted."""
        self.mean = None

    def fit_warnings(self) -> Sequence[str]:
        """What a user should be told after a fit, besides what :attr:`diagnostics` holds."""
        return ()

    def fit(self, train_loader: Iterable[Any], override: bool = True, progress_bar: bool = False) -> None:
        """Fit the posterior to the data that the model was trained on.

        Parameters
        ----------
        train_loader
            The training data, as (x, y) pairs or dict-like batches.
        override
            Must be True: a fit cannot be extended by further data.
        progress_bar
            Show the fit's progress.

        Raises
        ------
        ValueError
            Empty loader, targets that do not fit the outputs, a loss that is not finite, or ``override=False``.
        RuntimeError
            The method failed, with the reason and a remedy.
        """
        if not override:
            raise ValueError("override: expected True, got False; a fit depends on all data: fit on their union.")
        with torch.inference_mode(False):  # which a caller may be in, for predictions; fits need derivatives
            self._fit_to(train_loader, progress_bar)
        for message in self.fit_warnings():
            self._notices.say(message)

    def _fit_to(self, train_loader: Iterable[Any], progress_bar: bool) -> None:
        data = TrainingData(train_loader, self._device, self.batch, self.dict_key_y, self.seed)
        self.network.check_last_layer(data.first[0])
        theta = self._trained()
        with self.network.evaluation():
            with torch.no_grad():
                outputs = self.network.one(theta, data.first[0])
            check_shapes(outputs, data.first[1], self.likelihood)
            self._check_noise(outputs.shape[-1])
            joint = self._joint(data.n_data)
            _check_finite(float(joint.loss_of(outputs[None], data.first[1])))
            for message in network_warnings(self.network, theta, data.first[0], self.likelihood):
                self._notices.say(message)
            try:
                self._fit(theta, joint, data, progress_bar)
                residuals = joint.unit_losses(theta, data.epoch())
            except ValueError:
                raise  # refused before any work: an earlier fit stays
            except BaseException:
                self._forget_fit()  # not an old fit under the name of an interrupted one
                raise
        self.n_outputs, self.n_data = outputs.shape[-1], data.n_data
        self.residuals, self.loss = residuals, float(residuals.sum())
        self._data, self._backend = data, None
        self._forget_predictions()
        self.mean = theta

    def settings_shown(self) -> dict[str, Any]:
        """Settings of the method that ``repr`` names."""
        return {name: getattr(self, name) for name in self._shown}

    def __repr__(self) -> str:
        tau = self.prior_precision.detach()
        own = {"prior_precision": float(f"{float(tau):.4g}") if tau.numel() == 1 else f"{tau.numel()} values"}
        settings = arguments(own | self.settings_shown())
        title = f"{type(self).__name__}({self.likelihood}, {self.n_params:,} weights, {settings})"
        if self.mean is None:
            return f"{title}: not fitted; call fit(train_loader)"
        found = len(self.fit_warnings())
        return f"{title}: fitted to {self.n_data} points" + (f", {found} warning{'s' * (found > 1)}" if found else "")

    def _say_changed(self, names: Sequence[str]) -> None:
        if names:
            self._notices.say(
                f"{' and '.join(names)} changed since fit; weight samples are those of the fit: fit again."
            )

    def effective_dimension(self, rank: int | None = None, probes: int = PROBES) -> EffectiveDimension:
        """How many directions of the moving weights the training data determine, against the prior: Σ λ/(λ + τ).

        λ are the eigenvalues of the Gauss-Newton matrix at the trained weights. Takes the present ``prior_precision``,
        ``sigma_noise`` and ``temperature``, whatever those of the fit. Passes over the training data, for networks of
        more than 3,000 weights (and data points times outputs) hundreds of times.

        Parameters
        ----------
        rank, probes
            Of large networks: see :func:`laplace_fiber.effective_dimension.effective_dimension`.

        Raises
        ------
        RuntimeError
            Not fitted, or the training data are not at hand, as after ``load_state_dict``.
        """
        theta = self._require_mean()
        if self._data is None:
            raise RuntimeError(
                "effective_dimension: expected the training data of a fit, got a loaded state, which has none; call "
                "fit(train_loader) first."
            )
        return effective_dimension(self._joint(self._data.n_data), theta, self._data, self.seed, rank, probes)

    def _hosted_state(self) -> dict[str, Any]:
        return {**super()._hosted_state(), "diagnostics": dict(self.diagnostics)}

    def _take_hosted_state(self, state: dict[str, Any]) -> Float[Tensor, " p"]:
        mean = super()._take_hosted_state(state)
        self.diagnostics, self._data = dict(state["diagnostics"]), None
        return mean


def _check_finite(loss: float) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"fit: expected a finite loss at the trained weights, got {loss} on the first batch; check the data for "
            "NaN and the network for divergence."
        )
