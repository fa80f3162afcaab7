"""Runs on image sets: a posterior over a convolutional network, its scores, and those on shifted images.

A method is fitted once for each data set and seed. MNIST's run also scores rotated test images and tells MNIST from
FashionMNIST.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from laplace.curvature import BackPackGGN
from torch import Tensor, nn

from benchmarks import environment, images
from benchmarks.compared import QUICK_BUDGET, Choice, fit_compared
from benchmarks.datasets import Dataset, Split
from benchmarks.methods import split_loader
from benchmarks.models import train, training_for
from benchmarks.runs import Run
from laplace_fiber.comparison.task import Predict, joined
from laplace_fiber.comparison.tuning import Budget
from laplace_fiber.metrics import Prediction, detection_auroc, evaluate, uncertainty

BUDGET = Budget(n_settings=6, seconds=60.0)
"""Of the choice of settings in one run, beyond the first that works."""

TIMED_INPUTS = 1000
BATCH = 128
"""Size of minibatches, for all methods that take them."""

SHIFTED_IMAGES = 1000
"""The first test images: shifted ones are scored on them, and foreign ones told from them. Predictions with 100 samples
cost more than most fits, and all methods see the same images."""

QUICK_IMAGES = 20
ANGLES = range(0, 181, 15)
SHIFT_SCORES = ("nll", "nll_per_sample", "accuracy", "ece")
FOREIGN = {"mnist": "fashion", "fashion": "mnist"}
"""The set whose images count as out of the distribution."""

OPTIONS: dict[str, dict[str, Any]] = {
    "laplace": {"backend": BackPackGGN},
    "linearised": {"backend": BackPackGGN},
    "riemannian": {"data": "subset", "n_samples_fit": 10},
    "riemannian_linearised": {"data": "subset", "n_samples_fit": 10},
    "riemannian_fisher": {"n_samples_fit": 10},
    "diffusion": {"n_samples_fit": 10},
    "diffusion_kernel": {"n_samples_fit": 10},
}
"""Settings that differ from the methods' defaults.

laplace-torch's full curvature needs 7 GiB for 200 images from its default backend and 1 GiB for all of them from
BackPACK's Jacobians: the same matrix. Fewer samples where each takes seconds.
"""


def data(run: Run, name: str | None = None) -> Dataset:
    """The run's image set, or another one; generated images for a quick run."""
    name = name or run.dataset
    if run.quick:
        return images.generated(name, run.seed, images.Generated((1, 28, 28)))
    return images.load(name, run.seed, run.data_dir)


def problem(run: Run) -> tuple[Dataset, nn.Module]:
    """The data and the trained network."""
    dataset = data(run)
    return dataset, train(dataset, run.seed, training_for(run.dataset).shortened(run.effort.epoch_share))


def measure(run: Run) -> dict[str, Any]:
    """Fit the run's method, tuned on the validation data, and score it on everything."""
    dataset, model = problem(run)
    environment.reset_peak_memory()
    choice = Choice(QUICK_BUDGET if run.quick else BUDGET, OPTIONS.get(run.method, {}), BATCH)
    fitted = fit_compared(model, dataset, 1.0, run.seed, run.effort, name=run.method, choice=choice)
    timed = dataset.test[0][:TIMED_INPUTS]
    metrics = {part: scores(fitted.predict, s) for part, s in (("validation", dataset.val), ("test", dataset.test))}
    start = time.perf_counter()
    in_batches(fitted.predict, timed)
    predict_seconds = (time.perf_counter() - start) * TIMED_INPUTS / len(timed)
    shown = QUICK_IMAGES if run.quick else SHIFTED_IMAGES
    training = training_for(run.dataset).shortened(run.effort.epoch_share)
    return {
        "metrics": metrics,
        **beyond_the_test_data(run, dataset, fitted.predict, shown),
        "fit_seconds": fitted.fit_seconds,
        "predict_seconds": predict_seconds,
        "peak_memory_mib": environment.peak_memory_mib(),
        "settings": {"training": asdict(training), "effort": asdict(run.effort), **fitted.info},
    }


def beyond_the_test_data(run: Run, dataset: Dataset, predict: Predict, n_images: int) -> dict[str, Any]:
    """Scores on shifted images, and of the detection of foreign ones; the first ``n_images`` of each."""
    test = (dataset.test[0][:n_images], dataset.test[1][:n_images])
    found: dict[str, Any] = {}
    if run.dataset == "mnist":
        found["shifts"] = {"rotation": shifted_scores(predict, test[1], rotations(test[0]))}
    if run.dataset in FOREIGN:
        name = FOREIGN[run.dataset]
        other = data(run, name)
        # As the network sees them: foreign pixels on the scale of the run's own set.
        foreign = dataset.scale(other.test[0][:n_images] * other.x_scale + other.x_shift)
        found["ood"] = {name: detection(in_batches(predict, test[0]), in_batches(predict, foreign))}
    return found


def rotations(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The images turned by each of ``ANGLES``, made when asked for."""
    return {str(angle): lambda angle=angle: images.rotated(x, angle) for angle in ANGLES}  # type: ignore[misc]


def shifted_scores(
    predict: Predict, y: Tensor, shifted: Mapping[str, Callable[[], Tensor]]
) -> dict[str, dict[str, float]]:
    """The main scores on each set of shifted images of the classes ``y``."""
    found = {}
    for name, make in shifted.items():
        every = scores(predict, (make(), y))
        found[name] = {score: every[score] for score in SHIFT_SCORES if score in every}
    return found


def scores(predict: Predict, part: Split) -> dict[str, float]:
    """All scores on a part of the data."""
    return evaluate(in_batches(predict, part[0]), part[1])


def in_batches(predict: Predict, x: Tensor) -> Prediction:
    """The prediction for many images, made in batches to bound memory."""
    with torch.no_grad():
        return joined([predict(batch) for batch, _ in split_loader((x, torch.zeros(len(x))))])


def detection(inside: Prediction, outside: Prediction) -> dict[str, float]:
    """Areas under the ROC curves when foreign images are told by low confidence, and by high entropy."""
    doubts = [_doubt(prediction) for prediction in (inside, outside)]
    entropies = [uncertainty(prediction, classes=True) for prediction in (inside, outside)]
    return {"auroc_confidence": detection_auroc(*doubts), "auroc_entropy": detection_auroc(*entropies)}


def _doubt(prediction: Prediction) -> Tensor:
    """Minus the largest averaged class probability (b,)."""
    probs = torch.as_tensor(prediction).double()
    return -(probs if probs.ndim == 2 else probs.mean(dim=0)).amax(dim=-1)
