"""The geometry of weight space: what a posterior spends on reparametrisations of one function, and taking it away."""

from laplace_fiber.geometry.canonical import canonicalize
from laplace_fiber.geometry.connectivity import ModeConnectivity, fiber_connectivity, network_connectivity
from laplace_fiber.geometry.discrepancy import MMD, Discrepancies, discrepancies, mmd
from laplace_fiber.geometry.ggn import GGNSpectrum
from laplace_fiber.geometry.spread import Spread, SpreadReport, spread_report

__all__ = [
    "MMD",
    "Discrepancies",
    "GGNSpectrum",
    "ModeConnectivity",
    "Spread",
    "SpreadReport",
    "canonicalize",
    "discrepancies",
    "fiber_connectivity",
    "mmd",
    "network_connectivity",
    "spread_report",
]
