"""The methods that FiberLaplace is compared with, behind the same interface."""

from laplace_fiber.baselines.diffusion import KernelDiffusion, LaplaceDiffusion
from laplace_fiber.baselines.ensemble import DeepEnsemble
from laplace_fiber.baselines.espro import ESPRO
from laplace_fiber.baselines.hmc import HMC
from laplace_fiber.baselines.last_layer import BayesianLastLayer, bayesian_last_layer
from laplace_fiber.baselines.mc_dropout import MCDropout
from laplace_fiber.baselines.mixture import LaplaceMixture
from laplace_fiber.baselines.riemannian import (
    FisherRiemannianLaplace,
    LinearisedRiemannianLaplace,
    RiemannianLaplace,
)
from laplace_fiber.baselines.sgmcmc import SGHMC, SGLD, CyclicalSGHMC
from laplace_fiber.baselines.swag import SWAG, MultiSWAG
from laplace_fiber.baselines.vi import MeanFieldVI

METHODS = (
    LaplaceMixture,
    LaplaceDiffusion,
    KernelDiffusion,
    RiemannianLaplace,
    LinearisedRiemannianLaplace,
    FisherRiemannianLaplace,
    MeanFieldVI,
    MCDropout,
    ESPRO,
    HMC,
    SGLD,
    SGHMC,
    CyclicalSGHMC,
    DeepEnsemble,
    SWAG,
    MultiSWAG,
)
"""All of them."""

__all__ = [
    "ESPRO",
    "HMC",
    "METHODS",
    "SGHMC",
    "SGLD",
    "SWAG",
    "BayesianLastLayer",
    "CyclicalSGHMC",
    "DeepEnsemble",
    "FisherRiemannianLaplace",
    "KernelDiffusion",
    "LaplaceDiffusion",
    "LaplaceMixture",
    "LinearisedRiemannianLaplace",
    "MCDropout",
    "MeanFieldVI",
    "MultiSWAG",
    "RiemannianLaplace",
    "bayesian_last_layer",
]
