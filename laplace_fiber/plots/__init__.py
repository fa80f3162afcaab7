"""Pictures of posteriors and scores. Needs matplotlib: ``pip install 'laplace-fiber[plots]'``.

Every function draws into ``ax``, or into a new figure of its own where none is given, and returns the axes. A method
has the same colour, marker and name everywhere: those of :mod:`laplace_fiber.plots.style`.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError("laplace_fiber.plots: needs matplotlib; pip install 'laplace-fiber[plots]'.") from error

from laplace_fiber.plots.bands import bands
from laplace_fiber.plots.calibration import reliability, risk_coverage
from laplace_fiber.plots.costs import cost
from laplace_fiber.plots.shifts import shift_curves
from laplace_fiber.plots.surfaces import decision_surface
from laplace_fiber.plots.trajectories import latent_space, line_losses, walk
from laplace_fiber.plots.weights import weight_components

__all__ = [
    "bands",
    "cost",
    "decision_surface",
    "latent_space",
    "line_losses",
    "reliability",
    "risk_coverage",
    "shift_curves",
    "walk",
    "weight_components",
]
