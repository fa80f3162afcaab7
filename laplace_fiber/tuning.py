"""Choosing a posterior's prior precision on validation data."""

from __future__ import annotations

import math
import warnings
from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import torch
import torchmetrics
from jaxtyping import Float
from laplace.utils import validate
from torch import Tensor
from tqdm import tqdm

from laplace_fiber import predictive
from laplace_fiber.data import batches_of, pairs
from laplace_fiber.fitting import FittedPosterior
from laplace_fiber.shown import say_again

if TYPE_CHECKING:
    from laplace_fiber.posterior import SampledPosterior

Loss: TypeAlias = torchmetrics.Metric | Callable[..., Tensor]
"""As in laplace-torch: of probabilities and labels, or of mean, variance and targets; a metric is reset before use."""


REFIT_SPACING, PATIENCE = 3.0, 2
"""Where each prior precision of a grid costs another fit: ratio of neighbouring values, at least, and how many that are
no better than an earlier one end the search in their direction."""


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


class TunablePosterior(FittedPosterior, ABC):
    """A posterior whose prior precision can be chosen after fit. Abstract."""

    pred_types: ClassVar[tuple[str, ...]] = ("nn", "glm")
    """The kinds of prediction that samples are meant for, the default first."""

    def log_marginal_likelihood(
        self, prior_precision: Tensor | None = None, sigma_noise: Tensor | None = None
    ) -> Float[Tensor, ""]:
        """Not defined in general. Raises ``NotImplementedError`` unless a method overrides it."""
        raise NotImplementedError(
            f"log_marginal_likelihood: {type(self).__name__} has none; choose hyper-parameters with "
            "optimize_prior_precision(method='gridsearch', val_loader=...)."
        )

    def optimize_prior_precision(
        self,
        pred_type: str | None = None,
        method: str = "marglik",
        n_steps: int = 100,
        lr: float = 1e-1,
        init_prior_prec: float | Tensor = 1.0,
        prior_structure: str = "scalar",
        val_loader: Iterable[Any] | None = None,
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
        the negative log-likelihood of the averaged predictive; a torchmetrics metric is reset for every value. Where
        each value costs another fit, those a factor of three apart are tried, upwards and downwards from the present
        one, in each direction until two in a row are no better.

        Raises
        ------
        ValueError
            Unknown method, or gridsearch without ``val_loader``.
        """
        self._require_mean()
        pred_type = self._pred_type(pred_type)
        with torch.inference_mode(False):  # as fit
            if method == "gridsearch":
                if val_loader is None:
                    raise ValueError("gridsearch: expected a validation DataLoader, got None; pass val_loader=.")
                grid = torch.logspace(log_prior_prec_min, log_prior_prec_max, grid_size, base=log_prior_prec_base)
                prediction = {"pred_type": pred_type, "link_approx": link_approx, "n_samples": n_samples}
                evaluate = ValidationLoss(cast("SampledPosterior", self), val_loader, loss, prediction)
                search_prior_precision(self, grid, evaluate, progress_bar)
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

    @property
    def refits_candidates(self) -> bool:
        """Whether a candidate has no effect until :meth:`settle_prior_precision` has fitted to it."""
        return False

    def settle_prior_precision(self) -> None:
        """Fit to the present prior precision, if it asks for that: when it has been chosen, or is such a candidate."""

    def distinct_prior_precisions(self, grid: Float[Tensor, " g"]) -> Float[Tensor, " h"]:
        """The values of a grid that give different posteriors, those that need a new fit only if candidates get one."""
        return grid

    def _pred_type(self, asked: str | None) -> str:
        """The kind of prediction asked for, or the default one."""
        if asked is None:
            return self.pred_types[0]
        if asked not in self.pred_types:
            expected = " or ".join(map(repr, self.pred_types))
            raise ValueError(f"pred_type: expected {expected} for {type(self).__name__}, got {asked!r}.")
        return asked


def spaced(grid: Float[Tensor, " g"], ratio: float) -> Float[Tensor, " h"]:
    """Values of an ascending grid, from its first on, each at least ``ratio`` times the one before."""
    kept: list[int] = []
    for i, value in enumerate(grid.tolist()):
        # Rounding shall not turn steps of this very ratio into steps twice as long.
        if not kept or value >= (1 - 1e-3) * ratio * float(grid[kept[-1]]):
            kept.append(i)
    return grid[kept]


def search_prior_precision(
    posterior: TunablePosterior, grid: Float[Tensor, " g"], evaluate: Callable[[], float], progress_bar: bool = False
) -> None:
    """Set the grid's value with the lowest loss; keep the present one unless a value beats it, or an error comes.

    All values are tried, or where each costs a fit some, outwards from the present one. Of what fits to candidates warn
    of, only that of the last one is shown, if it is the best: others are fitted again.
    """
    best, refits = posterior.prior_precision, posterior.refits_candidates
    lowest = at_first = evaluate()
    warned: Sequence[warnings.WarningMessage] = ()
    values = posterior.distinct_prior_precisions(grid)
    directions = _outwards(spaced(values, REFIT_SPACING), float(best.mean())) if refits else [values]
    bar = tqdm(total=sum(map(len, directions)), desc="prior precision", disable=not progress_bar)
    try:
        for direction in directions:
            found = [at_first]
            for candidate in direction:
                posterior.prior_precision = candidate
                if refits:
                    with warnings.catch_warnings(record=True) as warned:
                        posterior.settle_prior_precision()
                found.append(evaluate())
                if found[-1] < lowest:
                    best, lowest = posterior.prior_precision, found[-1]
                bar.set_postfix(prior_precision=f"{float(best.mean()):.3g}", loss=f"{lowest:.4g}", refresh=False)
                bar.update()
                if refits and _gets_worse(found):
                    break
        if posterior.prior_precision is best:
            say_again(warned)
    finally:
        bar.close()
        posterior.prior_precision = best


def _gets_worse(losses: Sequence[float]) -> bool:
    """Whether the last ones are no better than an earlier one, which is finite."""
    earlier = min(losses[:-PATIENCE], default=math.inf)
    return math.isfinite(earlier) and min(losses[-PATIENCE:]) >= earlier


def _outwards(values: Float[Tensor, " g"], start: float) -> list[Float[Tensor, " h"]]:
    """Ascending values from the start on upwards, and downwards."""
    return [values[values > start], values[values < start].flip(0)]
