"""What a fit tells about itself: figures along the walk and of decoded samples, and advice for each failure sign."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from laplace_fiber.advice import signs, warned_of
from laplace_fiber.balance import balance
from laplace_fiber.data import TrainingData
from laplace_fiber.evidence import EvidenceChoice
from laplace_fiber.latent import LatentLines
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.measured import Measured
from laplace_fiber.paths import PositionLaw, WalkCurves
from laplace_fiber.recording import Recorder
from laplace_fiber.trace import WalkTrace
from laplace_fiber.typical_set import Arrival
from laplace_fiber.walk_result import Trajectories

POINTS, FEWEST = 1000, 64
"""The report's losses are measured on the first loader batches holding this many training points: the first number,
for large networks less, down to the second."""

PARTICLES = 8

NEVER = 2**60
"""Calls before a recording that shall not be made."""
POSITIONS = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class FitReport:
    """Figures of a fit; ``print`` it.

    Losses are training negative log-likelihoods per data point and posterior sample, on up to 1000 points, at the
    shares ``positions`` of the walk, averaged over up to 8 particles.

    Attributes
    ----------
    objective_map, nll_map
        J(θ_MAP)/n_data and the loss there.
    positions, objective_walk, nll_walk, nll_decoded
        Shares s of the walk; objective and loss of the walk's states there, and loss of the decoded latent points.
    predictive_gap
        How far averaged predictions of decoded points are from those of the states: total variation distance of class
        probabilities, or difference of means over ``sigma_noise``; mean over training points. At those positions near
        which posterior samples are drawn.
    reconstruction_error
        Root mean square distance of decoded points from the states, over that of the states from the MAP; at the states
        near which posterior samples are drawn.
    straightness
        Chord over path length of the latent trajectories; 1 is straight.
    reach, distance
        Total drift length, and mean distance of the last states from the MAP.
    rejected_share
        Share of refinement steps that were taken back.
    gradient_evaluations
        Per particle.
    group_size
        Particles evaluated together; fix it with ``chunk_size`` for results that repeat to the last bit.
    basis_rank
        Dimension of the walk's subspace.
    lost_particles, n_particles
        Particles stopped early by an objective that was not finite, of how many.
    gradient_norm, gradient_imbalance
        ‖∇J(θ_MAP)‖, and that over the sum of the norms of its data and prior parts: 0 at a minimum of J, 1 far from it.
    balanced_prior_precision
        The scalar τ at which the trained weights are closest to a minimum of J; None if no positive one is.
    common_displacement
        Mean displacement of all particles over the reach; independent drifts leave about 1/√n_particles.
    closeness
        Training loss of the last states over that of the trained weights, without normalising constants: far below 1,
        they fit the training data more closely.
    excess
        Mean excess of the negative log-likelihood at the walk's end, in nats.
    acceptance
        Of the last trajectory of a thermalisation; NaN without one.
    drawn_at
        Those of ``positions`` near which posterior samples are drawn.
    arrival
        For a walk to the typical set: where it ends, and where it should.
    evidence
        What ``evidence=True`` has chosen; None without it.
    trace
        The walk drift by drift; :func:`laplace_fiber.plots.walk` draws it.
    """

    objective_map: float
    nll_map: float
    positions: tuple[float, ...]
    objective_walk: tuple[float, ...]
    nll_walk: tuple[float, ...]
    nll_decoded: tuple[float, ...]
    predictive_gap: float
    reconstruction_error: float
    straightness: float
    reach: float
    distance: float
    rejected_share: float
    gradient_evaluations: float
    group_size: int
    basis_rank: int
    lost_particles: int
    n_particles: int
    gradient_norm: float
    gradient_imbalance: float
    balanced_prior_precision: float | None
    common_displacement: float
    closeness: float = math.nan
    excess: float = math.nan
    acceptance: float = math.nan
    drawn_at: tuple[float, ...] = POSITIONS
    arrival: Arrival | None = None
    evidence: EvidenceChoice | None = None
    warnings: tuple[str, ...] = field(default=())
    trace: WalkTrace | None = field(default=None, repr=False, compare=False)

    @property
    def nll_increase(self) -> float:
        """Mean loss along the walk minus the MAP's."""
        return sum(self.nll_walk) / len(self.nll_walk) - self.nll_map

    @property
    def decoded_gap(self) -> float:
        """Mean decoded loss minus the walk's, as a share of the walk's, where posterior samples are drawn."""
        walk, decoded = (
            sum(value for s, value in zip(self.positions, values, strict=True) if s in self.drawn_at)
            for values in (self.nll_walk, self.nll_decoded)
        )
        return (decoded - walk) / max(abs(walk), 1e-12)

    def advice(self) -> list[str]:
        """One sentence for each sign that the posterior should not be trusted as it is; empty if there is none."""
        return [*signs(self), *self.warnings]

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        def row(name: str, values: tuple[float, ...]) -> str:
            return f"  {name:<22}" + "".join(f"{v:>10.4g}" for v in values)

        lines = [
            f"Walk of {self.n_particles} particles to reach {self.reach:.3g}, ending {self.distance:.3g} from the MAP",
            f"  {self.gradient_evaluations:.0f} gradient evaluations per particle, {self.rejected_share:.0%} of "
            f"refinement steps rejected, {self.lost_particles} particles lost",
            f"  subspace of {self.basis_rank} dimensions, {self.group_size} particles evaluated together",
            row("share of the walk", (0.0, *self.positions)),
            row("objective J/n", (self.objective_map, *self.objective_walk)),
            row("train NLL, walk", (self.nll_map, *self.nll_walk)),
            row("train NLL, decoded", (self.nll_map, *self.nll_decoded)),
            f"  autoencoder: reconstruction error {self.reconstruction_error:.2%}, "
            f"straightness {self.straightness:.3f}",
            f"  decoded samples: NLL {self.decoded_gap:+.2%}, predictions moved by {self.predictive_gap:.4f}",
            f"  trained weights: gradient norm {self.gradient_norm:.3g} (imbalance {self.gradient_imbalance:.2f}), "
            f"particles' common displacement {self.common_displacement:.2f} of the reach",
        ]
        lines += [f"  {part}" for part in (self.evidence, self.arrival) if part]
        if not math.isnan(self.acceptance):
            lines.append(f"  Hamiltonian moves at its end: acceptance {self.acceptance:.2f}")
        return "\n".join(lines + [f"  ! {sentence}" for sentence in self.advice()])


def report_on(
    joint: LogJoint, walk: Trajectories, lines: LatentLines, data: TrainingData, law: PositionLaw
) -> FitReport:
    """Measure a fit whose samples lie where ``law`` says. Call inside the network's evaluation mode."""
    states, origin, n_particles = walk.paths, walk.subspace.origin, len(walk.coordinates)
    # A tenth of what the walk has gone through, forwards and backwards, for each of the two measurements.
    gone_through = walk.gradient_evaluations * n_particles * data.batch_size
    batch = data.some(_between(FEWEST, 3 * gone_through / 10 / (2 * PARTICLES * len(POSITIONS)), POINTS))
    n, last = min(PARTICLES, len(states)), states.shape[1] - 1
    trajectory = torch.arange(n, device=states.device).repeat(len(POSITIONS))
    s = torch.tensor(POSITIONS, device=states.device, dtype=states.dtype).repeat_interleave(n)
    recorders = [Recorder(0 if joint.network.is_part else NEVER) for _ in batch.blocks]
    drawn = _drawn_near(states.new_tensor(POSITIONS), law)
    counts = drawn.repeat_interleave(n)
    on_walk = Measured(joint, walk.subspace, WalkCurves(states).coordinates(trajectory, s), batch, recorders, counts)
    decoded = Measured(joint, walk.subspace, lines.coordinates(trajectory, s), batch, recorders, counts)
    trained = Measured(joint, walk.subspace, states[0, :1], batch, recorders, torch.ones_like(counts[:1]))

    def by_position(values: Tensor) -> tuple[float, ...]:
        return tuple(values.view(len(POSITIONS), n).mean(1).tolist())

    knots = torch.linspace(0, 1, last + 1, device=states.device, dtype=states.dtype)
    near = _drawn_near(knots, law)
    everyone = torch.arange(len(states), device=states.device).repeat_interleave(int(near.sum()))
    shown = states[:, near].flatten(0, 1)
    missed = (lines.coordinates(everyone, knots[near].repeat(len(states))) - shown).square().sum(-1).mean()
    imbalance, balanced = balance(joint, origin, data.some(_between(FEWEST, gone_through / 10, data.n_data)))
    losses = on_walk.data_term.view(len(POSITIONS), n)[-1]
    closeness = float(losses.mean() / trained.data_term.clamp(min=1e-30))
    report = FitReport(
        objective_map=float(trained.objective),
        nll_map=float(trained.nll),
        positions=POSITIONS,
        objective_walk=by_position(on_walk.objective),
        nll_walk=by_position(on_walk.nll),
        nll_decoded=by_position(decoded.nll),
        predictive_gap=_predictive_gap(joint, on_walk.prediction, decoded.prediction),
        reconstruction_error=float((missed / shown.square().sum(-1).mean().clamp(min=1e-30)).sqrt()),
        straightness=lines.straightness,
        reach=walk.reach,
        distance=float(states[:, -1].norm(dim=-1).mean()),
        rejected_share=walk.rejected_share,
        gradient_evaluations=walk.gradient_evaluations,
        group_size=walk.group_size,
        basis_rank=states.shape[-1],
        lost_particles=int((walk.lost_at <= last).sum()),
        n_particles=n_particles,
        gradient_norm=walk.gradient_norm,
        gradient_imbalance=imbalance,
        balanced_prior_precision=balanced,
        common_displacement=walk.common_displacement,
        closeness=closeness,
        excess=walk.excess,
        acceptance=walk.acceptance,
        drawn_at=tuple(position for position, is_drawn in zip(POSITIONS, drawn.tolist(), strict=True) if is_drawn),
        arrival=walk.arrival,
        evidence=walk.evidence,
        trace=walk.trace,
    )
    return replace(report, warnings=tuple(warned_of(report)))


def _drawn_near(positions: Float[Tensor, " k"], law: PositionLaw) -> Bool[Tensor, " k"]:
    """Which of the positions are the nearest one to some sample's, by the law's quantiles."""
    quantiles = law.quantile(torch.linspace(0, 1, 8 * len(positions) + 1, device=positions.device)).to(positions)
    nearest = (quantiles[:, None] - positions).abs().argmin(1)
    return torch.zeros_like(positions, dtype=torch.bool).index_fill(0, nearest, True)


def _between(least: int, wanted: float, most: int) -> int:
    return int(min(max(least, wanted), most))


def _predictive_gap(joint: LogJoint, on_walk: Tensor, decoded: Tensor) -> float:
    difference = (on_walk - decoded).abs()
    if joint.likelihood == "regression":
        return float((difference / joint.sigma_noise).mean())
    return float(0.5 * difference.sum(-1).mean())
