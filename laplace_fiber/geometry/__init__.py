"""The geometry of weight space: what a posterior spends on reparametrisations of one function, and taking it away."""

from laplace_fiber.geometry.canonical import canonicalize
from laplace_fiber.geometry.discrepancy import MMD, Discrepancies, discrepancies, mmd
from laplace_fiber.geometry.ggn import GGNSpectrum
from laplace_fiber.geometry.spread import Spread, SpreadReport, spread_report

__all__ = [
    "MMD",
    "Discrepancies",
    "GGNSpectrum",
    "Spread",
    "SpreadReport",
    "canonicalize",
    "discrepancies",
    "mmd",
    "spread_report",
]
