"""The methods under comparison, and the only tuned numbers of the benchmarks.

A method takes the trained network, the data set, the noise scale of its targets (1 in classification), a seed and an
effort, and returns what it fitted. All start from the same network (ensembles train their own) and choose their prior
precision by the negative log-likelihood of the averaged predictive on the validation data, over the same grid.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from laplace import FullLaplace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import environment
from benchmarks.datasets import Dataset, Split, indexed_loader
from benchmarks.models import train_timed, training_for
from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler, low_rank_laplace
from laplace_fiber.metrics import Prediction, evaluate
from laplace_fiber.paths import PosteriorForm

LOG10_PRIOR_PRECISION = (-2.0, 4.0)
LOADER_BATCH = 512


@dataclass(frozen=True)
class Effort:
    """What every method may spend: posterior samples, values of the prior precision, members, share of the epochs.

    ``walk`` and ``autoencoder`` are settings of FiberLaplace's parts that differ from its defaults.
    """

    n_samples: int = 100
    tuning: Literal["validation", "marglik"] = "validation"
    grid_size: int = 21
    n_members: int = 5
    epoch_share: float = 1.0
    walk: dict[str, Any] = field(default_factory=dict)
    autoencoder: dict[str, Any] = field(default_factory=dict)


FULL = Effort()
QUICK = Effort(
    n_samples=10,
    grid_size=5,
    n_members=2,
    epoch_share=0.05,
    walk={"n_particles": 4, "n_steps": 5},
    autoencoder={"n_steps": 5},
)


@dataclass(frozen=True)
class Fitted:
    """A fitted method.

    ``predict`` maps inputs (b, d) to a prediction, the same one at each call. ``fit_seconds`` covers the fit and the
    choice of the prior precision. ``info`` tells what was chosen and at what cost. ``sigma`` is the targets'
    noise, where the method has chosen its own.
    """

    predict: Callable[[Tensor], Prediction]
    fit_seconds: float
    info: dict[str, Any] = field(default_factory=dict)
    sigma: float | None = None


class Method(Protocol):
    """What the entries of ``METHODS`` are."""

    def __call__(self, model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL) -> Fitted:
        """Fit a posterior around ``model``, which stays as it is."""
        ...


def fit_map(model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL) -> Fitted:
    """The trained network by itself."""
    return Fitted(lambda x: _network_outputs([model], x, dataset.likelihood), fit_seconds=0.0)


def member_seeds(seed: int, effort: Effort) -> list[int]:
    """Seeds of the further networks that belong to a seed."""
    return [1000 * (seed + 1) + member for member in range(effort.n_members)]


def fit_ensemble(model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL) -> Fitted:
    """Networks trained on the same data from seeds of their own; ``model`` is not among them."""
    training = training_for(dataset.name).shortened(effort.epoch_share)
    seeds = member_seeds(seed, effort)
    members, seconds = zip(*(train_timed(dataset, s, training) for s in seeds), strict=True)
    return Fitted(lambda x: _network_outputs(members, x, dataset.likelihood), sum(seconds), {"member_seeds": seeds})


def fit_full_laplace(
    model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL, *, linearised: bool
) -> Fitted:
    """laplace-torch's Gauss-Newton posterior over all weights: sampled, or with its linearised predictive."""
    la = FullLaplace(copy.deepcopy(model), dataset.likelihood, sigma_noise=sigma)
    predict = functools.partial(_linearised, la) if linearised else weight_sampler(la, seed, effort)
    return fit_posterior(la, predict, dataset, lambda: _choose_prior_precision(la, predict, dataset, sigma, effort))


def fit_low_rank_laplace(model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL) -> Fitted:
    """laplace-torch's low-rank posterior over the Gauss-Newton curvature of laplace-fiber, sampled."""
    la = low_rank_laplace(copy.deepcopy(model), dataset.likelihood, sigma_noise=sigma)
    predict = weight_sampler(la, seed, effort)
    return fit_posterior(la, predict, dataset, lambda: _choose_prior_precision(la, predict, dataset, sigma, effort))


def fit_fiber(
    model: nn.Module, dataset: Dataset, sigma: float, seed: int, effort: Effort = FULL, *, posterior: PosteriorForm
) -> Fitted:
    """FiberLaplace with the posterior ``posterior`` over its trajectories."""
    la = FiberLaplace(
        copy.deepcopy(model),
        dataset.likelihood,
        sigma_noise=sigma,
        posterior=posterior,
        sampler=TrajectorySampler(seed=seed, **effort.walk),
        autoencoder=LatentAutoencoder(seed=seed, **effort.autoencoder),
    )
    low, high = LOG10_PRIOR_PRECISION

    def choose() -> None:
        la.optimize_prior_precision(
            method="gridsearch" if effort.tuning == "validation" else "marglik",
            val_loader=split_loader(dataset.val) if effort.tuning == "validation" else None,
            log_prior_prec_min=low,
            log_prior_prec_max=high,
            grid_size=effort.grid_size,
            n_samples=effort.n_samples,
        )

    fitted = fit_posterior(la, weight_sampler(la, seed, effort), dataset, choose)
    fitted.info.update(fiber_info(la))
    return fitted


def fiber_info(la: FiberLaplace) -> dict[str, Any]:
    """The cost of the walk, how far decoded samples are from its states in NLL (percent), and the report's numbers."""
    if la.report is None:
        raise RuntimeError("Expected the report of a fit; got none. Call fit first.")
    evaluations = la.report.gradient_evaluations * la.report.n_particles
    gap = 100 * la.report.decoded_gap
    report = asdict(replace(la.report, trace=None))  # the trace is tensors
    return {"gradient_evaluations": evaluations, "decoded_gap": gap, "report": report}


METHODS: dict[str, Method] = {
    "map": fit_map,
    "la-gn": functools.partial(fit_full_laplace, linearised=False),
    "la-lowrank": fit_low_rank_laplace,
    "lla": functools.partial(fit_full_laplace, linearised=True),
    "ensemble": fit_ensemble,
    "fiber-latent": functools.partial(fit_fiber, posterior="latent"),
    "fiber-states": functools.partial(fit_fiber, posterior="states"),
    "fiber-line": functools.partial(fit_fiber, posterior="line"),
    "fiber-gaussian": functools.partial(fit_fiber, posterior="gaussian"),
}


def fit_posterior(
    la: Any, predict: Callable[[Tensor], Prediction], dataset: Dataset, choose: Callable[[], None]
) -> Fitted:
    """Fit ``la`` to the training data, then let ``choose`` set its prior precision."""
    start = environment.clock()
    la.fit(split_loader(dataset.train))
    fitted = environment.clock()
    choose()
    end = environment.clock()
    info = {"prior_precision": la.prior_precision.tolist(), "choice_seconds": end - fitted}
    return Fitted(predict, end - start, info)


def _choose_prior_precision(
    la: Any, predict: Callable[[Tensor], Prediction], dataset: Dataset, sigma: float, effort: Effort
) -> None:
    """Set the value of the grid with the lowest validation loss of the averaged predictive, or the most likely value.

    laplace-torch's own grid search averages its default loss over the values tried so far and draws other samples for
    each of them; here all values see the same random numbers.
    """
    if effort.tuning == "marglik":
        la.optimize_prior_precision(pred_type="nn", method="marglik", prior_structure="scalar")
        return
    x, y = dataset.val
    losses: dict[float, float] = {}
    for value in torch.logspace(*LOG10_PRIOR_PRECISION, effort.grid_size).tolist():
        la.prior_precision = value
        try:
            loss = evaluate(predict(x), y, sigma)["nll"]
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # the precision matrix is singular in float32
            continue
        if math.isfinite(loss):
            losses[value] = loss
    if not losses:
        raise RuntimeError(
            f"Expected a finite validation loss for some prior precision in 10^{LOG10_PRIOR_PRECISION}; got none. "
            "Check the trained network for weights or outputs that are not finite."
        )
    la.prior_precision = min(losses, key=losses.__getitem__)


def weight_sampler(la: Any, seed: int, effort: Effort) -> Callable[[Tensor], Tensor]:
    """Predictions from samples of the weights, (s, b, c): class probabilities or function values."""

    def predict(x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            samples = la.predictive_samples(x, pred_type="nn", n_samples=effort.n_samples, generator=generator)
        return torch.as_tensor(samples)

    return predict


def _linearised(la: Any, x: Tensor) -> Prediction:
    """The closed form of the linearised network: Gaussian in regression, probit class probabilities (1, b, c)."""
    if la.likelihood == "classification":
        return torch.as_tensor(la(x, pred_type="glm", link_approx="probit")).unsqueeze(0)
    mean, covariance = la(x, pred_type="glm")
    return mean, covariance.squeeze(-1)


def _network_outputs(models: Sequence[nn.Module], x: Tensor, likelihood: str) -> Tensor:
    """Class probabilities or function values of each network, (s, b, c)."""
    with torch.no_grad():
        outputs = torch.stack([model(x) for model in models])
    return outputs.softmax(dim=-1) if likelihood == "classification" else outputs


def split_loader(split: Split, batch_size: int = LOADER_BATCH) -> DataLoader[tuple[Tensor, ...]]:
    """The data in fixed order; its own generator keeps the iteration off the global random state.

    Data on a GPU are taken from it by one indexing operation a batch, not point by point.
    """
    if split[0].is_cuda:
        return indexed_loader(split, batch_size, shuffled=False, generator=torch.Generator())
    return DataLoader(TensorDataset(*split), batch_size=batch_size, generator=torch.Generator())
