"""Posteriors side by side in weight space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from laplace_fiber.plots.canvas import axes_for, not_empty, numbers, plain
from laplace_fiber.plots.style import COLOURS, label, marks


def weight_components(
    samples: Mapping[str, Float[Tensor, "_ p"]], origin: Float[Tensor, " p"] | None = None, ax: Axes | None = None
) -> Axes:
    """Weight samples of several posteriors on the first two principal components of them all.

    Give all posteriors the same number of samples, else the components follow the larger ones. Networks with equal
    functions may lie far apart: distances here are between weights.

    Parameters
    ----------
    samples
        Of each method by name, such as ``{"fiber": la.sample(200), "hmc": chains.sample(200)}``.
    origin
        The trained weights (``la.mean``), drawn as a star.

    Raises
    ------
    ValueError
        Fewer than two samples or weights, or methods that differ in the number of weights.
    """
    not_empty(samples, "weight_components")
    sizes = {name: values.shape[-1] for name, values in samples.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"weight_components: expected samples over the same weights, got {sizes}.")
    stacked = torch.cat([numbers(values) for values in samples.values()])
    if min(stacked.shape) < 2:
        raise ValueError(f"weight_components: expected two samples and weights or more, got {tuple(stacked.shape)}.")
    centre = stacked.mean(0)
    _, spectrum, directions = torch.linalg.svd(stacked - centre, full_matrices=False)
    # Their signs are arbitrary: the largest entry of each direction shall be positive.
    signs = directions[:2].gather(1, directions[:2].abs().argmax(1, keepdim=True)).sign()
    plane = (signs * directions[:2]).T
    shares = 100 * spectrum.square() / spectrum.square().sum()
    axis, styles = axes_for(ax, (6.8, 3.9)), marks(samples)
    for name, values in samples.items():
        flat = (numbers(values) - centre) @ plane
        above = 2 + 1 / (1 + float(flat.var(0, correction=0).sum()))  # small clouds lie on large ones
        across, up = flat.T
        axis.scatter(across, up, s=14, alpha=0.6, lw=0, zorder=above, label=label(name), **styles[name])
    if origin is not None:
        place = (numbers(origin) - centre) @ plane
        star: dict[str, Any] = {"color": COLOURS["map"], "mfc": "none", "ls": "none", "zorder": 4}
        axis.plot(*place, marker="*", ms=14, label="trained weights", **star)
    plain(axis, f"first component ({shares[0]:.0f} % of the variance)", f"second component ({shares[1]:.0f} %)")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small", frameon=False)
    return axis
