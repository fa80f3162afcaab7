"""Made-up result files of every experiment, for tests of tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ENVIRONMENT = {"python": "3", "machine": "test"}


def write(folder: Path, experiment: str, dataset: str, method: str, seed: int, **content: Any) -> None:
    """One file; without a status it is that of a finished run."""
    head = {"experiment": experiment, "dataset": dataset, "method": method, "seed": seed, "environment": ENVIRONMENT}
    record = {**head, "status": "finished", "fit_seconds": 2.0, "predict_seconds": 0.5, "settings": {}, **content}
    path = folder / experiment / f"{dataset}_{method}_{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))


def scores(nll: float, **others: float) -> dict[str, Any]:
    """Metrics with a few measures of classification."""
    both = {"nll": nll, "nll_per_sample": nll + 0.1, "ece": 4.0, "ece_per_sample": 5.0, "accuracy": 0.8, **others}
    return {"validation": both, "test": both}


def write_losses(folder: Path, experiment: str, dataset: str, losses: dict[str, list[float]], **content: Any) -> None:
    """Finished runs of several methods, one NLL for each seed."""
    for method, values in losses.items():
        for seed, nll in enumerate(values):
            write(folder, experiment, dataset, method, seed, metrics=scores(nll), **content)


def write_distance(
    folder: Path, name: str, method: str, seed: int, *, outside: float, nll: float, converged: bool = True
) -> None:
    """A run of ``fidelity``: tanh, τ = 1, half the distance inside, and a reference's diagnostics."""
    metrics = {"wasserstein_inside": outside / 2, "wasserstein_outside": outside, "test_nll": nll, "fit_seconds": 1.0}
    info = {"converged": converged, "rhat": 1.005 if converged else 1.2, "ess": 900.0, "seconds": 30.0}
    head = {"name": name, "activation": "tanh", "tau": 1.0, "quick": False}
    write(folder, "fidelity", name, method, seed, **head, metrics=metrics, info=info)


def write_all(folder: Path) -> None:
    """Every experiment whose figures need more than scores, with two methods and seeds."""
    for method, gap in (("map", 0.0), ("fiber", -0.1), ("ensemble", -0.05)):
        for seed in range(2):
            nll = 1.0 + gap + 0.02 * seed
            shifts = {"rotation": {str(angle): {"nll": nll + angle / 90} for angle in (0, 15, 30)}}
            ood = {"fashion": {"auroc_confidence": 0.9 + gap, "auroc_entropy": 0.8}}
            write(folder, "mnist", "mnist", method, seed, metrics=scores(nll), shifts=shifts, ood=ood)
            corruptions = {f"{name}/{s}": {"nll": nll + s / 5} for name in ("fog", "gaussian_noise") for s in (1, 2)}
            shifts = {"corruption": corruptions}
            write(folder, "cifar10", "cifar10-small", method, seed, metrics=scores(nll), shifts=shifts)
            write(folder, "cifar10", "cifar10-small-all", method, seed, metrics=scores(9.0), shifts={})
            for layers in (1, 2, 3):
                write(folder, "scaling", f"layers-{layers}", method, seed, metrics=scores(nll + layers))
            write_distance(folder, "glass", method, seed, outside=0.2 + gap, nll=nll)
    write(folder, "scaling", "layers-4", "fiber", 0, status="failed", error="RuntimeError('fell over')")
    for seed in range(2):
        settings: dict[str, Any] = {"axis": "default", "value": None}
        write(folder, "sensitivity", "glass", "default", seed, metrics=scores(0.9), settings=settings)
        for axis, values in (("reach", (0.5, 2.0)), ("latent_size", (2, 8)), ("refinements", (5,))):
            for value in values:
                settings = {"axis": axis, "value": value}
                name = f"{axis}-{value}"
                write(folder, "sensitivity", "glass", name, seed, metrics=scores(value), settings=settings)
