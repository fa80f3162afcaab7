"""The interface of every posterior that is fitted and then sampled: laplace-torch's, with true samples behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from jaxtyping import Float
from laplace.utils import LinkApprox
from torch import Tensor

from laplace_fiber import predictive
from laplace_fiber.curvature import subspace_jacobian
from laplace_fiber.data import moved
from laplace_fiber.engines import TRIAL_ROWS, WORTH_A_TRIAL, group_size, inputs_together, output_elements
from laplace_fiber.linearised import linearised_samples, output_covariance, output_variance
from laplace_fiber.tuning import TunablePosterior
from laplace_fiber.weights import Inputs

LINKS = tuple(link.value for link in LinkApprox)


class SampledPosterior(TunablePosterior, ABC):
    """A posterior over network weights known by its samples. Abstract: methods define ``_fit`` and :meth:`sample`.

    Predictions average the network over weight samples (laplace-torch's ``pred_type="nn"``, ``link_approx="mc"``, the
    defaults here), or linearise it (``pred_type="glm"``).

    Without a ``generator`` every call draws the same samples: predictions repeat, and those for different inputs come
    from the same functions. Pass a ``torch.Generator`` on the model's device for fresh ones.
    """

    @abstractmethod
    def sample(self, n_samples: int = 100, generator: torch.Generator | None = None) -> Float[Tensor, "s p"]:
        """Draw weight samples, one row each, in the order of the moving weights."""

    def sample_groups(
        self, n_samples: int, size: int, generator: torch.Generator | None = None
    ) -> Iterator[Float[Tensor, "g p"]]:
        """:meth:`sample`, ``size`` rows at a time; methods that need not hold all samples at once override it."""
        yield from self.sample(n_samples, generator).split(size)

    def __call__(
        self,
        x: Inputs,
        pred_type: str | None = None,
        joint: bool = False,
        link_approx: str = "mc",
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
        fitting: bool = False,
        **model_kwargs: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The posterior predictive at inputs ``x``; arguments as in laplace-torch.

        ``"nn"`` averages the network over weight samples. ``"glm"`` takes the network linearised at the trained weights
        under the samples' second moment C about them: a Gaussian with mean f(x) and covariance J C Jᵀ, followed by
        ``link_approx`` for classes (``"mc"`` draws linearised functions instead).

        Returns
        -------
        Tensor or tuple of Tensor
            Classification: class probabilities (b, c). Regression, and reward modelling unless ``fitting``: mean (b, c)
            and variance of the function, observation noise not included; the variance is (b, c) for ``"nn"`` and for
            ``diagonal_output``, (b, c, c) for ``"glm"``, and (bc, bc) for ``"glm"`` with ``joint`` (mean (bc,)).

        Raises
        ------
        RuntimeError
            The posterior has not been fitted.
        ValueError
            Unknown ``pred_type`` or ``link_approx``, ``"nn"`` with another link than ``"mc"``, ``n_samples`` below 1,
            or a generator on another device.
        """
        pred_type = self._pred_type(pred_type)
        if link_approx not in LINKS or (pred_type == "nn" and link_approx != "mc"):
            raise ValueError(
                f"link_approx: expected {'mc' if pred_type == 'nn' else LINKS} for pred_type={pred_type!r}, got "
                f"{link_approx!r}."
            )
        classes = self.likelihood == "classification" or (self.likelihood == "reward_modeling" and fitting)
        if pred_type == "glm" and not (classes and link_approx == "mc"):
            self._require_mean()
            kind = "classification" if classes else "regression"
            # laplace-torch's link approximations take no arguments of the network: they wait here for the hook below.
            self._model_kwargs = model_kwargs
            try:
                return self._linearised_moments(moved(x, self._device), kind, joint, link_approx, diagonal_output)
            finally:
                self._model_kwargs = {}
        samples = self._functions(x, pred_type, n_samples, generator, **model_kwargs)
        return predictive.class_probabilities(samples) if classes else predictive.mean_and_variance(samples)

    def functional_samples(
        self,
        x: Inputs,
        pred_type: str | None = None,
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
        **model_kwargs: Any,
    ) -> Float[Tensor, "s b *c"]:
        """Outputs of the network (``"glm"``: linearised) under each weight sample; raises as :meth:`__call__`."""
        return self._functions(x, pred_type, n_samples, generator, **model_kwargs)

    def predictive_samples(
        self,
        x: Inputs,
        pred_type: str | None = None,
        n_samples: int = 100,
        diagonal_output: bool = False,
        generator: torch.Generator | None = None,
        **model_kwargs: Any,
    ) -> Float[Tensor, "s b *c"]:
        """Class probabilities (classification) or outputs under each weight sample; raises as :meth:`__call__`."""
        samples = self._functions(x, pred_type, n_samples, generator, **model_kwargs)
        return samples.softmax(-1) if self.likelihood == "classification" else samples

    def predictive(
        self, x: Inputs, pred_type: str | None = None, link_approx: str = "mc", n_samples: int = 100
    ) -> Tensor | tuple[Tensor, Tensor]:
        """:meth:`__call__` by another name, as in laplace-torch."""
        return self(x, pred_type=pred_type, link_approx=link_approx, n_samples=n_samples)

    def spread_factor(self) -> Float[Tensor, "k p"]:
        """L with Lᵀ L the posterior's second moment of the weights about the MAP; here from 200 samples."""
        samples = self.sample(200)
        return (samples - self._require_mean()) / len(samples) ** 0.5

    def functional_variance(self, Js: Float[Tensor, "b c p"]) -> Float[Tensor, "b c c"]:  # noqa: N803
        """J C Jᵀ per input for Jacobians with respect to the moving weights: the linearised output covariance."""
        self._check_jacobians(Js)
        return output_variance(Js @ self.spread_factor().T)

    def functional_covariance(self, Js: Float[Tensor, "b c p"]) -> Float[Tensor, "bc bc"]:  # noqa: N803
        """J C Jᵀ over all inputs and outputs, for Jacobians with respect to the moving weights."""
        self._check_jacobians(Js)
        return output_covariance(Js @ self.spread_factor().T)

    def log_prob(self, value: Tensor, normalized: bool = True) -> Tensor:
        """Not defined: samples have no density. Raises ``NotImplementedError`` with what to use."""
        raise NotImplementedError(
            f"log_prob: {type(self).__name__} is known by its samples, which have no density; use sample(), or a "
            "Gaussian flavour of laplace-torch."
        )

    def _functions(
        self, x: Inputs, pred_type: str | None, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        pred_type = self._pred_type(pred_type)
        mean, inputs = self._require_mean(), moved(x, self._device)
        if pred_type == "glm":
            thetas = self.sample(n_samples, generator)
            return linearised_samples(self.network, mean, thetas, inputs, self.enable_backprop, **model_kwargs)
        self._generator(generator, n_samples)  # refuses bad arguments before any work
        return self._network_functions(inputs, n_samples, generator, **model_kwargs)

    def _network_functions(
        self, inputs: Inputs, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        """The network under each weight sample, for checked arguments."""

        def groups(size: int) -> Iterable[Float[Tensor, "_ p"]]:
            return self.sample_groups(n_samples, size, generator)

        return self._grouped_outputs(groups, n_samples, inputs, **model_kwargs)

    def _grouped_outputs(
        self, groups: Callable[[int], Iterable[Float[Tensor, "_ p"]]], n: int, inputs: Inputs, **model_kwargs: Any
    ) -> Float[Tensor, "n b *c"]:
        """The network under n weight vectors, which ``groups`` hands out so many at a time."""
        size = min(n, self.chunk_size or self._prediction_group(inputs, n, **model_kwargs))
        return self._outputs(groups(size), inputs, **model_kwargs)

    def _outputs(
        self, groups: Iterable[Float[Tensor, "_ p"]], inputs: Inputs, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        together = self._inputs_together(inputs, **model_kwargs)
        return predictive.sampled_outputs(
            self.network, groups, inputs, self._recorder, self.enable_backprop, together, **model_kwargs
        )

    def _prediction_group(self, inputs: Inputs, n_samples: int, **model_kwargs: Any) -> int:
        """How many samples are evaluated together; found out once for each shape of inputs.

        A short prediction of a new shape is over before a trial would be: it takes the usual size.
        """
        key = ("samples", _shape(inputs), n_samples)
        if key not in self._together:
            part = inputs[: self._inputs_together(inputs, **model_kwargs)] if isinstance(inputs, Tensor) else inputs

            def run(thetas: Tensor) -> Tensor:
                return predictive.function_samples(self.network, thetas, part, keep_graph=False, **model_kwargs)

            with self.network.evaluation():
                elements = n_samples * output_elements(self.network, part, **model_kwargs)
                try_out = key in self._asked or elements > WORTH_A_TRIAL
                self._asked.add(key)
                trial = self._require_mean().repeat(min(n_samples, TRIAL_ROWS), 1)
                size = group_size(self.network, trial, n_samples, part, run, try_out, **model_kwargs)
            if not try_out:
                return size
            self._together[key] = size
        return cast("int", self._together[key])

    def _inputs_together(self, inputs: Inputs, **model_kwargs: Any) -> int | None:
        """How many inputs are evaluated together; ``None`` for all. Found out once for each shape."""
        if self.enable_backprop or model_kwargs:
            return None
        key = ("inputs", _shape(inputs))
        if key not in self._together:
            with self.network.evaluation():
                self._together[key] = inputs_together(self.network, self._require_mean(), inputs)
        return self._together[key]

    def _linearised_moments(
        self, x: Inputs, kind: str, joint: bool, link_approx: str, diagonal_output: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        moments = self._glm_forward_call(x, kind, joint, link_approx, 1, diagonal_output)
        if not isinstance(moments, Tensor) or "bridge" not in link_approx:
            return cast("tuple[Tensor, Tensor]", moments)
        # Where the variance vanishes the Laplace bridge divides by zero; probit has its limit, the plain softmax.
        valid = (moments >= 0).all(-1) & ((moments.sum(-1) - 1).abs() < 1e-2)
        if bool(valid.all()):
            return moments
        return torch.where(valid[..., None], moments, self._glm_forward_call(x, kind, joint, "probit", 1))

    def _glm_predictive_distribution(
        self, x: Inputs, joint: bool = False, diagonal_output: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the linearised network; laplace-torch's hook below its link approximations.

        Jacobians are those of ``backend`` if one was given, else products with the second moment's factor.
        """
        factor, mean = self.spread_factor(), self._require_mean()
        # Asdl's Jacobians have no graph; laplace-torch leaves that backend aside here, too.
        graph_missing = self.enable_backprop and "asdl" in self._backend_cls.__name__.lower()
        if self._jacobians_from_backend and not graph_missing and not self._model_kwargs:
            full, outputs = self.backend.jacobians(x, enable_backprop=self.enable_backprop)
            jacobian = full[..., self.network.positions().to(full.device)] @ factor.T
        else:
            jacobian, outputs = subspace_jacobian(
                self.network, mean, factor, x, keep_graph=self.enable_backprop, **self._model_kwargs
            )
        if jacobian.ndim != 3:
            raise ValueError(
                f"pred_type='glm': expected outputs (batch, classes), got {tuple(outputs.shape)}; use 'nn'."
            )
        if joint:
            return outputs.flatten(), output_covariance(jacobian)
        return outputs, output_variance(jacobian)


def _shape(x: Inputs) -> tuple[Any, ...]:
    return tuple(x.shape) if isinstance(x, Tensor) else tuple(sorted(x))
