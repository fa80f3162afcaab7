"""Barriers over depth and width, and over parts of the autoencoder, on Snelson's data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

from benchmarks.datasets import load
from benchmarks.geometry.connectivity import PLAIN, SIGMA, as_record
from benchmarks.geometry.problems import fresh, told_nothing
from laplace_fiber import FiberLaplace, LatentAutoencoder
from laplace_fiber.geometry import fiber_connectivity, network_connectivity

DEPTHS, WIDTHS = (1, 2, 4), (8, 32)
ABLATED = (2, 32)
AUTOENCODERS = {
    "default": LatentAutoencoder(),
    "no closed form": LatentAutoencoder(closed_form=False),
    "no closed form, λ₊ = 0": LatentAutoencoder(closed_form=False, lambda_plus=0.0),
    "no closed form, λ₋ = 0": LatentAutoencoder(closed_form=False, lambda_minus=0.0),
    "no closed form, λ₊ = λ₋ = 0": LatentAutoencoder(closed_form=False, lambda_plus=0.0, lambda_minus=0.0),
}
"""The last one is an autoencoder without the contrastive terms."""


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Rows for each depth and width, and for each autoencoder on one walk."""
    x, y = (t.double() for t in load("snelson", 0).train)
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    sampler = replace(PLAIN, n_particles=4, n_steps=2) if quick else PLAIN
    rows, ablations = [], {}
    for depth in DEPTHS[:1] if quick else DEPTHS:
        for width in WIDTHS[:1] if quick else WIDTHS:
            networks = [fresh(x, y, (width,) * depth, seed, SIGMA, 50 if quick else 3000) for seed in (0, 1)]
            la = FiberLaplace(networks[0], "regression", sigma_noise=SIGMA, sampler=sampler)
            with told_nothing():
                la.fit(loader)
            between = network_connectivity(networks, loader, "regression", sigma_noise=SIGMA)
            name = f"{depth} layers of {width}"
            rows.append(
                {
                    "depth": depth,
                    "width": width,
                    "walk": as_record(fiber_connectivity(la, loader), f"walk, {name}", False),
                    "networks": as_record(between, f"networks, {name}", False),
                }
            )
            if (depth, width) == ABLATED:
                ablations = _ablations(la, loader)
    return {"rows": rows, "ablations": ablations}


def _ablations(la: FiberLaplace, loader: Any) -> dict[str, Any]:
    """The same walk through other autoencoders."""
    found, fitted = {}, la.fitted
    for name, autoencoder in AUTOENCODERS.items():
        la._fitted = replace(fitted, lines=autoencoder.fit(fitted.states))
        found[name] = as_record(fiber_connectivity(la, loader), name, False)
    la._fitted = fitted
    return found
