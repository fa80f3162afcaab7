"""How each corruption of :mod:`benchmarks.corruptions` changes images.

Each function takes images (b, h, w, 3), float64 in [0, 1], the corruption's settings and the generator of its random
numbers. Results may leave [0, 1].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch.nn import functional

Images: TypeAlias = NDArray[np.float64]

FROST_STEP = 5
"""The recipe shrinks the pictures to a fifth by linear interpolation, which keeps the middle one of five pixels."""

GREY = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in the luminance (ITU-R BT.601)."""

# --- noise -----------------------------------------------------------------------------------------------------------


def gaussian_noise(x: Images, deviation: float, rng: np.random.Generator) -> Images:
    """Independent noise in every value."""
    return x + deviation * rng.standard_normal(x.shape)


def shot_noise(x: Images, photons: float, rng: np.random.Generator) -> Images:
    """Poisson noise of so many photons at full brightness."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Images, share: float, rng: np.random.Generator) -> Images:
    """Salt and pepper, in each colour by itself."""
    white = (rng.random(x.shape) < 0.5).astype(np.float64)
    return np.where(rng.random(x.shape) < share, white, x)


# --- blur ------------------------------------------------------------------------------------------------------------


def defocus_blur(x: Images, size: tuple[float, float], rng: np.random.Generator) -> Images:
    """A disk of a radius, softened by three pixels of a Gaussian."""
    radius, deviation = size
    reach = np.arange(-8, 9)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    soft = np.exp(-0.5 * (np.arange(-1, 2) / deviation) ** 2)
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(soft, soft) / soft.sum() ** 2)
    return ndimage.convolve(x, kernel[None, :, :, None], mode="mirror")


def glass_blur(x: Images, size: tuple[float, int, int], rng: np.random.Generator) -> Images:
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


def motion_blur(x: Images, size: tuple[float, float], rng: np.random.Generator) -> Images:
    """Blur along a line, with one direction for each image."""
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


def zoom_blur(x: Images, largest: float, rng: np.random.Generator) -> Images:
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


def snow(x: Images, settings: tuple[float, ...], rng: np.random.Generator) -> Images:
    """Flakes that fall, in two directions, over a paler image."""
    mean, deviation, factor, threshold, radius, blur, share = settings
    flakes = _enlarged(rng.normal(mean, deviation, (*x.shape[:3], 1)), factor)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = _moved(flakes, radius, blur, rng.uniform(-135, -45, len(x)))
    grey = (x @ GREY)[..., None]
    paler = share * x + (1 - share) * np.maximum(x, 1.5 * grey + 0.5)
    return paler + flakes + flakes[:, ::-1, ::-1]


def frost(
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


def fog(x: Images, settings: tuple[float, float], rng: np.random.Generator) -> Images:
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


def brightness(x: Images, more: float, rng: np.random.Generator) -> Images:
    """The largest of the three colours grows, and the others in proportion: hue and saturation stay."""
    value = x.max(axis=-1, keepdims=True)
    brighter = np.clip(value + more, 0, 1)
    return np.where(value > 0, x * brighter / np.where(value > 0, value, 1), brighter)


def contrast(x: Images, share: float, rng: np.random.Generator) -> Images:
    """Each colour of an image comes closer to its mean."""
    mean = x.mean(axis=(1, 2), keepdims=True)
    return share * (x - mean) + mean


# --- digital ---------------------------------------------------------------------------------------------------------


def elastic(x: Images, shares: tuple[float, float, float], rng: np.random.Generator) -> Images:
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


def pixelate(x: Images, share: float, rng: np.random.Generator) -> Images:
    """Fewer pixels, enlarged again, both by means over boxes."""
    side = x.shape[1]
    small = (int(share * side),) * 2
    box = Image.Resampling.BOX
    return _each_picture(x, lambda picture: picture.resize(small, box).resize((side, side), box))


def jpeg(x: Images, quality: int, rng: np.random.Generator) -> Images:
    """Compression of a quality, as Pillow counts it."""

    def compressed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _each_picture(x, compressed)


def _each_picture(x: Images, change: Callable[[Image.Image], Image.Image]) -> Images:
    levels = np.rint(255 * x).astype(np.uint8)
    # Half a level more, since levels are cut off and not rounded in the end.
    return np.stack([np.asarray(change(Image.fromarray(image))) + 0.5 for image in levels]) / 255
