"""Choosing a posterior's prior precision on validation data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torchmetrics
from jaxtyping import Float
from laplace.utils import validate
from torch import Tensor
from tqdm import tqdm

from laplace_fiber import predictive
from laplace_fiber.data import batches_of, pairs

if TYPE_CHECKING:
    from laplace_fiber.posterior import SampledPosterior

Loss: TypeAlias = torchmetrics.Metric | Callable[..., Tensor]
"""As in laplace-torch: of probabilities and labels, or of mean, variance and targets; a metric is reset before use."""


class ValidationLoss:
    """The loss of a posterior's predictions on a loader, infinite where it is not a number.

    Parameters
    ----------
    posterior, loader
        What is judged, and on which data.
    loss
        ``None`` takes the negative log-likelihood of the averaged predictive, noise included.
    prediction
        ``pred_type``, ``link_approx`` and ``n_samples`` of the predictions.
    """

    def __init__(
        self, posterior: SampledPosterior, loader: Iterable[Any], loss: Loss | None, prediction: dict[str, Any]
    ) -> None:
        self.posterior, self.loader, self.loss, self.prediction = posterior, loader, loss, prediction

    def __call__(self) -> float:
        """The loss of the posterior as it is now."""
        value = self._likelihood() if self.loss is None else self._of_predictions(self.loss)
        return value if math.isfinite(value) else math.inf

    def _likelihood(self) -> float:
        la, total, count = self.posterior, 0.0, 0
        sigma = la.sigma_noise.detach()
        for x, y in pairs(batches_of(self.loader), la._device, la.dict_key_y, "val_loader"):
            if self.prediction["pred_type"] == "nn":
                samples = la.functional_samples(x, "nn", self.prediction["n_samples"]).detach()
                nll = predictive.negative_log_likelihood(samples, y, la.likelihood, sigma)
            else:
                nll = predictive.negative_log_density(la(x, fitting=True, **self.prediction), y, sigma)
            total, count = total + float(nll) * len(y), count + len(y)
        return total / count if count else math.nan

    def _of_predictions(self, loss: Loss) -> float:
        if isinstance(loss, torchmetrics.Metric):
            loss.reset()
        la = self.posterior
        with la.network.evaluation(), torch.random.fork_rng(devices=[]):
            return float(validate(la, self.loader, loss, dict_key_y=la.dict_key_y, **self.prediction))


def search_prior_precision(
    posterior: SampledPosterior, grid: Float[Tensor, " g"], evaluate: Callable[[], float], progress_bar: bool = False
) -> None:
    """Set the grid's value with the lowest loss; keep the present one unless a value beats it, or an error comes."""
    best, lowest = posterior.prior_precision, evaluate()
    bar = tqdm(posterior.distinct_prior_precisions(grid), desc="prior precision", disable=not progress_bar)
    try:
        for candidate in bar:
            posterior.prior_precision = candidate
            posterior.follow_prior_precision()
            value = evaluate()
            if value < lowest:
                best, lowest = posterior.prior_precision, value
            bar.set_postfix(prior_precision=f"{float(best.mean()):.3g}", loss=f"{lowest:.4g}")
    finally:
        posterior.prior_precision = best
