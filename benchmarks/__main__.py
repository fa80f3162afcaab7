"""The command line: ``python -m benchmarks demo | run | report | list``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.experiments import EXPERIMENTS, SAME_RUNS
from benchmarks.fidelity import __main__ as fidelity
from benchmarks.fidelity.methods import METHODS as FIDELITY_METHODS
from benchmarks.fidelity.problems import PROBLEMS
from benchmarks.report import report
from benchmarks.run import run_all
from benchmarks.runs import RESULTS, Run

FIDELITY = "fidelity"
"""An experiment with files and tables of its own form."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command; returns the exit status, 1 where a run failed."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    status: int = options.command(options)
    return status


def _demo(options: argparse.Namespace) -> int:
    from benchmarks import demo  # here, since it needs matplotlib

    demo.main(options.out)
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.experiment == FIDELITY:
        return fidelity.main(_fidelity_arguments(options))
    name = SAME_RUNS.get(options.experiment, options.experiment)
    experiment = EXPERIMENTS[name]
    _check("--datasets", options.datasets, experiment.datasets)
    _check("--methods", options.methods, experiment.methods)
    limit = options.limit or experiment.limit_seconds
    runs = [
        Run(name, dataset, method, seed, options.quick, options.data_dir, options.out, limit)
        for seed in range(options.seeds)
        for dataset in options.datasets or experiment.datasets
        for method in options.methods or experiment.methods
        if experiment.applies(dataset, method)
    ]
    failed = run_all(runs, options.jobs)
    for run in failed:
        print(f"failed: {run.path}")
    return 1 if failed else 0


def _fidelity_arguments(options: argparse.Namespace) -> list[str]:
    """The options in the form of the experiment's own command line; its runs go one after another, on one thread."""
    arguments = ["run", "--seeds", str(options.seeds), "--out", str(options.out)]
    arguments += ["--quick"] if options.quick else []
    arguments += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    arguments += ["--limit", str(options.limit)] if options.limit else []
    arguments += ["--problems", *options.datasets] if options.datasets else []
    arguments += ["--methods", *options.methods] if options.methods else []
    return arguments


def _check(option: str, chosen: Sequence[str] | None, known: tuple[str, ...]) -> None:
    """End with a message where something chosen is not known."""
    unknown = sorted(set(chosen or ()) - set(known))
    if unknown:
        raise SystemExit(f"{option}: expected names among {', '.join(known)}; got {', '.join(unknown)}.")


def _report(options: argparse.Namespace) -> int:
    if options.experiment == FIDELITY:
        return fidelity.main(["report", "--out", str(options.out)])
    folders = [options.out / options.experiment] if options.experiment else _result_folders(options.out)
    for folder in folders:
        experiment = EXPERIMENTS[folder.name]
        print(experiment.report(folder) if experiment.report else report(folder, experiment.part))
    if options.docs or options.readme:
        from benchmarks import page  # here, since it needs matplotlib
        from benchmarks.collected import Collected

        results = Collected(options.out)
        if options.docs:
            print("\n".join(map(str, page.write_pages(results, options.docs))))
        if options.readme:
            page.update_readme(options.readme, results)
    return 0


def _list(options: argparse.Namespace) -> int:
    for name, experiment in EXPERIMENTS.items():
        print(f"experiment {name}: {experiment.about}")
        print(f"  data sets: {', '.join(experiment.datasets)}")
        print(f"  methods: {', '.join(experiment.methods)}")
    for name, same in SAME_RUNS.items():
        print(f"experiment {name}: the runs of {same}")
    print(
        f"experiment {FIDELITY}: distances of every method from long HMC (more options: python -m benchmarks.fidelity)"
    )
    print(f"  data sets: {', '.join(PROBLEMS)}")
    print(f"  methods: {', '.join(FIDELITY_METHODS)}")
    print("data sets (snelson and snelson-gap ship with the benchmarks):")
    for name, table in tables.TABLES.items():
        print(f"  {name}: {table.source.path} from {table.source.address or table.source.home}")
    return 0


def _result_folders(out: Path) -> list[Path]:
    return [out / name for name in EXPERIMENTS if (out / name).is_dir()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmarks of laplace-fiber.")
    commands = parser.add_subparsers(required=True)

    command = commands.add_parser("demo", help="Snelson's data: one table, one figure, a few minutes")
    command.add_argument("--out", type=Path, default=RESULTS / "demo" / "snelson.png", help="the figure")
    command.set_defaults(command=_demo)

    command = commands.add_parser("run", help="carry out the runs of an experiment that are not finished")
    command.add_argument("experiment", choices=(*EXPERIMENTS, *SAME_RUNS, FIDELITY))
    command.add_argument("--datasets", nargs="+", help="some of the experiment's data sets")
    command.add_argument("--methods", nargs="+", help="some of the experiment's methods")
    command.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5 of them)")
    command.add_argument("--quick", action="store_true", help="a trial of the machinery, with useless numbers")
    command.add_argument("--data-dir", type=Path, help="folder of the data files")
    command.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    command.add_argument(
        "--limit", type=float, help="seconds for each run (default: the experiment's); in fidelity, for each reference"
    )
    command.add_argument("--jobs", type=int, default=2, help="runs at a time, on one thread each")
    command.set_defaults(command=_run)

    command = commands.add_parser("report", help="print and write the tables")
    command.add_argument("experiment", nargs="?", help="default: every experiment with results")
    command.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    command.add_argument("--docs", type=Path, help="also write the page of all experiments and its figures here")
    command.add_argument("--readme", type=Path, help="also write the main table into this README")
    command.set_defaults(command=_report)

    command = commands.add_parser("list", help="experiments, methods, data sets and where their files come from")
    command.set_defaults(command=_list)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
