"""The Bayesian last layer: laplace-torch's Gaussian over the last layer's weights, by the name it has elsewhere."""

from __future__ import annotations

from typing import Any

from laplace import FullLLLaplace
from laplace.baselaplace import BaseLaplace
from torch import nn


def bayesian_last_layer(model: nn.Module, likelihood: str, **kwargs: Any) -> FullLLLaplace:
    """laplace-torch's ``FullLLLaplace``: a Gaussian over the last layer, the features below it fixed.

    With a Gaussian likelihood this is the exact posterior of the last layer; otherwise N(θ, (H G + diag τ)⁻¹) with G
    the dense Gauss-Newton matrix of that layer. Sources: Snoek et al. (2015), *Scalable Bayesian optimization using
    deep neural networks*, section 3; Kristiadi, Hein and Hennig (2020), *Being Bayesian, even just a bit, fixes
    overconfidence in ReLU networks*. The same as ``Laplace(model, likelihood, "last_layer", "bll")``.

    Parameters
    ----------
    model, likelihood, **kwargs
        As in laplace-torch.
    """
    return FullLLLaplace(model, likelihood, **kwargs)


class BayesianLastLayer(BaseLaplace):  # type: ignore[misc]
    """The entry of laplace-torch's table for ``("last_layer", "bll")``: constructs a ``FullLLLaplace``."""

    _key = ("last_layer", "bll")

    def __new__(cls, *args: Any, **kwargs: Any) -> FullLLLaplace:
        """``FullLLLaplace(*args, **kwargs)``."""
        return FullLLLaplace(*args, **kwargs)
