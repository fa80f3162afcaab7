"""One-dimensional regression on Snelson's data: fit a network, then ask how sure it is between and beyond the data.

The data lie in ``benchmarks/data`` of a checkout. Inputs from 1.5 to 3 are held out: there the network has to say that
it does not know.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, TrajectorySampler, plots
from laplace_fiber.metrics import evaluate

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "snelson"
GAP = (1.5, 3.0)


def snelson() -> tuple[Tensor, Tensor]:
    """Inputs and targets, (200, 1) each."""
    columns = ((DATA / name).read_text().split() for name in ("train_inputs", "train_outputs"))
    x, y = (torch.tensor([float(number) for number in column])[:, None] for column in columns)
    return x, y


def train(x: Tensor, y: Tensor, n_epochs: int) -> nn.Module:
    """A network of 16 tanh units, with a little weight decay."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-4)
    for _ in range(n_epochs):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    return model


def main(short: bool = False, figure: Path | None = None) -> dict[str, float]:
    """Compare the network with the posterior around it, inside the data and in the gap."""
    x, y = snelson()
    held_out = ((x > GAP[0]) & (x < GAP[1])).flatten()
    order = torch.randperm(int((~held_out).sum()), generator=torch.Generator().manual_seed(0))
    inside, test = (~held_out).nonzero().flatten()[order].split([len(order) - 40, 40])

    model = train(x[inside], y[inside], 300 if short else 2000)
    sigma = (model(x[inside]) - y[inside]).square().mean().sqrt().item()
    sampler = TrajectorySampler(n_particles=8, n_steps=10) if short else None
    la = FiberLaplace(model, "regression", sigma_noise=sigma, sampler=sampler)
    la.fit(DataLoader(TensorDataset(x[inside], y[inside]), batch_size=50))

    results = {"sigma_noise": sigma}
    for name, rows in (("test", test), ("gap", held_out.nonzero().flatten())):
        with torch.no_grad():
            alone = evaluate(model(x[rows])[None], y[rows], sigma)
        samples = la.functional_samples(x[rows])
        results[f"nll of the network, {name}"] = alone["nll"]
        results[f"nll of the posterior, {name}"] = evaluate(samples, y[rows], sigma)["nll"]
        results[f"deviation of the function, {name}"] = float(samples.std(0).mean())
    for name, value in results.items():
        print(f"{name:36} {value:.3f}")

    if figure is not None:
        grid = torch.linspace(-3, 9, 300)[:, None]
        axes = plots.bands(grid, la(grid), sigma_noise=sigma, data=(x[inside], y[inside]))
        axes.plot(x[held_out], y[held_out], "x", color="0.5", ms=4, label="held out")
        axes.set_ylim(-4, 4)
        axes.legend()
        axes.figure.savefig(figure)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="less training and a shorter walk")
    parser.add_argument("--figure", type=Path, help="where to draw the bands")
    main(**vars(parser.parse_args()))
