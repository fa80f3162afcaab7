"""Shapes in signatures are checked at run time in all tests."""

import jaxtyping
import pytest
import torch

with jaxtyping.install_import_hook("laplace_fiber", "shapes.check"):
    import laplace_fiber  # noqa: F401


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
