"""The Gauss-Newton matrix of a trained network: its eigenvalues, its image and its kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.data import TrainingData
from laplace_fiber.gauss_newton import ScaledGGN
from laplace_fiber.log_joint import LogJoint, check_shapes
from laplace_fiber.spectrum import EXACT_LIMIT, ImageSpectrum
from laplace_fiber.weights import NetworkFunction


class GGNSpectrum(ImageSpectrum):
    """Eigenpairs of G = Σ Jᵀ (∂²ℓ/∂f²) J over the training data, and what they split weight space into.

    The image of G holds the directions that change the network's outputs on the data, to first order; the kernel, its
    orthogonal complement, those that do not. J has N·O rows for N points with O outputs, so that the rank is at most
    N·O; with cross-entropy, whose second derivative has no part along equal shifts of all logits, at most N·(O − 1).

    All eigenpairs are found where the smaller of the number of weights and N·O is small. Beyond, Lanczos with full
    re-orthogonalisation finds Ritz pairs from products with G alone, without any p × p matrix.

    Source: Roy, Miani, Ek, Hennig, Pförtner, Tatzel and Hauberg (2024), *Reparameterization invariance in approximate
    Bayesian inference*, section 4.

    Parameters
    ----------
    model
        The trained network, which is only read; or the function of some of its weights.
    loader
        The training data, as (x, y) pairs or dict-like batches.
    rank
        At most this many eigenpairs, the largest. ``None`` takes all, or 100 where they come from Lanczos.
    likelihood
        ``"classification"`` or ``"regression"`` (with noise 1: another noise scales the eigenvalues by 1/σ²). ``None``
        goes by the targets: classes are integers.
    theta
        Weights at which J is taken; ``None`` takes the model's own.
    seed
        For start vectors of Lanczos.
    exact_limit
        Size of the smaller of p and N·O up to which all eigenpairs are found.

    Attributes
    ----------
    values, vectors
        Eigenvalues, largest first, and orthonormal eigenvectors, one per row.
    exact
        Whether they span the whole image. If not, :meth:`kernel` still holds the rest of it.
    n_rows
        N·O.

    Raises
    ------
    ValueError
        An empty loader, targets that do not fit the outputs, or a rank below 1.
    RuntimeError
        The curvature is not finite.
    """

    def __init__(
        self,
        model: nn.Module | NetworkFunction,
        loader: Iterable[Any],
        rank: int | None = None,
        *,
        likelihood: str | None = None,
        theta: Float[Tensor, " p"] | None = None,
        seed: int = 0,
        exact_limit: int = EXACT_LIMIT,
    ) -> None:
        if rank is not None and rank < 1:
            raise ValueError(f"rank: expected at least 1 or None, got {rank}.")
        joint, data = flat_joint(model, loader, likelihood)
        theta = joint.network.theta() if theta is None else theta
        generator = torch.Generator(theta.device).manual_seed(seed)
        super().__init__(ScaledGGN(joint, theta, data), generator, rank=rank, exact_limit=exact_limit)
        self.n_weights = len(theta)

    @property
    def eigenvalues(self) -> Float[Tensor, " r"]:
        """Those above zero (of those found), largest first."""
        return self.values

    def __str__(self) -> str:
        found = "all eigenvalues above zero" if self.exact else "Ritz values of Lanczos; there may be more"
        return f"Gauss-Newton matrix: rank {self.rank} of {self.n_weights} weights, at most {self.n_rows} ({found})"


def flat_joint(
    model: nn.Module | NetworkFunction,
    loader: Iterable[Any],
    likelihood: str | None,
    sigma_noise: Tensor | float = 1.0,
    temperature: float = 1.0,
) -> tuple[LogJoint, TrainingData]:
    """The objective with prior precision 0, and all the data at once, checked."""
    network = model if isinstance(model, NetworkFunction) else NetworkFunction(model)
    like = network.tensors[0]
    data = TrainingData(loader, like.device, "full")
    if likelihood is None:
        likelihood = "regression" if data.first[1].is_floating_point() else "classification"
    with torch.no_grad(), network.evaluation():
        check_shapes(network.one(network.theta(), data.first[0]), data.first[1], likelihood)
    none = like.new_zeros(1)
    return LogJoint(network, likelihood, data.n_data, none, none, sigma_noise, temperature), data
