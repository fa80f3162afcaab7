"""The wheel and the source distribution, built and installed into clean environments; what a user's tools see of them.

Nothing is fetched: the build backend is among the packages for tests, and a clean environment sees the dependencies of
the present one, but not this checkout.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SCRIPT = """
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler, compare
from laplace_fiber.baselines import SWAG
from laplace_fiber.metrics import evaluate


def posterior(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> FiberLaplace:
    la = FiberLaplace(model, "regression", sigma_noise=0.3, sampler=TrajectorySampler(n_particles=8))
    la.fit(loader)
    return la


def scores(la: FiberLaplace, x: Tensor, y: Tensor) -> float:
    sampled: Tensor = la.sample(3)
    result: dict[str, float] = evaluate(la.predictive_samples(x), y)
    return result["nll"] + float(sampled.sum())


x = torch.randn(5, 2)
loader = DataLoader(TensorDataset(x, x))
print(scores(posterior(nn.Linear(2, 2), loader), x, x), LatentAutoencoder(latent_size=4), SWAG, compare)
"""

MISTAKES = {
    'TrajectorySampler(n_particles="8")': "arg-type",
    'TrajectorySampler(descent="steepest")': "arg-type",
    "TrajectorySampler(particles=8)": "call-arg",
}


UNREAD = [f"{name}.*" for name in ("torch", "laplace", "curvlinops", "torchmetrics", "scipy", "matplotlib", "pandas")]


def run(*command, **options):
    """What a command prints; without the search path of this process, which may lead to the checkout."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    parts = [str(part) for part in command]
    done = subprocess.run(parts, capture_output=True, text=True, check=False, env=own, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution of this checkout, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "-w",
        folder,
        sdist,
    ]
    run(*build)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def clean(distributions, tmp_path_factory):
    """The Python of a new environment with the wheel in it; dependencies come from the present one."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", distributions[1]]
    run(sys.executable, "-m", "pip", "--python", python, *install)
    # A path in a .pth file is searched, but its own .pth files, such as that of an editable checkout, are not read.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    paths = dict.fromkeys([sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("site-packages"))])
    (packages / "dependencies.pth").write_text("\n".join(paths))
    return python


def test_distributions_hold_what_they_should(distributions):
    sdist, wheel = distributions
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "laplace_fiber").rglob("*.py")}
    assert sources | {"laplace_fiber/py.typed"} <= in_wheel
    assert {name.split("/")[0] for name in in_wheel - sources} == {
        "laplace_fiber",
        next(name.split("/")[0] for name in in_wheel if name.endswith("/METADATA")),
    }
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    assert sources | {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "tests/test_packages.py"} <= in_sdist


def test_the_extras_are_named(clean):
    printed = run(
        clean, "-c", "import importlib.metadata as m; print(m.metadata('laplace-fiber').get_all('Provides-Extra'))"
    )
    for extra in ("benchmarks", "compare", "docs", "plots", "test"):
        assert repr(extra) in printed


def test_the_command_line_of_a_clean_environment(clean, tmp_path):
    """Nothing else is said: the import of the package, and of what it needs, is silent."""
    printed = run(clean, "-m", "laplace_fiber", "info", cwd=tmp_path)
    assert printed.startswith("laplace-fiber ")
    assert str(clean.parent.parent) in printed.splitlines()[0]
    assert "warn" not in printed.lower()
    for line in (
        "device: CPU",
        "fiber                   FiberLaplace",
        "compare     matplotlib",
        "plots       matplotlib",
    ):
        assert line in printed


def test_an_import_brings_nothing_but_laplace_torch_and_this_package(clean, tmp_path):
    """What takes long to import is laplace-torch with all that it imports itself; nothing is added to that."""
    code = (
        "import sys, laplace, jaxtyping; before = set(sys.modules); import laplace_fiber; "
        "print('new:', {name.partition('.')[0] for name in set(sys.modules) - before} - {'jaxtyping'}, "
        "[m for m in sys.modules if m.startswith(('laplace_fiber.plots', 'laplace_fiber.info'))])"
    )
    assert "new: {'laplace_fiber'} []" in run(clean, "-c", code, cwd=tmp_path)


def test_types_hold_for_a_user_with_mypy_strict(clean, tmp_path):
    """Other packages count as untyped here: reading torch takes mypy more than a minute."""
    (tmp_path / "right.py").write_text(SCRIPT)
    wrong = "from laplace_fiber import TrajectorySampler\n" + "\n".join(MISTAKES)
    (tmp_path / "wrong.py").write_text(wrong)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = True\n[mypy-{','.join(UNREAD)}]\nfollow_imports = skip\n")
    check = [sys.executable, "-m", "mypy", "--python-executable", clean, "right.py", "wrong.py"]
    done = subprocess.run(check, capture_output=True, text=True, check=False, cwd=tmp_path)
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [line.rpartition("[")[2].rstrip("]") for line in found] == list(MISTAKES.values()), done.stdout + done.stderr
    assert all(line.startswith("wrong.py") for line in found)
