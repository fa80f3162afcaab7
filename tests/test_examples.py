"""The examples of the documentation, each in its short form."""

import importlib.util
import re
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
matplotlib.use("agg")
pytestmark = pytest.mark.filterwarnings("ignore:The network is not at a minimum")


def example(name):
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def short(name, **options):
    with torch.random.fork_rng():
        return example(name).main(short=True, **options)


def drawn(path):
    return path.stat().st_size > 10_000


def test_every_example_is_described_and_run_here():
    described = (ROOT / "docs" / "examples.md").read_text()
    tested = Path(__file__).read_text()
    names = [path.stem for path in sorted(EXAMPLES.glob("*.py"))]
    assert len(names) == 10
    for name in names:
        assert f"examples/{name}.py" in described
        assert f'"{name}"' in tested or f"{name}.py" in tested


def test_snelson(tmp_path):
    """Outside the data the posterior is unsure, and right to be so."""
    found = short("snelson_regression", figure=tmp_path / "bands.png")
    assert found["deviation of the function, gap"] > 2 * found["deviation of the function, test"]
    assert found["nll of the posterior, gap"] < found["nll of the network, gap"]
    assert drawn(tmp_path / "bands.png")


def test_banana(tmp_path):
    found = short("banana", figure=tmp_path / "surface.png")
    assert found["nll of the posterior"] < found["nll of the network"]
    assert drawn(tmp_path / "surface.png")


def test_sklearn(tmp_path):
    found = short("sklearn_tabular", figure=tmp_path / "reliability.png")
    assert found["nll of the posterior"] < found["nll of the network"]
    assert drawn(tmp_path / "reliability.png")


def test_the_ten_lines_are_ten_at_most():
    text = (EXAMPLES / "sklearn_tabular.py").read_text()
    between = re.search(r"# --- ten lines -+\n(.*?)    # -+\n", text, re.DOTALL).group(1)
    assert 0 < len(between.splitlines()) <= 10


def test_hugging_face():
    pytest.importorskip("transformers")
    found = short("huggingface_text")
    assert found["doubt of the posterior"] > found["doubt of the network"]
    assert found["nll of the posterior"] < found["nll of the network"] + 0.05


def test_resnet():
    found = short("last_layer_resnet")
    assert found["nll of the posterior, noise 2.0"] < found["nll of the network, noise 2.0"]


def test_bayesian_optimisation(tmp_path):
    pytest.importorskip("botorch")
    found = short("bayesian_optimisation", figure=tmp_path / "best.png")
    assert 0 < found["first"] <= found["best"] <= 1.1
    assert drawn(tmp_path / "best.png")


def test_out_of_distribution(tmp_path):
    found = short("out_of_distribution", figure=tmp_path / "risk.png")
    assert found["posterior, entropy"] > 0.8
    assert found["posterior, entropy"] > found["network, entropy"] - 0.01
    assert drawn(tmp_path / "risk.png")


def test_what_is_served_is_what_was_fitted():
    found = short("save_load_serve")
    torch.testing.assert_close(found["served"], found["fitted"])
    assert found["served"].shape == (3, 2)


def test_torchrun(tmp_path, monkeypatch, lone_rank):
    """The only process of a group has the posterior of one that walks alone; for two see test_processes.py."""
    short("torchrun_walk", out=tmp_path / "alone.pt")
    for name, value in lone_rank.items():
        monkeypatch.setenv(name, value)
    short("torchrun_walk", out=tmp_path / "together.pt")
    assert not torch.distributed.is_initialized()
    alone, together = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("alone", "together"))
    torch.testing.assert_close(together["states"], alone["states"])


def test_gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gallery.py", "--short", "--out", str(tmp_path)])
    with torch.random.fork_rng():
        example("gallery").main()
    committed = {path.name for path in (ROOT / "docs" / "img" / "plots").glob("*.png")}
    assert {path.name for path in tmp_path.glob("*.png")} == committed
    from laplace_fiber import plots

    assert {f"{name}.png" for name in plots.__all__} == committed
    described = (ROOT / "docs" / "plots.md").read_text()
    assert all(f"img/plots/{name}" in described for name in committed)
