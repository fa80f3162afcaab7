"""Barriers between trajectories of a walk, and between independently trained networks, on Snelson's data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

from benchmarks.datasets import load
from benchmarks.geometry.problems import fresh, rounded, told_nothing
from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler, typical_set_walk
from laplace_fiber.geometry import ModeConnectivity, fiber_connectivity, network_connectivity

SIGMA = 0.3
HIDDEN = (32, 32)
N_NETWORKS = 3
PLAIN = TrajectorySampler(n_particles=16, n_steps=20)
TYPICAL = typical_set_walk(n_particles=32)


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Curves and barriers of a plain walk, of one to the typical set, and between three networks."""
    x, y = (t.double() for t in load("snelson", 0).train)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    steps = 50 if quick else 3000
    networks = [fresh(x, y, HIDDEN, seed, SIGMA, steps) for seed in range(2 if quick else N_NETWORKS)]
    result: dict[str, Any] = {}
    walks = []
    for name, sampler in (("plain walk", PLAIN), ("walk to the typical set", TYPICAL)):
        sampler = replace(sampler, n_particles=4, n_steps=2) if quick else sampler
        for network in networks if name == "plain walk" else networks[:1]:
            la = FiberLaplace(network, "regression", sigma_noise=SIGMA, sampler=sampler)
            with told_nothing():
                la.fit(loader)
            if name == "plain walk":
                walks.append(la)
        la = walks[0] if name == "plain walk" else la
        result[name] = as_record(fiber_connectivity(la, loader), name)
    for la in walks:
        la.autoencoder = LatentAutoencoder(n_steps=100 if quick else 2000)
    between = network_connectivity(networks, loader, "regression", sigma_noise=SIGMA, walks=walks)
    result["networks"] = as_record(between, "independently trained networks")
    return result


def as_record(found: ModeConnectivity, name: str, curves: bool = True) -> dict[str, Any]:
    """Barriers as numbers, with the curves on request; printed, too."""
    print(f"{name}\n{found}\n", flush=True)
    shown = {
        "positions": rounded(found.positions),
        "curves": {kind: rounded(losses) for kind, losses in found.curves.items()},
    }
    return (shown if curves else {}) | {
        "barriers": {kind: float(b.mean()) for kind, b in found.barriers().items()},
        "largest": {kind: float(b.max()) for kind, b in found.barriers().items()},
        "table": str(found),
    }
