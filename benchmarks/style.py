"""Methods in the tables and figures of the benchmarks: :mod:`laplace_fiber.plots.style`, and what only they have."""

from __future__ import annotations

from typing import Any

from laplace_fiber.plots import style
from laplace_fiber.plots.style import COMPARED, in_order

__all__ = ["COLOURS", "COMPARED", "LABELS", "MEASURES", "in_order", "label", "mark"]

LABELS = {
    "map": style.LABELS["map"],
    "la-gn": "Laplace, Gauss-Newton, sampled",
    "la-lowrank": "Laplace, low rank, sampled",
    "lla": style.LABELS["linearised"],
    "ensemble": "Ensemble of five networks",
    **style.FORMS,
    "laplace_full": "Laplace, full, sampled",  # of the experiment scaling
    "fiber-paper": "Fiber, always 5 refinements",
    "fiber-steps-20": "Fiber, always 20 refinements",
    "fiber-typical": style.LABELS["fiber_typical"],
    "fiber-typical-48": "Fiber, typical set, 48 particles",
    "fiber-typical-cold": "Fiber, typical set, without moves",
    "fiber-stochastic": style.LABELS["fiber_stochastic"],
}
LABELS |= {name: label for name, label in style.LABELS.items() if name not in LABELS}

COLOURS = style.COLOURS | {
    "la-gn": style.COLOURS["laplace"],
    "la-lowrank": style.COLOURS["low_rank"],
    "lla": style.COLOURS["linearised"],
    "laplace_full": "#7A5200",
}

MEASURES = {
    "nll": "NLL of the averaged predictive",
    "nll_per_sample": "NLL, mean over single samples",
    "ece": "Expected calibration error (%)",
    "calibration_error": "Calibration error of central intervals (%)",
    "accuracy": "Accuracy",
    "rmse": "RMSE",
    "crps": "CRPS",
    "spread_ratio": "Spread outside / inside",
    "decoded_gap": "Decoded samples against the walk's states, training NLL (%)",
    "gradient_evaluations": "Gradient evaluations",
    "fit_seconds": "Fit seconds",
    "tune_seconds": "Tuning seconds",
    "n_settings": "Settings tried",
    "predict_seconds": "Predict seconds (1000 inputs)",
}


def mark(method: str) -> dict[str, Any]:
    """Colour and marker of a method, as matplotlib's ``plot`` takes them; a grey dot for one that has none."""
    known = style.mark("laplace" if method == "laplace_full" else method)
    return known | {"color": COLOURS.get(method, known["color"])}


def label(method: str) -> str:
    """The name of a method in tables and figures."""
    return LABELS.get(method, method)
