"""The 15 corruptions of CIFAR-10-C at 5 severities, drawn with a fixed seed.

Source: Hendrycks and Dietterich (2019), *Benchmarking neural network robustness to common corruptions and
perturbations*, with the severities that its authors published for 32×32 images. Their images were drawn without a fixed
seed, so that these are other draws from the same recipe; scores are close, not equal, to those on the published files.
The library ``imagecorruptions`` has the severities for large photographs only, and asks for OpenCV and numba.

Arrays are images (b, h, w, 3), float64 in [0, 1]; what leaves that range is cut off at the end.
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
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from benchmarks.datasets import Source, read

Images: TypeAlias = NDArray[np.float64]
Corruption: TypeAlias = Callable[..., Images]

FROST_HOME = "https://github.com/hendrycks/robustness (ImageNet-C/create_c)"
FROST = (
    Source(
        "cifar10c_frost/frost1.png", "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755", FROST_HOME
    ),
    Source(
        "cifar10c_frost/frost2.png", "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137", FROST_HOME
    ),
    Source(
        "cifar10c_frost/frost3.png", "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504", FROST_HOME
    ),
    Source(
        "cifar10c_frost/frost4.jpg", "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e", FROST_HOME
    ),
    Source(
        "cifar10c_frost/frost5.jpg", "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2", FROST_HOME
    ),
)
"""The recipe has a sixth picture, but never draws it."""

FROST_STEP = 5
"""The recipe shrinks the pictures to a fifth by linear interpolation, which keeps the middle one of five pixels."""

GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""


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
    x = images.numpy().transpose(0, 2, 3, 1) / 255.0
    result = corruption(x, severities[severity - 1], rng, **arguments)
    levels = (np.clip(result, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(levels.transpose(0, 3, 1, 2).copy())


def frost_pictures(data_dir: str | Path | None) -> list[NDArray[np.uint8]]:
    """The pictures (h, w, 3) of the recipe, out of the data folder."""
    contents = (read(source, data_dir) for source in FROST)
    return [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in contents]


# --- noise -----------------------------------------------------------------------------------------------------------


def _gaussian_noise(x: Images, deviation: float, rng: np.random.Generator) -> Images:
    return x + deviation * rng.standard_normal(x.shape)


def _shot_noise(x: Images, photons: float, rng: np.random.Generator) -> Images:
    return rng.poisson(x * photons) / photons


def _impulse_noise(x: Images, share: float, rng: np.random.Generator) -> Images:
    """Salt and pepper, in each colour by itself."""
    white = (rng.random(x.shape) < 0.5).astype(np.float64)
    return np.where(rng.random(x.shape) < share, white, x)


# --- blur ------------------------------------------------------------------------------------------------------------


def _defocus_blur(x: Images, size: tuple[float, float], rng: np.random.Generator) -> Images:
    """A disk of a radius, softened by three pixels of a Gaussian."""
    radius, deviation = size
    reach = np.arange(-8, 9)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    soft = np.exp(-0.5 * (np.arange(-1, 2) / deviation) ** 2)
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(soft, soft) / soft.sum() ** 2)
    return ndimage.convolve(x, kernel[None, :, :, None], mode="mirror")


def _glass_blur(x: Images, size: tuple[float, int, int], rng: np.random.Generator) -> Images:
    """Each pixel in turn becomes a copy of a near one, between two Gaussian blurs.

    The published code would let them change places, but its assignment of views copies.
    """
    deviation, reach, n_passes = size
    x = _softened(x, deviation)
    every = np.arange(len(x))
    rows, columns = x.shape[1:3]
    for _ in range(n_passes):
        for row in range(rows - reach, reach, -1):
            for column in range(columns - reach, reach, -1):
                down, right = rng.integers(-reach, reach, (2, len(x)))
                x[:, row, column] = x[every, row + down, column + right]
    return _softened(x, deviation)


def _softened(x: Images, deviation: float) -> Images:
    return ndimage.gaussian_filter(x, (0, deviation, deviation, 0), mode="nearest")


def _motion_blur(x: Images, size: tuple[float, float], rng: np.random.Generator) -> Images:
    return _moved(x, *size, rng.uniform(-45, 45, len(x)))


def _moved(x: Images, radius: float, deviation: float, degrees: NDArray[np.float64]) -> Images:
    """Means along a line that starts at each pixel, weighted by half a Gaussian; one direction for each image."""
    steps = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-0.5 * (steps / deviation) ** 2)
    weights /= weights.sum()
    angles = np.deg2rad(degrees)
    down = np.ceil(np.outer(steps, np.sin(angles)) - 0.5).astype(int)
    right = np.ceil(np.outer(steps, np.cos(angles)) - 0.5).astype(int)
    every = np.arange(len(x))[:, None, None]
    rows, columns = np.arange(x.shape[1])[:, None], np.arange(x.shape[2])
    result = np.zeros_like(x)
    for weight, below, beside in zip(weights, down, right, strict=True):
        row = np.clip(rows + below[:, None, None], 0, x.shape[1] - 1)
        column = np.clip(columns + beside[:, None, None], 0, x.shape[2] - 1)
        result += weight * x[every, row, column]
    return result


def _zoom_blur(x: Images, largest: float, rng: np.random.Generator) -> Images:
    """The mean over the image and its enlargements in steps of 1 %, the first of which is the image again."""
    factors = np.arange(1, largest, 0.01)
    return (x + sum(_enlarged(x, factor) for factor in factors)) / (len(factors) + 1)


def _enlarged(x: Images, factor: float) -> Images:
    """The middle of the images, enlarged to their size by linear interpolation."""
    size = x.shape[1]
    kept = int(np.ceil(size / factor))
    top = (size - kept) // 2
    middle = torch.from_numpy(x[:, top : top + kept, top : top + kept]).movedim(-1, 1)
    grown = round(kept * factor)
    large = functional.interpolate(middle, (grown, grown), mode="bilinear", align_corners=True)
    top = (grown - size) // 2
    return large[:, :, top : top + size, top : top + size].movedim(1, -1).numpy()


# --- weather ---------------------------------------------------------------------------------------------------------


def _snow(x: Images, settings: tuple[float, ...], rng: np.random.Generator) -> Images:
    """Flakes that fall, in two directions, over a paler image."""
    mean, deviation, factor, threshold, radius, blur, share = settings
    flakes = _enlarged(rng.normal(mean, deviation, (*x.shape[:3], 1)), factor)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _moved(flakes, radius, blur, rng.uniform(-135, -45, len(x)))
    grey = (x @ GREY)[..., None]
    paler = share * x + (1 - share) * np.maximum(x, 1.5 * grey + 0.5)
    return paler + flakes + flakes[:, ::-1, ::-1]


def _frost(
    x: Images, shares: tuple[float, float], rng: np.random.Generator, pictures: Sequence[NDArray[np.uint8]]
) -> Images:
    """A mixture with a part of a picture of ice."""
    if not pictures:
        raise ValueError("frost: expected pictures of ice, got none; pass pictures=frost_pictures(data_dir).")
    small = [picture[FROST_STEP // 2 :: FROST_STEP, FROST_STEP // 2 :: FROST_STEP] / 255.0 for picture in pictures]
    rows, columns = x.shape[1:3]
    parts = np.empty_like(x)
    for part in parts:
        picture = small[rng.integers(len(small))]
        top, left = rng.integers(picture.shape[0] - rows), rng.integers(picture.shape[1] - columns)
        part[:] = picture[top : top + rows, left : left + columns]
    return shares[0] * x + shares[1] * parts


def _fog(x: Images, settings: tuple[float, float], rng: np.random.Generator) -> Images:
    """A cloud is added, and the brightest value kept."""
    strength, decay = settings
    clouds = _clouds(len(x), x.shape[1], decay, rng)[..., None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + strength * clouds) * brightest / (brightest + strength)


def _clouds(n: int, size: int, decay: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random heights (n, size, size) from 0 to 1 by the diamond-square algorithm on a torus, for a power of two.

    Source: Fournier, Fussell and Carpenter (1982), *Computer rendering of stochastic models*.
    """
    heights = np.zeros((n, size, size))
    step, spread = size, 1.0

    def mean_of(*four: NDArray[np.float64]) -> NDArray[np.float64]:
        return sum(four) / 4 + rng.uniform(-spread, spread, four[0].shape)

    while step >= 2:
        half = step // 2
        corners = heights[:, ::step, ::step]
        below = np.roll(corners, -1, axis=1)
        centres = mean_of(corners, below, np.roll(corners, -1, axis=2), np.roll(below, -1, axis=2))
        heights[:, half::step, half::step] = centres
        right = np.roll(corners, -1, axis=2)
        heights[:, ::step, half::step] = mean_of(corners, right, centres, np.roll(centres, 1, axis=1))
        heights[:, half::step, ::step] = mean_of(corners, below, centres, np.roll(centres, 1, axis=2))
        step, spread = half, spread / decay**2
    heights -= heights.min(axis=(1, 2), keepdims=True)
    return heights / heights.max(axis=(1, 2), keepdims=True)


def _brightness(x: Images, more: float, rng: np.random.Generator) -> Images:
    """The largest of the three colours grows, and the others in proportion: hue and saturation stay."""
    value = x.max(axis=-1, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def _contrast(x: Images, share: float, rng: np.random.Generator) -> Images:
    mean = x.mean(axis=(1, 2), keepdims=True)
    return share * (x - mean) + mean


# --- digital ---------------------------------------------------------------------------------------------------------


def _elastic(x: Images, shares: tuple[float, float, float], rng: np.random.Generator) -> Images:
    """A random affine map, then smooth random displacements; all lengths are shares of the image's side."""
    side = x.shape[1]
    length, deviation, jitter = (side * share for share in shares)
    centre, reach = side // 2, side // 3
    corners = np.array([[centre + reach] * 2, [centre + reach, centre - reach], [centre - reach] * 2], dtype=float)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).astype(float)
    result = np.empty_like(x)
    for image, changed in zip(x, result, strict=True):
        moved = corners + rng.uniform(-jitter, jitter, corners.shape)
        # The map that takes the moved corners back, in homogeneous coordinates.
        back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners).T
        places = np.tensordot(back[:, :2], grid, 1) + back[:, 2, None, None]
        displacement = length * ndimage.gaussian_filter(
            rng.uniform(-1, 1, grid.shape), (0, deviation, deviation), mode="reflect", truncate=3
        )
        for colour in range(x.shape[3]):
            mapped = ndimage.map_coordinates(image[..., colour], places, order=1, mode="mirror")
            changed[..., colour] = ndimage.map_coordinates(mapped, grid + displacement, order=1, mode="reflect")
    return result


def _pixelate(x: Images, share: float, rng: np.random.Generator) -> Images:
    side = x.shape[1]
    small = (int(share * side),) * 2
    box = Image.Resampling.BOX
    return _each_picture(x, lambda picture: picture.resize(small, box).resize((side, side), box))


def _jpeg(x: Images, quality: int, rng: np.random.Generator) -> Images:
    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each_picture(x, compressed)


def _each_picture(x: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    levels = np.rint(255 * x).astype(np.uint8)
    # Half a level more, since levels are cut off and not rounded in the end.
    return np.stack([np.asarray(change(Image.fromarray(image))) + 0.5 for image in levels]) / 255


CORRUPTIONS: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (_defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "glass_blur": (_glass_blur, ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))),
    "motion_blur": (_motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (_zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (
        _snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    "frost": (_frost, ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))),
    "fog": (_fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        _elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (_jpeg, (80, 65, 58, 50, 40)),
}
"""Each corruption and its setting at severities 1 to 5."""

SEVERITIES = range(1, 6)
