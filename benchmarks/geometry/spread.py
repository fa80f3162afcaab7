"""Where posteriors over Snelson's network spread: the kernel or the image of the Gauss-Newton matrix."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.geometry.problems import told_nothing, trained
from laplace_fiber import FiberLaplace, TrajectorySampler, typical_set_walk
from laplace_fiber.baselines import KernelDiffusion, LaplaceDiffusion
from laplace_fiber.geometry import spread_report

PATHS = 20
"""Samples of the diffusions."""


def measure(data_dir: Path | None, quick: bool) -> dict[str, Any]:
    """The rows of the report, and the report as it prints."""
    problem = trained("snelson", 0, data_dir, quick)
    paths: dict[str, Any] = {"n_samples_fit": 2, "n_steps": 2} if quick else {"n_samples_fit": PATHS}
    options: dict[str, Any] = {"sigma_noise": problem.sigma}
    posteriors: dict[str, Any] = {"Laplace": problem.laplace()}
    for name, method in (("Laplace diffusion", LaplaceDiffusion), ("kernel diffusion", KernelDiffusion)):
        posteriors[name] = method(problem.model, "regression", **options, **paths)
    for name, sampler in (("fiber", TrajectorySampler()), ("fiber, typical set", typical_set_walk())):
        sampler = replace(sampler, n_particles=4, n_steps=2) if quick else sampler
        posteriors[name] = FiberLaplace(problem.model, "regression", sampler=sampler, **options)
    with told_nothing():
        for name, la in posteriors.items():
            if name != "Laplace":
                la.fit(problem.train)
    report = spread_report(posteriors, problem.train, n_samples=10 if quick else 100)
    print(report)
    return asdict(report) | {"table": str(report)}
