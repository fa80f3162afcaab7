"""What is installed, on what it runs and what is registered: the first lines of a report of a problem."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from laplace.baselaplace import BaseLaplace

import laplace_fiber

PACKAGES = ("torch", "laplace-torch", "curvlinops-for-pytorch", "backpack-for-pytorch", "numpy")
FOR_DEVELOPERS = ("docs", "test")
"""Extras that users have no need of."""


def describe() -> str:
    """Versions, device, flavours registered with laplace-torch, and which optional parts are present."""
    folder = Path(laplace_fiber.__file__).parent
    flavours = [f"  {subset:<12}{structure:<24}{cls.__name__}" for (subset, structure), cls in registered().items()]
    lines = [
        f"laplace-fiber {laplace_fiber.__version__} in {folder}",
        f"Python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{name} {_version(name) or 'missing'}" for name in PACKAGES),
        "",
        f"device: {_device()}",
        "",
        "flavours: Laplace(model, likelihood, subset_of_weights=…, hessian_structure=…)",
        *flavours,
        "",
        "optional parts:",
        *(f"  {line}" for line in _optional_parts()),
    ]
    return "\n".join(lines)


def registered() -> dict[tuple[str, str], type[BaseLaplace]]:
    """Classes of this package in laplace-torch's table, by subset and structure."""
    found, waiting = {}, [BaseLaplace]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        if "_key" in vars(cls) and cls.__module__.split(".")[0] == laplace_fiber.__name__:
            found[cls._key] = cls
    return dict(sorted(found.items()))


def extras() -> dict[str, list[str]]:
    """Packages behind each extra, as the installed package declares them; empty where it is not installed."""
    found: dict[str, list[str]] = {}
    try:
        requirements = metadata.requires("laplace-fiber") or []
    except metadata.PackageNotFoundError:
        return {}
    for requirement in requirements:
        of_extra = re.fullmatch(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"].*", requirement)
        if of_extra and of_extra[1] != "laplace-fiber":
            found.setdefault(of_extra[2], []).append(of_extra[1])
    return {name: found[name] for name in sorted(found) if name not in FOR_DEVELOPERS}


def _optional_parts() -> Iterator[str]:
    known = extras()
    if not known:
        yield "unknown, since laplace-fiber is not installed; run: pip install laplace-fiber"
    for extra, packages in known.items():
        versions = {name: _version(name) for name in packages}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            yield f'{extra:<12}without {", ".join(missing)}; run: pip install "laplace-fiber[{extra}]"'
        else:
            yield f"{extra:<12}{', '.join(f'{name} {version}' for name, version in versions.items())}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = f"CPU, {torch.get_num_threads()} threads"
    return f"{cpu}; {', '.join(names)} (CUDA {torch.version.cuda})" if names else f"{cpu}; no CUDA device"
