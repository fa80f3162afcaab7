"""The numbers that the paper reports (arXiv 2512.01500, Tables 1 and 2 and appendix C), to be set beside ours.

``uci.csv`` and ``images.csv`` have the columns metric, method, dataset, mean, std; std is a standard deviation.
Metrics: ``nll``, ``ece`` (percent), ``accuracy`` and ``log_time`` (presumably log10 of seconds; no unit is given).
"""

from __future__ import annotations

import csv
import functools
from pathlib import Path

METHODS = {
    "laplace": "LA GN",
    "low_rank": "LA LowRank",
    "linearised": "Lin LA",
    "riemannian": "Riem LA",
    "riemannian_linearised": "Riem Lin LA",
    "ensemble": "ENSEMBLES",
    "hmc": "HMC",
    "sgld": "SGLD",
    "espro": "ESPRO",
    "swag": "SWAG",
    "fiber": "MetricBNN",
}
"""The paper's name of each of our methods that it compares."""

DATASETS = {
    "australian-raw": "Australian",
    "breast-raw": "Breast",
    "glass-raw": "Glass",
    "ionosphere-raw": "Ionosphere",
    "vehicle-raw": "Vehicle",
    "waveform-raw": "Waveform",
    "mnist": "MNIST",
    "fashion": "FMNIST",
    "cifar10": "CIFAR10",
}
"""The paper's name of each of our data sets that has the paper's inputs. Its UCI features are not standardised."""


@functools.cache
def _values() -> dict[tuple[str, str, str], tuple[float, float]]:
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["metric"], row["method"], row["dataset"]] = float(row["mean"]), float(row["std"])
    return found


def reported(metric: str, method: str, dataset: str) -> tuple[float, float] | None:
    """Mean and standard deviation in the paper, by our names; None where it has no such number."""
    return _values().get((metric, METHODS.get(method, ""), DATASETS.get(dataset, "")))
