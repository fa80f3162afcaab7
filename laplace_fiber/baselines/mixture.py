"""A mixture of Laplace approximations: one Gaussian around each of several trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from laplace import KronLaplace
from torch import Tensor, nn

from laplace_fiber.baselines.baseline import Baseline, Problem, Settings
from laplace_fiber.baselines.several import first_and_others, weights_of
from laplace_fiber.baselines.to_host import HostLoader, host_model
from laplace_fiber.batch_norm import own_buffers
from laplace_fiber.data import TrainingData, moved
from laplace_fiber.jacobian_rows import gauss_newton_rows, output_jacobian, outputs_per_point
from laplace_fiber.linearised import linearised_samples, output_covariance, output_variance
from laplace_fiber.paths import shuffled_rows
from laplace_fiber.weights import Inputs

Curvature: TypeAlias = Literal["auto", "full", "kron", "diag"]
"""Structure of each Gaussian's precision, as in laplace-torch."""

FULL_LIMIT = 2000
"""Weights up to which ``"auto"`` takes the full covariance."""

Block: TypeAlias = dict[str, Tensor]
"""A covariance root's diagonal block: A diag(s) Aᵀ with ``"values"`` s, and A = ``"left"`` (⊗ ``"right"``), or I."""


@dataclass(frozen=True, kw_only=True)
class MixtureSettings(Settings):
    """Settings of mixtures of Laplace approximations.

    Parameters
    ----------
    curvature
        Structure of the Gauss-Newton matrix, as in laplace-torch: ``"full"``, ``"kron"`` (linear and convolutional
        layers only) or ``"diag"``. ``"auto"`` takes full up to 2,000 weights, and beyond kron where it can be had, else
        diag.
    """

    curvature: Curvature = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curvature not in get_args(Curvature):
            raise ValueError(f"curvature: expected one of {get_args(Curvature)}, got {self.curvature!r}.")


@dataclass(frozen=True)
class Gaussians:
    """Gaussians of equal weight in the mixture.

    Attributes
    ----------
    means
        One row for each.
    roots
        The symmetric square root of each one's covariance, as its diagonal blocks.
    """

    means: Float[Tensor, "m p"]
    roots: list[list[Block]]

    def spread(self, k: int, v: Float[Tensor, "*n p"]) -> Float[Tensor, "*n p"]:
        """C^½ v for the covariance C of component k."""
        parts = v.split([block["values"].numel() for block in self.roots[k]], -1)
        return torch.cat([_root_product(b, part) for b, part in zip(self.roots[k], parts, strict=True)], -1)


class LaplaceMixture(Baseline[MixtureSettings, Gaussians]):
    """A mixture of Laplace approximations: (1/M) Σₖ N(θₖ, (G(θₖ) + diag τ)⁻¹) over M trained networks θₖ.

    G is the Gauss-Newton matrix of Σ ℓ / temperature. Pass the networks, trained from different initialisations, as a
    list in the place of the model; a single one has one component. Samples come from each component equally often, or
    once more. ``pred_type="glm"``, the paper's choice and the default, linearises the network around each component's
    own mean: class probabilities are averaged over components after ``link_approx``, moments of outputs are those of
    the mixture. ``"nn"`` averages the network itself.

    Source: Eschenhagen, Daxberger, Hennig and Kristiadi (2021), *Mixtures of Laplace approximations for improved
    post-hoc uncertainty in deep learning*, section 3 (equal weights, five networks). Full and diagonal matrices are
    summed exactly here; Kronecker factors are those of laplace-torch's ``KronLaplace`` on the same batches.
    Settings: :class:`MixtureSettings`.

    Parameters
    ----------
    model
        A network, or several of one architecture. Buffers, such as batch-norm statistics, must agree.
    """

    _key = ("all", "mixture")
    settings_class = MixtureSettings
    fit_class = Gaussians
    tunable: ClassVar = {"curvature": ("auto", "diag")}
    pred_types = ("glm", "nn")

    def __init__(self, model: nn.Module | Sequence[nn.Module], likelihood: str, *args: Any, **kwargs: Any) -> None:
        first, self.others = first_and_others(model)
        super().__init__(first, likelihood, *args, **kwargs)
        weights_of(self.network, self.others)  # refuses other architectures
        if own_buffers(first, self.others):
            raise ValueError(
                "model: expected networks with the same buffers, got others (batch-norm statistics, say): one network "
                "is evaluated under all weights; use networks without batch norm."
            )
        self._component = 0

    def _run(self, problem: Problem) -> tuple[Gaussians, dict[str, float]]:
        means, network = weights_of(self.network, self.others), problem.joint.network
        curvature = self.settings.curvature
        refusal = self._no_kron()
        if curvature == "auto":
            curvature = "full" if self.n_params <= FULL_LIMIT else "diag" if refusal else "kron"
        if curvature == "kron" and refusal:
            raise ValueError(f"curvature: expected 'full' or 'diag', got 'kron', which needs {refusal}.")
        roots = list[list[Block]]()
        for k in problem.steps(len(means), type(self).__name__):
            roots.append(self._root(curvature, problem, means[k]))
        n_outputs = outputs_per_point(network, problem.theta, problem.data.first[0])
        batches = sum(1 for _ in problem.data.epoch())
        return Gaussians(means, roots), {"gradient_evaluations": float(len(means) * batches * n_outputs)}

    def _root(self, curvature: str, problem: Problem, mean: Float[Tensor, " p"]) -> list[Block]:
        if curvature == "kron":
            return self._kron_root(problem.data, mean)
        tau = problem.joint.prior_precision.double()
        rows = (r.double() for r in gauss_newton_rows(problem.joint, mean, problem.data.epoch()))
        if curvature == "diag":
            precision = sum((r.square().sum(0) for r in rows), tau)
            return [{"values": _checked(precision).rsqrt().to(mean)}]
        total = tau.diag()
        for r in rows:
            total.addmm_(r.T, r)
        values, vectors = torch.linalg.eigh(_checked(total))
        # The prior bounds them from below, whatever rounding says.
        return [{"values": values.clamp(min=tau.min()).rsqrt().to(mean), "left": vectors.to(mean)}]

    def _kron_root(self, data: TrainingData, mean: Float[Tensor, " p"]) -> list[Block]:
        host = KronLaplace(
            host_model(self.network, mean),
            self._loss_likelihood,
            sigma_noise=self.sigma_noise.detach(),
            prior_precision=self.prior_precision.detach(),
            temperature=self.temperature,
            dict_key_x=self.dict_key_x,
            dict_key_y=self.dict_key_y,
        )
        with torch.enable_grad():
            host.fit(HostLoader(data))
        precision = host.posterior_precision
        blocks = zip(precision.eigenvectors, precision.eigenvalues, precision.deltas, strict=True)
        return [_kron_block(vectors, values, delta) for vectors, values, delta in blocks]

    def _no_kron(self) -> str | None:
        """What Kronecker factors lack here."""
        if self.network.index is not None:
            return "whole layers to move"
        modules = {name.rpartition(".")[0] for name in self.network.names}
        layers = [self.model.get_submodule(name) for name in modules]
        if not all(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in layers):
            return "weights in linear and two-dimensional convolutional layers only"
        if len(self.network.names) != sum(len(list(layer.parameters())) for layer in layers):
            return "weights and biases of a layer to move together"
        if self.sigma_noise.numel() > 1 or self.prior_precision.numel() not in (1, len(self.network.names)):
            return "one sigma_noise, and one prior precision or one per weight tensor"
        return None

    def _draw(self, fitted: Gaussians, n_samples: int, generator: torch.Generator) -> Float[Tensor, "s p"]:
        return self._draw_of(fitted, n_samples, generator)[1]

    def _draw_of(
        self, fitted: Gaussians, n_samples: int, generator: torch.Generator
    ) -> tuple[Int[Tensor, " s"], Float[Tensor, "s p"]]:
        """Components, and a sample of each."""
        chosen = shuffled_rows(len(fitted.means), n_samples, generator)
        like = fitted.means
        noise = torch.randn(n_samples, self.n_params, generator=generator, dtype=like.dtype, device=like.device)
        for k in range(len(like)):
            noise[chosen == k] = fitted.spread(k, noise[chosen == k])
        return chosen, fitted.means[chosen] + noise

    def _functions(
        self, x: Inputs, pred_type: str | None, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        if self._pred_type(pred_type) != "glm":
            return super()._functions(x, pred_type, n_samples, generator, **model_kwargs)
        inputs, fitted = moved(x, self._device), self._require_fit()
        chosen, thetas = self._draw_of(fitted, n_samples, self._generator(generator, n_samples, self.seed))
        places, parts = list[Tensor](), list[Tensor]()
        for k in chosen.unique().tolist():
            rows = (chosen == k).nonzero().flatten()
            mean = fitted.means[k]
            parts.append(
                linearised_samples(self.network, mean, thetas[rows], inputs, self.enable_backprop, **model_kwargs)
            )
            places.append(rows)
        return torch.cat(parts)[torch.cat(places).argsort()]

    def _linearised_moments(
        self, x: Inputs, kind: str, joint: bool, link_approx: str, diagonal_output: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        results = list[Any]()
        try:
            for component in range(len(self._require_fit().means)):
                self._component = component
                results.append(super()._linearised_moments(x, kind, joint, link_approx, diagonal_output))
        finally:
            self._component = 0
        if kind == "classification":
            return torch.stack(results).mean(0)
        means, spreads = (torch.stack(part) for part in zip(*results, strict=True))
        mean, off = means.mean(0), means - means.mean(0)
        diagonal = means.ndim == spreads.ndim
        between = off.square() if diagonal else off[..., :, None] * off[..., None, :]
        return mean, (spreads + between).mean(0)

    def _glm_predictive_distribution(
        self, x: Inputs, joint: bool = False, diagonal_output: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the network linearised at the present component's mean."""
        fitted, k = self._require_fit(), self._component
        mean, kwargs = fitted.means[k], self._model_kwargs
        jacobian, outputs = output_jacobian(self.network, mean, x, keep_graph=self.enable_backprop, **kwargs)
        if jacobian.ndim != 3:
            raise ValueError(
                f"pred_type='glm': expected outputs (batch, classes), got {tuple(outputs.shape)}; use 'nn'."
            )
        spread = fitted.spread(k, jacobian)
        return (outputs.flatten(), output_covariance(spread)) if joint else (outputs, output_variance(spread))


def _kron_block(vectors: list[Tensor], values: list[Tensor], delta: Tensor) -> Block:
    if len(values) == 1:
        return {"values": (values[0].clamp(min=0) + delta).rsqrt(), "left": vectors[0]}
    both = torch.outer(values[0].clamp(min=0), values[1].clamp(min=0))
    return {"values": (both + delta).rsqrt(), "left": vectors[0], "right": vectors[1]}


def _root_product(block: Block, v: Float[Tensor, "*n q"]) -> Float[Tensor, "*n q"]:
    left, right = block.get("left"), block.get("right")
    if left is None:
        return v * block["values"]
    if right is None:
        return (v @ left * block["values"]) @ left.T
    inner = left.T @ v.unflatten(-1, block["values"].shape) @ right
    return (left @ (inner * block["values"]) @ right.T).flatten(-2)


def _checked(precision: Tensor) -> Tensor:
    if not bool(torch.isfinite(precision).all()):
        raise RuntimeError(
            "LaplaceMixture: expected finite curvature at every network's weights, got an infinite or undefined one; "
            "check that all of them are trained."
        )
    return precision
