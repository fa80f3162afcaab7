"""The command line: ``python -m benchmarks.geometry [--parts PART ...] [--docs FOLDER]``; one JSON per part."""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.geometry.problems import RESULTS

PARTS = ("spread", "two_units", "regression", "underfit", "orbit", "canonical", "connectivity", "shapes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the parts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.geometry", description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="default: all; none: only draw")
    parser.add_argument("--data-dir", type=Path, help="folder of the data files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--docs", type=Path, help="draw the figures of all parts on record into this folder")
    parser.add_argument("--quick", action="store_true", help="a trial of the machinery, with useless numbers")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        start = time.process_time()
        module = importlib.import_module(f"benchmarks.geometry.{part}")
        result = module.measure(options.data_dir, options.quick)
        result |= {"seconds": time.process_time() - start, "environment": environment.describe()}
        (options.out / f"{part}.json").write_text(json.dumps(result) + "\n")
    if options.docs:
        from benchmarks.geometry.figures import draw  # here, since it needs matplotlib

        print("\n".join(map(str, draw(options.out, options.docs))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
