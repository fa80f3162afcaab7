"""One method with one seed: choice of settings, then one look at the test data."""

from __future__ import annotations

import time
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from laplace_fiber.comparison.methods import Method
from laplace_fiber.comparison.peak import peak_memory
from laplace_fiber.comparison.task import Task, predict_all, predict_inputs
from laplace_fiber.comparison.tuning import Budget, Report, Search
from laplace_fiber.metrics import Prediction, detection_auroc, evaluate, reliability, uncertainty

Row: TypeAlias = dict[str, Any]
"""What is known of one method with one seed: see :class:`laplace_fiber.comparison.Comparison`."""


@dataclass(frozen=True)
class Examination:
    """How methods are tuned and tested.

    Attributes
    ----------
    test_loader, ood_loader
        Data that nothing is chosen on; inputs from elsewhere, if there are any.
    budget, prior_precisions
        Of the choice of settings.
    progress_bar
        Whether fits show their progress.
    """

    test_loader: Iterable[Any]
    ood_loader: Iterable[Any] | None
    budget: Budget
    prior_precisions: tuple[float, ...]
    progress_bar: bool = False


def examine(method: Method, task: Task, seed: int, examination: Examination, report: Report) -> Row:
    """The row of one method and seed; an error becomes part of it. The global random state is put back."""
    row: Row = {"method": method.name, "label": method.label, "seed": seed}
    devices = [task.device] if task.device.type == "cuda" else []
    with warnings.catch_warnings(record=True) as caught, torch.random.fork_rng(devices=devices):
        warnings.simplefilter("always")
        torch.manual_seed(seed)
        try:
            row |= {"status": "finished", **_examined(method, task, seed, examination, report)}
        except Exception as error:  # whatever went wrong, the other methods shall go on
            message = f"{type(error).__name__}: {error}"
            row |= {"status": "failed", "error": message, "traceback": traceback.format_exc()}
    row["options"] = {name: repr(value) for name, value in method.options.items()}
    row["warnings"] = list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))
    return row


def _examined(method: Method, task: Task, seed: int, examination: Examination, report: Report) -> Row:
    with peak_memory(task.device) as peak:
        search = Search(method, task, seed, examination.budget, examination.progress_bar)
        outcome = search.run(examination.prior_precisions, report)
        start = time.perf_counter()
        prediction, y = predict_all(outcome.predict, examination.test_loader, task.device)
        predict_seconds = time.perf_counter() - start
    scores = evaluate(prediction, y, task.sigma_noise)
    if examination.ood_loader is not None:
        outside = predict_inputs(outcome.predict, examination.ood_loader, task.device)
        scores["auroc_ood"] = _auroc(prediction, outside, task.classes)
    return {
        **scores,
        "validation_nll": outcome.validation_nll,
        "fit_seconds": outcome.fit_seconds,
        "tune_seconds": outcome.tune_seconds,
        "predict_seconds": predict_seconds,
        "peak_memory_mib": peak.mib,
        "gradient_evaluations": outcome.gradient_evaluations,
        "n_settings": outcome.n_settings,
        "settings": outcome.settings,
        "failed_settings": outcome.failures,
        "reliability": reliability(prediction, y, task.sigma_noise),
    }


def _auroc(inside: Prediction, outside: Prediction, classes: bool) -> float:
    return detection_auroc(uncertainty(inside, classes), uncertainty(outside, classes))
