"""The command line: ``python -m laplace_fiber compare | methods | info``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from laplace_fiber import __version__
from laplace_fiber.comparison import METHODS, PRIOR_PRECISIONS, Budget, compare
from laplace_fiber.info import describe

PARTS = ("train", "val", "test", "ood")

DESCRIPTION = """\
Compare methods on a trained network of your own. With my_project.py in the present folder:

  python -m laplace_fiber compare --model my_project:trained --data my_project:loaders --methods map,fiber,swag

where trained() returns the network (or a list of several), and loaders() returns the training, validation and test
loaders as a tuple, perhaps with one of out-of-distribution inputs as the fourth, or as a dictionary with the keys
train, val, test and ood. The table is printed and written to the folder --out, as are rows (comparison.csv), everything
(comparison.json: the next call with the same folder computes what is missing) and a figure (comparison.png).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command; returns the exit status, 1 where a method failed."""
    options = _parser().parse_args(arguments)
    status: int = options.command(options)
    return status


def _compare(options: argparse.Namespace) -> int:
    try:
        model, loaders = _called(options.model, "--model"), _loaders(_called(options.data, "--data"))
    except _UsageError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    result = compare(
        model,
        options.likelihood,
        loaders["train"],
        loaders["val"],
        loaders["test"],
        methods=options.methods,
        seeds=options.seeds,
        ood_loader=loaders.get("ood"),
        n_samples=options.n_samples,
        budget=Budget(options.max_settings, options.max_seconds),
        sigma_noise=options.sigma_noise,
        prior_precisions=options.prior_precisions,
        progress_bar=not options.quiet,
        resume=options.out / "comparison.json",
    )
    table = result.to_markdown()
    print(table)
    (options.out / "comparison.md").write_text(table)
    result.to_csv(options.out / "comparison.csv")
    failed = [row for row in result.rows if "error" in row]
    if len(failed) < len(result.rows):
        _plot(result, options.out / "comparison.png")
    return 1 if failed else 0


def _plot(result: Any, path: Path) -> None:
    try:
        result.plot(path)
    except ImportError as error:
        print(f"No figure: {error}", file=sys.stderr)


def _methods(options: argparse.Namespace) -> int:
    for name, method in METHODS.items():
        axes = ", ".join(f"{axis} in {values}" for axis, values in method.axes.items())
        print(f"{name:22} {method.label}" + (f" (tried: {axes})" if axes else ""))
    return 0


def _info(options: argparse.Namespace) -> int:
    print(describe())
    return 0


class _UsageError(Exception):
    """Something that the user named does not exist or is not what it should be."""


def _called(place: str, option: str) -> Any:
    """What the function at ``module:function`` returns."""
    module_name, separator, name = place.partition(":")
    if not (module_name and separator and name):
        raise _UsageError(f"{option}: expected module:function, got {place!r}.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists; something that it imports does not
        raise _UsageError(
            f"{option}: no module named {error.name!r}; it is searched in the present folder and among the installed "
            "packages."
        ) from None
    function: Callable[[], Any] | None = getattr(module, name, None)
    if not callable(function):
        known = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise _UsageError(f"{option}: expected a function {name!r} in {module_name}, got none; it has {known}.")
    return function()


def _loaders(data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping):
        unknown = set(data) - set(PARTS)
        missing = set(PARTS[:3]) - set(data)
        if unknown or missing:
            raise _UsageError(f"--data: expected the keys {PARTS} (ood may be missing), got {sorted(data)}.")
        return dict(data)
    if not isinstance(data, (tuple, list)) or len(data) not in (3, 4):
        raise _UsageError(f"--data: expected loaders for {PARTS[:3]}, and perhaps 'ood', got a {type(data).__name__}.")
    return dict(zip(PARTS, data, strict=False))


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _integers(text: str) -> list[int]:
    return [int(part) for part in _names(text)]


def _floats(text: str) -> list[float]:
    return [float(part) for part in _names(text)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m laplace_fiber",
        description="Posteriors for laplace-torch that follow the curved set of low-loss weights. "
        "'COMMAND --help' tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"laplace-fiber {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    default = {f.name: f.default for f in fields(Budget)}

    command = commands.add_parser(
        "compare",
        help="compare methods on a trained network",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("--model", required=True, metavar="MODULE:FUNCTION", help="returns the trained network")
    add("--data", required=True, metavar="MODULE:FUNCTION", help="returns the loaders")
    add("--likelihood", choices=("classification", "regression"), default="classification")
    add("--methods", type=_names, metavar="A,B", help="default: all that apply; see the command methods")
    add("--seeds", type=_integers, default=[0], metavar="0,1", help="of the methods' random numbers (default: 0)")
    add("--n-samples", type=int, default=100, help="posterior samples behind a prediction (default: 100)")
    add(
        "--max-settings",
        type=int,
        default=default["n_settings"],
        help="most settings tried (default: %(default)s)",
    )
    add(
        "--max-seconds",
        type=float,
        default=default["seconds"],
        help="of each search (default: %(default)s)",
    )
    add("--sigma-noise", type=float, help="noise of the targets (regression; default: estimated)")
    add("--prior-precisions", type=_floats, default=PRIOR_PRECISIONS, metavar="1,10", help="values tried, in order")
    add("--out", type=Path, default=Path("comparison"), help="folder of the results (default: comparison)")
    add("--quiet", action="store_true", help="no progress bars")
    command.set_defaults(command=_compare)

    command = commands.add_parser("methods", help="names of the methods, and the settings tried for each")
    command.set_defaults(command=_methods)

    command = commands.add_parser("info", help="versions, device, flavours and optional parts: for reports of problems")
    command.set_defaults(command=_info)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
