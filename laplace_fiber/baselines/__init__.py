"""The methods that FiberLaplace is compared with, behind the same interface."""

from laplace_fiber.baselines.sgmcmc import SGHMC, SGLD, CyclicalSGHMC

METHODS = (SGLD, SGHMC, CyclicalSGHMC)
"""All of them."""

__all__ = ["METHODS", "SGHMC", "SGLD", "CyclicalSGHMC"]
