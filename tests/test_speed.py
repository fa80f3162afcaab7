"""The measurements of speed: their machinery on small sizes, and the committed tables."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.speed import __main__ as command
from benchmarks.speed import common, gpu, walk

COMMITTED = Path(__file__).parent.parent / "benchmarks" / "results" / "speed"


def test_functions_are_timed_in_turn_after_a_call_that_does_not_count():
    order = []
    seconds = common.interleaved(
        {"a": lambda: order.append("a"), "b": lambda: time.sleep(0.01) or order.append("b")}, 2
    )
    assert order == ["a", "b"] * 3
    assert len(seconds["a"]) == 2
    assert min(seconds["b"]) >= 0.01


def test_ratios_are_those_of_the_same_round():
    result = common.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert result == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert common.cell(result) == "2.00 (1.00 to 3.00)"
    assert common.cell(None) == "–"


def test_the_walk_is_measured_against_a_loop_that_arrives_at_the_same_weights(monkeypatch):
    problem = walk.Problem(walk.QUICK_CASES["regression"])
    result = walk._measured(problem, repeats=1)
    assert set(result["difference_from_sgd"]) == {"plain"}
    assert result["difference_from_sgd"]["plain"]["relative"] < 1e-4
    assert result["microseconds_per_particle_step"]["sgd"]["median"] > 0
    monkeypatch.setattr(walk, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match="expected the weights of the loop"):
        walk._measured(problem, repeats=1)


def test_the_loop_sees_the_batches_of_the_walk():
    case = replace(walk.QUICK_CASES["banana b32"], compiled=False)
    difference = walk._measured(walk.Problem(case), repeats=1)["difference_from_sgd"]["plain"]
    assert difference["relative"] < 1e-4


@pytest.mark.parametrize("name", ["predictions", "memory"])
def test_a_quick_measurement_writes_its_file_and_table(name, tmp_path, capsys):
    assert command.main([name, "--quick", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["name"] == name
    assert content["environment"]["torch"] == torch.__version__.split("+")[0]
    assert content["quick"]
    assert "| ---" in capsys.readouterr().out
    assert command.main(["report", "--out", str(tmp_path)]) == 0
    assert f"## {name.capitalize()}" in (tmp_path / "report.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a CUDA device")
def test_the_gpu_measurement_says_what_it_needs(tmp_path):
    with pytest.raises(SystemExit, match="CUDA"):
        gpu.measure(common.Options(True, None, tmp_path))


@pytest.mark.parametrize("precision", gpu.PRECISIONS.values())
def test_gradients_are_timed_both_ways_and_tabulated(precision, monkeypatch):
    monkeypatch.setattr(gpu, "GRADIENT_REPEATS", 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 10))
    seconds = gpu.gradient_seconds(model, torch.randn(5, 3, 8, 8), torch.arange(5), precision)
    assert seconds["plain"]["median"] > 0
    assert seconds["ratio"]["min"] <= seconds["ratio"]["median"] <= seconds["ratio"]["max"]
    results = json.loads((COMMITTED / "gpu.json").read_text())["results"]
    table = gpu.table({**results, "gradients": {"5 images": seconds}})
    assert f"| 5 images | {1000 * seconds['plain']['median']:.1f} |" in table


def test_the_committed_tables_are_those_of_the_committed_files(tmp_path):
    for file in COMMITTED.glob("*.json"):
        (tmp_path / file.name).write_text(file.read_text())
        assert not json.loads(file.read_text())["quick"]
    assert command.report(tmp_path) == (COMMITTED / "report.md").read_text()
