"""The decoder's closed form: random units with their kinks on the latent lines, and ridge least squares."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from laplace_fiber.latent import LatentLines

UNITS_PER_STATE, MOST_LINE_UNITS = 1.2, 2048


def draw(high: int, size: int, generator: torch.Generator) -> Int[Tensor, " b"]:
    """Indices below ``high``."""
    return torch.randint(high, (size,), generator=generator)


def decoder_of_lines(
    lines: LatentLines,
    states: Float[Tensor, "n t r"],
    n_own: int,
    units: int | None,
    ridge: float,
    generator: torch.Generator,
) -> nn.Sequential:
    """ψ with a hidden layer and an output layer fitted to the lines: points at s = t/T against the states there.

    A unit whose kink lies outside the lines is linear on them and adds nothing, so each gets its kink at a random line
    point. The ridge problem is solved in float64.
    """
    trajectory, step = _followed(states, n_own, units).nonzero().unbind(1)
    s = torch.linspace(0, 1, states.shape[1], dtype=states.dtype, device=states.device)[step]
    states = states[trajectory, step]
    units = units or min(math.ceil(UNITS_PER_STATE * len(s)), MOST_LINE_UNITS)
    first = lines.decoder[0]
    inside = first(lines.latent(trajectory, s)).relu()
    hidden, last = (
        nn.utils.skip_init(nn.Linear, a, b).to(states) for a, b in ((inside.shape[1], units), (units, states.shape[1]))
    )
    hidden.weight.copy_(torch.randn(hidden.weight.shape, generator=generator))
    kinks = inside[draw(len(inside), units, generator)]
    hidden.bias.copy_(-(hidden.weight * kinks).sum(1))

    features = hidden(inside).relu().double()
    features = torch.cat([features, features.new_ones(len(features), 1)], dim=1)
    normal = features.T @ features
    normal += ridge * normal.diagonal().mean() * torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    solution = torch.cholesky_solve(features.T @ states.double(), torch.linalg.cholesky(normal))
    last.weight.copy_(solution[:-1].T)
    last.bias.copy_(solution[-1])
    return nn.Sequential(first, nn.ReLU(), hidden, nn.ReLU(), last)


def _followed(states: Float[Tensor, "n t r"], n_own: int, units: int | None) -> Bool[Tensor, "n t"]:
    """Which states the decoder is fitted to: those that trajectories have to themselves.

    Where no number of units is given and the most cannot reach them all, equally spaced ones of each trajectory.
    """
    n, t, _ = states.shape
    most = t if units else int((MOST_LINE_UNITS / UNITS_PER_STATE - (n - n_own)) / n_own)
    followed = torch.zeros(n, t, dtype=torch.bool, device=states.device)
    followed[:n_own, torch.linspace(0, t - 1, min(t, max(most, 2))).round().long()] = True
    followed[n_own:, -1] = True
    return followed
