"""Curves through latent spaces: of one walk, and of an autoencoder trained on two walks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.latent import LatentLines

if TYPE_CHECKING:
    from laplace_fiber.fiber import FiberLaplace


def through_latent_space(
    lines: LatentLines, i: int, j: int, s: Float[Tensor, " t"], share: float = 1.0
) -> Float[Tensor, "t r"]:
    """Decoded coordinates on the straight latent line between trajectories i and j, at the given share of both."""
    ends = lines.latent(torch.tensor([i, j], device=lines.start.device), lines.start.new_full((2,), share))
    with torch.no_grad():
        decoded: Tensor = lines.decoder(torch.lerp(ends[0], ends[1], s[:, None].to(ends)))
    return decoded * lines.scale


def latent_curves(first: FiberLaplace, second: FiberLaplace, s: Float[Tensor, " t"]) -> Float[Tensor, "t p"]:
    """The curve between the ends of two walks' first trajectories, decoded from a line in a latent space of both.

    The autoencoder has the first one's settings, without the closed form, which knows the lines of one walk only, and
    without λ₋, which would push two walks that share no state apart without bound. For small networks: holds all states
    of both walks.
    """
    fits = [la.fitted for la in (first, second)]
    n = min(len(fit.states) for fit in fits)
    t = min(fit.states.shape[1] for fit in fits)
    states = torch.cat([f.subspace.to_weights(f.states[:n, :t].flatten(0, 1)).unflatten(0, (n, t)) for f in fits])
    origin = fits[0].subspace.origin
    offsets = states - origin
    if offsets[..., 0].numel() < len(origin):  # coordinates in the span of all states
        basis = torch.linalg.qr(offsets.flatten(0, 1).T).Q.T
    else:
        basis = torch.eye(len(origin), dtype=origin.dtype, device=origin.device)
    settings = replace(first.autoencoder, closed_form=False, lambda_minus=0.0)
    lines = settings.fit(offsets @ basis.T)
    return origin + through_latent_space(lines, 0, n, s) @ basis
