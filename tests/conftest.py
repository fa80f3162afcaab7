"""Shapes in signatures are checked at run time in all tests; fitted posteriors that several files look at."""

import socket

import jaxtyping
import pytest
import torch

with jaxtyping.install_import_hook("laplace_fiber", "shapes.check"):
    import laplace_fiber  # noqa: F401

from problems import classifier, fitted, regressor


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Benchmarks fetch files that are missing; tests do not, nor do the processes that they start."""
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")  # the port that discards, mostly closed
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def lone_rank():
    """Environment variables of a process that is the only one of a torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.fixture(scope="module")
def classification():
    model, data = classifier()
    return fitted(model, data), data


@pytest.fixture(scope="module")
def regression():
    model, data = regressor()
    return fitted(model, data, "regression", sigma_noise=0.2), data
