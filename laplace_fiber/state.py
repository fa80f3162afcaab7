"""Checks on saved states before anything is taken over from them."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

STATE_VERSION = 3

STATE_SETTINGS = ("prior_precision", "prior_mean", "sigma_noise", "temperature", "loss", "n_data", "n_outputs")


def checked_origin(
    state: dict[str, Any], expected: dict[str, Any], trained: Float[Tensor, " p"]
) -> Float[Tensor, " p"]:
    """The state's MAP on the model's device and in its dtype.

    Raises
    ------
    ValueError
        An entry differs from the expected one, or the state was fitted at other weights than the model's.
    """
    for key, value in expected.items():
        if state.get(key) != value:
            raise ValueError(f"load_state_dict: expected {key} {value!r}, got {state.get(key)!r}.")
    mean: Tensor = state["mean"].to(trained)
    if not torch.allclose(mean, trained, rtol=1e-4, atol=1e-6):
        raise ValueError(
            f"load_state_dict: expected the {len(mean)} trained weights that the state was fitted at, got a model with "
            "others; load the model's own state_dict first."
        )
    return mean
