"""Runs on data sets of one table: a posterior over a small fully connected network, and its scores."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from torch import nn

from benchmarks import environment
from benchmarks.compared import COMPARED_METHODS
from benchmarks.datasets import Dataset, load
from benchmarks.methods import METHODS, Fitted, Method
from benchmarks.models import Training, noise_scale, train, training_for
from benchmarks.runs import Run
from benchmarks.variants import VARIANT_METHODS
from laplace_fiber.metrics import evaluate

PREDICT_INPUTS = 1000

OWN_METHODS: dict[str, Method] = METHODS | VARIANT_METHODS
"""Methods and variants with settings of the benchmarks' own."""


def training_of(run: Run) -> Training:
    """The schedule of the network that the run's method starts from."""
    return training_for(run.dataset).shortened(run.effort.epoch_share)


def problem(run: Run) -> tuple[Dataset, nn.Module]:
    """The data and the trained network."""
    dataset = load(run.dataset, run.seed, run.data_dir, quick=run.quick)
    return dataset, train(dataset, run.seed, training_of(run))


def measure_own(run: Run) -> dict[str, Any]:
    """A method of ``OWN_METHODS``."""
    return results(run, OWN_METHODS[run.method])


def measure_compared(run: Run) -> dict[str, Any]:
    """A method of ``laplace_fiber.comparison``, tuned on the validation data."""
    return results(run, COMPARED_METHODS[run.method])


def data_of(dataset: Dataset) -> dict[str, Any]:
    """What a record tells of the data: a digest of the rows in each part, and whether they are a generated stand-in."""
    split = {"split": dataset.rows.digest()} if dataset.rows else {}
    return split | ({"stand_in": True} if dataset.stand_in else {})


def scores_and_times(fitted: Fitted, dataset: Dataset, sigma: float) -> dict[str, Any]:
    """Scores on test and validation data, and the time of the fit and of 1000 predictions."""
    held_out = {"validation": dataset.val, "test": dataset.test}
    metrics = {part: evaluate(fitted.predict(x), y, sigma) for part, (x, y) in held_out.items()}
    x = dataset.test[0]
    inputs = x.repeat(math.ceil(PREDICT_INPUTS / len(x)), *[1] * (x.ndim - 1))[:PREDICT_INPUTS]
    start = environment.clock()
    fitted.predict(inputs)
    predict_seconds = environment.clock() - start
    return {"metrics": metrics, "fit_seconds": fitted.fit_seconds, "predict_seconds": predict_seconds}


def results(run: Run, method: Method) -> dict[str, Any]:
    """What a method makes of the run's data, and at what cost."""
    dataset, model = problem(run)
    sigma = noise_scale(model, dataset)
    environment.reset_peak_memory()
    fitted = method(model, dataset, sigma, run.seed, run.effort)
    sigma = fitted.sigma or sigma
    measured = scores_and_times(fitted, dataset, sigma)
    settings = {
        "sigma_noise": sigma,
        "training": asdict(training_of(run)),
        "effort": asdict(run.effort),
        "seconds": environment.kind_of_seconds(),
        **fitted.info,
    }
    return {**data_of(dataset), **measured, "peak_memory_mib": environment.peak_memory_mib(), "settings": settings}
