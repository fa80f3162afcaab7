"""Out-of-distribution detection: digits that the network has never been shown.

A network learns scikit-learn's digits 0 to 5; 6 to 9 come at test time. The entropy of the averaged prediction and the
disagreement of its samples are compared with the entropy of the network alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, TrajectorySampler, plots
from laplace_fiber.metrics import detection_auroc, uncertainty

KNOWN = 6
"""Digits below this one are learnt."""


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 64) with values up to 1, in a random order, and their digits."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x).float()[order] / 16, torch.tensor(y)[order]


def train(x: Tensor, y: Tensor, n_epochs: int) -> nn.Module:
    """A network with one hidden layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, KNOWN))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-4)
    for _ in range(n_epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def disagreement(samples: Tensor) -> Tensor:
    """Mutual information of class and weights, in nats: entropy of the mean minus mean entropy of the samples."""
    single = -torch.special.xlogy(samples.double(), samples.double()).sum(-1).mean(0)
    return uncertainty(samples, classes=True) - single


def main(short: bool = False, figure: Path | None = None) -> dict[str, float]:
    """Areas under the ROC curve: the chance that an unknown digit is given more doubt than a known one."""
    x, y = digits()
    known = y < KNOWN
    x_train, x_test = x[known].split([400, int(known.sum()) - 400])
    y_train, y_test = y[known].split([400, int(known.sum()) - 400])
    unknown = x[~known]
    model = train(x_train, y_train, 100 if short else 200)
    sampler = TrajectorySampler(n_particles=8, n_steps=10) if short else None
    la = FiberLaplace(model, "classification", sampler=sampler)
    la.fit(DataLoader(TensorDataset(x_train, y_train), batch_size=100))

    with torch.no_grad():
        alone = [model(part).softmax(-1) for part in (x_test, unknown)]
    samples = [la.predictive_samples(part) for part in (x_test, unknown)]
    results = {
        "network, entropy": detection_auroc(*(uncertainty(p, classes=True) for p in alone)),
        "posterior, entropy": detection_auroc(*(uncertainty(p, classes=True) for p in samples)),
        "posterior, disagreement": detection_auroc(*(disagreement(p) for p in samples)),
    }
    for name, value in results.items():
        print(f"{name:24} AUROC {value:.3f}")
    for name, p in (("network", alone[0]), ("posterior", samples[0].mean(0))):
        print(f"{name:24} accuracy on known digits {float((p.argmax(1) == y_test).float().mean()):.3f}")

    if figure is not None:
        plots.risk_coverage({"map": alone[0], "fiber": samples[0]}, y_test).figure.savefig(figure)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="less training and a shorter walk")
    parser.add_argument("--figure", type=Path, help="where to draw the risk on known digits against coverage")
    main(**vars(parser.parse_args()))
