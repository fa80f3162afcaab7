"""Every snippet of the documentation runs as shown, and the site builds without a warning."""

import contextlib
import io
import re
import socket
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts and "```python" in page.read_text())
KNOWN_WARNINGS = "The network is not at a minimum"
"""Also of well-trained networks; the pages explain it."""


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def run(page, names):
    """Run the snippets of a page in order; what they print."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=KNOWN_WARNINGS)
        for number, code in enumerate(snippets(page), start=1):
            exec(compile(code, f"{page.relative_to(ROOT)}, snippet {number}", "exec"), names)
    return output.getvalue()


@pytest.fixture(scope="module")
def quickstart():
    """The reader's own network and data, as pages name them: those of the README."""
    names: dict = {}
    run(ROOT / "README.md", names)
    loaders = {"train_loader": names["train"], "val_loader": names["val"], "test_loader": names["val"]}
    return {"model": names["model"], "x": names["x"], "y": names["y"], **loaders}


@pytest.fixture
def torchrun(monkeypatch):
    """The environment of the only process of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in own.items():
        monkeypatch.setenv(name, str(value))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_snippets_run(page, quickstart, torchrun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(DOCS)
    names = {"__name__": "docs", **quickstart}
    printed = run(page, names)
    if page.name == "start.md":
        assert names["averaged"]["nll"] < 0.6 * names["by_itself"]["nll"]
        assert "train NLL, decoded" in printed
