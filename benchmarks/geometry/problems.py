"""Networks and posteriors that the runs have in common."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from laplace import FullLaplace
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks import models
from benchmarks.datasets import Dataset, load
from benchmarks.methods import split_loader
from benchmarks.models import Network

RESULTS = Path(__file__).parent.parent / "results" / "geometry"
DIGITS = 5


@dataclass(frozen=True)
class Trained:
    """A trained network with its data."""

    dataset: Dataset
    model: nn.Module
    sigma: float
    train: DataLoader[tuple[Tensor, ...]]
    val: DataLoader[tuple[Tensor, ...]]

    @property
    def likelihood(self) -> str:
        """Of the data set."""
        return self.dataset.likelihood

    def laplace(self, prior_precision: float = 1.0) -> Any:
        """laplace-torch's full Gauss-Newton posterior, fitted."""
        la = FullLaplace(self.model, self.likelihood, sigma_noise=self.sigma, prior_precision=prior_precision)
        la.fit(self.train)
        return la


def trained(name: str, seed: int, data_dir: Path | None, quick: bool = False) -> Trained:
    """The network of a data set that all benchmarks take."""
    dataset = load(name, seed, data_dir, quick=quick)
    schedule = models.training_for(name).shortened(0.01) if quick else None
    model = models.train(dataset, seed, schedule)
    sigma = models.noise_scale(model, dataset)
    return Trained(dataset, model, sigma, split_loader(dataset.train), split_loader(dataset.val))


def fresh(x: Tensor, y: Tensor, hidden: tuple[int, ...], seed: int, sigma: float, n_steps: int) -> nn.Sequential:
    """A ReLU network trained to a minimum of J at prior precision 1 and noise ``sigma``, on all data in each step.

    Integer targets (b,) are classes, for which the noise is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    classes = not y.is_floating_point()
    n_outputs = int(y.max()) + 1 if classes else y.shape[1]
    model = models.build(Network(hidden, "relu"), x.shape[1], n_outputs, generator).to(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(n_steps):
        optimizer.zero_grad()
        prior = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        f = model(x)
        loss = functional.cross_entropy(f, y, reduction="sum") if classes else 0.5 * (f - y).square().sum() / sigma**2
        ((loss + 0.5 * prior) / len(x)).backward()
        optimizer.step()
        schedule.step()
    model.zero_grad()
    return model.eval()


@contextmanager
def told_nothing() -> Iterator[None]:
    """Without the package's advice on walks: the settings are those of the experiment."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="laplace_fiber|benchmarks")
        yield


def rounded(values: Tensor) -> Any:
    """Numbers for a file, as nested lists."""
    return torch.round(values.detach().double(), decimals=DIGITS).tolist()
