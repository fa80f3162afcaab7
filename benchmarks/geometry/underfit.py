"""Underfit of sampled Laplace against the rank of the Gauss-Newton matrix, over sizes of the training set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laplace import FullLaplace
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.datasets import load
from benchmarks.geometry.problems import fresh
from laplace_fiber.geometry import spread_report

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024)
HIDDEN = (8,)
N_SEEDS = 3


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """One row for each size and seed: the network is trained anew on the first points of Waveform."""
    rows = []
    for seed in range(1 if quick else N_SEEDS):
        x, y = load("waveform", seed, data_dir, quick=quick).train
        for size in SIZES[:2] if quick else SIZES:
            inputs, classes = x[:size].double(), y[:size]
            model = fresh(inputs, classes, HIDDEN, seed, 1.0, 50 if quick else 1000)
            loader = DataLoader(TensorDataset(inputs, classes), batch_size=size)
            la = FullLaplace(model, "classification", prior_precision=1.0)
            la.fit(loader)
            report = spread_report(la, loader, n_samples=20 if quick else 200)
            sampled, linearised = report.rows
            rows.append(
                {
                    "size": size,
                    "seed": seed,
                    "rank": report.rank,
                    "n_weights": report.n_weights,
                    "kernel_share": sampled.kernel_share,
                    "trained_nll": report.trained_nll,
                    "sampled_nll": sampled.nll,
                    "sampled_kernel_nll": sampled.kernel_nll,
                    "sampled_image_nll": sampled.image_nll,
                    "linearised_nll": linearised.nll,
                }
            )
            print(rows[-1], flush=True)
    return {"rows": rows}
