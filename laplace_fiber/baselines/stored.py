"""Posteriors that are a finite list of weight vectors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from laplace_fiber.baselines.baseline import Baseline, SettingsType
from laplace_fiber.batch_norm import Buffers, outputs_with_buffers
from laplace_fiber.paths import shuffled_rows
from laplace_fiber.weights import Inputs


@dataclass(frozen=True)
class StoredSamples:
    """Equally likely weight vectors, one per row, and buffers of the network that belong to each (else its own)."""

    thetas: Float[Tensor, "k p"]
    buffers: Buffers = field(default_factory=dict)


class StoredPosterior(Baseline[SettingsType, StoredSamples]):
    """A posterior whose samples were made by fit. Abstract: methods define ``_run``.

    ``sample(n)`` draws from the k stored ones without replacement, beginning anew when all have been drawn, so that
    each appears n/k times, rounded up or down.
    """

    fit_class = StoredSamples

    def _completed(self, fitted: StoredSamples, anew: bool = False) -> StoredSamples:
        if not self._has_statistics or (fitted.buffers and not anew):
            return fitted
        return replace(fitted, buffers={**fitted.buffers, **self._statistics_of(fitted.thetas)})

    def _draw(self, fitted: StoredSamples, n_samples: int, generator: torch.Generator) -> Float[Tensor, "s p"]:
        return fitted.thetas[shuffled_rows(len(fitted.thetas), n_samples, generator)]

    def _network_functions(
        self, inputs: Inputs, n_samples: int, generator: torch.Generator | None, **model_kwargs: Any
    ) -> Float[Tensor, "s b *c"]:
        # A network that is drawn twice is evaluated once.
        fitted = self._require_fit()
        thetas = fitted.thetas
        rows = shuffled_rows(len(thetas), n_samples, self._generator(generator, n_samples, self.seed))
        distinct, place = rows.unique(return_inverse=True)
        if fitted.buffers:
            own = {name: values[distinct] for name, values in fitted.buffers.items()}
            outputs = outputs_with_buffers(
                self.network, thetas[distinct], own, inputs, self.enable_backprop, **model_kwargs
            )
            return outputs[place]
        return self._grouped_outputs(thetas[distinct].split, len(distinct), inputs, **model_kwargs)[place]
