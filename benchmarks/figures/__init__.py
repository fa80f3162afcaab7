"""Figures from the committed results, with the axes of the paper's. Drawing fits nothing and is the same each time."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from benchmarks.collected import Collected
from benchmarks.figures import curves, distances, posteriors, summary
from benchmarks.figures.common import Picture

PICTURES: tuple[Picture, ...] = (*summary.PICTURES, *posteriors.PICTURES, *curves.PICTURES, *distances.PICTURES)
"""All figures."""

FOLDER = Path("img") / "benchmarks"
"""Where they lie, seen from the folder of the pages."""

RESOLUTION = 120
"""Dots per inch."""

LARGEST_FILE = 150_000
"""Bytes, of a file with full colours."""

PALETTE = 256
"""Colours of larger ones."""


def available(results: Collected) -> dict[str, Picture]:
    """Figures whose results exist, by name."""
    return {picture.name: picture for picture in PICTURES if picture.has_results(results)}


def draw_all(results: Collected, docs: Path) -> list[Path]:
    """Draw every figure whose results exist as PNG into ``docs/img/benchmarks``; returns the files."""
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, picture in available(results).items():
        path = folder / f"{name}.png"
        _save(picture.draw(results), path)
        files.append(path)
    return files


def _save(figure: Figure, path: Path) -> None:
    """As PNG: with full colours if the file is small enough, else with a palette, which takes a third of the size."""
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=RESOLUTION)
    with Image.open(drawn) as image:
        full = image.convert("RGB")
    full.save(path, optimize=True)
    if path.stat().st_size > LARGEST_FILE:
        full.quantize(PALETTE, dither=Image.Dither.NONE).save(path, optimize=True)
