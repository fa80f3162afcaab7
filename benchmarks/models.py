"""Networks and their training: one network per (data set, seed), kept on disk and reused by every method.

Neither weights nor batches come from the global random state: the seed fixes both.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks import environment
from benchmarks.datasets import LAYERS, Dataset, Split, indexed_loader
from benchmarks.networks import ConvNet, ResNet, built_from
from benchmarks.records import write_tensors

CACHE = Path(__file__).parent / ".cache"


@dataclass(frozen=True)
class Network:
    """A fully connected network: units of the hidden layers and their activation."""

    hidden: tuple[int, ...]
    activation: Literal["relu", "tanh"]


@dataclass(frozen=True)
class Training:
    """A training schedule on the mean loss over a batch (cross-entropy, or squared error).

    ``adam`` adds ``weight_decay`` times the weights to the gradient, ``adamw`` shrinks the weights apart from it.
    ``batch_size`` None takes all training data in each step. ``cosine`` lets the learning rate fall to 0.
    """

    optimizer: Literal["adam", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    batch_size: int | None = 32
    epochs: int = 100
    cosine: bool = False

    def shortened(self, share: float) -> Training:
        """The same schedule with ``share`` of the epochs, at least one."""
        return replace(self, epochs=max(1, round(share * self.epochs)))


Architecture: TypeAlias = Network | ConvNet | ResNet


@dataclass(frozen=True)
class AugmentedTraining(Training):
    """A schedule whose batches of images are mirrored at random, and shifted by up to ``shift`` pixels.

    On a GPU, ``mixed_precision`` evaluates the network in bfloat16 where autocast allows it.
    """

    shift: int = 4
    mixed_precision: bool = True


_UCI_NETWORK = Network((32, 32), "relu")
_NETWORKS: dict[str, Architecture] = {
    "snelson": Network((32, 32, 32), "relu"),
    "banana": Network((16, 16), "tanh"),
    "mnist": ConvNet(),
    "fashion": ConvNet(),
    "cifar10-small": ResNet((16, 32, 64), n_blocks=1),
    "cifar10": ResNet(),
}
# Snelson: 10,000 epochs with a cosine end instead of the paper's 50,000 at a constant rate; README.md compares them.
_TRAININGS = {
    "snelson": Training("adam", lr=1e-2, batch_size=None, epochs=10_000, cosine=True),
    "banana": Training(lr=1e-2, epochs=200),
    "mnist": Training(lr=3e-3, epochs=30, cosine=True),
    "fashion": Training(lr=3e-3, epochs=30, cosine=True),
    "cifar10-small": AugmentedTraining(lr=5e-3, weight_decay=0.05, batch_size=128, epochs=20, cosine=True),
    # Divides the 42,500 images: a last batch of four would spoil the running statistics of batch norm.
    "cifar10": AugmentedTraining(lr=2e-3, weight_decay=0.05, batch_size=500, epochs=24, cosine=True),
}


LAYER_WIDTH = 64
# AdamW, since the L2 penalty makes constants of networks of seven layers or more; README.md has figures.
_LAYERS_TRAINING = Training(lr=3e-3, batch_size=None, epochs=2000, cosine=True)


def network_for(name: str) -> Architecture:
    """The network of a data set (``snelson-gap`` has that of ``snelson``, ``layers-3`` has three hidden layers)."""
    if name.startswith(LAYERS):
        return network_of_layers(name)
    return _NETWORKS.get(name.removesuffix("-gap"), _UCI_NETWORK)


def network_of_layers(name: str) -> Network:
    """That of a data set ``layers-1``, ``layers-2``, …"""
    return Network((LAYER_WIDTH,) * int(name.removeprefix(LAYERS)), "relu")


def training_for(name: str) -> Training:
    """The training schedule of a data set."""
    if name.startswith(LAYERS):
        return _LAYERS_TRAINING
    return _TRAININGS.get(name.removesuffix("-gap"), Training())


def train(dataset: Dataset, seed: int, training: Training | None = None) -> nn.Module:
    """The network of ``dataset`` trained on its training data from ``seed``, in eval mode, where the data are."""
    return train_timed(dataset, seed, training)[0]


def train_timed(dataset: Dataset, seed: int, training: Training | None = None) -> tuple[nn.Module, float]:
    """As ``train``, with the seconds that the training took when it was run."""
    training = training or training_for(dataset.name)
    network = network_for(dataset.name)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(network, Network):
        model = build(network, dataset.n_inputs, dataset.n_outputs, generator)
    else:
        model = built_from(network, dataset.n_outputs, generator)
    model.to(dataset.train[0].device)
    path = CACHE / f"{dataset.name}-{seed}-{_key(dataset, network, training)}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True, map_location=dataset.train[0].device)
        model.load_state_dict(saved["weights"])
        return model.eval(), saved["seconds"]
    start = environment.clock()
    _fit(model, dataset, training, generator)
    seconds = environment.clock() - start
    write_tensors(path, {"weights": model.state_dict(), "seconds": seconds})
    return model.eval(), seconds


def noise_scale(model: nn.Module, dataset: Dataset) -> float:
    """Standard deviation of the observation noise: the root mean squared residual on training and validation data.

    This is the maximum-likelihood value under Gaussian noise around the network. Training residuals alone would be a
    little too small, since the network was fitted to them; validation residuals alone are too few on Snelson's data
    (22 points). Classification has no such noise and gives 1.
    """
    if dataset.likelihood == "classification":
        return 1.0
    x, y = (torch.cat(both) for both in zip(dataset.train, dataset.val, strict=True))
    with torch.no_grad():
        return float((model(x) - y).square().mean().sqrt())


def build(network: Network, n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Sequential:
    """The untrained network, with PyTorch's default distribution of initial weights, drawn from ``generator``."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise((n_inputs, *network.hidden, n_outputs)):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        for parameter in linear.parameters():
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5, generator=generator)
        layers += [linear, nn.ReLU() if network.activation == "relu" else nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _fit(model: nn.Module, dataset: Dataset, training: Training, generator: torch.Generator) -> None:
    """Train ``model`` in place."""
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    optimizer = optimizer_class(model.parameters(), training.lr, weight_decay=training.weight_decay, fused=True)
    loss_function = functional.cross_entropy if dataset.likelihood == "classification" else functional.mse_loss
    x, y = dataset.train
    if x.is_cuda:  # convolutions in half precision are laid out so there
        model.to(memory_format=torch.channels_last)
    batch_size = training.batch_size or len(x)
    n_steps = training.epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps) if training.cosine else None
    model.train()
    augmentation = training if isinstance(training, AugmentedTraining) else None
    mixed = augmentation is not None and augmentation.mixed_precision and x.is_cuda
    for _ in tqdm(range(training.epochs), desc="epochs", disable=augmentation is None):
        order = torch.randperm(len(x), generator=generator).to(x.device)
        for x_batch, y_batch in zip(x[order].split(batch_size), y[order].split(batch_size), strict=True):
            optimizer.zero_grad()
            if augmentation is not None:
                x_batch = augmented(x_batch, augmentation.shift, generator)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=mixed):
                loss = loss_function(model(x_batch), y_batch)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    model.to(memory_format=torch.contiguous_format)


def augmented(x: Tensor, shift: int, generator: torch.Generator | None = None) -> Tensor:
    """Images (b, channels, h, w), each mirrored left to right or not, and shifted within a margin of zeros.

    Without a generator, the global one decides.
    """
    mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    rows, columns = x.shape[2:]
    down, right = torch.randint(2 * shift + 1, (2, len(x), 1), generator=generator).to(x.device)
    padded = functional.pad(x, (shift,) * 4)
    every, of_rows, of_columns = (torch.arange(n, device=x.device) for n in (len(x), rows, columns))
    places = (down + of_rows)[:, :, None], (right + of_columns)[:, None, :]
    return padded.permute(0, 2, 3, 1)[every[:, None, None], *places].permute(0, 3, 1, 2)


def augmenting_loader(
    split: Split, training: AugmentedTraining, encode: Callable[[Tensor], Tensor]
) -> DataLoader[tuple[Tensor, ...]]:
    """Images as training has them: in another order each time, mirrored and shifted at random, then encoded.

    An incomplete batch, whose few images would count as much as the others', is left out. The global random state
    decides, as where any DataLoader shuffles.
    """
    n = len(split[0])

    def prepared(batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return encode(augmented(batch[0], training.shift)), batch[1]

    size = min(training.batch_size or n, n)
    return indexed_loader(split, size, shuffled=True, drop_last=True, collate_fn=prepared)


def _key(dataset: Dataset, network: Architecture, training: Training) -> str:
    """A digest of everything, apart from the seed, that the trained weights depend on."""
    settings = json.dumps([asdict(network), asdict(training)]).encode()
    data = b"".join(t.cpu().numpy().tobytes() for t in dataset.train)
    return hashlib.sha256(settings + data).hexdigest()[:16]
