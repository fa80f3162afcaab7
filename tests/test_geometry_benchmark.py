"""The runs behind docs/geometry.md: one of them from end to end, and what they assume of the data."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks.geometry.__main__ import PARTS, main
from benchmarks.geometry.figures import FIGURES
from benchmarks.geometry.problems import fresh

ROOT = Path(__file__).parent.parent


def test_a_part_from_the_run_to_its_figure(tmp_path):
    assert main(["--parts", "orbit", "--quick", "--out", str(tmp_path), "--docs", str(tmp_path / "img")]) == 0
    result = json.loads((tmp_path / "orbit.json").read_text())
    orbit, tangent = torch.tensor(result["orbit_nll"]), torch.tensor(result["tangent_nll"])
    torch.testing.assert_close(orbit, orbit[:1].expand(len(orbit)), rtol=0, atol=1e-4)
    assert float(tangent.max() - orbit[0]) > 0.1
    assert (tmp_path / "img" / "orbit.png").stat().st_size > 10_000


def test_every_part_can_be_run_and_every_picture_of_the_page_exists():
    for part in PARTS:
        assert callable(importlib.import_module(f"benchmarks.geometry.{part}").measure)
    assert set(FIGURES) <= set(PARTS)
    page = (ROOT / "docs" / "geometry.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert len(pictures) == len(FIGURES)
    assert all((ROOT / "docs" / picture).exists() for picture in pictures)


@pytest.mark.parametrize("classes", [False, True])
def test_networks_are_trained_to_a_minimum_of_j(classes):
    x = torch.linspace(-2, 2, 20, dtype=torch.float64)[:, None]
    y = (x[:, 0] > 0).long() if classes else x.sin()
    model = fresh(x, y, (4,), 0, 0.5, 1500)
    loss = (
        torch.nn.functional.cross_entropy(model(x), y, reduction="sum")
        if classes
        else 2 * (model(x) - y).square().sum()
    )
    (loss + 0.5 * sum(p.square().sum() for p in model.parameters())).backward()
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 0.3
