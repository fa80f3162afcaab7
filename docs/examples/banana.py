"""Two inputs, two classes: what a posterior adds to a network's decision surface.

Two crescents that overlap. The walk goes to the posterior's typical set, and chooses the prior precision by Laplace's
evidence before it starts: no validation data are needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, plots, typical_set_walk
from laplace_fiber.metrics import evaluate


def crescents(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (n, 2) and classes (n,) in equal parts."""
    generator = torch.Generator().manual_seed(seed)
    y, angle = torch.arange(n) % 2, torch.pi * torch.rand(n, generator=generator)
    sign = 1 - 2.0 * y
    x = torch.stack([sign * angle.cos() - 0.5 * sign, sign * angle.sin() - 0.25 * sign], 1)
    return x + 0.35 * torch.randn(n, 2, generator=generator), y


def train(x: Tensor, y: Tensor, n_epochs: int) -> nn.Module:
    """Two hidden layers, trained well beyond the point where the network becomes overconfident."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(n_epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def main(short: bool = False, figure: Path | None = None) -> dict[str, float]:
    """Compare the network with the posterior on fresh data."""
    (x, y), (x_test, y_test) = crescents(60 if short else 150, 0), crescents(1000, 1)
    model = train(x, y, 300 if short else 1000)
    smaller = {"n_particles": 12, "n_steps": 4} if short else {}
    la = FiberLaplace(model, "classification", sampler=typical_set_walk(evidence=True, **smaller))
    la.fit(DataLoader(TensorDataset(x, y), batch_size=50))
    with torch.no_grad():
        alone = evaluate(model(x_test).softmax(-1), y_test)
    averaged = evaluate(la(x_test), y_test)
    print(f"prior precision chosen by the evidence: {float(la.prior_precision):.2f}")
    for name in ("nll", "accuracy", "ece"):
        print(f"{name:8} network {alone[name]:7.3f}   posterior {averaged[name]:7.3f}")

    if figure is not None:
        from matplotlib import pyplot

        drawn, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
        plots.decision_surface(lambda grid: model(grid).softmax(-1), x, y, ax=axes[0])
        plots.decision_surface(la, x, y, ax=axes[1])
        plots.decision_surface(la.predictive_samples, x, y, show="spread", ax=axes[2])
        drawn.savefig(figure)
    return {"nll of the network": alone["nll"], "nll of the posterior": averaged["nll"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="less data, less training and a shorter walk")
    parser.add_argument("--figure", type=Path, help="where to draw the surfaces")
    main(**vars(parser.parse_args()))
