"""Convolutional networks of the image experiments; :mod:`benchmarks.models` trains them."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

N_AFTER_BLOCKS = 3
"""Layers of a residual network behind its blocks: mean over pixels, flattening, a linear layer."""


@dataclass(frozen=True)
class ConvNet:
    """The paper's small network for MNIST and FashionMNIST, for images (b, 1, 28, 28): tanh and average pooling.

    Two 5×5 convolutions, each followed by tanh and a mean over 2×2 pixels, then fully connected layers. ``channels``
    and ``hidden`` count their outputs. Source: appendix of *Walking on the Fiber* (arXiv 2512.01500).
    """

    channels: tuple[int, int] = (4, 4)
    hidden: tuple[int, ...] = (16, 10)

    def build(self, n_outputs: int) -> nn.Sequential:
        """The untrained network."""
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise((1, *self.channels)):
            layers += [nn.Conv2d(n_in, n_out, 5), nn.Tanh(), nn.AvgPool2d(2)]
        layers.append(nn.Flatten())
        for n_in, n_out in itertools.pairwise((16 * self.channels[-1], *self.hidden, n_outputs)):
            layers += [nn.Linear(n_in, n_out), nn.Tanh()]
        return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class ResNet:
    """A residual network of basic blocks with the stem for small images: one 3×3 convolution, no pooling.

    ``widths`` are the channels of the stages, of ``n_blocks`` blocks each; every stage but the first halves the image.
    The default is ResNet-18. Source: He, Zhang, Ren and Sun (2016), *Deep residual learning for image recognition*,
    sections 3 and 4.2.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    n_blocks: int = 2

    def build(self, n_outputs: int) -> nn.Sequential:
        """The untrained network. Its last two layers are the last block's second convolution and a linear one."""
        stem = self.widths[0]
        layers: list[nn.Module] = [nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
        n_in = stem
        for stage, width in enumerate(self.widths):
            for block in range(self.n_blocks):
                layers.append(BasicBlock(n_in, width, stride=2 if stage > 0 and block == 0 else 1))
                n_in = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_outputs))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, which is a 1×1 convolution where the shape changes."""

    second: nn.Conv2d
    norm: nn.BatchNorm2d
    first: nn.Module
    shortcut: nn.Module

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
        )
        self.second = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, n_in, h, w) -> (b, n_out, h / stride, w / stride)."""
        return self.last(self.norm(self.second(self.first(x))) + self.shortcut(x))


class Body(nn.Module):
    """All of a trained :class:`ResNet` but its last two layers with weights.

    Maps images to what the last block's second convolution is given and, behind it, what its shortcut adds to it: both
    together (b, 2 · width, h, w).
    """

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        *layers, block = _until_last_block(network)
        self.layers, self.first, self.shortcut = nn.Sequential(*layers), block.first, block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Images -> features."""
        x = self.layers(x)
        return torch.cat([self.first(x), self.shortcut(x)], dim=1)


class Head(nn.Module):
    """The last two layers with weights of a trained :class:`ResNet`, as a network on the features of :class:`Body`.

    The batch norm between them is part of the convolution, whose weights and new bias have its scale and shift: in
    evaluation mode head and body together are the network.
    """

    def __init__(self, network: nn.Sequential) -> None:
        super().__init__()
        copied = copy.deepcopy(network).eval()
        *_, block = _until_last_block(copied)
        self.conv = fuse_conv_bn_eval(block.second, block.norm)
        self.conv.requires_grad_()  # the fused weights come without
        self.after = nn.Sequential(block.last, *copied[len(copied) - N_AFTER_BLOCKS :])

    def forward(self, features: Tensor) -> Tensor:
        """Features -> logits (b, c)."""
        x, shortcut = features.chunk(2, dim=1)
        return self.after(self.conv(x) + shortcut)


def _until_last_block(network: nn.Sequential) -> tuple[*tuple[nn.Module, ...], BasicBlock]:
    """The layers of a residual network without the last ones, which follow its blocks."""
    layers = list(network)[: len(network) - N_AFTER_BLOCKS]
    if not isinstance(layers[-1], BasicBlock):
        raise TypeError(
            f"Expected a network built by ResNet; got one with {layers[-1]} at the place of its last block."
        )
    return *layers[:-1], layers[-1]


def built_from(network: ConvNet | ResNet, n_outputs: int, generator: torch.Generator) -> nn.Sequential:
    """The untrained network with PyTorch's default initial weights, which ``generator`` fixes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return network.build(n_outputs)
