"""How a network is run with weights that are not its own: as it was written, in eval mode, by one thread at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

_LOCKS: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
"""One for each network: weights are put into it for the time of a forward pass, which no other thread may see."""


def as_written(model: nn.Module) -> nn.Module:
    """The network within what ``torch.compile(network)`` returns, with the same weights; any other network itself.

    Raises
    ------
    ValueError
        Another wrapper, whose forward pass runs with weights of its own.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise ValueError(f"model: expected the network itself, got a {type(model).__name__}; pass model.module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "model: expected a Python module, got a TorchScript one, which runs with its own weights; pass the "
            "module that it was made from."
        )
    written: nn.Module = getattr(model, "_orig_mod", model)
    return written


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode while inside; each module's own mode afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode without compiled code and fused layers, while inside; other threads wait for the same model."""
    with _LOCKS.setdefault(model, threading.RLock()), _own_tensors(model):
        compiled = [(m, m._compiled_call_impl) for m in model.modules() if m._compiled_call_impl is not None]
        # The fused layers that eval mode switches on have neither derivatives nor batching rules.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for module, _ in compiled:
                module._compiled_call_impl = None
            with eval_mode(model):
                yield
        finally:
            for module, call in compiled:
                module._compiled_call_impl = call
            torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _own_tensors(model: nn.Module) -> Iterator[None]:
    """Put tensors back that are plain attributes of a module: forward passes keep there what they make of the weights.

    So do :func:`torch.nn.utils.weight_norm`'s hook, and modules with caches.
    """
    before = [(m, dict(m.__dict__)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            for name, value in list(module.__dict__.items()):
                if isinstance(value, Tensor) and value is not attributes.get(name):
                    if name in attributes:
                        module.__dict__[name] = attributes[name]
                    else:
                        del module.__dict__[name]


def without_recomputation() -> AbstractContextManager[object]:
    """Refuse, while inside, layers that the backward pass would run anew: by then the network has its own weights."""
    return torch.autograd.graph.disable_saved_tensors_hooks(
        "model: expected layers that keep their outputs for the backward pass, got gradient checkpointing, which would "
        "run them anew with the trained weights in place of those of the posterior; switch it off."
    )
