"""The trajectory sampler: particles that drift away from the MAP and are refined back to low loss.

Source: *Walking on the Fiber* (arXiv 2512.01500), section 4.1, equations 3 to 5. Beyond the paper, a refinement step
that raises the objective is taken back, step sizes follow the curvature, refinement ends at a level of the training
loss, and the drift's law and length follow the prior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.checkpoint import Checkpoint
from laplace_fiber.data import BatchChoice, TrainingData
from laplace_fiber.descent import DescentKind
from laplace_fiber.distributed import Ranks
from laplace_fiber.draws import normal
from laplace_fiber.engines import several_cost_little
from laplace_fiber.evidence import maximise_evidence
from laplace_fiber.geometry.canonical import canonicalize
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.refinement import Refinement, RefineToLevel
from laplace_fiber.shown import with_changes
from laplace_fiber.stochastic import StochasticRefinement
from laplace_fiber.subspace import BasisStorage
from laplace_fiber.thermal import Thermalisation
from laplace_fiber.walk import Walk
from laplace_fiber.walk_result import Trajectories
from laplace_fiber.weights import NetworkFunction

BATCH_NORM_SHARE = 0.2
"""Of the longest drift, where batch norm moves. ResNet-18 comes back from drifts as long as its weights in 12 epochs on
25,500 augmented images: single samples have a validation NLL of 0.41, as from a quarter of the length, but differ more:
the average of two has 0.384 instead of 0.403 (the network 0.392)."""

FEW, SEVERAL = 4, 16
"""Particles that any network can afford, and that small dense ones can. On Vehicle's 7,547 points 16 take 1.4 times the
seconds of four, and have a validation NLL of 0.582 where four have 0.598 (three seeds)."""


@dataclass(frozen=True)
class TrajectorySampler:
    """Settings of the walk.

    Parameters
    ----------
    n_particles
        Number of trajectories (the paper's N). ``None`` takes 16 where so many take little longer than a few (at most
        10,000 moving weights, of a network that evaluates several weight vectors together), else 4.
    n_steps
        Number of drifts per trajectory (the paper's T).
    reach
        Total drift length α·T. ``None`` takes ``radius_share`` of the prior's radius √(Σ 1/τ), but at most
        ``norm_share`` times the length of the trained weights: with all of the radius, the free spread follows the
        prior.
    radius_share, norm_share
        Of no matter where ``reach`` is given; ``norm_share=None`` sets no bound. Where weights of batch norm move, the
        bound is a fifth: its statistics stay those of the trained weights, and fit others only near these.
    lengths
        ``"fixed"``: all trajectories have the length ``reach``. ``"prior"``: each has that of its own draw from the
        prior, ``reach`` in the root mean square, so that their ends lie as the prior has them.
    refinement
        When a particle stops refining after a drift; or :class:`StochasticRefinement`, which has steps of its own on
        the loader's batches, and for which ``descent`` and ``step_size`` do not matter.
    thermal
        Hamiltonian moves at the walk's end, which take particles from low loss into the posterior's typical set. They
        need exact gradients: with batches of a loader they are left out, with a warning. After
        :class:`StochasticRefinement` they take all data at once, up to 10,000 points.
    step_size
        First η, on J/n_data. ``None`` takes 1/λ_max(∇²J/n_data) at the MAP.
    descent
        ``"plain"`` keeps η (the paper's descent). ``"monotone"`` takes back steps that raise the objective and halves
        that particle's η, and lengthens η by a tenth after others. ``"spectral"`` also takes back such steps, and sets
        each particle's η by the two formulas of Barzilai and Borwein (1988) in turn, which serves ill-conditioned
        objectives with far fewer steps. ``"quasi-newton"`` (L-BFGS, from what a particle's last steps have told of the
        curvature) takes a third to all of these, and shortens steps that go past the level of a rule that has one.
    batch
        Data behind each refinement: ``"full"``, the ``"loader"``'s batches (one per drift, so that a step is judged on
        the batch it was computed on), or ``"auto"``: full up to 10,000 points, and always the loader's for
        :class:`StochasticRefinement`.
    chunk_size
        At most this many particles are evaluated together; ``None`` takes what fits and is fastest. Changes the result
        by rounding only.
    seed
        Particle i draws its direction from ``seed`` and i alone.
    evidence
        Choose the scale of the prior precision, and in regression that of the noise, before the walk: those with the
        largest Laplace evidence around a minimum of J near the trained weights. The fitted posterior carries them, and
        its report says what was chosen. Precisions per layer or weight and noises per output keep their ratios.
    canonicalize
        Start :class:`~laplace_fiber.FiberLaplace`'s walk at other weights of the same function: hidden units with
        positively homogeneous activations (ReLU) are scaled to the smallest norm of all weights, at which the
        posterior's ``mean`` then lies. Networks that differ by such factors get the same posterior. Layers have to be
        in sequence: see :func:`laplace_fiber.geometry.canonicalize`.
    compile
        Run steps through ``torch.compile``: several times faster for small networks, after a compilation of up to a
        minute. ``None`` does so when the first drift shows that the walk will take more than ten minutes and particles
        are evaluated together, but not for convolutions on a CPU, which hardly gain.
    autocast
        Lower precision for forward and backward passes, such as ``torch.bfloat16``; weights and losses stay in full.
    basis
        How the states' basis is kept.
    checkpoint
        Where to save the walk every few drifts. A fit with the same settings, network and data resumes it.
    distributed
        Spread the particles over the ranks of the default process group; ``None`` does so if there is one.
    """

    n_particles: int | None = 32
    n_steps: int = 40
    reach: float | None = None
    radius_share: float = 1.0
    norm_share: float | None = None
    lengths: Literal["fixed", "prior"] = "fixed"
    refinement: Refinement | StochasticRefinement = field(default_factory=RefineToLevel)
    thermal: Thermalisation | None = None
    step_size: float | None = None
    descent: DescentKind = "spectral"
    batch: BatchChoice = "auto"
    chunk_size: int | None = None
    seed: int = 0
    evidence: bool = False
    canonicalize: bool = False
    compile: bool | None = None
    autocast: torch.dtype | None = None
    basis: BasisStorage = field(default_factory=BasisStorage)
    checkpoint: Checkpoint | None = None
    distributed: bool | None = None

    __repr__ = with_changes

    def __post_init__(self) -> None:
        for name in ("n_particles", "n_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}.")
        for name in ("reach", "radius_share", "norm_share", "step_size", "chunk_size"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}: expected a positive number or None, got {value}.")
        if self.lengths not in ("fixed", "prior"):
            raise ValueError(f"lengths: expected 'fixed' or 'prior', got {self.lengths!r}.")
        kinds = ("plain", "monotone", "spectral", "quasi-newton")
        for name, choices in (("batch", ("auto", "full", "loader")), ("descent", kinds)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}.")
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast: expected torch.bfloat16, torch.float16 or None, got {self.autocast}.")

    @property
    def particle_count(self) -> int:
        """``n_particles``; where it is None, those that any network can afford, until a walk has looked at its own."""
        return self.n_particles or FEW

    @property
    def among_batches(self) -> bool:
        """Whether each step has a batch of its own: the walk is then at low loss at its states, not between them."""
        return isinstance(self.refinement, StochasticRefinement)

    @property
    def data_batch(self) -> BatchChoice:
        """``batch``, with the answer to ``"auto"`` where the refinement gives it."""
        return "loader" if self.batch == "auto" and self.among_batches else self.batch

    def length(
        self, prior_precision: Float[Tensor, " p"], origin: Float[Tensor, " p"], batch_norm: bool = False
    ) -> float:
        """Total drift length from ``origin`` under this prior; ``batch_norm`` tells whether such layers move."""
        if self.reach is not None:
            return self.reach
        radius = self.radius_share * float((1 / prior_precision).sum().sqrt())
        norm = float(origin.norm())
        if self.norm_share is None or norm == 0:
            return radius
        return min(radius, self.norm_share * norm * (BATCH_NORM_SHARE if batch_norm else 1.0))

    def start(self, network: NetworkFunction) -> Float[Tensor, " p"]:
        """Where a posterior over the network starts its walk: the model's weights, scaled if ``canonicalize`` is set.

        Raises ``ValueError`` for layers that :func:`laplace_fiber.geometry.canonicalize` does not handle.
        """
        theta = network.theta()
        if not self.canonicalize:
            return theta
        return canonicalize(theta, network, sign=False, permutation=False)

    def directions(self, prior_precision: Float[Tensor, " p"], particles: slice = slice(None)) -> Float[Tensor, "n p"]:
        """Drift directions v ∝ N(0, diag(1/τ)): uniform on the sphere when τ is one number, as in the paper.

        They are unit vectors, or with ``lengths="prior"`` of mean square length 1.
        """
        p, scale = prior_precision.numel(), prior_precision.rsqrt()
        radius = (1 / prior_precision).sum().sqrt()
        chosen = range(self.particle_count)[particles]
        rows = prior_precision.new_empty(len(chosen), p)
        for row, i in zip(rows, chosen, strict=True):
            row.copy_(normal(p, self.seed, i)).mul_(scale)
            row /= radius if self.lengths == "prior" else torch.linalg.vector_norm(row)
        return rows

    def walk(
        self, joint: LogJoint, origin: Float[Tensor, " p"], data: TrainingData, progress_bar: bool = False
    ) -> Trajectories:
        """Walk all particles from ``origin``. Call inside the network's evaluation mode.

        Peak memory beside the network and one group's forward and backward passes, in numbers of the size of a weight:
        n·(T + k − 1)·p for the basis, k ends being kept of each particle (half of it above 2 GiB; none for
        ``basis=BasisStorage(directory=...)``), 3·n·p for positions, drifts and displacements (n being this process's
        particles, plus n·p for all of them when distributed; 4·n·p more for :class:`StochasticRefinement`, 18·p at
        least for its trial of rates), 9·g·p for a group of g particles, and for ``descent="quasi-newton"`` 16·n·p up to
        2²⁵ numbers, else 16·g·p. A fit adds about 20·(n·(T + k − 1))² for coordinates and autoencoder.

        Raises
        ------
        ValueError
            The objective at ``origin`` is not finite, or a checkpoint belongs to another walk.
        RuntimeError
            Every particle was lost to a non-finite objective, or another rank stopped.
        MemoryError
            The basis does not fit.
        """
        chosen, near = maximise_evidence(joint, origin, data, self.seed) if self.evidence else (None, None)
        if chosen:
            chosen = chosen.shared(Ranks(self.distributed), origin.device)
            joint = chosen.applied_to(joint)
        settings = self
        if self.n_particles is None and several_cost_little(joint.network, origin, data.first[0], SEVERAL):
            settings = replace(self, n_particles=SEVERAL)
        walk = Walk(settings, joint, origin, data, near)
        return Trajectories(**walk.run(progress_bar), evidence=chosen)
