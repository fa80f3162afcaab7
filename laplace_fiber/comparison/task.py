"""What every method of a comparison is given, and predictions over whole loaders."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from laplace_fiber.data import batches_of, moved, pairs
from laplace_fiber.metrics import Prediction, TargetDistribution
from laplace_fiber.modes import eval_mode
from laplace_fiber.weights import Inputs

Predict: TypeAlias = Callable[[Inputs], Prediction]
"""Maps a batch of inputs to a prediction on the CPU; the same one at each call."""

LIKELIHOODS = ("classification", "regression")


@dataclass(frozen=True)
class Task:
    """A trained network (or several of one architecture), its data, and what all methods share.

    Attributes
    ----------
    models
        The trained networks; methods for a single one take the first.
    likelihood
        ``"classification"`` or ``"regression"``.
    train_loader, val_loader
        Data to fit to, and to choose settings on.
    sigma_noise
        Standard deviation of the targets' noise; 1 in classification.
    n_samples
        Posterior samples behind each prediction.
    """

    models: tuple[nn.Module, ...]
    likelihood: str
    train_loader: Iterable[Any]
    val_loader: Iterable[Any]
    sigma_noise: float = 1.0
    n_samples: int = 100

    @property
    def model(self) -> nn.Module:
        """The first network."""
        return self.models[0]

    @property
    def classes(self) -> bool:
        """Whether the targets are classes."""
        return self.likelihood == "classification"

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    @functools.cached_property
    def n_params(self) -> int:
        """Number of trainable weights."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def digest(self) -> str:
        """A fingerprint of the networks' weights and buffers."""
        result = hashlib.sha256()
        for model in self.models:
            for name, value in model.state_dict().items():
                data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                result.update(name.encode() + data.tobytes())
        return result.hexdigest()[:16]


def make_task(
    model: nn.Module | Sequence[nn.Module],
    likelihood: str,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    sigma_noise: float | None,
    n_samples: int,
) -> Task:
    """The task after checks, with the noise estimated where it was not given.

    Raises
    ------
    ValueError
        Another likelihood, no network, noise in classification, or numbers that are not positive.
    """
    models = (model,) if isinstance(model, nn.Module) else tuple(model)
    if not models:
        raise ValueError("model: expected a network or several, got an empty sequence.")
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood: expected one of {LIKELIHOODS}, got {likelihood!r}.")
    if n_samples < 1:
        raise ValueError(f"n_samples: expected at least 1, got {n_samples}.")
    if sigma_noise is not None and likelihood == "classification":
        raise ValueError(f"sigma_noise: expected None for classification, which has no noise, got {sigma_noise}.")
    if sigma_noise is not None and not sigma_noise > 0:
        raise ValueError(f"sigma_noise: expected a positive number, got {sigma_noise}.")
    if sigma_noise is None:
        sigma_noise = 1.0 if likelihood == "classification" else residual_noise(models[0], [train_loader, val_loader])
    return Task(models, likelihood, train_loader, val_loader, float(sigma_noise), n_samples)


def residual_noise(model: nn.Module, loaders: Sequence[Iterable[Any]]) -> float:
    """Root mean squared residual of the network on several loaders: the maximum-likelihood noise around it.

    Raises
    ------
    ValueError
        The residuals are zero or not finite, or there are none.
    """
    device, total, count = next(model.parameters()).device, 0.0, 0
    for loader in loaders:
        for x, y in pairs(batches_of(loader), device):
            residuals = network_outputs([model], x)[0] - y.cpu()
            total, count = total + float(residuals.double().square().sum()), count + residuals.numel()
    noise = (total / max(count, 1)) ** 0.5
    if not 0 < noise < float("inf"):
        raise ValueError(f"sigma_noise: expected residuals to estimate it from, got {noise}; pass sigma_noise=.")
    return noise


def network_outputs(models: Sequence[nn.Module], x: Inputs) -> Tensor:
    """Outputs of each network in eval mode, (s, b, *c), on the CPU."""
    results = []
    for model in models:
        with torch.no_grad(), eval_mode(model):
            results.append(model(x).cpu())
    return torch.stack(results)


def as_samples(outputs: Tensor, classes: bool) -> Tensor:
    """(s, b, c) of outputs with further axes: positions of a sequence count as data points of their own."""
    outputs = outputs.detach().cpu()
    return outputs.flatten(1, -2) if classes else outputs.flatten(2)


def predict_all(predict: Predict, loader: Iterable[Any], device: torch.device) -> tuple[Prediction, Tensor]:
    """Prediction and targets over a loader, on the CPU.

    Raises
    ------
    ValueError
        An empty loader.
    """
    parts, targets = [], []
    for x, y in pairs(batches_of(loader), device, name="loader"):
        parts.append(predict(x))
        targets.append((y if y.is_floating_point() else y.flatten()).cpu())
    if not parts:
        raise ValueError("loader: expected at least one batch to predict, got an empty loader.")
    return joined(parts), torch.cat(targets)


def predict_inputs(predict: Predict, loader: Iterable[Any], device: torch.device) -> Prediction:
    """Prediction over a loader whose targets, if it has any, mean nothing."""
    parts = [predict(x) for x in _inputs(loader, device)]
    if not parts:
        raise ValueError("ood_loader: expected at least one batch, got an empty loader.")
    return joined(parts)


def joined(parts: Sequence[Prediction]) -> Prediction:
    """One prediction of several batches' predictions."""
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if tensors:
        return torch.cat(tensors, dim=tensors[0].ndim - 2)
    pairs_of = [part for part in parts if not isinstance(part, Tensor)]
    means, variances = (torch.cat(column) for column in zip(*pairs_of, strict=True))
    if isinstance(pairs_of[0], TargetDistribution):
        return TargetDistribution(means, variances)
    return means, variances


def _inputs(loader: Iterable[Any], device: torch.device) -> Iterator[Inputs]:
    for batch in batches_of(loader):
        bare = isinstance(batch, (Tensor, MutableMapping))
        yield moved(batch if bare else batch[0], device)
