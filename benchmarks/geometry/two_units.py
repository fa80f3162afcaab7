"""The output weights of a network of two units under long HMC, before and after its symmetries are taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.geometry.problems import fresh, rounded, told_nothing
from laplace_fiber.baselines import HMC
from laplace_fiber.geometry import canonicalize, discrepancies
from laplace_fiber.weights import NetworkFunction

SIGMA = 0.3
N_POINTS = 40
N_NETWORKS = 12
KEPT = 300
"""Samples of the chains from each network."""

SHOWN, COMPARED = 3, 6
"""One in so many is shown, or compared."""


def problem() -> tuple[Tensor, Tensor]:
    """|x| with noise, which two ReLU units can follow."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2, 2, N_POINTS, dtype=torch.float64)[:, None]
    return x, x.abs() + SIGMA * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Samples of chains from independently trained networks, and MMD between halves of the networks."""
    x, y = problem()
    loader = DataLoader(TensorDataset(x, y), batch_size=N_POINTS)
    n_networks, n_kept = (2, 20) if quick else (N_NETWORKS, KEPT)
    samples = []
    for seed in range(n_networks):
        model = fresh(x, y, (2,), seed, SIGMA, 50 if quick else 1500)
        chains: dict[str, Any] = {"n_chains": 8, "n_warmup": 5 if quick else 60, "n_kept": n_kept, "max_leapfrog": 50}
        la = HMC(model, "regression", sigma_noise=SIGMA, seed=seed, **chains)
        with told_nothing():
            la.fit(loader)
        samples.append(la.sample(n_kept))
    network = NetworkFunction(model)
    together = torch.cat(samples)
    steps = {
        "posterior": together,
        "scaling removed": canonicalize(together, network, sign=False, permutation=False),
        "scaling and permutation removed": canonicalize(together, network),
    }
    first, second = (torch.cat(samples[i::2])[:: 1 if quick else COMPARED] for i in (0, 1))
    found = discrepancies(first, second, network, x, n_permutations=20 if quick else 200)
    print(found)
    output = network.names.index("2.weight")
    start = sum(network.sizes[:output])
    return {
        "output_weights": {name: rounded(thetas[::SHOWN, start : start + 2]) for name, thetas in steps.items()},
        "mmd": {name: {"squared": one.squared, "p_value": one.p_value} for name, one in vars(found).items()},
    }
