"""Networks and generated data whose speed is measured; nothing depends on the global random state."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.models import Network, build

N_CLASSES = 10
NOISE = 0.3
"""Standard deviation of the targets of :func:`curve`."""


def mlp(
    n_inputs: int, hidden: tuple[int, ...], n_outputs: int, activation: Literal["relu", "tanh"] = "relu"
) -> nn.Sequential:
    """A fully connected network, untrained."""
    return build(Network(hidden, activation), n_inputs, n_outputs, torch.Generator().manual_seed(0))


def lenet() -> nn.Sequential:
    """LeNet-5 for images of 28 x 28: 61,706 weights, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, N_CLASSES)),
        )


def small_convolutions() -> nn.Sequential:
    """The network for MNIST of the paper's experiments: 1,828 weights, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 5), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Conv2d(4, 4, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()),
            *(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh(), nn.Linear(10, N_CLASSES)),
        )


def curve(n: int) -> tuple[Tensor, Tensor]:
    """Noisy values (n, 1) of a curve at inputs (n, 1), of about the size of Snelson's."""
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.rand(n, 1, generator=generator)
    noise = NOISE * torch.randn(n, 1, generator=generator)
    return (x - 3) / 1.7, torch.sin(2 * x) * (1 - x / 12) + noise


def moons(n: int) -> tuple[Tensor, Tensor]:
    """Two interleaved half circles: inputs (n, 2) and classes (n,)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (n,), generator=generator)
    angle = math.pi * (torch.rand(n, generator=generator) + y)
    x = torch.stack([angle.cos() + y - 0.5, angle.sin() + 0.5 * y - 0.25], 1)
    return x + 0.2 * torch.randn(n, 2, generator=generator), y


def clouds(n: int, n_features: int, n_classes: int = 2) -> tuple[Tensor, Tensor]:
    """Gaussian clouds: inputs (n, n_features) and classes (n,)."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, n_features, generator=generator)
    return centres[y] + torch.randn(n, n_features, generator=generator), y


def images(n: int) -> tuple[Tensor, Tensor]:
    """Noisy images (n, 1, 28, 28) of ten patterns, and their classes (n,)."""
    x, y = clouds(n, 28 * 28, N_CLASSES)
    return x.view(n, 1, 28, 28), y
