"""Whether Markov chains have converged: R-hat and effective sample size, of functions rather than of weights.

Weights cannot tell: a network's symmetries give each function many weight vectors, and no chain visits them all.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), *Rank-normalization, folding, and localization: an
improved R-hat for assessing convergence of MCMC*.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.data import TrainingData
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.predictive import function_samples
from laplace_fiber.weights import Inputs

POINTS = 50
"""Training inputs, at most, that functions are compared at."""

FEWEST = 8
"""Draws of a chain below which its halves tell nothing."""


def function_space_mixing(
    joint: LogJoint, chains: Float[Tensor, "c d p"], data: TrainingData, chunk_size: int | None = None
) -> dict[str, float]:
    """Diagnostics of stored chains of weights: the largest ``rhat`` and smallest ``ess`` among function values.

    Function values are the network's outputs (for classes: log-probabilities) at up to 50 training inputs, equally
    spaced in the first batch. Empty for chains of fewer than 8 draws. ``ess`` is that of the ranks (bulk), which is the
    same for probabilities and log-probabilities, and at most the number of draws times its decimal logarithm. Chains
    that stand still have an infinite ``rhat``; a function that does not depend on the weights has none. Call inside
    the network's evaluation.
    """
    n_chains, n_draws, _ = chains.shape
    if n_draws < FEWEST:
        return {}
    if bool((chains == chains[:, :1]).all()):
        return {"rhat": float("inf"), "ess": float(n_chains)}
    outputs = _outputs_at_some(joint, chains.flatten(0, 1), data.some(1).blocks[0][0], chunk_size)
    draws = outputs.double()
    if joint.likelihood != "regression":
        draws = draws.log_softmax(-1)
    draws = draws.reshape(n_chains, n_draws, -1)
    ratios, sizes = rhat(draws), ess(rank_normalised(draws))
    measured = ~ratios.isnan()
    if not bool(measured.any()):
        return {}
    return {"rhat": float(ratios[measured].max()), "ess": float(sizes[measured].min())}


def _outputs_at_some(
    joint: LogJoint, thetas: Float[Tensor, "s p"], x: Inputs, chunk_size: int | None
) -> Float[Tensor, "s b *c"]:
    if isinstance(x, Tensor):
        x = x[_equally_spaced(len(x))]
        return function_samples(joint.network, thetas, x, chunk_size)
    groups = thetas.split(chunk_size or len(thetas))
    outputs = [function_samples(joint.network, rows, x) for rows in groups]
    return torch.cat([part[:, _equally_spaced(part.shape[1])] for part in outputs])


def _equally_spaced(n: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, POINTS)).long()


def rhat(draws: Float[Tensor, "c d q"]) -> Float[Tensor, " q"]:
    """Rank-normalised split R-hat of each of q quantities: the larger one of the draws and of the folded draws.

    1 for chains that have mixed; above 1.01 (the authors) or 1.1 (older practice) they have not. Folding, at the
    median, finds chains that differ in scale only. NaN for a quantity that does not vary.
    """
    folded = (draws - draws.flatten(0, 1).median(0).values).abs()
    return torch.maximum(split_rhat(rank_normalised(draws)), split_rhat(rank_normalised(folded)))


def split_rhat(draws: Float[Tensor, "c d q"]) -> Float[Tensor, " q"]:
    """√(((d − 1) W + B)/(d W)) of half chains: B/d the variance of their means, W the mean of their variances."""
    halves = split(draws)
    d, within, between = halves.shape[1], halves.var(1).mean(0), halves.mean(1).var(0)
    return ((d - 1) / d + between / within).sqrt()


def ess(draws: Float[Tensor, "c d q"]) -> Float[Tensor, " q"]:
    """Effective sample size for the mean of each of q quantities: c d / (1 + 2 Σ ρ_t) over half chains.

    Autocorrelations ρ_t (Vehtari et al., equation 10) are summed along Geyer's initial monotone sequence: pairs
    ρ_2k + ρ_2k+1 for as long as they are positive, each at most the one before. NaN for a quantity that does not vary.
    """
    halves = split(draws)
    n_chains, d, _ = halves.shape
    variances = halves.var(1)
    within = variances.mean(0)
    total = within * (d - 1) / d + halves.mean(1).var(0)
    correlation = 1 - (within - autocovariance(halves).mean(0) * d / (d - 1)) / total
    pairs = correlation[: d // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    # The first pair counts whatever its sign: chains that alternate are better than independent draws.
    positive = torch.cat([torch.ones_like(pairs[:1]), (pairs[1:] > 0).to(pairs).cumprod(0)])
    time = 2 * (pairs.cummin(0).values * positive).sum(0) - 1
    n = torch.tensor(float(n_chains * d), dtype=draws.dtype, device=draws.device)
    return n / time.clamp(min=1 / float(n.log10()))


def autocovariance(draws: Float[Tensor, "c d q"]) -> Float[Tensor, "c d q"]:
    """1/d Σ_s (x_s − x̄)(x_{s+t} − x̄) at the lags t = 0, …, d − 1."""
    d = draws.shape[1]
    centred = draws - draws.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * d, dim=1).abs().square()
    return torch.fft.irfft(spectrum, n=2 * d, dim=1)[:, :d] / d


def split(draws: Float[Tensor, "c d q"]) -> Float[Tensor, "h e q"]:
    """First and second halves as chains of their own (without the middle one of an odd number of draws)."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]])


def rank_normalised(draws: Float[Tensor, "c d q"]) -> Float[Tensor, "c d q"]:
    """Normal quantiles of (rank − 3/8)/(n + 1/4), ranks of all chains together; ties get their mean rank."""
    pooled = draws.flatten(0, 1).T.contiguous()
    ordered = pooled.sort(-1).values
    below, through = (torch.searchsorted(ordered, pooled, right=side) for side in (False, True))
    ranks = (below + through + 1).to(draws.dtype) / 2
    quantiles = torch.special.ndtri((ranks - 0.375) / (pooled.shape[1] + 0.25))
    return quantiles.T.reshape(draws.shape)
