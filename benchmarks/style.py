"""One name and one colour per method in every table and figure."""

from __future__ import annotations

from laplace_fiber.comparison import METHODS, method

_COMPARED = {name: method(name).label for name in (*METHODS, "fiber+temperature")}

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
LABELS = LABELS | {name: label for name, label in _COMPARED.items() if name not in LABELS}

# The palette of Okabe and Ito, which stays distinct under colour blindness; its yellow is too pale for lines.
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


def label(method: str) -> str:
    """The name of a method in tables and figures."""
    return LABELS.get(method, method)
