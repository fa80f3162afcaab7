"""ResNet-18, images for it, and a prior that suits networks of any size; the rest is in ``problems``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]

from benchmarks.speed.problems import N_CLASSES, lenet, mlp

__all__ = ["coloured_images", "lenet", "mlp", "n_weights", "resnet18", "settle_batch_norm", "unit_precision"]

PATTERN = 0.5
"""Size of a class's pattern next to the noise in :func:`coloured_images`."""


def resnet18(n_classes: int = N_CLASSES) -> nn.Module:
    """ResNet-18 with the stem for images of 32 x 32 (a 3 x 3 convolution, no pooling): 11.2 M weights, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = models.resnet18(num_classes=n_classes)
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    return network


def coloured_images(n: int, learnable: bool = False) -> tuple[Tensor, Tensor]:
    """Noise (n, 3, 32, 32) and random classes (n,); a ``learnable`` image also shows the pattern of its class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(N_CLASSES, (n,), generator=generator)
    x = torch.randn(n, 3, 32, 32, generator=generator)
    if learnable:
        x += PATTERN * torch.randn(N_CLASSES, 3, 32, 32, generator=generator)[y]
    return x, y


def settle_batch_norm(network: nn.Module, x: Tensor) -> None:
    """Give batch normalisation the statistics of ``x``: with those of a new network, outputs would double per block."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    network.train()
    with torch.no_grad():
        for layer in layers:
            layer.momentum = 1.0
        network(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def n_weights(network: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in network.parameters())


def unit_precision(network: nn.Module) -> float:
    """The prior precision whose radius is the length of the weight vector: a walk that far overflows nowhere."""
    return n_weights(network) / sum(float(p.detach().square().sum()) for p in network.parameters())
