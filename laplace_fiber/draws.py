"""Random numbers that do not depend on what else is drawn."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def normal(size: int, seed: int, stream: int, part: int = 0) -> Float[Tensor, " p"]:
    """Standard normal numbers of a part of stream ``stream``: the same whatever is drawn for the others."""
    number = (seed * 1_000_003 + stream + 1) % 2**63
    if part:  # generators look at 32 bits of their seed: parts are spread over these
        number = int(np.random.SeedSequence((number, part + 1)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(number)
    return torch.randn(size, generator=generator, dtype=torch.float64)
