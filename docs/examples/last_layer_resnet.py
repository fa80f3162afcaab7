"""A ResNet of which only the last layer moves: the posterior of a network that is too large to walk as a whole.

Images of three shapes under noise. The convolutions and their batch norms stay as they were trained, and run once per
image, however many samples a prediction averages.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, TrajectorySampler
from laplace_fiber.metrics import evaluate

SIZE, CLASSES = 16, 3


class Block(nn.Module):
    """Two convolutions and what they are added to."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside))
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Half the height and width for ``stride=2``."""
        return (self.second(self.first(x).relu()) + self.shortcut(x)).relu()


def resnet() -> nn.Module:
    """Three blocks, pooling, and a linear layer: about 20,000 weights."""
    torch.manual_seed(0)
    blocks = [Block(1, 8, 1), Block(8, 16, 2), Block(16, 32, 2)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, CLASSES))


def shapes(n: int, seed: int, noise: float) -> TensorDataset:
    """Discs, frames and crosses at random places, (n, 1, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centre = 6 + 4 * torch.rand(n, 2, 1, 1, generator=generator)
    axis = torch.arange(SIZE).float()
    down, across = (axis[:, None] - centre[:, 0]).abs(), (axis[None, :] - centre[:, 1]).abs()
    disc = (down.square() + across.square() < 16).float()
    frame = ((torch.maximum(down, across) < 4.5) & (torch.maximum(down, across) > 2.5)).float()
    cross = ((torch.minimum(down, across) < 1) & (torch.maximum(down, across) < 5)).float()
    images = torch.stack([disc, frame, cross])[y, torch.arange(n)][:, None]
    return TensorDataset(images + noise * torch.randn(n, 1, SIZE, SIZE, generator=generator), y)


def main(short: bool = False) -> dict[str, float]:
    """Train, fit the last layer, and compare on images as noisy as in training, and noisier."""
    train = DataLoader(shapes(150 if short else 300, 0, 1.0), batch_size=50, shuffle=True)
    model = resnet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for images, classes in [batch for _ in range(5 if short else 20) for batch in train]:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), classes).backward()
        optimizer.step()
    model.eval()

    start = time.perf_counter()
    sampler = TrajectorySampler(n_particles=8, n_steps=5) if short else None
    la = FiberLaplace(model, "classification", subset="last_layer", sampler=sampler)
    la.fit(train)
    total = sum(p.numel() for p in model.parameters())
    print(f"{la.n_params} of {total} weights move; fitted in {time.perf_counter() - start:.1f} s")

    results: dict[str, float] = {}
    for noise in (1.0, 1.5, 2.0):
        images, classes = shapes(300, 1, noise).tensors
        with torch.no_grad():
            alone = evaluate(model(images).softmax(-1), classes)
        averaged = evaluate(la(images), classes)
        results |= {f"nll of the network, noise {noise}": alone["nll"]}
        results |= {f"nll of the posterior, noise {noise}": averaged["nll"]}
        print(
            f"noise {noise}: accuracy {alone['accuracy']:.3f} and {averaged['accuracy']:.3f}, "
            f"NLL of the network {alone['nll']:.3f}, of the posterior {averaged['nll']:.3f}"
        )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="fewer images, less training and a shorter walk")
    main(**vars(parser.parse_args()))
