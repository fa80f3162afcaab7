"""The constructor, settings and checks that laplace-torch's base class and posteriors known by samples share."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Float
from laplace.baselaplace import BaseLaplace
from laplace.curvature import CurvatureInterface
from laplace.utils import Likelihood
from torch import Tensor, nn

from laplace_fiber.data import TrainingData
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.predictive import RECORD_AFTER
from laplace_fiber.recording import Recorder
from laplace_fiber.shown import Notices
from laplace_fiber.state import STATE_SETTINGS, STATE_VERSION, checked_origin
from laplace_fiber.weights import Engine, NetworkFunction, Subset

LIKELIHOODS = tuple(kind.value for kind in Likelihood)

_MOMENTS = "sample() and its moments, or spread_factor() for the second moment of the weights"

ELSEWHERE = {
    "H": _MOMENTS,
    "posterior_precision": _MOMENTS,
    "posterior_covariance": _MOMENTS,
    "posterior_variance": _MOMENTS,
    "posterior_scale": _MOMENTS,
    "log_det_posterior_precision": "log_marginal_likelihood()",
    "log_det_ratio": "log_marginal_likelihood()",
    "square_norm": _MOMENTS,
    "functional_variance_fast": "la(x, pred_type='glm', diagonal_output=True)",
    "mean_subnet": "mean, which covers the moving weights only",
    "n_params_subnet": "n_params, which counts the moving weights only",
    "assemble_full_samples": "network.named(theta), the weight tensors of one sample",
    "gp_kernel_prior_variance": _MOMENTS,
}
"""Public names of laplace-torch's other posteriors that mean nothing for samples, and what to use instead."""


class HostedPosterior(BaseLaplace):  # type: ignore[misc]
    """laplace-torch's base class over the moving weights of a network that is only read. Abstract.

    Parameters
    ----------
    model, likelihood, sigma_noise, prior_precision, prior_mean, temperature, enable_backprop, dict_key_x, dict_key_y, \
backend, backend_kwargs, asdl_fisher_kwargs
        As in laplace-torch. Precision and mean refer to the moving weights.
    subset
        Which weights move: ``"all"``, ``"last_layer"``, a list of module names, or a vector of indices into all
        trainable weights.
    engine
        ``"vmap"``, ``"loop"`` or ``"auto"``: see :class:`laplace_fiber.weights.NetworkFunction`.
    chunk_size
        At most this many weight vectors are evaluated together; ``None`` takes all.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: str,
        sigma_noise: float | Tensor = 1.0,
        prior_precision: float | Tensor = 1.0,
        prior_mean: float | Tensor = 0.0,
        temperature: float = 1.0,
        enable_backprop: bool = False,
        dict_key_x: str = "input_ids",
        dict_key_y: str = "labels",
        backend: type[CurvatureInterface] | None = None,
        backend_kwargs: dict[str, Any] | None = None,
        asdl_fisher_kwargs: dict[str, Any] | None = None,
        *,
        subset: Subset = "all",
        engine: Engine = "auto",
        chunk_size: int | None = None,
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood: expected one of {LIKELIHOODS}, got {likelihood!r}.")
        network = NetworkFunction(model, subset, engine)
        super().__init__(
            network.model,
            likelihood,
            temperature=temperature,
            enable_backprop=enable_backprop,
            dict_key_x=dict_key_x,
            dict_key_y=dict_key_y,
            backend=backend,
            backend_kwargs=backend_kwargs,
            asdl_fisher_kwargs=asdl_fisher_kwargs,
        )
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}.")
        self.check_noise_applies(sigma_noise)
        self.sigma_noise = sigma_noise
        self.likelihood: str = Likelihood(likelihood).value  # an enum member compares equal, but prints otherwise
        self._backend: CurvatureInterface | None = None
        self.network = network
        self._jacobians_from_backend = backend is not None
        self._model_kwargs: dict[str, Any] = {}
        self._forget_predictions()
        self.params = network.tensors
        self.n_params = network.n_params
        # An index subset cuts through tensors, so "one precision per layer" can only mean one per weight.
        self.n_layers = len(network.names) if network.index is None else network.n_params
        self.prior_precision = prior_precision
        self.prior_mean = prior_mean
        self.chunk_size = chunk_size
        self.mean: Float[Tensor, " p"] | None = None
        self.diagnostics: dict[str, float] = {}
        self._data: TrainingData | None = None  # of the last fit, for as long as the object lives
        self.residuals: Float[Tensor, " c"]  # Σ ℓ at the MAP with σ = 1, per output; set by fit

    def _forget_predictions(self) -> None:
        """Drop what is kept to make repeated predictions fast, and what has been warned of."""
        self._together: dict[tuple[Any, ...], int | None] = {}
        self._asked: set[tuple[Any, ...]] = set()
        self._recorder = Recorder(after=RECORD_AFTER)
        self._kept: tuple[tuple[Any, ...], Any] | None = None
        self._notices = Notices()

    def __getstate__(self) -> dict[str, Any]:
        fleeting = ("_together", "_asked", "_recorder", "_kept", "_notices")
        return {k: v for k, v in self.__dict__.items() if k not in fleeting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_predictions()

    @property
    def sigma_noise(self) -> Float[Tensor, ""] | Float[Tensor, " c"]:
        """σ of the observations: one value, or (regression) one per output."""
        sigma: Tensor = self._sigma_noise
        return sigma

    @sigma_noise.setter
    def sigma_noise(self, value: float | Tensor) -> None:
        sigma = _numbers(value, "sigma_noise", dtype=self._dtype, device=self._device)
        if sigma.ndim > 1 or sigma.numel() == 0 or not bool(torch.all(torch.isfinite(sigma) & (sigma > 0))):
            raise ValueError(f"sigma_noise: expected one positive value, or one per output, got {value}.")
        self._sigma_noise = sigma[0] if sigma.shape == (1,) else sigma

    @property
    def prior_precision(self) -> Float[Tensor, " #p"]:
        """τ: one value, one per weight tensor, or one per moving weight."""
        precision: Tensor = self._prior_precision
        return precision

    @prior_precision.setter
    def prior_precision(self, value: float | Tensor) -> None:
        values = _numbers(value, "prior_precision").detach()
        if not bool(torch.all(torch.isfinite(values) & (values > 0))):
            raise ValueError(f"prior_precision: expected positive finite values, got {value}.")
        if values.ndim > 1 or values.numel() not in (1, self.n_layers, self.n_params):
            raise ValueError(
                f"prior_precision: expected one value, {self.n_layers} (one per weight tensor) or {self.n_params} (one "
                f"per moving weight), got shape {tuple(values.shape)}."
            )
        BaseLaplace.prior_precision.fset(self, value)

    @property
    def backend(self) -> CurvatureInterface:
        """The curvature backend, on a copy of the model in eval mode: backends mark and hook the modules they get."""
        if self._backend is None:
            model = copy.deepcopy(self.model).eval()
            if self.mean is not None:  # which may be other weights of the same function
                model.load_state_dict(self.network.named(self.mean), strict=False)
            model.output_size = self.n_outputs
            keys = {"dict_key_x": self.dict_key_x, "dict_key_y": self.dict_key_y}
            self._backend = self._backend_cls(model, self._loss_likelihood, **keys, **self._backend_kwargs)
        return self._backend

    @property
    def scatter(self) -> Float[Tensor, ""]:
        """(θ_MAP − μ₀)ᵀ diag(τ) (θ_MAP − μ₀)."""
        return ((self._require_mean() - self.prior_mean).square() * self.prior_precision_diag).sum()

    @property
    def log_det_prior_precision(self) -> Float[Tensor, ""]:
        """Σ log τ over the moving weights."""
        return self.prior_precision_diag.log().sum()

    def __getattr__(self, name: str) -> Any:
        if name in ELSEWHERE:
            raise AttributeError(
                f"{type(self).__name__} is known by its samples and has no {name}; use {ELSEWHERE[name]}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def log_likelihood(self) -> Float[Tensor, ""]:
        """log p(D | θ_MAP) / temperature; differentiable in ``sigma_noise``."""
        self._require_mean()
        if self.likelihood != "regression":
            return -self.residuals.sum() / self.temperature
        sigma = self.sigma_noise.expand(self.residuals.shape)
        fit = (self.residuals / sigma.square()).sum() / self.temperature
        return -fit - self.n_data * (sigma * math.sqrt(2 * math.pi)).log().sum()

    def _hosted_state(self) -> dict[str, Any]:
        """What every saved state holds: who it belongs to, the MAP, and the settings that may change after fit."""
        return {
            **self._identity(),
            "mean": self._require_mean(),
            "residuals": self.residuals,
            **{name: getattr(self, name) for name in STATE_SETTINGS},
        }

    def _take_hosted_state(self, state: dict[str, Any]) -> Float[Tensor, " p"]:
        """The inverse of :meth:`_hosted_state`, after checks; returns the MAP."""
        mean = checked_origin(state, self._identity(), self._trained(state))
        for name in STATE_SETTINGS:
            setattr(self, name, state[name])
        self.mean, self.residuals = mean, state["residuals"].to(mean.device)
        self._forget_predictions()
        return mean

    def _identity(self) -> dict[str, Any]:
        """What a saved state and the object that loads it must agree on."""
        return {
            "cls_name": type(self).__name__,
            "version": STATE_VERSION,
            "likelihood": self.likelihood,
            "weights": list(self.network.names),
            "n_params": self.n_params,
        }

    def _trained(self, state: dict[str, Any] | None = None) -> Float[Tensor, " p"]:
        """θ that a fit (or that behind a state) starts from: the model's weights, or others of the same function."""
        return self.network.theta()

    def _joint(self, n_data: int) -> LogJoint:
        return LogJoint(
            self.network,
            self._loss_likelihood,
            n_data,
            self.prior_precision_diag.detach(),
            torch.as_tensor(self.prior_mean),
            self.sigma_noise.detach(),
            self.temperature,
            self.chunk_size,
        )

    @property
    def _loss_likelihood(self) -> str:
        return "regression" if self.likelihood == "regression" else "classification"

    def check_noise_applies(self, sigma_noise: Any) -> None:
        """Refuse observation noise where the likelihood has none."""
        if self.likelihood != "regression" and not bool(torch.all(_numbers(sigma_noise, "sigma_noise") == 1)):
            raise ValueError(
                f"sigma_noise: expected 1 for {self.likelihood}, as only regression has noise; got {sigma_noise}."
            )

    def _check_noise(self, n_outputs: int) -> None:
        if self.sigma_noise.numel() not in (1, n_outputs):
            raise ValueError(
                f"sigma_noise: expected one value or {n_outputs} (one per output), got {self.sigma_noise.numel()}."
            )

    def _require_mean(self) -> Float[Tensor, " p"]:
        if self.mean is None:
            raise RuntimeError(f"{type(self).__name__} has not been fitted: call fit(train_loader) first.")
        return self.mean

    def _generator(self, generator: torch.Generator | None, n_samples: int, seed: int = 0) -> torch.Generator:
        """The generator to draw from: the given one, checked, or a new one of a fixed seed."""
        self._require_mean()
        if n_samples < 1:
            raise ValueError(f"n_samples: expected at least 1, got {n_samples}.")
        if generator is None:
            return torch.Generator(self._device).manual_seed(seed)
        if not isinstance(generator, torch.Generator) or generator.device.type != self._device.type:
            raise ValueError(
                f"generator: expected a torch.Generator on {self._device}, got "
                f"{getattr(generator, 'device', generator)}; build it with torch.Generator(device)."
            )
        return generator


def _numbers(value: Any, name: str, **options: Any) -> Tensor:
    try:
        return torch.as_tensor(value, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected a number or a tensor, got {value!r}.") from error
