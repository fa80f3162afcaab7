"""Layers in plain tensor operations, where those of the library have no batching rule or lack derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

State: TypeAlias = tuple[Tensor, ...]
"""h, and c of an LSTM."""

NUMBERS_PER_GATE = 3
"""That a step of a recurrent layer leaves behind for its derivatives, roughly, for each unit."""


class PlainLayers(TorchFunctionMode):
    """While inside, layers of the kinds of :func:`has_plain_form` are computed in plain operations where ``torch.func``
    transforms their arguments (batches them, or differentiates), and recurrent ones on a GPU wherever gradients are
    asked for: cuDNN's have none in eval mode.

    Elsewhere they run as they are, and so do packed sequences, and bags with offsets, padding or a largest norm.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The function's result, found in another way where it is that of such a layer."""
        form, kwargs = _FORMS.get(func), kwargs or {}
        if form is None or _is_without_form(func, args, kwargs):
            return func(*args, **kwargs)
        needs_form = _is_transformed(args) or (func in _LAYERS and args[0].is_cuda and torch.is_grad_enabled())
        return form(*args, **kwargs) if needs_form else func(*args, **kwargs)


def has_plain_form(model: nn.Module) -> bool:
    """Whether any layer may be recurrent, bilinear, a bag of embeddings or one with normalised weights.

    Weights are normalised by hooks and parametrisations, of which there are others, too.
    """
    kinds = (nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.EmbeddingBag)
    return any(isinstance(m, kinds) or is_parametrized(m) or bool(m._forward_pre_hooks) for m in model.modules())


def numbers_within(layer: nn.Module) -> int:
    """How many numbers a layer makes for each that it puts out, roughly: more than one where it has layers inside."""
    if not isinstance(layer, nn.RNNBase):
        return 1
    gates = layer.get_parameter("weight_ih_l0").shape[0] // layer.hidden_size
    return NUMBERS_PER_GATE * gates * layer.num_layers


def _is_transformed(args: Sequence[Any]) -> bool:
    parts = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else (arg,))]
    return any(torch._C._functorch.is_functorch_wrapped_tensor(p) for p in parts if isinstance(p, Tensor))


def _is_without_form(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether it is called in a way that has no plain form here."""
    if func is functional.embedding_bag:
        return args[0].ndim != 2 or any(kwargs[name] is not None for name in ("offsets", "max_norm", "padding_idx"))
    if func in _CELLS:
        return bool(kwargs)
    # Batch sizes of packed sequences come before the state.
    return func in _LAYERS and isinstance(args[1], Tensor) and not args[1].is_floating_point()


def _bag(x: Int[Tensor, "b k"], weight: Float[Tensor, "tokens d"], **options: Any) -> Float[Tensor, "b d"]:
    rows = functional.embedding(x, weight)
    if options["mode"] == "max":
        return rows.amax(1)
    if options["per_sample_weights"] is not None:
        rows = rows * options["per_sample_weights"][..., None]
    return rows.mean(1) if options["mode"] == "mean" else rows.sum(1)


def _bilinear(
    x: Float[Tensor, "*b i"], y: Float[Tensor, "*b j"], weight: Float[Tensor, "o i j"], bias: Tensor | None = None
) -> Float[Tensor, "*b o"]:
    product = torch.einsum("...i,oij,...j->...o", x, weight, y)
    return product if bias is None else product + bias


def _weight_norm(v: Float[Tensor, "*shape"], g: Float[Tensor, "*ones"], dim: int = 0) -> Float[Tensor, "*shape"]:
    """g v/‖v‖ with a norm for each index of the dimension ``dim``, or of the whole where that is −1."""
    others = [i for i in range(v.ndim) if dim == -1 or i != dim % v.ndim]
    return v * (g / v.square().sum(others, keepdim=True).sqrt())


class _Weights:
    """Of one layer in one direction: ``ih`` and ``hh`` for input and state, ``hr`` for an LSTM's projection."""

    def __init__(self, tensors: Iterator[Tensor], has_biases: bool, projected: bool) -> None:
        self.ih, self.hh = next(tensors), next(tensors)
        self.bias_ih = next(tensors) if has_biases else None
        self.bias_hh = next(tensors) if has_biases else None
        self.hr = next(tensors) if projected else None

    def of_state(self, h: Float[Tensor, "b h"]) -> Float[Tensor, "b gates"]:
        return functional.linear(h, self.hh, self.bias_hh)


Step: TypeAlias = Callable[[Tensor, State, _Weights], State]
"""The next state from a time step's inputs, multiplied by the weights already, and the state before."""


def _cell(step: Step, x: Float[Tensor, "b f"], state: Tensor | State, *tensors: Tensor | None) -> Tensor | State:
    """What the library's function of the same arguments returns: the next state."""
    given = [t for t in tensors if t is not None]
    weights = _Weights(iter(given), has_biases=tensors[-1] is not None, projected=False)
    inputs = functional.linear(x, weights.ih, weights.bias_ih)
    after = step(inputs, state if isinstance(state, tuple) else (state,), weights)
    return after if isinstance(state, tuple) else after[0]


def _recurrence(
    step: Step,
    x: Float[Tensor, "_ _ features"],
    state: Tensor | State,
    tensors: Sequence[Tensor],
    *options: Any,
) -> tuple[Tensor, ...]:
    """What the library's function of the same arguments returns: outputs, and the last states of all layers."""
    has_biases, num_layers, dropout, train, bidirectional, batch_first = options
    if dropout > 0 and train:
        raise NotImplementedError("recurrent layers in plain operations: expected eval mode, got dropout.")
    states = state if isinstance(state, (list, tuple)) else (state,)
    directions = 2 if bidirectional else 1
    projected = len(tensors) // (num_layers * directions) % 2 == 1
    weights, last = iter(tensors), list[State]()
    x = x.transpose(0, 1) if batch_first else x
    for _ in range(num_layers):
        outputs = list[Tensor]()
        for backwards in range(directions):
            before = tuple(s[len(last)] for s in states)
            along, after = _run(step, x, before, _Weights(weights, has_biases, projected), bool(backwards))
            outputs.append(along)
            last.append(after)
        x = torch.cat(outputs, -1)
    return (x.transpose(0, 1) if batch_first else x, *(torch.stack(parts) for parts in zip(*last, strict=True)))


def _run(
    step: Step, x: Float[Tensor, "t b f"], state: State, weights: _Weights, backwards: bool
) -> tuple[Float[Tensor, "t b h"], State]:
    """Outputs of one layer in one direction, and its last state."""
    inputs = functional.linear(x, weights.ih, weights.bias_ih).unbind(0)  # of all time steps in one product
    outputs = list[Tensor]()
    for now in reversed(inputs) if backwards else inputs:
        state = step(now, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _lstm(now: Float[Tensor, "b gates"], state: State, weights: _Weights) -> State:
    h, c = state
    i, f, g, o = (now + weights.of_state(h)).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.hr is None else functional.linear(h, weights.hr)), c


def _gru(now: Float[Tensor, "b gates"], state: State, weights: _Weights) -> State:
    (r, z, n), (r_h, z_h, n_h) = now.chunk(3, -1), weights.of_state(state[0]).chunk(3, -1)
    n = (n + (r + r_h).sigmoid() * n_h).tanh()
    return (n + (z + z_h).sigmoid() * (state[0] - n),)


def _rnn_tanh(now: Float[Tensor, "b h"], state: State, weights: _Weights) -> State:
    return ((now + weights.of_state(state[0])).tanh(),)


def _rnn_relu(now: Float[Tensor, "b h"], state: State, weights: _Weights) -> State:
    return ((now + weights.of_state(state[0])).relu(),)


_LAYERS = {torch.lstm: _lstm, torch.gru: _gru, torch.rnn_tanh: _rnn_tanh, torch.rnn_relu: _rnn_relu}
_CELLS = {torch.lstm_cell: _lstm, torch.gru_cell: _gru, torch.rnn_tanh_cell: _rnn_tanh, torch.rnn_relu_cell: _rnn_relu}
_FORMS: dict[Any, Callable[..., Any]] = {
    **{func: partial(_recurrence, step) for func, step in _LAYERS.items()},
    **{func: partial(_cell, step) for func, step in _CELLS.items()},
    functional.embedding_bag: _bag,
    torch.bilinear: _bilinear,
    torch._weight_norm: _weight_norm,
}
"""By what layers call."""
