"""One Gaussian over Snelson's network, sampled and linearised, and the walk beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.datasets import snelson_grid
from benchmarks.geometry.problems import rounded, told_nothing, trained
from laplace_fiber import FiberLaplace, typical_set_walk
from laplace_fiber.linearised import linearised_samples
from laplace_fiber.metrics import moments
from laplace_fiber.predictive import function_samples
from laplace_fiber.weights import NetworkFunction

N_SAMPLES = 200


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """Mean and deviation of the function on a grid; sampled and linearised Laplace take the same weight samples."""
    problem = trained("snelson", 0, data_dir, quick)
    raw = snelson_grid()[::2]
    x, network = problem.dataset.scale(raw), NetworkFunction(problem.model)
    gaussian = problem.laplace()
    thetas = gaussian.sample(N_SAMPLES, generator=torch.Generator().manual_seed(0))
    sampler = replace(typical_set_walk(), n_particles=4, n_steps=2) if quick else typical_set_walk()
    walk = FiberLaplace(problem.model, "regression", sigma_noise=problem.sigma, sampler=sampler)
    with told_nothing():
        walk.fit(problem.train)
    functions = {
        "laplace": function_samples(network, thetas, x, 25),
        "linearised": linearised_samples(network, network.theta(), thetas, x),
        "fiber_typical": walk.functional_samples(x, n_samples=N_SAMPLES),
    }
    curves = {}
    for name, samples in functions.items():
        mean, variance = moments(samples)
        curves[name] = {"mean": rounded(mean), "deviation": rounded(variance.sqrt())}
    return {"x": rounded(raw.flatten()), "sigma": problem.sigma, "curves": curves}
