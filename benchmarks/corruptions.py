"""The 15 corruptions of CIFAR-10-C at 5 severities, drawn with a fixed seed.

Source: Hendrycks and Dietterich (2019), *Benchmarking neural network robustness to common corruptions and
perturbations*, with the severities that its authors published for 32×32 images. Their images were drawn without a fixed
seed, so that these are other draws from the same recipe; scores are close, not equal, to those on the published files.
The library ``imagecorruptions`` has the severities for large photographs only, and asks for OpenCV and numba.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks import corruption_recipes as recipes
from benchmarks.sources import Source, verified

Corruption: TypeAlias = Callable[..., recipes.Images]

FROST_HOME = "https://github.com/hendrycks/robustness (ImageNet-C/create_c)"
FROST = tuple(
    Source(f"cifar10c_frost/{name}", digest, FROST_HOME)
    for name, digest in {
        "frost1.png": "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
        "frost2.png": "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
        "frost3.png": "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
        "frost4.jpg": "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
        "frost5.jpg": "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
    }.items()
)
"""The recipe has a sixth picture, but never draws it."""


def corrupted(
    images: Tensor, name: str, severity: int, seed: int = 0, pictures: Sequence[NDArray[np.uint8]] = ()
) -> Tensor:
    """Corrupted copies of uint8 images (b, 3, h, w).

    Parameters
    ----------
    images, name, severity
        What is corrupted, by which of ``CORRUPTIONS``, and how strongly (1 to 5).
    seed
        Image, corruption, severity and seed fix the result.
    pictures
        For ``frost``: RGB pictures, as of :func:`frost_pictures`.

    Raises
    ------
    ValueError
        Another name or severity, or frost without pictures.
    """
    if name not in CORRUPTIONS or severity not in range(1, 6):
        raise ValueError(f"Expected one of {', '.join(CORRUPTIONS)} and a severity of 1 to 5; got {name}, {severity}.")
    corruption, severities = CORRUPTIONS[name]
    rng = np.random.default_rng([seed, list(CORRUPTIONS).index(name), severity])
    arguments: dict[str, Any] = {"pictures": pictures} if name == "frost" else {}
    x = images.cpu().numpy().transpose(0, 2, 3, 1) / 255.0
    result = corruption(x, severities[severity - 1], rng, **arguments)
    levels = (np.clip(result, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(levels.transpose(0, 3, 1, 2).copy())


def frost_pictures(data_dir: str | Path | None) -> list[NDArray[np.uint8]]:
    """The pictures (h, w, 3) of the recipe, out of the data folder."""
    contents = (verified(source, data_dir) for source in FROST)
    return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]


CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (recipes.gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (recipes.shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (recipes.impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (recipes.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (recipes.glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (recipes.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (recipes.zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        recipes.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (recipes.frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (recipes.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (recipes.brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (recipes.contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        recipes.elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (recipes.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (recipes.jpeg, (80, 65, 58, 50, 40)),
}
"""Each corruption and its setting at severities 1 to 5."""

SEVERITIES = range(1, 6)
