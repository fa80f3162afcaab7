"""The latent autoencoder: a space in which the walk's trajectories are straight.

Source: *Walking on the Fiber* (arXiv 2512.01500), section 4.2, equations 6 to 9. It works on the coordinates of
:mod:`laplace_fiber.subspace`; beyond the paper, the decoder is fitted to the latent
lines in closed form after training.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

MOST_LINE_UNITS = 2048

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
    n_steps, batch_size, learning_rate
        Of Adam (learning rate decayed to zero by a cosine); ``batch_size`` counts states.
    lambda_plus, lambda_minus
        Weights λ₊ and λ₋. The paper's λ₊ multiplies (‖·‖ − 1/T)², hence equals this one times T².
    closed_form
        After training, fit the decoder to the latent lines, the only points that the posterior ever decodes: its second
        hidden layer is replaced by random units with their kinks on the lines, and its last layer solved by ridge least
        squares. The states' small coordinates hold the refinement in stiff directions; trained by gradients alone, the
        decoder misses them. ``False`` is the paper's plain form.
    line_units
        Number of those random units; ``None`` takes 1.2 per state, at most 2048, enough to reach every state.
    ridge
        Of the least squares, relative to the features' mean square. Less follows each state and overshoots between.
    seed
        Of the initial weights and the batches.
    """

    latent_size: int = 32
    width: int = 256
    n_steps: int = 100
    batch_size: int = 128
    learning_rate: float = 2e-3
    lambda_plus: float = 1.0
    lambda_minus: float = 0.3
    closed_form: bool = True
    line_units: int | None = None
    ridge: float = 1e-7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("latent_size", "width", "n_steps", "batch_size", "learning_rate", "ridge"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}.")
        for name in ("lambda_plus", "lambda_minus"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}.")
        if self.line_units is not None and self.line_units < 1:
            raise ValueError(f"line_units: expected at least 1 or None, got {self.line_units}.")

    def fit(self, coordinates: Float[Tensor, "n t r"], progress_bar: bool = False) -> LatentLines:
        """Train on the coordinates of a walk's states and return its latent lines.

        Parameters
        ----------
        coordinates
            Of all states; ``coordinates[:, 0]`` is zero, the MAP.
        """
        generator = torch.Generator().manual_seed(self.seed)
        scale = coordinates.double().square().sum(-1).mean().sqrt().clamp(min=1e-30).to(coordinates)
        states = coordinates / scale
        r = states.shape[-1]
        encoder = _mlp([r, self.width, self.width, self.latent_size], generator).to(states)
        decoder = _mlp([self.latent_size, self.width, self.width, r], generator).to(states)
        with torch.enable_grad():
            self._train(encoder, decoder, states, generator, progress_bar)
        with torch.no_grad():
            latent = encoder(states)
            lines = LatentLines(decoder, latent[0, 0], latent[:, -1], scale, straightness(latent))
            if self.closed_form:
                units = self.line_units or min(math.ceil(1.2 * states[..., 0].numel()), MOST_LINE_UNITS)
                lines.decoder = _decoder_of_lines(lines, states, units, self.ridge, generator)
        return lines

    def _train(
        self, encoder: nn.Module, decoder: nn.Module, states: Tensor, generator: torch.Generator, progress_bar: bool
    ) -> None:
        n, t, _ = states.shape
        # Successive states that are equal belong to a particle that was lost: no distance to preserve there.
        moving = (states[:, 1:] != states[:, :-1]).any(-1)
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.n_steps)
        bar = tqdm(range(self.n_steps), desc="autoencoder", disable=not progress_bar)
        for step in bar:
            i, j = _draw(n, self.batch_size, generator), _draw(t - 1, self.batch_size, generator)
            i2, j2 = _draw(n, self.batch_size, generator), _draw(t, self.batch_size, generator)
            here, after, other = (encoder(s) for s in (states[i, j], states[i, j + 1], states[i2, j2]))
            positive = (((after - here).norm(dim=-1) * (t - 1) - 1).square() * moving[i, j]).mean()
            # Distances of zero (the same state drawn twice) have no gradient.
            distance = (here - other).square().sum(-1).clamp(min=1e-24).sqrt()
            negative = -(distance + NEGATIVE_EPSILON).log().mean()
            reconstruction = (decoder(after) - states[i, j + 1]).square().sum(-1).mean()
            loss = self.lambda_plus * positive + self.lambda_minus * negative + reconstruction
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress_bar and step % 10 == 0:
                bar.set_postfix(reconstruction=f"{float(reconstruction):.2e}")


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
    """

    def __init__(
        self,
        decoder: nn.Sequential,
        start: Float[Tensor, " z"],
        ends: Float[Tensor, "n z"],
        scale: Float[Tensor, ""],
        straightness: float,
    ) -> None:
        self.decoder, self.start, self.ends, self.scale, self.straightness = decoder, start, ends, scale, straightness

    def latent(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s z"]:
        """The latent points at position s ∈ [0, 1] of the given trajectories."""
        return self.start + s[:, None] * (self.ends[trajectory] - self.start)

    def coordinates(self, trajectory: Int[Tensor, " s"], s: Float[Tensor, " s"]) -> Float[Tensor, "s r"]:
        """The decoded points, as coordinates in the walk's subspace."""
        with torch.no_grad():
            decoded: Tensor = self.decoder(self.latent(trajectory, s))
        return decoded * self.scale

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


def _decoder_of_lines(
    lines: LatentLines, states: Float[Tensor, "n t r"], units: int, ridge: float, generator: torch.Generator
) -> nn.Sequential:
    """ψ with a hidden layer and an output layer fitted to the lines: points at s = t/T against the states there.

    A unit whose kink lies outside the lines is linear on them and adds nothing, so each gets its kink at a random line
    point. The ridge problem is solved in float64.
    """
    n, t, r = states.shape
    trajectory = torch.arange(n, device=states.device).repeat_interleave(t)
    s = torch.linspace(0, 1, t, device=states.device, dtype=states.dtype).repeat(n)
    first = lines.decoder[0]
    inside = first(lines.latent(trajectory, s)).relu()
    hidden, last = (nn.utils.skip_init(nn.Linear, a, b).to(states) for a, b in ((inside.shape[1], units), (units, r)))
    hidden.weight.copy_(torch.randn(hidden.weight.shape, generator=generator))
    kinks = inside[_draw(len(inside), units, generator)]
    hidden.bias.copy_(-(hidden.weight * kinks).sum(1))

    features = hidden(inside).relu().double()
    features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    normal = features.T @ features
    normal += ridge * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    solution = torch.linalg.solve(normal, features.T @ states.reshape(-1, r).double())
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])
    return nn.Sequential(first, nn.ReLU(), hidden, nn.ReLU(), last)


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


def _draw(high: int, size: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    return torch.randint(high, (size,), generator=generator)
