"""One name, one colour and one marker per method, in every table and figure.

Hues of the compared methods follow Okabe and Ito's palette, distinct under colour blindness. There are more methods
than any palette has colours: kinds of methods share a hue, members of a kind differ in lightness, and markers tell
apart what colours cannot.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from laplace_fiber.comparison import METHODS, method

TEMPERED = "fiber+temperature"

FIBER = tuple(name for name in METHODS if name.startswith("fiber"))
"""The walks of FiberLaplace."""

COMPARED = (*[name for name in METHODS if name not in FIBER], *FIBER, TEMPERED)
"""The methods that are compared, in the order of tables and figures."""

FORMS = {
    "fiber-latent": "Fiber, latent",
    "fiber-states": "Fiber, states of the walk",
    "fiber-line": "Fiber, straight lines",
    "fiber-gaussian": "Fiber, Gaussian",
}
"""The forms of FiberLaplace's posterior over one walk."""

LABELS = FORMS | {name: method(name).label for name in (*METHODS, TEMPERED)}

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000")
"""The palette of Okabe and Ito; its yellow, too pale for lines, is replaced by a dark red."""

COLOURS = {
    "map": "#000000",
    "temperature": "#4A4A4A",
    "laplace": "#E69F00",
    "linearised": "#56B4E9",
    "low_rank": "#CC79A7",
    "last_layer": "#8C6D1F",
    "fiber": "#0072B2",
    "fiber_typical": "#D55E00",
    "fiber_stochastic": "#E7298A",
    TEMPERED: "#9ECAE1",
    "fiber-latent": "#0072B2",
    "fiber-states": "#009E73",
    "fiber-line": "#882255",
    "fiber-gaussian": "#D55E00",
    "mixture": "#BDBDBD",
    "multiswag": "#636363",
    "ensemble": "#7F7F7F",
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
    "linearised": "D",
    "low_rank": "v",
    "last_layer": "<",
    "fiber": "o",
    "fiber_typical": "o",
    "fiber_stochastic": "o",
    TEMPERED: "o",
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

SPARE_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""For methods that have none above."""

UNKNOWN = "#999999"


def in_order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of all tables, those that are not compared elsewhere last."""
    found = set(methods)
    return [*(m for m in COMPARED if m in found), *sorted(found - set(COMPARED))]


def label(method: str) -> str:
    """The name of a method in tables and figures; its own where it has none here."""
    return LABELS.get(method, method)


def mark(method: str) -> dict[str, Any]:
    """Colour and marker of a method, as matplotlib's ``plot`` takes them; a grey dot for one that has none here."""
    return {"color": COLOURS.get(method, UNKNOWN), "marker": MARKERS.get(method, ".")}


def marks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """:func:`mark` of several methods; those that have no colour here get ones of :data:`PALETTE` that are free."""
    names = list(dict.fromkeys(methods))
    taken = {COLOURS[name] for name in names if name in COLOURS}
    free = [colour for colour in PALETTE if colour not in taken] or list(PALETTE)
    spare = itertools.cycle({"color": c, "marker": m} for m in SPARE_MARKERS for c in free)
    return {name: mark(name) if name in COLOURS else next(spare) for name in names}
