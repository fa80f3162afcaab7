"""The command line: ``python -m benchmarks.fidelity run | report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.problems import PROBLEMS, Spec
from benchmarks.fidelity.report import report
from benchmarks.fidelity.run import REFERENCE, RESULTS, Run, folder, run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command; returns the exit status, 1 where a run failed."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    status: int = options.command(options)
    return status


def _run(options: argparse.Namespace) -> int:
    runs = [
        Run(Spec(name, activation, tau, seed, options.quick), method, options.limit, options.data_dir, options.out)
        for activation in options.activation
        for tau in options.tau
        for seed in range(options.seeds)
        for name in options.problems
        for method in (REFERENCE, *options.methods)
    ]
    failed = run_all(runs)
    for run in failed:
        print(f"failed: {run.path}")
    return 1 if failed else 0


def _report(options: argparse.Namespace) -> int:
    print(report(folder(options.out, options.quick)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("run", help="carry out the runs that are not finished, references first")
    command.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    command.add_argument("--methods", nargs="*", choices=METHODS, default=tuple(METHODS), help="none: references only")
    command.add_argument("--tau", nargs="+", type=float, default=[1.0], help="prior precisions (default: 1)")
    command.add_argument("--activation", nargs="+", choices=("tanh", "relu"), default=["tanh"])
    command.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default: 3 of them)")
    command.add_argument("--limit", type=float, default=240.0, help="seconds for each reference's chains")
    command.add_argument("--data-dir", type=Path, help="folder of the data files")
    command.set_defaults(command=_run)

    other = commands.add_parser("report", help="print and write the tables")
    other.set_defaults(command=_report)
    for each in (command, other):
        each.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
        each.add_argument("--quick", action="store_true", help="a trial of the machinery, with useless numbers")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
