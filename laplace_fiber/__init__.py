"""laplace-fiber: posteriors for laplace-torch that follow the curved set of low-loss weights.

Importing this package registers its flavours with laplace-torch, so that
``Laplace(model, likelihood, subset_of_weights="all", hessian_structure="fiber")`` returns a :class:`FiberLaplace`.
"""

import warnings

with warnings.catch_warnings():
    # Of a package behind laplace-torch, on every import; nothing that a user could mend.
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    import laplace

from laplace_fiber import baselines, geometry
from laplace_fiber.checkpoint import Checkpoint
from laplace_fiber.comparison import Comparison, compare
from laplace_fiber.curvature import LanczosGGN, low_rank_laplace
from laplace_fiber.effective_dimension import EffectiveDimension
from laplace_fiber.fiber import FiberLaplace
from laplace_fiber.fit_report import FitReport
from laplace_fiber.flavours import LastLayerFiber
from laplace_fiber.latent import LatentAutoencoder
from laplace_fiber.paths import EndPosition, PositionLaw, UniformPosition
from laplace_fiber.posterior import SampledPosterior
from laplace_fiber.presets import stochastic_walk, typical_set_walk
from laplace_fiber.refinement import (
    FixedRefinement,
    LevelRefinement,
    Refinement,
    RefineToLevel,
    RefineToTypicalSet,
)
from laplace_fiber.stochastic import StochasticRefinement
from laplace_fiber.subspace import BasisStorage
from laplace_fiber.thermal import Thermalisation
from laplace_fiber.trajectories import TrajectorySampler

__version__ = "0.1.0"

del laplace, warnings

__all__ = [
    "BasisStorage",
    "Checkpoint",
    "Comparison",
    "EffectiveDimension",
    "EndPosition",
    "FiberLaplace",
    "FitReport",
    "FixedRefinement",
    "LanczosGGN",
    "LastLayerFiber",
    "LatentAutoencoder",
    "LevelRefinement",
    "PositionLaw",
    "RefineToLevel",
    "RefineToTypicalSet",
    "Refinement",
    "SampledPosterior",
    "StochasticRefinement",
    "Thermalisation",
    "TrajectorySampler",
    "UniformPosition",
    "baselines",
    "compare",
    "geometry",
    "low_rank_laplace",
    "stochastic_walk",
    "typical_set_walk",
]
