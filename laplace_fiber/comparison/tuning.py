"""Choosing a method's settings on validation data, under one budget for all methods."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from laplace_fiber.calibration import Calibration
from laplace_fiber.comparison.fits import PRIOR_PRECISION, Fitted, Settings
from laplace_fiber.comparison.methods import Method
from laplace_fiber.comparison.task import Predict, Task, predict_all
from laplace_fiber.metrics import Prediction, negative_log_likelihood
from laplace_fiber.shown import say_again
from laplace_fiber.weights import Inputs

Report = Callable[[int, float], None]
"""Told the number of settings tried and the lowest validation NLL."""


@dataclass(frozen=True)
class Budget:
    """What the choice of settings may cost, for each method and seed.

    Parameters
    ----------
    n_settings
        At most this many settings are tried, the default among them.
    seconds
        Of the search. The first setting that works (the default, mostly) does not count; no other one is begun after it
        that would end too late, by the time that earlier ones took.
    """

    n_settings: int = 20
    seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.n_settings < 1 or not self.seconds > 0:
            raise ValueError(
                f"budget: expected at least one setting and positive seconds, got {self.n_settings}, {self.seconds}."
            )


@dataclass
class Outcome:
    """The fitted method with its best settings.

    Attributes
    ----------
    predict, settings, validation_nll
        The best settings, the prediction under them, and the loss they were chosen by (before calibration).
    gradient_evaluations, fit_seconds
        Of the fit that is kept.
    tune_seconds
        Of everything else: other fits, validation predictions, calibration.
    n_settings
        Settings tried, failed ones included.
    failures
        What went wrong in settings that failed.
    """

    predict: Predict
    settings: Settings
    validation_nll: float
    gradient_evaluations: float | None
    fit_seconds: float
    tune_seconds: float
    n_settings: int
    failures: list[str]


@dataclass
class _Fit:
    """A fit, the settings that were chosen for it, its seconds, and what it warned of."""

    fitted: Fitted
    chosen: Settings
    seconds: float
    warned: Sequence[warnings.WarningMessage]

    def takes_over(self, chosen: Settings) -> bool:
        """Whether it follows to settings that differ in the prior precision alone."""
        same = {**chosen, PRIOR_PRECISION: None} == {**self.chosen, PRIOR_PRECISION: None}
        return same and PRIOR_PRECISION in chosen and self.fitted.follow(chosen[PRIOR_PRECISION])


@dataclass
class Search:
    """A search along one setting at a time: the next value of each setting in turn, all others at the best so far.

    Settings that a fit can follow without another fit (the prior precision of a Gaussian) are not fitted again. All
    seconds are those of ``clock``. Of what fits warn of, the end of the search shows what concerns the best one.
    """

    method: Method
    task: Task
    seed: int
    budget: Budget
    progress_bar: bool = False
    clock: Callable[[], float] = time.perf_counter
    current: _Fit | None = None
    best: _Fit | None = None
    best_settings: Settings = field(default_factory=dict)
    lowest: float = math.inf
    n_tried: int = 0
    failures: list[str] = field(default_factory=list)
    first_error: Exception | None = None
    slowest_fit: float = 0.0
    slowest_judgement: float = 0.0

    def run(self, prior_precisions: tuple[float, ...], report: Report = lambda n, loss: None) -> Outcome:
        """Try settings within the budget.

        Raises
        ------
        Exception
            That of the first setting, where all settings failed.
        """
        start = self.clock()
        axes = self.method.candidates(self.task, prior_precisions)
        self.best_settings = {name: values[0] for name, values in axes.items()}
        pending, searching = list(turns(axes)), start
        while pending and self.n_tried < self.budget.n_settings:
            changed = pending.pop(self._next(pending))
            works = self.best is not None
            if self._try({**self.best_settings, **changed}, self.clock() - searching):
                report(self.n_tried, self.lowest)
            searching = searching if works else self.clock()
        if self.best is None:
            raise self.first_error or RuntimeError(
                f"{self.method.name}: expected a finite validation NLL for some setting, got none; check the network."
            )
        self.best.takes_over(self.best_settings)  # it may have moved on since
        return self._outcome(self.best, start)

    def _next(self, pending: Sequence[Settings]) -> int:
        """The place of the next change: until something works, one of the method's own settings."""
        places = (i for i, changed in enumerate(pending) if self.best is not None or PRIOR_PRECISION not in changed)
        return next(places, 0)

    def _try(self, chosen: Settings, elapsed: float) -> bool:
        """Whether there was time to try them."""
        follows = self.current is not None and self.current.takes_over(chosen)
        expected = self.slowest_judgement + (0.0 if follows else self.slowest_fit)
        if self.best is not None and elapsed + expected > self.budget.seconds:
            return False
        self.n_tried += 1
        if not follows:
            self.current = None  # so that two fits are alive at most
        try:
            fit = self.current = self.current or self._fit(chosen)
            loss = self._judge(fit)
        except Exception as error:  # a setting that fails shall not end the search
            self.first_error = self.first_error or error
            self.failures.append(f"{chosen}: {type(error).__name__}: {error}")
            return True
        if loss < self.lowest:
            self.best, self.best_settings, self.lowest = fit, chosen, loss
        return True

    def _fit(self, chosen: Settings) -> _Fit:
        start = self.clock()
        try:
            with warnings.catch_warnings(record=True) as warned:
                fitted = self.method.fit(self.task, self.seed, {**self.method.options, **chosen}, self.progress_bar)
        finally:
            seconds = self.clock() - start
            self.slowest_fit = max(self.slowest_fit, seconds)
        return _Fit(fitted, chosen, seconds, warned)

    def _judge(self, fit: _Fit) -> float:
        """The validation NLL; not a number counts as infinite."""
        start = self.clock()
        prediction, y = predict_all(fit.fitted.predict, self.task.val_loader, self.task.device)
        loss = negative_log_likelihood(prediction, y, self.task.sigma_noise)
        self.slowest_judgement = max(self.slowest_judgement, self.clock() - start)
        return loss if math.isfinite(loss) else math.inf

    def _outcome(self, best: _Fit, start: float) -> Outcome:
        say_again(best.warned)
        predict, settings, task = best.fitted.predict, dict(self.best_settings), self.task
        if self.method.calibrated:
            calibration = Calibration(*predict_all(predict, task.val_loader, task.device), task.sigma_noise)
            predict = _calibrated(predict, calibration)
            settings["temperature" if task.classes else "variance_factor"] = calibration.value
        return Outcome(
            predict,
            settings,
            validation_nll=self.lowest,
            gradient_evaluations=best.fitted.gradient_evaluations,
            fit_seconds=best.seconds,
            tune_seconds=self.clock() - start - best.seconds,
            n_settings=self.n_tried,
            failures=self.failures,
        )


def turns(axes: Mapping[str, tuple[Any, ...]]) -> Iterator[Settings]:
    """Nothing (the default settings), then the second value of each setting, then the third, and so on."""
    yield {}
    for values in itertools.zip_longest(*([(name, v) for v in axes[name][1:]] for name in axes)):
        yield from ({name: value} for name, value in filter(None, values))


def _calibrated(predict: Predict, calibration: Calibration) -> Predict:
    def calibrated(x: Inputs) -> Prediction:
        return calibration(predict(x))

    return calibrated
