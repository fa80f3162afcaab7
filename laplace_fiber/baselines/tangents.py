"""Draws from the Gaussian N(0, C) of a Laplace approximation: tangent vectors at the trained weights."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from laplace.baselaplace import DiagLaplace, KronLaplace
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Problem
from laplace_fiber.baselines.output_metrics import FisherMetric
from laplace_fiber.baselines.pieces import Pieces
from laplace_fiber.baselines.to_host import HostLoader, host_model
from laplace_fiber.curvature import LanczosGGN
from laplace_fiber.log_joint import LogJoint

Curvature: TypeAlias = Literal["auto", "full", "kron", "diag", "lowrank"]
"""laplace-torch's structures of the Gauss-Newton matrix; ``"auto"`` is full up to 3,000 weights, else Kronecker."""

CURVATURES = get_args(Curvature)
FULL_LIMIT = 3000


def check_curvature(curvature: str) -> None:
    """Refuse an unknown structure; the last layer is a subset of the weights, not a structure."""
    if curvature == "last_layer":
        raise ValueError(
            "curvature: expected a structure, got 'last_layer', which is a subset; use subset='last_layer'."
        )
    if curvature not in CURVATURES:
        raise ValueError(f"curvature: expected one of {CURVATURES}, got {curvature!r}.")


def tangent_vectors(problem: Problem, n: int, curvature: Curvature, rank: int) -> Float[Tensor, "n p"]:
    """n draws from N(0, (H + diag τ)⁻¹), with H the Gauss-Newton matrix of Σ ℓ/temperature in the given structure.

    Raises
    ------
    ValueError
        A structure that does not exist for the chosen subset, noise or prior precision.
    RuntimeError
        A layer that laplace-torch has no such curvature for.
    """
    joint, p = problem.joint, len(problem.theta)
    if curvature == "auto":
        curvature = "full" if p <= FULL_LIMIT else "kron"
    if curvature == "full":
        precision = FisherMetric(joint, problem.theta, Pieces(problem.data)).matrix(problem.theta)
        return correlated(precision, problem.normal(n, p))
    if curvature != "diag" and joint.network.index is not None:
        raise ValueError(
            f"curvature: expected 'full' or 'diag' for a subset given by indices, got {curvature!r} for {p} weights."
        )
    sigma = torch.as_tensor(joint.sigma_noise)
    if sigma.numel() > 1:
        raise ValueError(f"curvature: expected 'full' for one sigma_noise per output, got {curvature!r}.")
    with torch.random.fork_rng(devices=[]):
        model = host_model(joint.network, problem.theta)
        try:
            if curvature == "kron":
                return _kronecker(problem, model, n)
            if curvature == "diag":
                return _diagonal(problem, model, n)
            return _low_rank(problem, model, n, rank)
        except (RuntimeError, NotImplementedError, AttributeError) as reason:
            raise RuntimeError(
                f"curvature={curvature!r}: laplace-torch's curvature failed for this network ({reason}); use another "
                "curvature ('full', 'diag') or move fewer weights with subset=."
            ) from reason


def correlated(precision: Float[Tensor, "p p"], normal: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
    """Rows of covariance P⁻¹ from standard normal ones: L⁻ᵀ z with P = L Lᵀ."""
    factor = torch.linalg.cholesky(precision.double())
    return torch.linalg.solve_triangular(factor.T, normal.double().T, upper=True).T.to(normal)


def _factor(joint: LogJoint) -> float:
    """The Gauss-Newton matrix at σ = 1 and temperature 1 goes into J with this factor."""
    return float(1 / (torch.as_tensor(joint.sigma_noise).square() * joint.temperature))


def _kronecker(problem: Problem, model: nn.Module, n: int) -> Float[Tensor, "n p"]:
    joint = problem.joint
    tau = joint.prior_precision.expand(len(problem.theta))
    per_tensor = list(tau.split(joint.network.sizes))
    if any(bool((part != part[0]).any()) for part in per_tensor):
        raise ValueError(
            "prior_precision: expected one value, or one per weight tensor, for curvature='kron', got one per weight; "
            "use curvature='full' or 'diag'."
        )
    la = KronLaplace(
        model,
        joint.likelihood,
        sigma_noise=float(joint.sigma_noise),
        prior_precision=torch.stack([part[0] for part in per_tensor]),
        temperature=joint.temperature,
        dict_key_y=problem.data.dict_key_y,
    )
    la.fit(HostLoader(problem.data))
    return (la.sample(n, generator=problem.generator) - la.mean).detach()


def _diagonal(problem: Problem, model: nn.Module, n: int) -> Float[Tensor, "n p"]:
    joint = problem.joint
    la = DiagLaplace(model, joint.likelihood, dict_key_y=problem.data.dict_key_y)
    la.fit(HostLoader(problem.data))
    diagonal = la.H.detach() if joint.network.index is None else la.H.detach()[joint.network.index.to(la.H.device)]
    return problem.normal(n, len(diagonal)) / (_factor(joint) * diagonal + joint.prior_precision).sqrt()


def _low_rank(problem: Problem, model: nn.Module, n: int, rank: int) -> Float[Tensor, "n p"]:
    """With τ^-½ H τ^-½ = Q diag(s) Qᵀ: τ^-½ (z + Q ((1 + s)^-½ − 1) Qᵀ z)."""
    if isinstance(problem.data.first[0], MutableMapping):
        raise ValueError("curvature: expected 'full', 'kron' or 'diag' for dict-like batches, got 'lowrank'.")
    vectors, values, _ = LanczosGGN(model, problem.joint.likelihood, rank=rank).eig_lowrank(HostLoader(problem.data))
    scale = problem.joint.prior_precision.expand(len(problem.theta)).rsqrt()
    root = scale[:, None] * vectors.detach() * (_factor(problem.joint) * values.detach()).sqrt()
    q, s, _ = torch.linalg.svd(root, full_matrices=False)
    z = problem.normal(n, len(problem.theta))
    return scale * (z + (z @ q) * ((1 + s.square()).rsqrt() - 1) @ q.T)
