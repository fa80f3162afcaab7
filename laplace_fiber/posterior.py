"""The interface of every posterior that is fitted and then sampled: laplace-torch's, with true samples behind it."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torchmetrics
from jaxtyping import Float
from laplace.baselaplace import BaseLaplace
from laplace.curvature import CurvatureInterface
from laplace.utils import Likelihood, validate
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from laplace_fiber import predictive
from laplace_fiber.data import batches_of, moved, pairs
from laplace_fiber.weights import Engine, Inputs, NetworkFunction, Subset

LIKELIHOODS = tuple(kind.value for kind in Likelihood)

Loss: TypeAlias = torchmetrics.Metric | Callable[..., Tensor]


class SampledPosterior(BaseLaplace, ABC):  # type: ignore[misc]
    """A posterior over network weights known by its samples. Abstract: methods define :meth:`fit` and :meth:`sample`.

    Predictions average the network over weight samples (laplace-torch's ``pred_type="nn"``, ``link_approx="mc"``, which
    are the defaults here). The model is only read; it keeps its weights, buffers, modes and gradients.

    Without a ``generator`` every call draws the same samples: predictions repeat, and those for different inputs come
    from the same functions. Pass a ``torch.Generator`` on the model's device for fresh ones.

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

    @abstractmethod
    def fit(self, train_loader: DataLoader[Any], override: bool = True, progress_bar: bool = False) -> None:
        """Fit the posterior to the data the model was trained on."""

    @abstractmethod
    def sample(self, n_samples: int = 100, generator: torch.Generator | None = None) -> Float[Tensor, "s p"]:
        """Draw weight samples, one row each, in the order of the moving weights."""

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

    def __call__(
        self,
        x: Inputs,
        pred_type: str = "nn",
        joint: bool = False,
        link_approx: str = "mc",
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
        fitting: bool = False,
        **model_kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The posterior predictive at inputs ``x``.

        Returns
        -------
        Tensor or tuple of Tensor
            Classification: averaged class probabilities (b, c). Regression, and reward modelling unless ``fitting``:
            mean and variance of the function, both (b, c), observation noise not included.

        Raises
        ------
        RuntimeError
            The posterior has not been fitted.
        ValueError
            ``pred_type`` or ``link_approx`` that a sampled posterior does not have, ``n_samples`` below 1, or a
            generator on another device.
        """
        if link_approx != "mc":
            raise ValueError(f"link_approx: expected 'mc' (averages over samples), got {link_approx!r}.")
        samples = self._functions(x, pred_type, n_samples, generator, **model_kwargs)
        if self._predicts_classes(fitting):
            return predictive.class_probabilities(samples)
        return predictive.mean_and_variance(samples)

    def functional_samples(
        self,
        x: Inputs,
        pred_type: str = "nn",
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "s b *c"]:
        """The network's outputs f(θ, x) under ``n_samples`` weight samples; raises as :meth:`__call__`."""
        return self._functions(x, pred_type, n_samples, generator)

    def predictive_samples(
        self,
        x: Inputs,
        pred_type: str = "nn",
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "s b *c"]:
        """Class probabilities (classification) or outputs under each weight sample; raises as :meth:`__call__`."""
        samples = self._functions(x, pred_type, n_samples, generator)
        return samples.softmax(-1) if self.likelihood == "classification" else samples

    def optimize_prior_precision(
        self,
        pred_type: str = "nn",
        method: str = "marglik",
        n_steps: int = 100,
        lr: float = 1e-1,
        init_prior_prec: float | Tensor = 1.0,
        prior_structure: str = "scalar",
        val_loader: DataLoader[Any] | None = None,
        loss: Loss | None = None,
        log_prior_prec_min: float = -4,
        log_prior_prec_max: float = 4,
        grid_size: int = 100,
        link_approx: str = "mc",
        n_samples: int = 100,
        verbose: bool = False,
        progress_bar: bool = False,
        log_prior_prec_base: float = 10.0,
    ) -> None:
        """Choose the prior precision after fit; arguments as in laplace-torch.

        ``"marglik"`` ascends :meth:`log_marginal_likelihood`. ``"gridsearch"`` takes the value with the lowest loss on
        ``val_loader`` among the grid and the present one, which is kept unless a value beats it. The default loss is
        the negative log-likelihood of the averaged predictive; a torchmetrics metric is reset for every value.

        Raises
        ------
        ValueError
            Unknown method, or gridsearch without ``val_loader``.
        """
        self._check_fitted()
        if method == "gridsearch":
            if val_loader is None:
                raise ValueError("gridsearch: expected a validation DataLoader, got None; pass val_loader=.")
            grid = torch.logspace(log_prior_prec_min, log_prior_prec_max, grid_size, base=log_prior_prec_base)
            evaluate = self._validation_loss(val_loader, loss, pred_type, link_approx, n_samples)
            self.prior_precision = self._best_prior_precision(grid, evaluate, progress_bar)
        elif method == "marglik":
            with warnings.catch_warnings():
                # About a default link approximation that sampled posteriors do not have.
                warnings.filterwarnings("ignore", message="By default `link_approx`")
                super().optimize_prior_precision(
                    pred_type=pred_type,
                    method=method,
                    n_steps=n_steps,
                    lr=lr,
                    init_prior_prec=init_prior_prec,
                    prior_structure=prior_structure,
                    val_loader=val_loader,
                    progress_bar=progress_bar,
                )
        else:
            raise ValueError(f"method: expected 'gridsearch' or 'marglik', got {method!r}.")
        self.settle_prior_precision()
        if verbose:
            print(f"Optimized prior precision is {self.prior_precision}.")  # noqa: T201  (asked for)

    def settle_prior_precision(self) -> None:
        """Called when a prior precision has been chosen: the place for work that candidates are spared."""

    def distinct_prior_precisions(self, grid: Float[Tensor, " g"]) -> Float[Tensor, " h"]:
        """The values of a grid that give different posteriors without a new fit."""
        return grid

    def _best_prior_precision(
        self, grid: Float[Tensor, " g"], evaluate: Callable[[], float], progress_bar: bool
    ) -> Float[Tensor, " #p"]:
        best, lowest = self.prior_precision, evaluate()
        bar = tqdm(self.distinct_prior_precisions(grid), desc="prior precision", disable=not progress_bar)
        try:
            for candidate in bar:
                self.prior_precision = candidate
                value = evaluate()
                if value < lowest:
                    best, lowest = self.prior_precision, value
                bar.set_postfix(prior_precision=f"{float(best.mean()):.3g}", loss=f"{lowest:.4g}")
        finally:
            self.prior_precision = best
        return best

    def _validation_loss(
        self, loader: DataLoader[Any], loss: Loss | None, pred_type: str, link_approx: str, n_samples: int
    ) -> Callable[[], float]:
        def of_samples() -> float:
            total, count = 0.0, 0
            for x, y in pairs(batches_of(loader), self._device, self.dict_key_y, "val_loader"):
                samples = self._functions(x, pred_type, n_samples, None).detach()
                nll = predictive.negative_log_likelihood(samples, y, self.likelihood, float(self.sigma_noise.detach()))
                total, count = total + float(nll) * len(y), count + len(y)
            return total / count if count and math.isfinite(total) else math.inf

        def of_predictions() -> float:
            if isinstance(loss, torchmetrics.Metric):
                loss.reset()
            with self.network.evaluation(), torch.random.fork_rng(devices=[]):
                value = float(validate(self, loader, loss, pred_type, link_approx, n_samples, self.dict_key_y))
            return value if math.isfinite(value) else math.inf

        return of_samples if loss is None else of_predictions

    def _functions(
        self, x: Inputs, pred_type: str, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        self._check_fitted()
        if pred_type != "nn":
            raise ValueError(f"pred_type: expected 'nn' (the network under weight samples), got {pred_type!r}.")
        thetas = self.sample(n_samples, generator)
        inputs = moved(x, self._device)
        return predictive.function_samples(
            self.network, thetas, inputs, self.chunk_size, self.enable_backprop, **model_kwargs
        )

    def _predicts_classes(self, fitting: bool) -> bool:
        return bool(self.likelihood == "classification" or (self.likelihood == "reward_modeling" and fitting))

    def _check_fitted(self) -> None:
        if self.mean is None:
            raise RuntimeError(f"{type(self).__name__} has not been fitted: call fit(train_loader) first.")

    def _generator(self, generator: torch.Generator | None, n_samples: int, seed: int = 0) -> torch.Generator:
        """The generator to draw from: the given one, checked, or a new one of a fixed seed."""
        self._check_fitted()
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
