"""All experiments by name."""

from __future__ import annotations

from benchmarks import image_runs, pictures, scaling, sensitivity, tabular, tuned_settings
from benchmarks.compared import COMPARED_METHODS, fits_together
from benchmarks.datasets import LAYERED, RAW, UCI
from benchmarks.methods import METHODS
from benchmarks.runs import Experiment
from benchmarks.variants import VARIANT_METHODS

_FIRST = ("snelson", "snelson-gap", "banana", "australian", "glass", "ionosphere")


def _compared(about: str, datasets: tuple[str, ...]) -> Experiment:
    methods = tuple(COMPARED_METHODS)
    return Experiment(
        about, datasets, methods, tabular.measure_compared, prepare=tabular.problem, applies=fits_together
    )


def _images(about: str, datasets: tuple[str, ...]) -> Experiment:
    methods = tuple(COMPARED_METHODS)
    return Experiment(
        about,
        datasets,
        methods,
        image_runs.measure,
        prepare=image_runs.trained,
        applies=image_runs.applies,
        limit_seconds=image_runs.LIMIT_SECONDS,
    )


EXPERIMENTS = {
    "first": Experiment(
        "FiberLaplace in four forms beside laplace-torch and an ensemble",
        _FIRST,
        tuple(METHODS),
        tabular.measure_own,
        prepare=tabular.problem,
    ),
    "defaults": Experiment(
        "FiberLaplace with one default changed at a time, on validation data",
        (*_FIRST, "breast", "vehicle", "waveform"),
        tuple(VARIANT_METHODS),
        tabular.measure_own,
        prepare=tabular.problem,
        part="validation",
        report=tuned_settings.write,
    ),
    "snelson": _compared("every method on Snelson's regression, both splits", ("snelson", "snelson-gap")),
    "banana": _compared("every method on the Banana set", ("banana",)),
    "uci": _compared("every method on six UCI sets, standardised", UCI),
    "uci-raw": _compared(
        "every method on six UCI sets, with inputs as the authors' earlier code has them",
        tuple(name + RAW for name in UCI),
    ),
    "mnist": _images("every method on MNIST, also rotated, and against FashionMNIST", ("mnist",)),
    "fashion": _images("every method on FashionMNIST, and against MNIST", ("fashion",)),
    "cifar10": _images(
        "10,000 images of CIFAR-10, also corrupted, and a small residual network: last two layers and all weights",
        ("cifar10-small", "cifar10-small-all"),
    ),
    "cifar10-resnet18": _images(
        "CIFAR-10, also corrupted, and ResNet-18: last two layers and all weights (needs a GPU)",
        ("cifar10", "cifar10-all"),
    ),
    "pictures": Experiment(
        "bands, class surfaces and principal components behind the paper's Figures 2, 3, 8, 9 and 12",
        ("snelson", "banana"),
        pictures.METHODS,
        pictures.measure,
        prepare=tabular.problem,
        applies=pictures.applies,
    ),
    "scaling": Experiment(
        "Snelson's data under 1 to 9 hidden layers of 64 units: cost and NLL (Figure 5)",
        LAYERED,
        tuple(scaling.METHODS),
        scaling.measure,
        prepare=tabular.problem,
        applies=scaling.fits_in_memory,
        limit_seconds=scaling.LIMIT_SECONDS,
    ),
    "sensitivity": Experiment(
        "FiberLaplace with one setting at a time away from its default (Figures 8 to 11)",
        sensitivity.DATASETS,
        tuple(sensitivity.METHODS),
        sensitivity.measure,
        prepare=tabular.problem,
        report=sensitivity.report,
    ),
}

SAME_RUNS = {"rotated-mnist": "mnist", "cifar10c": "cifar10"}
"""Names for the runs of another experiment, which measure this, too."""
