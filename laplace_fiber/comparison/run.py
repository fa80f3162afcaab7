"""One call that compares methods on a user's own trained network and data."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from laplace_fiber.comparison.methods import Method, default_methods, method
from laplace_fiber.comparison.rows import Examination, examine
from laplace_fiber.comparison.table import Comparison, rows_by_key
from laplace_fiber.comparison.task import Task, make_task
from laplace_fiber.comparison.tuning import Budget
from laplace_fiber.data import batches_of, pairs

PRIOR_PRECISIONS = (1.0, 10.0, 0.1, 100.0, 0.01, 1e3, 3.0, 0.3, 30.0, 0.03, 300.0, 1e4)
"""Tried in this order: from 1 outwards, coarse steps first."""


def compare(  # noqa: PLR0913  (all that a comparison depends on, in one call)
    model: nn.Module | Sequence[nn.Module],
    likelihood: str,
    train_loader: Iterable[Any],
    val_loader: Iterable[Any],
    test_loader: Iterable[Any],
    methods: Sequence[str | Method] | None = None,
    seeds: Sequence[int] = (0,),
    *,
    ood_loader: Iterable[Any] | None = None,
    n_samples: int = 100,
    budget: Budget | None = None,
    sigma_noise: float | None = None,
    prior_precisions: Sequence[float] = PRIOR_PRECISIONS,
    progress_bar: bool = True,
    resume: str | Path | None = None,
) -> Comparison:
    """Fit methods around a trained network, tune each on validation data, and score all on test data.

    Every method may try the same number of settings in the same time besides its default one. Settings are tried along
    one axis at a time (the prior precision and the setting that matters most) and judged by the negative log-likelihood
    of the averaged predictive on ``val_loader``. The test data are looked at once for each method and seed, after that.

    Parameters
    ----------
    model
        The trained network, or several of one architecture for methods that take them (others take the first). It is
        left as it is.
    likelihood
        ``"classification"`` or ``"regression"``.
    train_loader, val_loader, test_loader
        Pairs (x, y) or dict-like batches with targets under ``"labels"``: what the network was trained on; data to
        choose settings on; data to score on.
    methods
        Names of ``laplace_fiber.comparison.METHODS``, also with ``"+temperature"`` behind them, or what
        ``laplace_fiber.comparison.method(name, **settings)`` returns. ``None`` takes all that apply.
    seeds
        Of the methods' random numbers; the network is the same for all.
    ood_loader
        Inputs from elsewhere (targets, if there are any, are ignored): adds the area under the ROC curve of telling
        them by the predictive entropy (classes) or variance (regression).
    n_samples
        Posterior samples behind each prediction.
    budget
        Number of settings and seconds for each method and seed.
    sigma_noise
        Standard deviation of the targets' noise (regression); ``None`` takes the network's root mean squared residual
        on training and validation data.
    prior_precisions
        Values to try, in this order; methods start from the first. (Slow methods that begin with a Laplace
        approximation try these multiples of the value with its highest evidence.)
    progress_bar
        Show which method is at work, and the progress of its fits.
    resume
        A file that finished rows are written to. Those that it holds already are not computed again; failed ones are.

    Raises
    ------
    ValueError
        Unknown methods, an unsuitable likelihood or noise, or a ``resume`` file of another comparison.
    KeyboardInterrupt
        As it came, with a note that names the file of the finished rows. A method's own error never ends the call: it
        stands in its row.
    """
    task = make_task(model, likelihood, train_loader, val_loader, sigma_noise, n_samples)
    chosen = default_methods(task) if methods is None else [m if isinstance(m, Method) else method(m) for m in methods]
    if len({m.name for m in chosen}) < len(chosen):
        raise ValueError("methods: expected different names, got one twice; use method(name, rename=...).")
    if not prior_precisions or not all(value > 0 for value in prior_precisions):
        raise ValueError(f"prior_precisions: expected positive values, got {prior_precisions}.")
    examination = Examination(test_loader, ood_loader, budget or Budget(), tuple(prior_precisions), progress_bar)
    result = _resumed(resume, _conditions(task, examination))
    file = Path(resume) if resume is not None else _temporary_file()
    runs = [(m, seed) for m in chosen for seed in seeds]
    try:
        _run(runs, task, examination, result, file)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"Finished rows are in {file}; pass resume={str(file)!r} to go on.")
        raise
    if resume is None:
        file.unlink(missing_ok=True)
    rows = rows_by_key(result.rows)
    return Comparison([rows[m.name, seed] for m, seed in runs], result.conditions)


def _run(
    runs: Sequence[tuple[Method, int]], task: Task, examination: Examination, result: Comparison, file: Path
) -> None:
    """Carry out the runs whose rows are missing, and save after each."""
    known = rows_by_key(result.rows)
    pending = [(m, seed) for m, seed in runs if not _is_done(m, known.get((m.name, seed)))]
    with tqdm(pending, desc="methods", disable=not examination.progress_bar) as bar:
        for m, seed in bar:
            bar.set_description(f"{m.label}, seed {seed}")

            def report(n_tried: int, lowest: float, bar: Any = bar) -> None:
                bar.set_postfix(settings=n_tried, validation_nll=f"{lowest:.4g}")

            row = examine(m, task, seed, examination, report)
            result.rows = [r for r in result.rows if (r["method"], r["seed"]) != (m.name, seed)] + [row]
            result.save(file)


def _is_done(m: Method, row: dict[str, Any] | None) -> bool:
    options = {name: repr(value) for name, value in m.options.items()}
    return row is not None and row["status"] == "finished" and row["options"] == options


def _conditions(task: Task, examination: Examination) -> dict[str, Any]:
    """What rows depend on besides method and seed."""
    return {
        "likelihood": task.likelihood,
        "sigma_noise": task.sigma_noise,
        "n_samples": task.n_samples,
        "budget": asdict(examination.budget),
        "prior_precisions": list(examination.prior_precisions),
        "networks": task.digest(),
        "targets": _digest_of_targets(task, [task.val_loader, examination.test_loader]),
        "out_of_distribution": examination.ood_loader is not None,
    }


def _digest_of_targets(task: Task, loaders: Sequence[Iterable[Any]]) -> str:
    result = hashlib.sha256()
    for loader in loaders:
        for _, y in pairs(batches_of(loader), task.device):
            result.update(y.cpu().contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


def _resumed(file: str | Path | None, conditions: dict[str, Any]) -> Comparison:
    if file is None or not Path(file).exists():
        return Comparison([], conditions)
    result = Comparison.load(file)
    changed = [name for name in conditions if result.conditions.get(name) != conditions[name]]
    if changed:
        raise ValueError(f"resume: expected a comparison under the same conditions, got other {changed} in {file}.")
    return result


def _temporary_file() -> Path:
    handle, name = tempfile.mkstemp(prefix="laplace-fiber-comparison-", suffix=".json")
    os.close(handle)
    return Path(name)
