"""All experiments by name."""

from __future__ import annotations

from benchmarks import scaling, sensitivity, tabular
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
        (*_FIRST, "breast", "waveform"),
        tuple(VARIANT_METHODS),
        tabular.measure_own,
        prepare=tabular.problem,
        part="validation",
    ),
    "snelson": _compared("every method on Snelson's regression, both splits", ("snelson", "snelson-gap")),
    "banana": _compared("every method on the Banana set", ("banana",)),
    "uci": _compared("every method on six UCI sets, standardised", UCI),
    "uci-raw": _compared(
        "every method on six UCI sets, with inputs as the authors' earlier code has them",
        tuple(name + RAW for name in UCI),
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
