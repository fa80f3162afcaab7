"""Every snippet of the documentation runs as shown, and the site builds without a warning."""

import contextlib
import dataclasses
import io
import re
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest
import torch

import laplace_fiber
from laplace_fiber import baselines, comparison, geometry, plots
from laplace_fiber.evidence import EvidenceChoice
from laplace_fiber.typical_set import Arrival

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
def torchrun(monkeypatch, lone_rank):
    """The environment of the only process of a run."""
    for name, value in lone_rank.items():
        monkeypatch.setenv(name, value)
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


def test_the_site_builds_without_a_warning(tmp_path):
    """As ``make docs`` builds it; every public name is on a page."""
    recipe = (ROOT / "Makefile").read_text()
    (options,) = re.findall(r"python -m sphinx (.*) docs docs/_build", recipe)
    assert "--fail-on-warning" in options
    command = [sys.executable, "-m", "sphinx", *options.split(), str(DOCS), str(tmp_path)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    known = zlib.decompress((tmp_path / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split(" ")[0].rpartition(".")[2] for line in known.splitlines()}
    public = {name for module in (laplace_fiber, baselines, comparison, geometry, plots) for name in module.__all__}
    assert public - documented <= {"METHODS", "PRIOR_PRECISIONS", "baselines"}


def normalised(text):
    """Letters only, so that neither numbers nor line breaks count."""
    return re.sub(r"[^a-z]+", " ", text.lower())


def test_every_sentence_of_a_report_has_a_page(classification):
    """Each sign that a fit can show is quoted where its remedy is explained."""
    arrivals = [
        Arrival(50, 1.0, 500.0, 0.0, 1.0, 10.0, 50, 50, True),
        Arrival(50, 0.0, 0.0, 0.0, 1.0, 1.0, 500, 500, True),
        Arrival(5, 0.0, 2.5, 0.0, 1.0, 10.0, 500, 500, True),
    ]
    evidence = EvidenceChoice(1e8, 1.0, 1e8, 1.0, 0.0, 50.0, 50, 30, False, 1.0)
    bad = dataclasses.replace(
        classification[0].report,
        distance=0.0,
        nll_walk=(9.0,) * 5,
        reconstruction_error=1.0,
        straightness=0.1,
        rejected_share=0.9,
        acceptance=0.1,
        evidence=evidence,
    )
    sentences = {s for arrival in arrivals for s in dataclasses.replace(bad, arrival=arrival).advice()}
    source = (ROOT / "laplace_fiber" / "advice.py").read_text()
    warned = {
        "The network is not at a minimum of the objective",
        "particles met an objective that was not finite",
        "Samples fit the training data much more closely than the trained network does",
    }
    assert all(s in source for s in warned)
    sentences |= warned
    assert len(sentences) >= 18
    quoted = normalised(" ".join(page.read_text() for page in (DOCS / "signs").glob("*.md")))
    missing = [s for s in sentences if normalised(s)[:45].strip() not in quoted]
    assert not missing


def test_a_picture_of_a_sign_shows_it(classification, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "signs")
    import pictures

    (sign,) = [sign for sign in pictures.SIGNS if sign.name == "rejected_steps"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        drawn = pictures.picture(sign)
    assert [axis.get_title() for axis in drawn.axes[:: sign.columns]] == ["the sign", "after the remedy"]
    with pytest.raises(RuntimeError, match="expected the sign in the first fit alone"):
        pictures.fits(dataclasses.replace(sign, trouble=lambda: classification[0], remedied=lambda: classification[0]))


def test_every_sign_has_a_page_with_its_picture(monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "signs")
    import pictures

    pages = {page.stem: page.read_text() for page in (DOCS / "signs").glob("*.md")}
    assert set(pages) == {sign.name for sign in pictures.SIGNS}
    choosing = (DOCS / "choosing.md").read_text()
    for sign in pictures.SIGNS:
        assert normalised(sign.says) in normalised(pages[sign.name])
        assert f"](../img/signs/{sign.name}.png)" in pages[sign.name]
        assert (pictures.PICTURES / f"{sign.name}.png").exists()
        assert f"](signs/{sign.name}.md)" in choosing
        assert "**Remedy.**" in pages[sign.name]
