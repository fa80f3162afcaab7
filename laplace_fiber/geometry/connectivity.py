"""Mode connectivity: the training loss on curves between two weight vectors that both fit the data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.batch_norm import outputs_with_buffers, recomputed_statistics, tracking_layers
from laplace_fiber.data import Batch
from laplace_fiber.geometry.canonical import canonicalize
from laplace_fiber.geometry.ggn import flat_joint
from laplace_fiber.geometry.joint_latent import latent_curves, through_latent_space
from laplace_fiber.geometry.spread import loss_likelihood
from laplace_fiber.geometry.tables import aligned
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.paths import WalkCurves
from laplace_fiber.weights import NetworkFunction

if TYPE_CHECKING:
    from laplace_fiber.fiber import FiberLaplace

WEIGHTS_TOGETHER = 25

STRAIGHT, SCALED, MATCHED = "straight", "straight, scaling removed", "straight, matched"
ALONG, LATENT = "along the walk, through its start", "through the latent space"


@dataclass(frozen=True)
class ModeConnectivity:
    """Losses on curves between pairs of weight vectors; ``print`` it.

    Attributes
    ----------
    positions
        s along the curves, from 0 to 1.
    curves
        By kind of curve: the training NLL per point of each pair at these positions.
    notes
        Which curves are missing, and why.
    """

    positions: Float[Tensor, " t"]
    curves: dict[str, Float[Tensor, "n t"]]
    notes: tuple[str, ...] = ()

    def barriers(self) -> dict[str, Float[Tensor, " n"]]:
        """How far the loss rises above the line between its values at the ends, by kind of curve, in nats per point.

        Source: Entezari, Sedghi, Saukh and Neyshabur (2022), *The role of permutation invariance in linear mode
        connectivity of neural networks*, equation 1.
        """
        found = {}
        for kind, losses in self.curves.items():
            ends = torch.lerp(losses[:, :1], losses[:, -1:], self.positions)
            found[kind] = (losses - ends).max(1).values.clamp(min=0)
        return found

    def __str__(self) -> str:
        barriers = self.barriers()
        body = []
        for kind, losses in self.curves.items():
            ends, top, rise = losses[:, [0, -1]].mean(), losses.max(1).values.mean(), barriers[kind]
            numbers = [f"{float(v):.3g}" for v in (ends, top, rise.mean(), rise.max())]
            body.append([kind, str(len(losses)), *numbers])
        header = ("curve", "pairs", "NLL at ends", "highest NLL", "barrier", "largest barrier")
        return "\n".join([*aligned(header, body), *self.notes])


def fiber_connectivity(
    posterior: FiberLaplace, loader: Iterable[Any], n_pairs: int = 10, n_points: int = 21, seed: int = 0
) -> ModeConnectivity:
    """Whether the states of different trajectories of a walk are connected by curves of low loss.

    The method assumes that they are. Curves between the ends of two trajectories: straight; straight after the second
    one's units have been matched to the first's (where all layers are in sequence); back along the walk to its start
    and out again; and decoded from the straight line between both in the latent space.

    Parameters
    ----------
    posterior
        A fitted FiberLaplace.
    loader
        The training data.
    n_pairs
        Pairs of trajectories, drawn at random.
    n_points
        Points on each curve, at least 3.
    seed
        Of the pairs.

    Raises
    ------
    RuntimeError
        The posterior has not been fitted.
    ValueError
        Fewer than two trajectories, three points or one pair.
    """
    fitted = posterior.fitted
    n = len(fitted.states)
    if n < 2 or n_points < 3 or n_pairs < 1:
        raise ValueError(
            f"fiber_connectivity: expected two trajectories, three points and one pair at least, got {n}, {n_points} "
            f"and {n_pairs}."
        )
    likelihood = loss_likelihood(posterior)
    joint, data = flat_joint(posterior.network, loader, likelihood, posterior.sigma_noise.detach())
    losses = _Losses(joint, data.everything())
    share, to_weights = posterior.walk_share, fitted.subspace.to_weights
    s = torch.linspace(0, 1, n_points, dtype=fitted.states.dtype)
    walk, missing = WalkCurves(fitted.states), _unmatchable(posterior.network)
    curves = dict[str, list[Tensor]]()
    for i, j in _pairs(n, n_pairs, seed):
        out = share * (2 * s - 1).abs()
        which = torch.where(s < 0.5, i, j)
        first, last = to_weights(walk.coordinates(torch.tensor([i, j]), s.new_full((2,), share)))
        between = {
            STRAIGHT: _line(first, last, s),
            **({} if missing else {MATCHED: _matched(posterior.network, first, last, s)}),
            ALONG: to_weights(walk.coordinates(which, out)),
            LATENT: to_weights(through_latent_space(fitted.lines, i, j, s, share)),
        }
        for kind, thetas in between.items():
            curves.setdefault(kind, []).append(losses(thetas))
    return ModeConnectivity(s, {kind: torch.stack(rows) for kind, rows in curves.items()}, missing)


def network_connectivity(
    networks: Sequence[nn.Module],
    loader: Iterable[Any],
    likelihood: str,
    *,
    sigma_noise: Tensor | float = 1.0,
    walks: Sequence[FiberLaplace] | None = None,
    n_points: int = 21,
) -> ModeConnectivity:
    """Whether independently trained networks of one architecture are connected by curves of low loss.

    Straight lines between each two: of their weights as they are, after both have been scaled to the smallest norm, and
    after the second one's units have been matched to the first's, too. Given walks from two or more of them, also the
    curve decoded from a straight line in the latent space of an autoencoder that is trained on both walks.

    Statistics of batch norm are recomputed at every point of a curve.

    Parameters
    ----------
    networks
        Trained networks, at least two.
    loader
        The training data.
    likelihood, sigma_noise
        Of the posterior, as in laplace-torch.
    walks
        Fitted FiberLaplace posteriors over all weights of the networks, in their order.
    n_points
        Points on each curve, at least 3.

    Raises
    ------
    ValueError
        Fewer than two networks or three points, other walks than one per network, networks of different shapes, or
        layers that :func:`~laplace_fiber.geometry.canonicalize` does not handle.
    """
    if len(networks) < 2 or n_points < 3 or (walks is not None and len(walks) != len(networks)):
        raise ValueError(
            "network_connectivity: expected at least two networks, three points, and a walk from each network or none, "
            f"got {len(networks)}, {n_points} and {0 if walks is None else len(walks)}."
        )
    functions = [NetworkFunction(network) for network in networks]
    if any((f.names, f.shapes) != (functions[0].names, functions[0].shapes) for f in functions):
        raise ValueError("network_connectivity: expected networks with the same weight tensors, got different ones.")
    joint, data = flat_joint(functions[0], loader, likelihood, sigma_noise)
    losses = _Losses(joint, data.everything())
    like = functions[0].theta()
    s = torch.linspace(0, 1, n_points, dtype=like.dtype, device=like.device)
    scaled = [canonicalize(network, sign=False, permutation=False) for network in networks]
    curves: dict[str, list[Tensor]] = {STRAIGHT: [], SCALED: [], MATCHED: []}
    for i, j in itertools.combinations(range(len(networks)), 2):
        matched = canonicalize(scaled[j], reference=scaled[i])
        ends = ((networks[i], networks[j]), (scaled[i], scaled[j]), (scaled[i], matched))
        for kind, (first, last) in zip(curves, ends, strict=True):
            curves[kind].append(losses(_line(_theta(first), _theta(last), s)))
    rows = {kind: torch.stack(found) for kind, found in curves.items()}
    if walks is not None:
        pairs = itertools.combinations(walks, 2)
        rows[LATENT] = torch.stack([losses(latent_curves(a, b, s)) for a, b in pairs])
    return ModeConnectivity(s, rows)


class _Losses:
    """Training NLL per point at weight vectors, with batch-norm statistics of their own."""

    def __init__(self, joint: LogJoint, batch: Batch) -> None:
        self.joint, self.batch = replace(joint, chunk_size=WEIGHTS_TOGETHER), batch
        self.renews = bool(tracking_layers(joint.network.model))

    def __call__(self, thetas: Float[Tensor, "t p"]) -> Float[Tensor, " t"]:
        with torch.no_grad(), self.joint.network.evaluation():
            if not self.renews:
                return self.joint.nll(thetas, self.batch)
            network = self.joint.network
            buffers = recomputed_statistics(network, thetas, self.batch.blocks)
            parts = [
                self.joint.loss_of(outputs_with_buffers(network, thetas, buffers, x), y) for x, y in self.batch.blocks
            ]
            return self.joint.nll_of(torch.stack(parts).sum(0), self.batch)


def _line(first: Float[Tensor, " p"], last: Float[Tensor, " p"], s: Float[Tensor, " t"]) -> Float[Tensor, "t p"]:
    return torch.lerp(first, last, s[:, None].to(first))


def _matched(
    network: NetworkFunction, first: Float[Tensor, " p"], last: Float[Tensor, " p"], s: Float[Tensor, " t"]
) -> Float[Tensor, "t p"]:
    """The straight line after the second one's units have been matched, with no change of scale."""
    return _line(first, canonicalize(last, network, scaling=False, reference=first), s)


def _unmatchable(network: NetworkFunction) -> tuple[str, ...]:
    """Why units cannot be matched, if they cannot."""
    try:
        canonicalize(network.theta(), network, scaling=False)
    except ValueError as reason:
        return (f"{MATCHED}: left out ({reason})",)
    return ()


def _theta(network: nn.Module) -> Float[Tensor, " p"]:
    return NetworkFunction(network).theta()


def _pairs(n: int, n_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Different pairs of trajectories, as many as there are."""
    every = list(itertools.combinations(range(n), 2))
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed)).tolist()
    return [every[k] for k in order[:n_pairs]]
