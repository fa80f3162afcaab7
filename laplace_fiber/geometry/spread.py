"""What a posterior spends on reparametrisations: its spread in the kernel and the image, and what each does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.geometry.ggn import GGNSpectrum, flat_joint
from laplace_fiber.geometry.tables import aligned
from laplace_fiber.linearised import linearised_samples
from laplace_fiber.predictive import function_samples
from laplace_fiber.weights import NetworkFunction

Function: TypeAlias = Literal["network", "linearised"]

SAMPLES_TOGETHER = 25


@dataclass(frozen=True)
class Spread:
    """The samples of one posterior, taken apart: θ = θ̂ + image part + kernel part.

    Attributes
    ----------
    posterior
        Its name.
    function
        Whether samples enter the ``"network"`` or the ``"linearised"`` network f(θ̂) + J (θ − θ̂).
    spread
        √ of the mean of ‖θ − θ̂‖² over samples.
    kernel_share
        Share of that mean which lies in the kernel of the Gauss-Newton matrix; the rest lies in its image.
    image_change, kernel_change, change
        How far the function moves on the data when only the image part of a sample is applied, only the kernel part, or
        both: root mean square over samples, points and outputs (for classes, logits without their mean, since an equal
        shift of all is no change).
    image_nll, kernel_nll, nll
        Training NLL per point under single samples, mean over samples, likewise.
    """

    posterior: str
    function: Function
    spread: float
    kernel_share: float
    image_change: float
    kernel_change: float
    change: float
    image_nll: float
    kernel_nll: float
    nll: float


@dataclass(frozen=True)
class SpreadReport:
    """The spread of several posteriors; ``print`` it.

    Attributes
    ----------
    rows
        Two for each posterior: its samples in the network, and in the linearised one.
    rank, n_rows, n_weights
        Of the Gauss-Newton matrix at the first posterior's θ̂: rank, its bound N·O, and number of weights.
    exact
        Whether its whole image is known.
    trained_nll
        Training NLL per point of the trained network.
    """

    rows: list[Spread]
    rank: int
    n_rows: int
    n_weights: int
    exact: bool
    trained_nll: float

    def __str__(self) -> str:
        share = 1 - self.rank / self.n_weights
        known = "" if self.exact else ", as far as Lanczos has found it"
        lines = [
            f"Gauss-Newton matrix: rank {self.rank} of {self.n_weights} weights, at most N·O = {self.n_rows}{known}; "
            f"{share:.1%} of all directions are in its kernel",
            f"training NLL of the trained network: {self.trained_nll:.3g}",
            "",
            *aligned(_HEADER, [_cells(row) for row in self.rows]),
        ]
        return "\n".join(lines)


_HEADER = (
    *("posterior", "function", "spread", "in kernel", "Δf image", "Δf kernel", "Δf both"),
    *("NLL image", "NLL kernel", "NLL both"),
)


def spread_report(
    posteriors: Mapping[str, Any] | Any,
    loader: Iterable[Any],
    n_samples: int = 100,
    *,
    rank: int | None = None,
    seed: int = 0,
) -> SpreadReport:
    """Take the weight samples of posteriors apart into the kernel and the image of the Gauss-Newton matrix at θ̂.

    It shows why a sampled Laplace approximation underfits: most of its spread is in the kernel, where it follows the
    prior, and the network moves under it although its linearisation does not; and what other posteriors do instead.

    Source: Roy et al. (2024), *Reparameterization invariance in approximate Bayesian inference*, section 4.

    Parameters
    ----------
    posteriors
        Fitted posteriors by name, or a single one: those here, and laplace-torch's own. Each needs ``sample``, ``mean``
        (θ̂), ``model`` and ``likelihood``.
    loader
        The data that the Gauss-Newton matrix is summed over and on which the function is looked at.
    n_samples
        Weight samples of each posterior.
    rank
        Of :class:`GGNSpectrum`.
    seed
        Of the samples, and of Lanczos.

    Raises
    ------
    ValueError
        A posterior without samples, not fitted, or whose weights are not those of its network; no posterior at all.
    """
    named = dict(posteriors) if isinstance(posteriors, Mapping) else {type(posteriors).__name__: posteriors}
    if not named:
        raise ValueError("spread_report: expected at least one posterior, got none.")
    rows, spectra, trained = list[Spread](), list[GGNSpectrum](), list[float]()
    before: tuple[NetworkFunction, Tensor] | None = None
    for name, posterior in named.items():
        network, mean = moving_weights(name, posterior)
        if before is None or not (_same_weights(before[0], network) and torch.equal(before[1], mean)):
            likelihood = loss_likelihood(posterior)
            spectra.append(GGNSpectrum(network, loader, rank, likelihood=likelihood, theta=mean, seed=seed))
            before = network, mean
        parts = _Parts(posterior, network, mean, loader)
        trained.append(parts.nll(parts.functions("network", mean[None])))
        generator = torch.Generator(mean.device).manual_seed(seed)
        offsets = posterior.sample(n_samples, generator=generator).detach() - mean
        functions: tuple[Function, ...] = ("network", "linearised")
        rows += [parts.spread(name, offsets, spectra[-1], function) for function in functions]
    first = spectra[0]
    return SpreadReport(rows, first.rank, first.n_rows, first.n_weights, first.exact, trained[0])


def moving_weights(name: str, posterior: Any) -> tuple[NetworkFunction, Float[Tensor, " p"]]:
    """The network as a function of the weights that a posterior moves, and θ̂.

    Raises
    ------
    ValueError
        There are no samples, there was no fit, or θ̂ does not fit the network.
    """
    mean = getattr(posterior, "mean", None)
    if not callable(getattr(posterior, "sample", None)) or not isinstance(mean, Tensor):
        raise ValueError(f"{name}: expected a fitted posterior with sample() and mean, got {posterior!r}; call fit.")
    network = getattr(posterior, "network", None)
    if not isinstance(network, NetworkFunction):
        inner = getattr(posterior.model, "last_layer", None)  # laplace-torch wraps the model of its last-layer flavour
        last = [key for key, module in posterior.model.named_modules() if inner is not None and module is inner]
        network = NetworkFunction(posterior.model, last[:1] if len(mean) == _size(inner) else "all")
    if len(mean) != network.n_params:
        raise ValueError(
            f"{name}: expected a mean of the {network.n_params} trainable weights of its network, got {len(mean)}."
        )
    return network, mean.detach()


def loss_likelihood(posterior: Any) -> str:
    """The likelihood whose loss the posterior was fitted with."""
    return "regression" if posterior.likelihood == "regression" else "classification"


class _Parts:
    """One posterior's function and loss on the data."""

    def __init__(
        self, posterior: Any, network: NetworkFunction, mean: Float[Tensor, " p"], loader: Iterable[Any]
    ) -> None:
        noise = getattr(posterior, "sigma_noise", 1.0)
        noise = noise.detach() if isinstance(noise, Tensor) else noise
        self.joint, data = flat_joint(network, loader, loss_likelihood(posterior), noise)
        self.mean, self.batch = mean, data.everything()
        self.trained = self.functions("network", mean[None])

    def functions(self, function: Function, thetas: Float[Tensor, "s p"]) -> list[Float[Tensor, "s b *c"]]:
        """Outputs under each weight vector, block by block."""
        network, inputs = self.joint.network, [x for x, _ in self.batch.blocks]
        if function == "linearised":
            return [linearised_samples(network, self.mean, thetas, x) for x in inputs]
        return [function_samples(network, thetas, x, SAMPLES_TOGETHER) for x in inputs]

    def nll(self, outputs: list[Float[Tensor, "s b *c"]]) -> float:
        """Training NLL per point, mean over the samples."""
        pairs = zip(outputs, self.batch.blocks, strict=True)
        losses = torch.stack([self.joint.loss_of(f, y) for f, (_, y) in pairs]).sum(0)
        return float(self.joint.nll_of(losses, self.batch).mean())

    def change(self, outputs: list[Float[Tensor, "s b *c"]]) -> float:
        """Root mean square distance from the trained network."""
        moved = [(f - g).double() for f, g in zip(outputs, self.trained, strict=True)]
        if self.joint.likelihood != "regression":
            moved = [f - f.mean(-1, keepdim=True) for f in moved]
        return float(torch.cat([f.flatten() for f in moved]).square().mean().sqrt())

    def spread(self, name: str, offsets: Float[Tensor, "s p"], spectrum: GGNSpectrum, function: Function) -> Spread:
        """What each part of the samples does to the function."""
        image = spectrum.image(offsets)
        kernel = spectrum.kernel(offsets)
        whole, inside = (float(part.double().square().sum(1).mean()) for part in (offsets, kernel))
        outputs = [self.functions(function, self.mean + part) for part in (image, kernel, offsets)]
        changes, losses = [self.change(f) for f in outputs], [self.nll(f) for f in outputs]
        share = inside / whole if whole > 0 else 0.0
        return Spread(name, function, whole**0.5, share, *changes, *losses)


def _same_weights(a: NetworkFunction, b: NetworkFunction) -> bool:
    """Whether two networks are one model with the same moving weights."""
    same_subset = (a.index is None and b.index is None) or (
        a.index is not None and b.index is not None and torch.equal(a.index, b.index)
    )
    return a.model is b.model and a.names == b.names and same_subset


def _size(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else -1


def _cells(row: Spread) -> list[str]:
    numbers = [getattr(row, field.name) for field in fields(row)[4:]]
    return [row.posterior, row.function, f"{row.spread:.3g}", f"{row.kernel_share:.1%}", *(f"{v:.3g}" for v in numbers)]
