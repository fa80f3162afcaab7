"""The latent autoencoder: a space in which the walk's trajectories are straight.

Source: *Walking on the Fiber* (arXiv 2512.01500), section 4.2, equations 6 to 9. It works on the coordinates of
:mod:`laplace_fiber.subspace`; beyond the paper, the decoder is fitted to the latent lines in closed form after training
(:mod:`laplace_fiber.line_decoder`).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from laplace_fiber.line_decoder import decoder_of_lines, draw
from laplace_fiber.shown import with_changes

WINDOW = 10
"""Training steps over which the reconstruction is averaged to see whether it still improves; without a closed form,
when the decoder has to learn the small coordinates, five times as many."""

FIRST_WINDOWS = 5
"""No stall is seen before so many windows: the contrastive terms come first."""

STALLED = 0.9
"""Training has stalled when a window's reconstruction error is not below this share of the best one before."""

PLAIN_STALLS = 4
"""Without a closed form, the learning rate is cut to a third at each stall, until this many."""

NEGATIVE_EPSILON = 1e-3
"""ε inside the logarithm of the contrastive term."""


@dataclass(frozen=True)
class LatentAutoencoder:
    """Settings of the autoencoder and its training.

    The loss is λ₊ E[(T‖φ(θ_t) − φ(θ_{t+1})‖ − 1)²] + λ₋ E[−log(‖φ(θ) − φ(θ′)‖ + ε)] + E‖ψ(φ(θ)) − θ‖²/S², with
    successive states of one trajectory in the first term, any two states in the second, and S the root mean square
    distance of the states from the MAP (so that the λ mean the same on every network).

    Parameters
    ----------
    latent_size
        Dimension of the latent space.
    width
        Units in each of the two hidden layers of encoder and decoder.
    leading
        Train on this many leading principal coordinates of the states, enough to lay out the trajectories; the closed
        form then decodes to all coordinates. Without closed form, and for ``None``, training sees all.
    n_steps
        At most so many steps of Adam; training stops by itself when the reconstruction no longer improves, and is left
        out for walks of one drift, which have nothing to straighten (unless ``closed_form=False``).
    batch_size, learning_rate
        Of Adam; ``batch_size`` counts pairs of successive states.
    lambda_plus, lambda_minus
        Weights λ₊ and λ₋. The paper's λ₊ multiplies (‖·‖ − 1/T)², hence equals this one times T².
    closed_form
        After training, fit the decoder to the latent lines, the only points that the posterior ever decodes: its second
        hidden layer is replaced by random units with their kinks on the lines, and its last layer solved by ridge least
        squares. The states' small coordinates hold the refinement in stiff directions; trained by gradients alone, the
        decoder misses them. ``False`` is the paper's plain form.
    line_units
        Number of those random units; ``None`` takes 1.2 per state, enough to reach every state, and at most 2048: more
        states than these reach are followed at equally spaced ones only, ends among them.
    ridge
        Of the least squares, relative to the features' mean square. Less follows each state and overshoots between.
    seed
        Of the initial weights and the batches.
    """

    latent_size: int = 32
    width: int = 256
    leading: int | None = 64
    n_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 4e-3
    lambda_plus: float = 1.0
    lambda_minus: float = 0.3
    closed_form: bool = True
    line_units: int | None = None
    ridge: float = 1e-7
    seed: int = 0

    __repr__ = with_changes

    def __post_init__(self) -> None:
        for name in ("latent_size", "width", "n_steps", "batch_size", "learning_rate", "ridge"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}.")
        for name in ("lambda_plus", "lambda_minus"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}.")
        for name in ("line_units", "leading"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1 or None, got {value}.")

    def fit(
        self, coordinates: Float[Tensor, "n t r"], progress_bar: bool = False, n_own: int | None = None
    ) -> LatentLines:
        """Train on the coordinates of a walk's states and return its latent lines.

        Parameters
        ----------
        coordinates
            Of all states; ``coordinates[:, 0]`` is zero, the MAP.
        n_own
            Trajectories, the first ones, that have all states to themselves: others are theirs with another end.
        """
        generator = torch.Generator().manual_seed(self.seed)
        scale = coordinates.double().square().sum(-1).mean().sqrt().clamp(min=1e-30).to(coordinates)
        states = coordinates / scale
        shown = states
        if self.closed_form and self.leading is not None and self.leading < states.shape[-1]:
            shown = _leading_coordinates(states, self.leading, generator)
        r = shown.shape[-1]
        encoder = _mlp([r, self.width, self.width, self.latent_size], generator).to(states)
        decoder = _mlp([self.latent_size, self.width, self.width, r], generator).to(states)
        # With one drift there is nothing to straighten: any encoder does, and the closed form decodes its lines.
        if states.shape[1] > 2 or not self.closed_form:
            with torch.enable_grad():
                self._train(encoder, decoder, shown, generator, progress_bar)
        with torch.no_grad():
            latent = encoder(shown)
            lines = LatentLines(decoder, latent[0, 0], latent[:, -1], scale, straightness(latent), latent)
            if self.closed_form:
                lines.decoder = decoder_of_lines(
                    lines, states, n_own or len(states), self.line_units, self.ridge, generator
                )
        return lines

    def _train(
        self, encoder: nn.Module, decoder: nn.Module, states: Tensor, generator: torch.Generator, progress_bar: bool
    ) -> None:
        n, t, _ = states.shape
        # Successive states that are equal belong to a particle that was lost: no distance to preserve there.
        moving = (states[:, 1:] != states[:, :-1]).any(-1)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=self.learning_rate)
        width, stalls = (WINDOW, 1) if self.closed_form else (5 * WINDOW, PLAIN_STALLS)
        best, window = math.inf, states.new_zeros(())
        bar = tqdm(range(1, self.n_steps + 1), desc="autoencoder", disable=not progress_bar, leave=None)
        for step in bar:
            i, j = draw(n, self.batch_size, generator), draw(t - 1, self.batch_size, generator)
            here, after = encoder(torch.stack([states[i, j], states[i, j + 1]]))
            positive = (((after - here).norm(dim=-1) * (t - 1) - 1).square() * moving[i, j]).mean()
            # Any two states: those of different pairs. Distances of zero (a state drawn twice) have no gradient.
            distance = (here - after.roll(1, 0)).square().sum(-1).clamp(min=1e-24).sqrt()
            negative = -(distance + NEGATIVE_EPSILON).log().mean()
            reconstruction = (decoder(after) - states[i, j + 1]).square().sum(-1).mean()
            loss = self.lambda_plus * positive + self.lambda_minus * negative + reconstruction
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            window += reconstruction.detach() / width
            if step % width == 0:
                mean = float(window)
                bar.set_postfix(reconstruction=f"{mean:.2e}")
                if step >= FIRST_WINDOWS * width and not mean < STALLED * best:
                    stalls -= 1
                    optimizer.param_groups[0]["lr"] /= 3
                if stalls == 0:
                    break
                best, window = min(best, mean), torch.zeros_like(window)


class LatentLines:
    """Curves c(i, s) = ψ((1 − s) φ(θ_MAP) + s φ(θ_T^(i))), one per trajectory: equation 10.

    Parameters
    ----------
    decoder
        ψ, from latent points to coordinates divided by ``scale``.
    start, ends
        φ(θ_MAP) and φ(θ_T^(i)).
    scale
        S, the length unit of the decoder's output.
    straightness
        Mean over trajectories of latent chord length over latent path length; 1 is straight.
    path
        φ of all states, which no sample needs: kept by the fit alone, and not saved with a state.
    """

    def __init__(
        self,
        decoder: nn.Sequential,
        start: Float[Tensor, " z"],
        ends: Float[Tensor, "n z"],
        scale: Float[Tensor, ""],
        straightness: float,
        path: Float[Tensor, "n t z"] | None = None,
    ) -> None:
        self.decoder, self.start, self.ends, self.scale, self.straightness = decoder, start, ends, scale, straightness
        self.path = path

    def latent(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s z"]:
        """The latent points at position s ∈ [0, 1] of the given trajectories."""
        return self.start + s[:, None] * (self.ends[trajectory] - self.start)

    def coordinates(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s r"]:
        """The decoded points, as coordinates in the walk's subspace."""
        with torch.no_grad():
            decoded: Tensor = self.decoder(self.latent(trajectory, s))
        return decoded * self.scale

    def features(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s u"]:
        """What the decoder's last layer sees: :meth:`coordinates` are an affine function of it."""
        with torch.no_grad():
            inside: Tensor = self.decoder[:-1](self.latent(trajectory, s))
        return inside

    def last_layer(self) -> tuple[Float[Tensor, "u r"], Float[Tensor, " r"]]:
        """A and b with coordinates = features A + b."""
        weight, bias = (parameter.detach() for parameter in self.decoder[-1].parameters())
        return weight.T * self.scale, bias * self.scale

    def tensors(self) -> list[Tensor]:
        """Everything that defines the lines, for saving; the decoder's weights and biases last."""
        return [self.start, self.ends, self.scale, *(p.detach() for p in self.decoder.parameters())]

    @staticmethod
    def from_tensors(tensors: list[Tensor], straightness: float) -> LatentLines:
        """The inverse of :meth:`tensors`."""
        start, ends, scale, *parameters = tensors
        sizes = [parameters[0].shape[1], *(weight.shape[0] for weight in parameters[::2])]
        decoder = _mlp(sizes, torch.Generator().manual_seed(0)).to(parameters[0])
        with torch.no_grad():
            for own, stored in zip(decoder.parameters(), parameters, strict=True):
                own.copy_(stored)
        return LatentLines(decoder, start, ends, scale, straightness)


def straightness(latent: Float[Tensor, "n t z"]) -> float:
    """Mean over curves of chord length / path length (curves of length zero left out); 1 is straight."""
    path = (latent[:, 1:] - latent[:, :-1]).norm(dim=-1).sum(-1)
    chord = (latent[:, -1] - latent[:, 0]).norm(dim=-1)
    moving = path > 0
    return float((chord[moving] / path[moving]).mean()) if bool(moving.any()) else 1.0


def _leading_coordinates(states: Float[Tensor, "n t r"], k: int, generator: torch.Generator) -> Float[Tensor, "n t k"]:
    """Coordinates in (nearly) the span of the k leading principal directions, by randomised subspace iteration.

    Source: Halko, Martinsson and Tropp (2011), algorithm 4.4. The states stand in the MAP's coordinates and are not
    centred. No rotation to the directions themselves, whose signs would depend on rounding.
    """
    flat = states.flatten(0, 1)
    probes = torch.randn(flat.shape[1], k, generator=generator, dtype=torch.float64)
    directions = torch.linalg.qr(probes.to(flat))[0]
    for _ in range(2):
        directions = torch.linalg.qr(flat.T @ (flat @ directions))[0]
    return (flat @ directions).unflatten(0, states.shape[:2])


def _mlp(sizes: list[int], generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        # skip_init: the usual constructor would draw from the global generator.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        bound = 1 / math.sqrt(fan_in)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
