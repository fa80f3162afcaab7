"""The curve of weights that give one function: a hidden unit's incoming weights times α, its outgoing ones over α."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from laplace import FullLaplace
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.datasets import load
from benchmarks.geometry.problems import fresh, rounded
from laplace_fiber.data import Batch
from laplace_fiber.geometry.ggn import flat_joint
from laplace_fiber.weights import NetworkFunction

SIGMA = 0.3
HIDDEN = 16
N_GRID = 81
LARGEST = 3.0
N_SAMPLES = 300


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Training NLL over the two scales of the unit that adds most, along its orbit, and along the tangent."""
    x, y = (t.double() for t in load("snelson", 0).train)
    model = fresh(x, y, (HIDDEN,), 0, SIGMA, 50 if quick else 3000)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    joint, _ = flat_joint(model, loader, "regression", SIGMA)
    network, batch = NetworkFunction(model), Batch([(x, y)], len(x))
    theta = network.theta()
    rows = network.named(torch.arange(len(theta)).double())
    into = torch.stack([rows["0.weight"][:, 0], rows["0.bias"]], 1).long()
    out = rows["2.weight"][0].long()
    lengths = theta[into].norm(dim=1) * theta[out].abs()
    unit = int(lengths.argmax())
    inside, outside = into[unit], out[unit : unit + 1]

    def nll(s: Tensor, t: Tensor) -> Tensor:
        thetas = theta.repeat(len(s), 1)
        thetas[:, inside] *= s[:, None]
        thetas[:, outside] *= t[:, None]
        with torch.no_grad():
            return joint.nll(thetas, batch)

    grid = torch.linspace(0, LARGEST, N_GRID, dtype=torch.float64)
    s, t = (g.flatten() for g in torch.meshgrid(grid, grid, indexing="ij"))
    alpha = torch.exp(torch.linspace(-1.3, 1.3, N_GRID, dtype=torch.float64))
    la = FullLaplace(model, "regression", sigma_noise=SIGMA, prior_precision=1.0)
    la.fit(loader)
    offsets = la.sample(N_SAMPLES, generator=torch.Generator().manual_seed(0)) - theta
    along = [1 + offsets[:, part] @ theta[part] / theta[part].square().sum() for part in (inside, outside)]
    return {
        "grid": rounded(grid),
        "nll": rounded(nll(s, t).reshape(N_GRID, N_GRID)),
        "alpha": rounded(alpha),
        "orbit_nll": rounded(nll(alpha, 1 / alpha)),
        "tangent_nll": rounded(nll(alpha, 2 - alpha)),
        "samples": rounded(torch.stack(along, 1)),
        "norms": [float(theta[part].norm()) for part in (inside, outside)],
        "smallest": float((theta[outside].norm() / theta[inside].norm()).sqrt()),
    }
