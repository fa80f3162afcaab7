"""Who is best where, in sentences, and how many of the goals are reached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from benchmarks.collected import CHAINS, FIBER_FAMILY, Collected, Scores
from benchmarks.report import mean_and_error
from benchmarks.style import label
from laplace_fiber.plots.shifts import summary
from laplace_fiber.plots.style import FIBER

GOAL_SETS = (
    ("snelson", "snelson"),
    ("banana", "banana"),
    *(("uci", name) for name in ("australian", "breast", "glass", "ionosphere", "vehicle", "waveform")),
    ("mnist", "mnist"),
    ("fashion", "fashion"),
)
"""Experiment and data set of the ten that the goals count."""

MEMBERS = 5
"""Trainings that the ensemble's fit seconds hold."""

LARGE_ECE = 5.0
"""Percent; where the MAP's calibration error is above, half of it is the goal."""

IMAGE_GOALS = {"mnist": 0.12, "fashion": 0.47}


def verdict(scores: Scores) -> str:
    """One paragraph on one data set."""
    best = scores.best(scores.single_network())
    if best is None:
        return f"**{scores.dataset}**: no method has finished on every seed."
    value = mean_and_error(scores.values(best, "nll"))
    parts = [f"**{scores.dataset}** ({_count(len(scores.seeds))}). Lowest NLL on one network: {label(best)}, {value}."]
    parts += [_beside_the_best(scores, method) for method in FIBER]
    if "ensemble" in scores.complete():
        value = mean_and_error(scores.values("ensemble", "nll"))
        parts.append(f"Ensemble: {value}{_beside_the_ensemble(scores)}.")
    costs = [f"{label(m)} {cost:.1f}" for m in FIBER if (cost := trainings(scores, m)) is not None]
    if costs:
        parts.append(f"Fit in units of one training: {', '.join(costs)}.")
    return " ".join(parts)


def _beside_the_best(scores: Scores, method: str) -> str:
    """FiberLaplace against the best other method that keeps to one network."""
    rival = scores.best(scores.single_network(without=FIBER_FAMILY))
    if method not in scores.complete() or rival is None:
        return f"{label(method)}: not finished."
    gap = scores.difference(method, rival)
    if gap is None:
        return f"{label(method)}: no seeds in common with {label(rival)}."
    how = "within one standard error of" if gap.tied else "below" if gap.lower else "behind"
    return f"{label(method)}: {how} the best other, {label(rival)} ({gap})."


def _beside_the_ensemble(scores: Scores) -> str:
    found = [(m, scores.difference(m, "ensemble")) for m in FIBER if m in scores.complete()]
    gaps = [f"{label(m)} {gap}" for m, gap in found if gap is not None]
    return f"; minus it: {', '.join(gaps)}" if gaps else ""


def trainings(scores: Scores, method: str) -> float | None:
    """Seconds of the method's fit over those of training one network (a member of the ensemble)."""
    mine, ensemble = scores.values(method, "fit_seconds"), scores.values("ensemble", "fit_seconds")
    if not mine or not ensemble or summary(ensemble)[0] == 0:
        return None
    return MEMBERS * summary(mine)[0] / summary(ensemble)[0]


def best_or_tied(scores: Scores, method: str, without: Sequence[str] = ()) -> bool:
    """Whether a walk of FiberLaplace is below the best other single-network method or within one standard error."""
    rival = scores.best(scores.single_network(without=(*FIBER_FAMILY, *without)))
    return _no_worse(scores, method, rival)


def no_worse_than_ensemble(scores: Scores, method: str) -> bool:
    """Lower than the ensemble, or within one standard error of the paired difference."""
    return _no_worse(scores, method, "ensemble")


def _no_worse(scores: Scores, method: str, other: str | None) -> bool:
    if other is None or not {method, other} <= set(scores.complete()):
        return False
    gap = scores.difference(method, other)
    return gap is not None and gap.no_worse


def calibrated(scores: Scores, method: str) -> bool:
    """Whether the calibration error is at most half the MAP's."""
    mine, theirs = scores.mean(method, "ece"), scores.mean("map", "ece")
    return mine is not None and theirs is not None and mine <= theirs / 2


def goals(results: Collected) -> str:
    """How many data sets reach each goal, for each walk and for the best of them."""
    every = [results.scores(*pair) for pair in GOAL_SETS]
    found = [s for s in every if any(m in s.complete() for m in FIBER)]
    missing = [s.dataset for s in every if s not in found]
    if not found:
        return "FiberLaplace has finished on none of the ten data sets."
    rough = [s for s in found if (error := s.mean("map", "ece")) is not None and error > LARGE_ECE]
    lines = [
        _tally("Lowest NLL on one network, or within one standard error of it", found, best_or_tied),
        _tally(
            "The same, leaving out the Markov chains (HMC, SGLD, SGHMC, cyclical SGHMC)",
            found,
            lambda s, m: best_or_tied(s, m, CHAINS),
        ),
        _tally("No worse than the ensemble (lower, or within one standard error)", found, no_worse_than_ensemble),
        _tally("Fit cheaper than training one more network", found, lambda s, m: (trainings(s, m) or 2.0) < 1),
        _tally(f"ECE at most half the MAP's, where that is above {LARGE_ECE:g} %", rough, calibrated),
        *(_image_goal(s) for s in found if s.dataset in IMAGE_GOALS),
    ]
    if missing:
        lines.append(f"- No finished runs of FiberLaplace: {', '.join(missing)}.")
    return "\n".join(lines)


def _tally(title: str, every: Sequence[Scores], reached: Callable[[Scores, str], bool]) -> str:
    """A goal with the data sets that reach it, for each walk."""
    by_walk = {m: [s.dataset for s in every if reached(s, m)] for m in FIBER}
    either = [s.dataset for s in every if any(s.dataset in names for names in by_walk.values())]
    parts = [f"{label(m)} on {len(names)}{_named(names)}" for m, names in by_walk.items()]
    return f"- {title}: of {len(every)} data sets {'; '.join(parts)}; any of them on {len(either)}."


def _named(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f" ({listed})" if listed else ""


def _image_goal(scores: Scores) -> str:
    goal = IMAGE_GOALS[scores.dataset]
    values = [f"{label(m)} {mean_and_error(scores.values(m, 'nll'))}" for m in FIBER if m in scores.complete()]
    return f"- NLL at most {goal} on {scores.dataset}: {', '.join(values)}."


def _count(n_seeds: int) -> str:
    return "one seed, no standard errors" if n_seeds == 1 else f"{n_seeds} seeds"
