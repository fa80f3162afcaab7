"""The constructor, settings and checks that laplace-torch's base class and posteriors known by samples share."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from laplace.baselaplace import BaseLaplace
from laplace.curvature import CurvatureInterface
from laplace.utils import Likelihood
from torch import Tensor, nn

from laplace_fiber.weights import Engine, NetworkFunction, Subset

LIKELIHOODS = tuple(kind.value for kind in Likelihood)

GAUSSIAN_ONLY = (
    "H",
    "posterior_precision",
    "posterior_covariance",
    "posterior_variance",
    "posterior_scale",
    "log_det_posterior_precision",
    "log_det_prior_precision",
    "log_det_ratio",
    "square_norm",
    "scatter",
)
"""Public names of laplace-torch's Gaussian posteriors that mean nothing for samples."""


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
            model,
            likelihood,
            sigma_noise=sigma_noise,
            temperature=temperature,
            enable_backprop=enable_backprop,
            dict_key_x=dict_key_x,
            dict_key_y=dict_key_y,
            backend=backend,
            backend_kwargs=backend_kwargs,
            asdl_fisher_kwargs=asdl_fisher_kwargs,
        )
        if not (temperature > 0 and bool(torch.all(self.sigma_noise > 0))):
            raise ValueError(f"expected temperature and sigma_noise > 0, got {temperature} and {sigma_noise}.")
        self.network = network
        self.params = network.tensors
        self.n_params = network.n_params
        # An index subset cuts through tensors, so "one precision per layer" can only mean one per weight.
        self.n_layers = len(network.names) if network.index is None else network.n_params
        self.prior_precision = prior_precision
        self.prior_mean = prior_mean
        self.chunk_size = chunk_size
        self.mean: Float[Tensor, " p"] | None = None

    @property
    def prior_precision(self) -> Float[Tensor, " #p"]:
        """τ: one value, one per weight tensor, or one per moving weight."""
        precision: Tensor = self._prior_precision
        return precision

    @prior_precision.setter
    def prior_precision(self, value: float | Tensor) -> None:
        values = torch.as_tensor(value).detach()
        if not bool(torch.all(torch.isfinite(values) & (values > 0))):
            raise ValueError(f"prior_precision: expected positive finite values, got {value}.")
        if values.ndim > 1 or values.numel() not in (1, self.n_layers, self.n_params):
            raise ValueError(
                f"prior_precision: expected one value, {self.n_layers} (one per weight tensor) or {self.n_params} (one "
                f"per moving weight), got shape {tuple(values.shape)}."
            )
        BaseLaplace.prior_precision.fset(self, value)

    def __getattr__(self, name: str) -> Any:
        if name in GAUSSIAN_ONLY:
            raise AttributeError(
                f"{type(self).__name__} has no {name}: it belongs to Gaussian posteriors. Use sample() and its "
                "moments, or spread_factor() for the second moment of the weights."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

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
