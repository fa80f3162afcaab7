"""One name and one colour per method in every table and figure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from laplace_fiber.comparison import METHODS, method

_COMPARED = {name: method(name).label for name in (*METHODS, "fiber+temperature")}

COMPARED = (
    *[name for name in _COMPARED if not name.startswith("fiber")],
    "fiber",
    "fiber_typical",
    "fiber+temperature",
)
"""The methods that are compared, in the order of tables and figures."""

LABELS = {
    "map": "MAP",
    "la-gn": "Laplace, Gauss-Newton, sampled",
    "la-lowrank": "Laplace, low rank, sampled",
    "lla": "Laplace, linearised",
    "ensemble": "Ensemble of five networks",
    "fiber-latent": "Fiber, latent",
    "fiber-states": "Fiber, states of the walk",
    "fiber-line": "Fiber, straight lines",
    "fiber-gaussian": "Fiber, Gaussian",
    "laplace_full": "Laplace, full matrix, sampled",
    "fiber-paper": "Fiber, always 5 refinements",
    "fiber-steps-20": "Fiber, always 20 refinements",
    "fiber-typical": "Fiber, typical set",
    "fiber-typical-cold": "Fiber, typical set, without moves",
}
LABELS["laplace_full"] = "Laplace, full, sampled"  # of the experiment scaling
LABELS = LABELS | {name: label for name, label in _COMPARED.items() if name not in LABELS}

# Okabe and Ito's palette, distinct under colour blindness, for the forms of FiberLaplace in the demonstration; its
# yellow is too pale for lines. The compared methods are more than any palette has colours: kinds of methods have a hue,
# members of a kind differ in lightness, and MARKERS tell apart what colours cannot.
COLOURS = {
    "map": "#000000",
    "la-gn": "#E69F00",
    "la-lowrank": "#CC79A7",
    "lla": "#56B4E9",
    "ensemble": "#7F7F7F",
    "fiber-latent": "#0072B2",
    "fiber-states": "#009E73",
    "fiber-line": "#882255",
    "fiber-gaussian": "#D55E00",
    "temperature": "#4A4A4A",
    "laplace": "#E69F00",
    "laplace_full": "#7A5200",
    "linearised": "#56B4E9",
    "low_rank": "#CC79A7",
    "last_layer": "#8C6D1F",
    "fiber": "#0072B2",
    "fiber_typical": "#D55E00",
    "fiber+temperature": "#9ECAE1",
    "mixture": "#BDBDBD",
    "multiswag": "#636363",
    "hmc": "#009E73",
    "sgld": "#66C2A4",
    "sghmc": "#00563F",
    "csghmc": "#A6D96A",
    "swag": "#882255",
    "espro": "#AA4499",
    "vi": "#6A3D9A",
    "mc_dropout": "#B3A2D6",
    "riemannian": "#A50F15",
    "riemannian_linearised": "#FB6A4A",
    "riemannian_fisher": "#FCBBA1",
    "diffusion": "#8C510A",
    "diffusion_kernel": "#DFC27D",
}

MARKERS = {
    "map": "*",
    "temperature": "P",
    "laplace": "s",
    "laplace_full": "s",
    "linearised": "D",
    "low_rank": "v",
    "last_layer": "<",
    "fiber": "o",
    "fiber_typical": "o",
    "fiber+temperature": "o",
    "mixture": "X",
    "multiswag": "d",
    "ensemble": "s",
    "hmc": "^",
    "sgld": "v",
    "sghmc": ">",
    "csghmc": "<",
    "swag": "d",
    "espro": "h",
    "vi": "p",
    "mc_dropout": "H",
    "riemannian": "^",
    "riemannian_linearised": ">",
    "riemannian_fisher": "v",
    "diffusion": "P",
    "diffusion_kernel": "X",
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


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of all tables, those that are not compared elsewhere last."""
    found = set(methods)
    return [*(m for m in COMPARED if m in found), *sorted(found - set(COMPARED))]


def mark(method: str) -> dict[str, Any]:
    """Colour and marker of a method, as matplotlib's ``plot`` takes them; a grey dot for one that has none here."""
    return {"color": COLOURS.get(method, "#999999"), "marker": MARKERS.get(method, ".")}


def label(method: str) -> str:
    """The name of a method in tables and figures."""
    return LABELS.get(method, method)
