"""Entries of laplace-torch's table of flavours that construct a posterior over another subset of weights."""

from __future__ import annotations

from typing import Any

from laplace.baselaplace import BaseLaplace

from laplace_fiber.fiber import FiberLaplace


class LastLayerFiber(BaseLaplace):  # type: ignore[misc]
    """The entry of laplace-torch's table for ``("last_layer", "fiber")``: constructs a FiberLaplace of that subset."""

    _key = ("last_layer", "fiber")

    def __new__(
        cls, *args: Any, last_layer_name: str | None = None, feature_reduction: Any = None, **kwargs: Any
    ) -> FiberLaplace:
        """``FiberLaplace(*args, subset="last_layer", **kwargs)``, or of the layer named.

        Raises
        ------
        ValueError
            ``feature_reduction`` is given: the whole network runs here, there are no features to reduce.
        """
        if feature_reduction is not None:
            raise ValueError("feature_reduction: expected None, since the network itself reduces its features here.")
        subset = "last_layer" if last_layer_name is None else [last_layer_name]
        return FiberLaplace(*args, subset=subset, **kwargs)
