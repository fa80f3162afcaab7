"""Hidden units of a network of layers in sequence, and the weights that come and go with each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NoReturn

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.modules.pooling import _AdaptiveMaxPoolNd, _MaxPoolNd

from laplace_fiber.geometry.parts import Part

LINEAR_POOLING = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, *LINEAR_POOLING)
"""Linear channel by channel: these leave every symmetry as it is (dropout as it is in eval mode)."""

HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, _MaxPoolNd, _AdaptiveMaxPoolNd)
"""σ(a z) = a σ(z) for a > 0."""

ODD = (nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink)
"""σ(−z) = −σ(z)."""

ELEMENTWISE = (
    *(nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus),
    *(nn.ELU, nn.CELU, nn.SELU, nn.ReLU6, nn.Hardtanh, nn.Threshold),
)
"""One number at a time, without further symmetries: units may still be permuted."""


@dataclass
class Units:
    """The hidden units between two layers with weights.

    Attributes
    ----------
    layer
        Name of the layer that computes them.
    size
        Their number.
    written
        What multiplies the units when multiplied: the last layer's rows and biases, or a batch norm's weights.
    rows
        All that stands in the order of the units, ``written`` included, but for ``read``.
    buffers
        Running statistics in that order.
    read
        The next layer's columns.
    homogeneous, odd
        Whether everything between ``written`` and ``read`` is.
    spatial
        Whether they are channels of an image or a sequence.
    """

    layer: str
    size: int
    written: list[Part]
    rows: list[Part]
    spatial: bool
    buffers: list[Part] = field(default_factory=list)
    read: list[Part] = field(default_factory=list)
    homogeneous: bool = True
    odd: bool = True

    @property
    def tensors(self) -> list[Part]:
        """All weights that a permutation of the units moves."""
        return [*self.rows, *self.read]


def hidden_units(model: nn.Module) -> list[Units]:
    """The hidden units of a network of layers in sequence, from input to output.

    Raises
    ------
    ValueError
        A layer that is not understood stands between two layers with weights, or weights are shared: its name is given.
    """
    found, present = list[Units](), None
    unknown: str | None = None  # a layer since the last one with weights
    flattened = False
    seen = set[int]()
    for name, layer in _leaves(model):
        if any(id(p) in seen for p in layer.parameters()):
            _refuse(name, layer, "whose weights are used before")
        seen |= {id(p) for p in layer.parameters()}
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            if present is not None:
                if unknown is not None:
                    _refuse(unknown, model.get_submodule(unknown), "which mixes units, or may do so")
                present.read.append(_columns(name, layer, present, flattened))
                found.append(present)
            present, flattened, unknown = _written(name, layer), False, None
        elif present is not None and not _carried(name, layer, present):
            flattened, unknown = _reshaped(layer, flattened, name, unknown)
    return found


def _leaves(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers in the order in which they are called."""
    if type(module).forward is nn.Sequential.forward:
        for key, child in module._modules.items():  # named_children() leaves out a layer that is called again
            if child is None:
                continue
            yield from _leaves(child, f"{name}.{key}" if name else key)
        return
    if next(module.children(), None) is not None:
        parametrised = nn.utils.parametrize.is_parametrized(module)
        what = "with parametrised weights" if parametrised else "whose layers are not called in sequence"
        _refuse(name, module, what)
    yield name, module


def _written(name: str, layer: nn.Module) -> Units:
    """The units that a layer with weights computes."""
    convolution = isinstance(layer, nn.modules.conv._ConvNd)
    if not _is_torchs(layer):
        _refuse(name, layer, "with a forward pass of its own")
    if convolution and (layer.groups != 1 or isinstance(layer, _ConvTransposeNd)):
        _refuse(name, layer, "which is grouped or transposed")
    if not isinstance(weight := getattr(layer, "weight", None), nn.Parameter):
        _refuse(name, layer, "whose weight is computed from others")
    rows = [Part(_join(name, key), 0) for key, _ in layer.named_parameters() if key in ("weight", "bias")]
    return Units(name, len(weight), list(rows), list(rows), convolution)


def _columns(name: str, layer: nn.Module, units: Units, flattened: bool) -> Part:
    """The columns of a layer that reads the units."""
    n_in = layer.get_parameter("weight").shape[1]
    convolution = isinstance(layer, nn.modules.conv._ConvNd)
    together = units.spatial and flattened and not convolution
    fits = n_in % units.size == 0 if together else n_in == units.size and units.spatial == convolution
    if not fits:
        _refuse(name, layer, f"whose {n_in} inputs are not the {units.size} units of layer {units.layer!r}")
    return Part(_join(name, "weight"), 1, n_in // units.size)


def _carried(name: str, layer: nn.Module, units: Units) -> bool:
    """Whether the layer keeps the units apart; if so, what it changes has been noted."""
    if not _is_torchs(layer):
        return False
    if isinstance(layer, _BatchNorm) and layer.num_features == units.size:
        parameters = [Part(_join(name, key), 0) for key, _ in layer.named_parameters()]
        units.rows += parameters
        units.buffers += [Part(_join(name, key), 0) for key, b in layer.named_buffers() if b.ndim == 1]
        # It normalises: only its own weights reach the next layer as they are, and what came before no longer counts.
        units.written, units.homogeneous, units.odd = parameters, True, True
    elif isinstance(layer, nn.PReLU) and layer.num_parameters == units.size > 1:
        units.rows.append(Part(_join(name, "weight"), 0))
        units.odd = False
    elif isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return False
    elif isinstance(layer, HOMOGENEOUS):
        units.odd = False
    elif isinstance(layer, ODD):
        units.homogeneous = False
    elif isinstance(layer, ELEMENTWISE):
        units.homogeneous = units.odd = False
    else:
        return isinstance(layer, NEUTRAL)
    return True


def _reshaped(layer: nn.Module, flattened: bool, name: str, unknown: str | None) -> tuple[bool, str | None]:
    """Whether channels are flattened, and the name of a layer that is not understood."""
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return True, unknown
    return flattened, unknown or name


def _is_torchs(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.")


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _refuse(name: str, layer: nn.Module, why: str) -> NoReturn:
    whose = f"layer {name!r}" if name else "the network itself"
    raise ValueError(
        "symmetries: expected layers in sequence (nn.Sequential of Linear, convolutions, BatchNorm, pooling, Flatten, "
        f"Dropout and elementwise activations), got {whose}, a {type(layer).__name__} {why}; write it as a "
        "sequence, or go without symmetries."
    )
