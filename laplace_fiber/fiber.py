"""FiberLaplace: the trajectory sampler and the latent autoencoder as one laplace-torch flavour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from laplace_fiber.curvature import SubspaceCurvature
from laplace_fiber.data import BatchChoice, TrainingData
from laplace_fiber.distributed import Ranks
from laplace_fiber.fiber_fit import Drawn, FiberFit
from laplace_fiber.fit_report import FitReport, report_on
from laplace_fiber.latent import LatentAutoencoder
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.memory import available_bytes
from laplace_fiber.paths import FORMS, EndPosition, PositionLaw, PosteriorForm, UniformPosition
from laplace_fiber.presets import automatic_walk
from laplace_fiber.subspace import Subspace
from laplace_fiber.subspace_evidence import SubspaceEvidence
from laplace_fiber.trajectories import TrajectorySampler
from laplace_fiber.weights import Inputs, Subset

KEPT_BYTES = 2**30
"""The last samples drawn without a generator are kept up to this size, and up to an eighth of the free memory."""


class FiberLaplace(SubspaceEvidence):
    """A posterior that follows the curved set of low-loss weights through the trained network.

    Particles walk away from the trained weights and are refined back to low loss; an autoencoder straightens their
    trajectories; a posterior sample decodes a uniform point of a uniformly drawn latent line. Source: *Walking on the
    Fiber* (arXiv 2512.01500), there called MetricBNN.

    Setting ``prior_precision`` above its value at fit takes effect at once, by using the walk only up to the share of
    its reach that the narrower prior allows; below it, the walk is too short and a warning says to fit again.

    Parameters
    ----------
    model, likelihood, sigma_noise, prior_precision, prior_mean, temperature, enable_backprop, dict_key_x, dict_key_y, \
backend, backend_kwargs, asdl_fisher_kwargs
        As in laplace-torch. A curvature backend, if given, provides the Jacobians of ``pred_type="glm"``.
    sampler
        Settings of the walk. ``None`` leaves the choice to the data: the plain walk where they are few (inputs of at
        most 2¹⁶ numbers in all), else :func:`~laplace_fiber.stochastic_walk` on the loader's batches.
    autoencoder
        Settings of the latent autoencoder.
    posterior
        ``"latent"`` (decoded latent lines), ``"states"`` (the walk's own states, joined linearly), ``"line"`` (straight
        lines to the last states) or ``"gaussian"`` (the states' mean and covariance). May be set again after fit.
    position
        How far along its trajectory a sample lies; by default anywhere, or at the ends of trajectories whose lengths
        follow the prior.
    subset
        ``"all"``, ``"last_layer"``, a list of module names, or a vector of indices into all trainable weights.
    subnetwork_indices
        laplace-torch's name for an index ``subset``.
    engine, chunk_size
        How several weight vectors are evaluated: see :class:`laplace_fiber.weights.NetworkFunction`.

    Attributes
    ----------
    report
        After fit: figures that tell whether the posterior can be trusted, and advice. Print it.
    """

    _key = ("all", "fiber")
    _shown = ("posterior", "sampler", "autoencoder")

    def __init__(
        self,
        model: nn.Module,
        likelihood: str,
        *args: Any,
        sampler: TrajectorySampler | None = None,
        autoencoder: LatentAutoencoder | None = None,
        posterior: PosteriorForm = "latent",
        position: PositionLaw | None = None,
        subset: Subset = "all",
        subnetwork_indices: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if subnetwork_indices is not None:
            if not isinstance(subset, str) or subset != "all":
                raise ValueError("expected subset or subnetwork_indices, got both; pass one of them.")
            subset = subnetwork_indices
        self._chooses_walk, self.sampler = sampler is None, sampler or TrajectorySampler()
        super().__init__(model, likelihood, *args, subset=subset, **kwargs)
        self.autoencoder = autoencoder or LatentAutoencoder()
        self.position = position
        self.posterior = posterior
        self.report: FitReport | None = None
        self._fitted: FiberFit | None = None

    @property
    def posterior(self) -> PosteriorForm:
        """The curves that samples lie on; may be set after fit, without a new walk."""
        return self._posterior

    @posterior.setter
    def posterior(self, form: PosteriorForm) -> None:
        if form not in FORMS:
            raise ValueError(f"posterior: expected one of {FORMS}, got {form!r}.")
        self._posterior = form

    @property
    def seed(self) -> int:
        """Of the walk, and of samples drawn without a generator."""
        return self.sampler.seed

    @property
    def batch(self) -> BatchChoice:
        """Data behind each refinement."""
        return "few" if self._chooses_walk else self.sampler.data_batch

    @property
    def position(self) -> PositionLaw:
        """How far along its trajectory a sample lies; may be set after fit."""
        return self._asked_position or (EndPosition() if self.sampler.lengths == "prior" else UniformPosition())

    @position.setter
    def position(self, law: PositionLaw | None) -> None:
        self._asked_position = law

    def _trained(self, state: dict[str, Any] | None = None) -> Float[Tensor, " p"]:
        settings = {} if state is None else {"canonicalize": state.get("canonicalize", False)}
        return replace(self.sampler, **settings).start(self.network)

    def _fit(self, theta: Float[Tensor, " p"], joint: LogJoint, data: TrainingData, progress_bar: bool) -> None:
        """Walk, find the walk's subspace, and train the autoencoder; then write :attr:`report`."""
        self.sampler = automatic_walk(data) if self._chooses_walk else self.sampler
        walk = self.sampler.walk(replace(joint, autocast=self.sampler.autocast), theta, data, progress_bar)
        chosen = walk.evidence
        joint = chosen.applied_to(joint) if chosen else joint
        ranks = Ranks(self.sampler.distributed)
        n_own = len(walk.coordinates)
        lines = self.autoencoder.fit(walk.paths, progress_bar and ranks.first, n_own)
        ranks.share_first([walk.paths, *lines.tensors()])
        self.report = report_on(replace(joint, chunk_size=walk.group_size), walk, lines, data, self.position)
        if chosen:
            self.prior_precision = self.prior_precision * chosen.precision_factor
            self.sigma_noise = self.sigma_noise.detach() * chosen.noise_factor
        self.diagnostics = walk.cost()
        objective = joint.prior_precision.clone(), self.sigma_noise.detach().clone(), self.temperature
        among_batches = self.sampler.among_batches
        self._fitted = FiberFit(walk.subspace, walk.paths, lines, *objective, among_batches, n_own)
        _ = self._fitted.decoded_space  # made now, so that the first prediction need not wait for it
        self._curvature = None
        if self.sampler.checkpoint is not None and ranks.first:
            self.sampler.checkpoint.remove()

    @property
    def fitted(self) -> FiberFit:
        """The walk's subspace, states and latent lines; ``RuntimeError`` before fit."""
        self._require_mean()
        if self._fitted is None:  # mean and fit are set together
            raise RuntimeError("FiberLaplace has a mean but no fit: call fit(train_loader).")
        return self._fitted

    @property
    def _subspace(self) -> Subspace:
        return self.fitted.subspace

    def _forget_fit(self) -> None:
        self.mean = self._fitted = self.report = None

    def fit_warnings(self) -> Sequence[str]:
        """Those of :attr:`report`."""
        return () if self.report is None else self.report.warnings

    def sample(self, n_samples: int = 100, generator: torch.Generator | None = None) -> Float[Tensor, "s p"]:
        """Draw weight samples, one per row; without a generator (on the model's device) the same ones every time.

        Raises ``RuntimeError`` before fit and ``ValueError`` for ``n_samples`` below 1 or a generator elsewhere.
        """
        return torch.cat(list(self.sample_groups(n_samples, n_samples, generator)))

    def sample_groups(
        self, n_samples: int, size: int, generator: torch.Generator | None = None
    ) -> Iterator[Float[Tensor, "g p"]]:
        """:meth:`sample`, ``size`` rows at a time: decoded only when they are asked for.

        Samples drawn without a generator are kept, if they are small enough, until others are asked for.
        """
        yield from self._drawn(n_samples, generator).samples(size)

    def _drawn(self, n_samples: int, generator: torch.Generator | None) -> Drawn:
        """What is drawn, and without a generator its weights, if they are small enough to be kept."""
        repeats = generator is None
        generator = self._generator(generator, n_samples, self.sampler.seed)
        fitted, share = self.fitted, self.walk_share
        self._say_changed(fitted.changes(self.sigma_noise.detach(), self.temperature))
        asked = (n_samples, self.posterior, repr(self.position), share, self.sampler.seed)
        if repeats and self._kept is not None and self._kept[0] == asked:
            kept: Drawn = self._kept[1]
            return kept
        drawn = fitted.draw(self.posterior, self.position, share, n_samples, generator)
        size = len(drawn.coordinates) * self.n_params * self._dtype.itemsize
        if repeats and size <= min(KEPT_BYTES, available_bytes(self._device) // 8):
            drawn = drawn.decoded()
            self._kept = asked, drawn
        return drawn

    def _network_functions(
        self, inputs: Inputs, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        """Each weight vector is run once, however often it was drawn: those at trajectories' ends are few."""
        drawn = self._drawn(n_samples, generator)
        outputs = self._grouped_outputs(drawn.weights, len(drawn.coordinates), inputs, **model_kwargs)
        return outputs[drawn.of_sample]

    def spread_factor(self) -> Float[Tensor, "k p"]:
        """L with Lᵀ L the posterior's second moment of the weights about the MAP, exact up to quadrature in s."""
        return self.fitted.spread_factor(self.posterior, self.position, self.walk_share)

    @property
    def walk_share(self) -> float:
        """Share ρ ≤ 1 of the walk that the present prior precision uses: its prior radius over that at fit."""
        fitted = self.fitted
        missing = fitted.missing_reach(self.prior_precision_diag)
        if missing > 1:
            self._notices.say(
                f"prior_precision is below its value at fit: it asks for {missing:.2f} times the walk's reach. "
                "The walk is used as far as it goes; fit again with this prior_precision for the wider posterior."
            )
        if fitted.low_at_states_only and fitted.narrower(self.prior_precision_diag):
            self._notices.say(
                "prior_precision is above its value at fit, for which the walk's states were refined: samples come "
                f"from the nearest of {fitted.states.shape[1] - 1}; fit again with this prior_precision."
            )
        return fitted.share_for(self.prior_precision_diag)

    @property
    def refits_candidates(self) -> bool:
        """Where candidates have no share of the walk: if there is one drift, and the data are at hand."""
        return self._data is not None and self.fitted.has_one_state

    def settle_prior_precision(self) -> None:
        """Walk again if the chosen precision asks for another walk and the training data are at hand."""
        tau, fitted = self.prior_precision_diag, self.fitted
        other = fitted.missing_reach(tau) > 1 or (fitted.has_one_state and fitted.narrower(tau))
        if self._data is not None and other:
            asked, self.sampler = self.sampler, replace(self.sampler, evidence=False)  # it has been chosen
            try:
                self.fit(self._data.loader)
            finally:
                self.sampler = asked

    def distinct_prior_precisions(self, grid: Float[Tensor, " g"]) -> Float[Tensor, " h"]:
        """The grid's values above the one at fit (by prior radius): a lower one needs a new, longer walk.

        All where each has a walk of its own, but none without data to walk on.
        """
        if self.fitted.has_one_state:
            return grid if self.refits_candidates else grid[:0]
        walked = (1 / self.fitted.prior_precision.double()).sum()
        return grid[grid > float(self.n_params / walked)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that predictions need, as tensors, numbers, strings and lists of them.

        Save with ``torch.save`` and load with ``torch.load(weights_only=True)``.
        """
        fitted = self.fitted
        return {
            **self._hosted_state(),
            **fitted.to_state(),
            "ggn": None if self._curvature is None else self._curvature.ggn,
            "posterior": self.posterior,
            "seed": self.sampler.seed,
            "canonicalize": self.sampler.canonicalize,
            "lengths": self.sampler.lengths,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved fit, for the same model (weights included) and the same subset.

        Raises
        ------
        ValueError
            Another class, version, likelihood or set of weights, or a model whose trained weights differ.
        """
        mean = self._take_hosted_state(state_dict)
        kept = {name: state_dict[name] for name in ("seed", "canonicalize", "lengths")}
        self.posterior, self.sampler = state_dict["posterior"], replace(self.sampler, **kept)
        self._fitted = FiberFit.from_state(state_dict, mean)
        ggn = state_dict["ggn"]
        self._curvature = None if ggn is None else SubspaceCurvature(ggn.to(mean.device), self._fitted.subspace.basis)
        self.report = None

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "position": repr(self._asked_position)}
