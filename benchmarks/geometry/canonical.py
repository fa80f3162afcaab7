"""Does it help to walk from the representative of minimum norm? Validation NLL with and without."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.geometry.problems import Trained, told_nothing, trained
from laplace_fiber import FiberLaplace, TrajectorySampler, metrics, typical_set_walk
from laplace_fiber.geometry import canonicalize
from laplace_fiber.weights import NetworkFunction

DATASETS = {
    **dict.fromkeys(("snelson", "glass", "australian", "ionosphere", "breast"), (3, 2)),
    **{"banana": (2, 1), "vehicle": (1, 1), "waveform": (1, 1)},
}
"""Number of seeds for each walk. Banana's network has tanh units, which have no scale to take away."""

WALKS = {"plain": TrajectorySampler(), "typical set": typical_set_walk()}


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """One row for each data set, walk, seed and start."""
    rows = []
    for name in list(DATASETS)[:1] if quick else DATASETS:
        for (walk, sampler), n_seeds in zip(WALKS.items(), DATASETS[name], strict=True):
            for seed in range(1 if quick else n_seeds):
                problem = trained(name, seed, data_dir, quick)
                for choice in (False, True):
                    settings = replace(sampler, seed=seed, canonicalize=choice)
                    settings = replace(settings, n_particles=4, n_steps=2) if quick else settings
                    rows.append({"dataset": name, "walk": walk, "seed": seed, **_row(problem, settings)})
                    print(rows[-1], flush=True)
    return {"rows": rows}


def _row(problem: Trained, sampler: TrajectorySampler) -> dict[str, Any]:
    """Validation NLL at prior precision 1, and at the best one above."""
    la = FiberLaplace(problem.model, problem.likelihood, sigma_noise=problem.sigma, sampler=sampler)
    start = time.process_time()
    with told_nothing():
        la.fit(problem.train)
        seconds = time.process_time() - start
        at_one = _nll(la, problem)
        if sampler.lengths == "fixed":
            la.optimize_prior_precision(method="gridsearch", val_loader=problem.val, grid_size=21)
    network = NetworkFunction(problem.model)
    norms = [float(theta.norm()) for theta in (network.theta(), canonicalize(network.theta(), network))]
    return {
        "canonicalize": sampler.canonicalize,
        "val_nll": at_one,
        "tuned_val_nll": _nll(la, problem),
        "prior_precision": float(la.prior_precision),
        "fit_seconds": seconds,
        "norm": norms[0],
        "smallest_norm": norms[1],
    }


def _nll(la: FiberLaplace, problem: Trained) -> float:
    x, y = problem.dataset.val
    with torch.no_grad():
        return metrics.negative_log_likelihood(la.predictive_samples(x), y, problem.sigma)
