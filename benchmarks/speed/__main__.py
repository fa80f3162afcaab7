"""The command line: ``python -m benchmarks.speed NAME`` carries out a measurement, ``report`` shows them all."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.report import FILE_NAME
from benchmarks.runs import RESULTS
from benchmarks.speed.common import Options

NAMES = ("walk", "autoencoder", "predictions", "memory", "growth", "gpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command; returns the exit status."""
    parsed = _parser().parse_args(arguments)
    out = parsed.out or RESULTS / ("speed-quick" if parsed.quick else "speed")
    if parsed.name == "report":
        print(report(out))
        return 0
    path = record(parsed.name, Options(parsed.quick, parsed.data_dir, out))
    print(_table(json.loads(path.read_text())))
    print(path)
    return 0


def record(name: str, options: Options) -> Path:
    """Carry out the measurement ``name`` and write its file."""
    torch.set_num_threads(options.threads)
    results = _module(name).measure(options)
    content = {
        "name": name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment.describe(),
        "quick": options.quick,
        "results": results,
    }
    path = options.out / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def report(folder: Path) -> str:
    """The tables of all measurements in ``folder``, which are also written there.

    Raises
    ------
    FileNotFoundError
        The folder holds no measurement.
    """
    contents = [json.loads(path.read_text()) for name in NAMES if (path := folder / f"{name}.json").exists()]
    if not contents:
        raise FileNotFoundError(f"Expected files of measurements ({', '.join(NAMES)}) in {folder}; found none.")
    text = "\n\n".join(["# Speed", *(_section(content) for content in contents)]) + "\n"
    (folder / FILE_NAME).write_text(text)
    return text


def _section(content: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in content["environment"].items())
    return f"## {content['name'].capitalize()}\n\n{content['time']}; {machine}\n\n{_table(content)}"


def _table(content: dict[str, Any]) -> str:
    table: str = _module(content["name"]).table(content["results"])
    return table


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.speed.{name}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="How fast laplace-fiber is.")
    parser.add_argument("name", choices=(*NAMES, "report"), help="a measurement, or the tables of all that are done")
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery, with useless numbers")
    parser.add_argument("--data-dir", type=Path, help="folder of the data files")
    parser.add_argument("--out", type=Path, help="folder of the results")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
