"""Runs on image sets: a posterior over a convolutional network, its scores, and those on shifted images.

A method is fitted once for each data set and seed: MNIST's run also scores rotated test images, CIFAR-10's corrupted
ones, and MNIST and FashionMNIST are told from each other. On CIFAR-10 the posterior is over the last two layers, for
data sets that end in ``-all`` over all weights.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import environment, images
from benchmarks.compared import OF_SEVERAL_NETWORKS, fit_compared
from benchmarks.corruptions import CORRUPTIONS, SEVERITIES, corrupted, frost_pictures
from benchmarks.datasets import Dataset, Split
from benchmarks.image_choices import goes_on, image_choice, image_method
from benchmarks.methods import LOADER_BATCH
from benchmarks.models import AugmentedTraining, Training, augmenting_loader, train, training_for
from benchmarks.networks import Body, Head
from benchmarks.runs import Run
from benchmarks.tabular import data_of
from laplace_fiber.comparison.task import joined
from laplace_fiber.metrics import Prediction, detection_auroc, evaluate, uncertainty

Predict: TypeAlias = Callable[[Tensor], Prediction]

LIMIT_SECONDS = 3600.0
"""What one run may take."""

TIMED_INPUTS = 1000
SHOWN_IMAGES = {"mnist": 1000, "fashion": 1000, "cifar10-small": 200, "cifar10": 500}
"""The first test images: shifted ones are scored on them, and foreign ones told from them. Predictions with 100 samples
cost more than most fits, and all methods see the same images; CIFAR-10 has 75 kinds of shift."""

ALL_WEIGHTS = "-all"
"""Ending of the data sets whose posterior is over all weights, where there is another over the last two layers."""

LAST_TWO_LAYERS = ("cifar10-small", "cifar10")
ON_GPU = ("cifar10",)
AFFORDABLE_OVER_ALL_WEIGHTS = (
    "map",
    "temperature",
    "laplace",
    "last_layer",
    "ensemble",
    "mixture",
    "swag",
    "multiswag",
    "mc_dropout",
    "fiber",
    "fiber_stochastic",
    "fiber+temperature",
)
QUICK_SHAPES = {"cifar10-small": (3, 32, 32), "cifar10": (3, 32, 32)}
QUICK_IMAGES = 20
ANGLES = range(0, 181, 15)
SHIFT_SCORES = ("nll", "nll_per_sample", "accuracy", "ece")
FOREIGN = {"mnist": "fashion", "fashion": "mnist"}
"""The set whose images count as out of the distribution."""


@dataclass(frozen=True)
class Problem:
    """What a posterior is fitted to, and the images behind it.

    Attributes
    ----------
    pictures
        The image set, as the trained network sees it.
    dataset, model
        What the methods are given: the images and the network, or features and the last two layers.
    encode
        Maps images as in ``pictures`` to inputs as in ``dataset``.
    """

    pictures: Dataset
    dataset: Dataset
    model: nn.Module
    encode: Callable[[Tensor], Tensor]


def image_set(run: Run, name: str | None = None) -> Dataset:
    """The run's image set, or another one; generated images for a quick run."""
    name = name or base_name(run)
    if run.quick:
        return images.generated(name, run.seed, images.Generated(QUICK_SHAPES.get(name, (1, 28, 28))))
    return images.load(name, run.seed, run.data_dir)


def base_name(run: Run) -> str:
    """The image set of the run, whichever weights the posterior is over."""
    return run.dataset.removesuffix(ALL_WEIGHTS)


def device_of(run: Run) -> torch.device:
    """Where a run's network and data lie: on a GPU, if there is one, where the network needs it."""
    return torch.device("cuda" if base_name(run) in ON_GPU and torch.cuda.is_available() else "cpu")


def trained(run: Run) -> tuple[Dataset, nn.Module]:
    """The images and the trained network."""
    pictures = image_set(run).to(device_of(run))
    return pictures, train(pictures, run.seed, training_of(run))


def training_of(run: Run) -> Training:
    """The schedule of the run's network."""
    return training_for(base_name(run)).shortened(run.effort.epoch_share)


def problem(run: Run) -> Problem:
    """What the run's posterior is fitted to; the next run on the same data and network in this process shares it."""
    return _problem(replace(run, method="", limit_seconds=None))


@functools.lru_cache(maxsize=1)
def _problem(run: Run) -> Problem:
    pictures, model = trained(run)
    if run.dataset not in LAST_TWO_LAYERS or not isinstance(model, nn.Sequential):
        return Problem(pictures, pictures, model, lambda x: x)
    body = Body(model).eval()

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([body(batch) for batch in x.split(LOADER_BATCH)])

    train_part, val, test = ((encode(x), y) for x, y in (pictures.train, pictures.val, pictures.test))
    features = replace(pictures, train=train_part, val=val, test=test)
    return Problem(pictures, features, Head(model).eval(), encode)


def measure(run: Run) -> dict[str, Any]:
    """Fit the run's method, tuned on the validation data, and score it on everything."""
    given = problem(run)
    dataset = given.dataset
    environment.reset_peak_memory()
    training, loader = training_of(run), None
    if isinstance(training, AugmentedTraining) and goes_on(run.method):
        loader = augmenting_loader(given.pictures.train, training, given.encode)
    method, choice = image_method(run.method, given.model, training), image_choice(run.method)
    fitted = fit_compared(
        given.model, dataset, 1.0, run.seed, run.effort, method=method, choice=choice, train_loader=loader
    )
    metrics = {part: scores(fitted.predict, s) for part, s in (("validation", dataset.val), ("test", dataset.test))}
    timed = dataset.test[0][:TIMED_INPUTS]
    start = environment.clock()
    in_batches(fitted.predict, timed)
    predict_seconds = (environment.clock() - start) * TIMED_INPUTS / len(timed)
    return {
        **data_of(given.pictures),
        "metrics": metrics,
        **beyond_the_test_data(run, given, fitted.predict),
        "fit_seconds": fitted.fit_seconds,
        "predict_seconds": predict_seconds,
        "peak_memory_mib": environment.peak_memory_mib(),
        **environment.peak_gpu_memory(),
        "settings": {
            "training": asdict(training),
            "augmented": loader is not None,
            "effort": asdict(run.effort),
            "seconds": environment.kind_of_seconds(),
            **fitted.info,
        },
    }


def beyond_the_test_data(run: Run, given: Problem, predict: Predict) -> dict[str, Any]:
    """Scores on shifted images, and of the detection of foreign ones: of the first test images."""
    name, shown = base_name(run), QUICK_IMAGES if run.quick else SHOWN_IMAGES[base_name(run)]
    x, y = (part[:shown] for part in given.pictures.test)
    if name == "mnist":
        kind, shifted = "rotation", rotations(x)
    elif name.startswith("cifar10"):
        kind, shifted = "corruption", corruptions_of(x, given, _pictures_of_ice(run))
    else:
        kind, shifted = "", {}
    found: dict[str, Any] = {"shifts": {kind: shifted_scores(predict, y, shifted)}} if shifted else {}
    if name in FOREIGN:
        other = image_set(run, FOREIGN[name])
        # As the network sees them: foreign pixels on the scale of the run's own set.
        foreign = given.pictures.scale(images.pixels(images.levels(other.test[0][:shown], other)))
        found["ood"] = {FOREIGN[name]: detection(in_batches(predict, x), in_batches(predict, foreign))}
    return found


def corruptions_of(x: Tensor, given: Problem, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, Callable[[], Tensor]]:
    """Inputs from the images under each corruption and severity, made when asked for."""
    raw = images.levels(x, given.pictures)

    def make(name: str, severity: int) -> Tensor:
        changed = corrupted(raw, name, severity, pictures=pictures)
        return given.encode(given.pictures.scale(images.pixels(changed).to(x.device)))

    pairs = itertools.product(CORRUPTIONS, SEVERITIES)
    return {f"{name}/{severity}": functools.partial(make, name, severity) for name, severity in pairs}


def _pictures_of_ice(run: Run) -> list[NDArray[np.uint8]]:
    """The recipe's pictures of frost; noise for a quick run."""
    if not run.quick:
        return frost_pictures(run.data_dir)
    return [np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)]


def rotations(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The images turned by each of ``ANGLES``, made when asked for."""
    return {str(angle): functools.partial(images.rotated, x, angle) for angle in ANGLES}


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
    return evaluate(in_batches(predict, part[0]), part[1].cpu())


def in_batches(predict: Predict, x: Tensor) -> Prediction:
    """The prediction for many images, made in batches to bound memory."""
    with torch.no_grad():
        return joined([predict(batch) for batch in x.split(LOADER_BATCH)])


def detection(inside: Prediction, outside: Prediction) -> dict[str, float]:
    """Areas under the ROC curves when foreign images are told by low confidence, and by high entropy."""
    doubts = [_doubt(prediction) for prediction in (inside, outside)]
    entropies = [uncertainty(prediction, classes=True) for prediction in (inside, outside)]
    return {"auroc_confidence": detection_auroc(*doubts), "auroc_entropy": detection_auroc(*entropies)}


def _doubt(prediction: Prediction) -> Tensor:
    """Minus the largest averaged class probability (b,)."""
    probs = torch.as_tensor(prediction).double()
    return -(probs if probs.ndim == 2 else probs.mean(dim=0)).amax(dim=-1)


def applies(dataset: str, method: str) -> bool:
    """Whether the method can be fitted to the data set's network, and is worth its time there.

    One evaluation of the Fisher metric takes half a second for 170 images of MNIST, and a geodesic needs hundreds.
    Several trained networks have no body in common whose features a head could be fitted to, nor is an ensemble of
    heads one of networks. Posteriors over all weights of a residual network are limited to methods that need a few
    thousand gradients at most.
    """
    if method == "riemannian_fisher":
        return False
    if dataset in LAST_TWO_LAYERS:
        return method not in (*OF_SEVERAL_NETWORKS, "ensemble")
    return not dataset.endswith(ALL_WEIGHTS) or method in AFFORDABLE_OVER_ALL_WEIGHTS
