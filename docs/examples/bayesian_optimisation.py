"""Bayesian optimisation with BoTorch: the posterior is the surrogate, and acquisitions are optimised through it.

``enable_backprop=True`` keeps predictions differentiable in their inputs, so that BoTorch climbs the acquisition by its
gradient. Posterior samples are functions, the same ones for all inputs: what batch acquisitions need.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from botorch.acquisition import qLogExpectedImprovement
from botorch.models.ensemble import EnsembleModel
from botorch.optim import optimize_acqf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, TrajectorySampler, plots

BOUNDS = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
SIGMA = 0.05
"""Standard deviation of the measurements."""


def objective(x: Tensor) -> Tensor:
    """To be maximised: two hills, of which the higher one, 1.02 at (0.5, -0.4), is the narrower."""
    high = (-8 * (x - torch.tensor([0.5, -0.4])).square().sum(-1)).exp()
    wide = 0.6 * (-2 * (x + torch.tensor([0.5, -0.4])).square().sum(-1)).exp()
    return high + wide


class Surrogate(EnsembleModel):
    """Function samples of a posterior as BoTorch's ensemble."""

    def __init__(self, la: FiberLaplace) -> None:
        super().__init__()
        self.la, self._num_outputs = la, 1

    def forward(self, X: Tensor) -> Tensor:  # noqa: N803 (BoTorch calls it by this name)
        """Function values (*batch, samples, q, 1) at inputs (*batch, q, 2)."""
        functions = self.la.functional_samples(X.flatten(0, -2), n_samples=32)
        return functions.unflatten(1, X.shape[:-1]).movedim(0, -3)


def fitted(x: Tensor, y: Tensor, seed: int, short: bool) -> FiberLaplace:
    """A network trained on all measurements, and the posterior around it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 1)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-4)
    for _ in range(300):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    sampler = TrajectorySampler(n_particles=6, n_steps=4) if short else TrajectorySampler(n_particles=16, n_steps=10)
    la = FiberLaplace(model, "regression", sigma_noise=SIGMA, sampler=sampler, enable_backprop=True)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=64))
    return la


def main(short: bool = False, figure: Path | None = None) -> dict[str, float]:
    """Two measurements a round, beside as many at random places."""
    rounds, n_starts, generator = 2 if short else 10, 1 if short else 3, torch.Generator().manual_seed(0)

    def measured(x: Tensor) -> Tensor:
        return objective(x)[:, None] + SIGMA * torch.randn(len(x), 1, generator=generator, dtype=torch.float64)

    x = 2 * torch.rand(6, 2, generator=generator, dtype=torch.float64) - 1
    y, best = measured(x), []
    for k in range(rounds):
        acquisition = qLogExpectedImprovement(Surrogate(fitted(x, y, k, short)), best_f=y.max())
        candidates, _ = optimize_acqf(acquisition, BOUNDS, q=2, num_restarts=n_starts, raw_samples=20 * n_starts)
        x, y = torch.cat([x, candidates]), torch.cat([y, measured(candidates)])
        best.append(float(objective(x).max()))
        print(f"round {k + 1:2}: best value so far {best[-1]:.3f}")
    anywhere = 2 * torch.rand(200, len(x), 2, generator=generator, dtype=torch.float64) - 1
    random = float(objective(anywhere).max(1).values.mean())
    print(f"best of {len(x)} random points, mean over 200 tries: {random:.3f}")

    if figure is not None:
        axes = plots.shift_curves({"fiber": dict(enumerate(best, 1))}, "round", "best value so far")
        axes.axhline(random, color="0.5", ls="--", label="random, at the end")
        axes.legend(frameon=False)
        axes.figure.savefig(figure)
    return {"first": best[0], "best": best[-1], "random": random}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="two rounds, and shorter walks")
    parser.add_argument("--figure", type=Path, help="where to draw the best value against the round")
    main(**vars(parser.parse_args()))
