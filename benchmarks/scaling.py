"""Cost and score against depth (Figure 5 of the paper): Snelson's data, 1 to 9 hidden layers of 64 units.

As in the paper, the posterior is 100 samples for every method: geodesics and states of chains are as many. The sampled
Laplace approximation comes in two forms: ``laplace`` as in the other experiments, with the full Gauss-Newton matrix up
to 4,000 weights and Kronecker factors beyond; and ``laplace_full`` with the full matrix as long as it fits in memory.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import torch
from laplace import FullLaplace

from benchmarks.compared import COMPARED_METHODS, OPTIONS, compared
from benchmarks.methods import FULL, Method
from benchmarks.models import build, network_of_layers
from benchmarks.runs import Run
from benchmarks.tabular import results
from laplace_fiber import comparison
from laplace_fiber.comparison.fits import fit_laplace
from laplace_fiber.plots.style import FIBER

LIMIT_SECONDS = 600.0
"""A method that needs more is reported as not finished. (The choice of its settings included.)"""

FULL_MATRIX_LIMIT = 17_000
"""Weights that ``laplace_full`` is tried with, 5 hidden layers: beyond, a matrix has more than 1.2 GB in float32, and
its factorisation holds several."""

_FULL_LAPLACE = replace(
    comparison.METHODS["laplace"],
    name="laplace_full",
    label="Laplace, full, sampled",
    fit=functools.partial(fit_laplace, build=FullLaplace, linearised=False),
)

METHODS: dict[str, Method] = {
    **{name: COMPARED_METHODS[name] for name in ("map", *FIBER, "laplace")},
    "laplace_full": compared(_FULL_LAPLACE),
    "linearised": COMPARED_METHODS["linearised"],
    "riemannian": compared(
        comparison.method("riemannian", **OPTIONS["riemannian"] | {"n_samples_fit": FULL.n_samples})
    ),
    "ensemble": COMPARED_METHODS["ensemble"],
    "hmc": compared(comparison.method("hmc", n_kept=FULL.n_samples)),
    "sgld": compared(comparison.method("sgld", n_kept=FULL.n_samples)),
}


def measure(run: Run) -> dict[str, Any]:
    """One method on networks of one depth, tuned on the validation data as in the other experiments."""
    return results(run, METHODS[run.method])


def fits_in_memory(dataset: str, method: str) -> bool:
    """Whether the method can be run at this depth."""
    return method != "laplace_full" or n_weights(dataset) <= FULL_MATRIX_LIMIT


def n_weights(dataset: str) -> int:
    """Weights and biases of the network for Snelson's data at one depth."""
    network = build(network_of_layers(dataset), 1, 1, torch.Generator())
    return sum(p.numel() for p in network.parameters())
