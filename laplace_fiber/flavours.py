"""Entries of laplace-torch's table of flavours that construct a posterior over another subset of weights."""

from __future__ import annotations

from typing import Any

from laplace.baselaplace import BaseLaplace

from laplace_fiber.fiber import FiberLaplace


class LastLayerFiber(BaseLaplace):  # type: ignore[misc]
    """The entry of laplace-torch's table for ``("last_layer", "fiber")``: constructs a FiberLaplace of that subset."""

    _key = ("last_layer", "fiber")

    def __new__(cls, *args: Any, **kwargs: Any) -> FiberLaplace:
        """``FiberLaplace(*args, subset="last_layer", **kwargs)``."""
        return FiberLaplace(*args, subset="last_layer", **kwargs)
