"""Image sets with seeded splits, and a generated one for trials of the machinery.

MNIST and FashionMNIST: the first 8.35 % of each class of the official training images (5004 and 5010 images; the
paper's 5000). ``cifar10-small``: the first 10,000 training images of CIFAR-10; ``cifar10``: all 50,000. The seed picks
the 15 % of these that are validation data; test data are all 10,000 official test images, whatever the seed.

Pixels are divided by 255, then brought to mean 0 and standard deviation 1 over the training data, with one mean and one
deviation per colour channel.
"""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from benchmarks.datasets import VALIDATION_SHARE, Dataset, Rows, Split
from benchmarks.sources import Source, present, verified

CLASS_SHARE = 0.0835
N_CLASSES = 10
IDX_UNSIGNED_BYTES = 8

IDX_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
IDX_TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def _idx_sources(folder: str, home: str, address: str, digests: Sequence[str]) -> dict[str, Source]:
    return {
        name: Source(f"{folder}/{name}", digest, home, address + name)
        for name, digest in zip((*IDX_FILES, *IDX_TEST_FILES), digests, strict=True)
    }


IDX_SETS = {
    "mnist": _idx_sources(
        "mnist",
        "http://yann.lecun.com/exdb/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion": _idx_sources(
        "fashion_mnist",
        "https://github.com/zalandoresearch/fashion-mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}

CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR_FOLDER = "cifar-10-batches-py"
OTHER_CIFAR_FOLDER = "cifar10"
CIFAR_TEST_BATCH = "test_batch"
CIFAR_BATCHES = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    CIFAR_TEST_BATCH: "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}

NAMES = (*IDX_SETS, "cifar10-small", "cifar10")


@dataclass(frozen=True)
class Generated:
    """A generated set: images of ten blurred random patterns under noise, for trials of the machinery."""

    shape: tuple[int, int, int]
    n_train: int = 200
    n_test: int = 60
    noise: float = 0.15


def load(name: str, seed: int, data_dir: str | Path | None = None) -> Dataset:
    """The image set ``name``, its training and validation data split by ``seed``; inputs (b, channels, h, w).

    Raises
    ------
    ValueError
        No such set, or a file that is not the official one.
    FileNotFoundError
        A file is missing.
    """
    if name not in NAMES:
        raise ValueError(f"Expected an image set among {', '.join(NAMES)}; got {name!r}.")
    if name in IDX_SETS:
        train, test = official(name, "train", data_dir), official(name, "test", data_dir)
        chosen = first_of_each_class(train[1], CLASS_SHARE)
        return split(name, (train[0][chosen], train[1][chosen]), test, seed)
    batches = [b for b in CIFAR_BATCHES if b != CIFAR_TEST_BATCH]
    x, y = cifar10(batches[:1] if name == "cifar10-small" else batches, data_dir)
    return split(name, (x, y), cifar10([CIFAR_TEST_BATCH], data_dir), seed)


def generated(name: str, seed: int, kind: Generated) -> Dataset:
    """A generated set; its patterns are always the same, images and split follow the seed."""
    patterns = torch.rand(N_CLASSES, *kind.shape, generator=torch.Generator().manual_seed(0)).numpy()
    patterns = ndimage.gaussian_filter(patterns, (0, 0, 3, 3), mode="wrap")
    low, high = patterns.min(), patterns.max()
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> Split:
        y = torch.arange(n) % N_CLASSES
        noise = torch.randn(n, *kind.shape, generator=generator)
        x = torch.from_numpy((patterns - low) / (high - low))[y] + kind.noise * noise
        return (255 * x).clamp(0, 255).to(torch.uint8), y

    return replace(split(name, draw(kind.n_train), draw(kind.n_test), seed), stand_in=True)


def split(name: str, train: Split, test: Split, seed: int) -> Dataset:
    """The data set of uint8 images (b, channels, h, w); the seed picks the validation data out of ``train``."""
    x, y = train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    n_val = round(VALIDATION_SHARE * len(x))
    validation, training = order[:n_val], order[n_val:]
    scale, shift = torch.std_mean(pixels(x[training]), dim=(0, 2, 3))
    shift, scale = shift[:, None, None], scale[:, None, None]

    def scaled(images: Tensor) -> Tensor:
        return (pixels(images) - shift) / scale

    return Dataset(
        name,
        "classification",
        train=(scaled(x[training]), y[training]),
        val=(scaled(x[validation]), y[validation]),
        test=(scaled(test[0]), test[1]),
        n_outputs=N_CLASSES,
        x_shift=shift,
        x_scale=scale,
        rows=Rows(training, validation, torch.arange(len(test[1]))),
    )


def pixels(images: Tensor) -> Tensor:
    """uint8 images as float32 in [0, 1]."""
    return images.float() / 255


def levels(x: Tensor, dataset: Dataset) -> Tensor:
    """The uint8 images behind a data set's inputs."""
    return (255 * (x * dataset.x_scale + dataset.x_shift)).round().clamp(0, 255).to(torch.uint8)


def first_of_each_class(y: Tensor, share: float) -> Tensor:
    """Indices, in the order of the file, of the first ``share`` of each class, rounded down."""
    chosen = [torch.nonzero(y == c).flatten() for c in y.unique()]
    return torch.cat([index[: int(share * len(index))] for index in chosen]).sort().values


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images (b, channels, h, w) turned counterclockwise about their centre, linearly interpolated.

    What comes from outside is black: the smallest value of all the images.
    """
    turned = ndimage.rotate(
        images.numpy(), degrees, axes=(3, 2), reshape=False, order=1, mode="constant", cval=float(images.min())
    )
    return torch.from_numpy(turned)


# --- official files --------------------------------------------------------------------------------------------------


def official(name: str, part: str, data_dir: str | Path | None) -> Split:
    """All training or test images of an idx set, uint8 (b, 1, 28, 28), and their classes (b,) int64."""
    sources = IDX_SETS[name]
    images, labels = (
        idx_array(gzip.decompress(verified(sources[file], data_dir)))
        for file in (IDX_FILES if part == "train" else IDX_TEST_FILES)
    )
    return images.unsqueeze(1), labels.long()


def idx_array(content: bytes) -> Tensor:
    """The uint8 array of an idx file: two zero bytes, the type, the number of axes, their sizes, and the values.

    Raises
    ------
    ValueError
        Another type than unsigned bytes, or another number of values than the sizes say.
    """
    kind, n_axes = content[2], content[3]
    start = 4 + 4 * n_axes
    sizes = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    values = np.frombuffer(content[start:], np.uint8)
    if kind != IDX_UNSIGNED_BYTES or len(values) != int(np.prod(sizes)):
        raise ValueError(
            f"Expected an idx file of unsigned bytes (type {IDX_UNSIGNED_BYTES}) with {sizes} values; got type {kind} "
            f"and {len(values)} values."
        )
    return torch.from_numpy(values.reshape(sizes).copy())


def cifar10(batches: Sequence[str], data_dir: str | Path | None) -> Split:
    """Batches of CIFAR-10's python version one after another: uint8 (b, 3, 32, 32) and classes (b,) int64."""
    contents = [_unpickled(_cifar_batch(batch, data_dir)) for batch in batches]
    x = np.concatenate([c[b"data"] for c in contents]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(x), torch.tensor([label for c in contents for label in c[b"labels"]])


def _cifar_batch(name: str, data_dir: str | Path | None) -> bytes:
    """The verified content of one batch."""
    digest = CIFAR_BATCHES[name]
    elsewhere = Source(f"{OTHER_CIFAR_FOLDER}/{name}", digest, CIFAR_HOME)
    member = f"{CIFAR_FOLDER}/{name}"
    official = Source(member, digest, CIFAR_HOME, CIFAR_ADDRESS, member)
    return verified(elsewhere if present(elsewhere, data_dir) else official, data_dir)


def _unpickled(content: bytes) -> Any:
    """The dictionary of a batch. Its checksum has been verified, so that nothing unknown is run."""
    return pickle.load(io.BytesIO(content), encoding="bytes")
