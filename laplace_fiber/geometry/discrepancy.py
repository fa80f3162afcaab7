"""Maximum mean discrepancy between two posteriors: in weight space, with symmetries taken away, in function space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from laplace_fiber.geometry.canonical import canonicalize
from laplace_fiber.geometry.tables import aligned
from laplace_fiber.predictive import function_samples
from laplace_fiber.weights import Inputs, NetworkFunction

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernel's terms, in units of the median distance."""

SAMPLES_TOGETHER = 25


@dataclass(frozen=True)
class MMD:
    """A maximum mean discrepancy.

    Attributes
    ----------
    squared
        The unbiased estimate of MMD², which is 0 on average for samples of one law; at most 2.
    p_value
        Share of random divisions of all samples into two sets that give at least as much; None if none were tried.
    """

    squared: float
    p_value: float | None = None

    def __str__(self) -> str:
        return f"{self.squared:.3g}" + ("" if self.p_value is None else f" (p = {self.p_value:.2g})")


def mmd(
    samples_a: Float[Tensor, "m *d"],
    samples_b: Float[Tensor, "n *e"],
    *,
    bandwidths: Sequence[float] = BANDWIDTHS,
    n_permutations: int = 0,
    seed: int = 0,
) -> MMD:
    """The distance of two laws by their samples: E k(a, a′) + E k(b, b′) − 2 E k(a, b).

    k is the mean of Gaussian kernels exp(−‖·‖²/(2h²)) whose bandwidths h are those given times the median distance
    between all samples. In weight space, two posteriors over the same functions are far apart where they differ by
    symmetries only: see :func:`~laplace_fiber.geometry.canonicalize`; outputs tell whether the functions are, too.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola (2012), *A kernel two-sample test*, equation 3.

    Parameters
    ----------
    samples_a, samples_b
        Weights or outputs, one sample per row; further dimensions are flattened.
    bandwidths
        Of the kernel's terms, in units of the median distance.
    n_permutations
        Random divisions for the p-value; 0 leaves it out.
    seed
        Of these.

    Raises
    ------
    ValueError
        Fewer than two samples of one of them, or of different sizes; no bandwidth, or one that is not positive.
    """
    if min(len(samples_a), len(samples_b)) < 2 or samples_a.shape[1:] != samples_b.shape[1:]:
        raise ValueError(
            f"mmd: expected at least two samples of both laws, of one size, got {tuple(samples_a.shape)} and "
            f"{tuple(samples_b.shape)}."
        )
    if not bandwidths or min(bandwidths) <= 0:
        raise ValueError(f"bandwidths: expected positive numbers, got {tuple(bandwidths)}.")
    rows = torch.cat([samples_a, samples_b]).flatten(1).double()
    rows = rows - rows.mean(0)
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
    pairs = distances[tuple(torch.triu_indices(len(rows), len(rows), 1))]
    unit = pairs.median().clamp(min=torch.finfo(pairs.dtype).tiny)
    kernel = torch.stack([torch.exp(-distances / (2 * h**2 * unit)) for h in bandwidths]).mean(0)
    kernel.fill_diagonal_(0.0)
    order = torch.arange(len(rows))
    squared = _unbiased(kernel, order, len(samples_a))
    if not n_permutations:
        return MMD(squared)
    generator = torch.Generator().manual_seed(seed)
    shuffled = [torch.randperm(len(rows), generator=generator) for _ in range(n_permutations)]
    as_large = sum(_unbiased(kernel, other, len(samples_a)) >= squared for other in shuffled)
    return MMD(squared, (1 + as_large) / (1 + n_permutations))


def _unbiased(kernel: Float[Tensor, "n n"], order: Int[Tensor, " n"], m: int) -> float:
    """The estimate for a kernel matrix without its diagonal, the first ``m`` of the order being one set."""
    a, b = order[:m], order[m:]
    within = [kernel[rows][:, rows].sum() / (len(rows) * (len(rows) - 1)) for rows in (a, b)]
    return float(within[0] + within[1] - 2 * kernel[a][:, b].mean())


@dataclass(frozen=True)
class Discrepancies:
    """MMD between two sets of weight samples in several spaces; ``print`` it.

    Attributes
    ----------
    weights
        Between the samples as they are.
    scaled
        With the scaling of hidden units taken away.
    canonical
        With scaling, sign and permutation taken away.
    functions
        Between the outputs at the given inputs, which no symmetry changes.
    """

    weights: MMD
    scaled: MMD
    canonical: MMD
    functions: MMD

    def __str__(self) -> str:
        named = {
            "weights": self.weights,
            "weights, scaling removed": self.scaled,
            "weights, all symmetries removed": self.canonical,
            "functions": self.functions,
        }
        body = [
            [name, f"{one.squared:.4f}", "" if one.p_value is None else f"{one.p_value:.3f}"]
            for name, one in named.items()
        ]
        return "\n".join(aligned(("space", "MMD²", "p"), body))


def discrepancies(
    samples_a: Float[Tensor, "m p"],
    samples_b: Float[Tensor, "n p"],
    model: nn.Module | NetworkFunction,
    x: Inputs,
    *,
    reference: nn.Module | Float[Tensor, " p"] | None = None,
    n_permutations: int = 200,
    seed: int = 0,
) -> Discrepancies:
    """:func:`mmd` between weight samples of two posteriors over one network, with and without its symmetries.

    Parameters
    ----------
    samples_a, samples_b
        Weight samples, one per row.
    model
        Their network, or the function of the weights that move.
    x
        Inputs of the comparison in function space.
    reference
        Weights that units are matched with; ``None`` sorts them.
    n_permutations, seed
        Of the p-values.

    Raises
    ------
    ValueError
        As :func:`mmd` and :func:`~laplace_fiber.geometry.canonicalize`.
    """
    network = model if isinstance(model, NetworkFunction) else NetworkFunction(model)
    both = samples_a, samples_b

    def between(pair: Sequence[Tensor]) -> MMD:
        return mmd(pair[0], pair[1], n_permutations=n_permutations, seed=seed)

    return Discrepancies(
        between(both),
        between([canonicalize(s, network, sign=False, permutation=False) for s in both]),
        between([canonicalize(s, network, reference=reference) for s in both]),
        between([function_samples(network, s, x, SAMPLES_TOGETHER) for s in both]),
    )
