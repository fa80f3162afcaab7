"""Peak memory of fits against the sum that ``TrajectorySampler.walk`` and ``docs/scaling.md`` document.

Every fit has a process of its own. Counted is what it adds to the memory that is resident after imports, network, data
and a small fit, which loads the code that is loaded at first use. Pages of a basis on disk may be resident while there
is room: such a fit is judged by its anonymous memory, read every 20 ms, the others by the system's own peak.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import resource
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from benchmarks import environment
from benchmarks.records import write_json
from benchmarks.report import markdown_table
from benchmarks.speed.common import Options, seconds_of
from benchmarks.speed.networks import coloured_images, mlp, resnet18, settle_batch_norm, unit_precision
from benchmarks.speed.problems import NOISE, curve
from laplace_fiber import FiberLaplace, FixedRefinement, TrajectorySampler
from laplace_fiber.engines import WORKING_COPIES, output_elements
from laplace_fiber.subspace import SINGLE_PRECISION_LIMIT, BasisStorage

GIB, MIB = 2**30, 2**20
LARGEST_BASIS = 2 * GIB
SAMPLING_SECONDS = 0.02
RESNET_THREADS, RESNET_BATCH = 2, 16

_SPAWN, _FORKSERVER = multiprocessing.get_context("spawn"), multiprocessing.get_context("forkserver")

Send: TypeAlias = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Case:
    """A fit: a network of two hidden layers of ``width`` units (None: ResNet-18), and the settings of the walk.

    Modules named ``subset`` move. The whole process shall stay below ``limit_gib``.
    """

    width: int | None
    n_particles: int = 16
    n_steps: int = 20
    basis: Literal["auto", "float16", "directory"] = "auto"
    subset: tuple[str, ...] | None = None
    limit_gib: float | None = None
    n_images: int = 512

    @property
    def refinement(self) -> FixedRefinement:
        """Two steps of the small networks, so that steps are recorded; one of ResNet-18, which is slow."""
        return FixedRefinement(2 if self.width else 1)


_WIDTHS = {"10k": 98, "100k": 314, "1M": 998}
_LAST_TWO = ("layer4.1.conv2", "fc")


def _cases() -> dict[str, Case]:
    cases = {}
    for (name, width), (n, steps) in itertools.product(_WIDTHS.items(), ((16, 20), (32, 40))):
        numbers = n * steps * (width**2 + 4 * width + 1)
        if numbers * (4 if 4 * numbers <= SINGLE_PRECISION_LIMIT else 2) <= LARGEST_BASIS:
            cases[f"{name} weights, n={n}, T={steps}"] = Case(width, n, steps)
    for basis in ("float16", "directory"):
        cases[f"1M weights, n=16, T=20, {basis}"] = Case(_WIDTHS["1M"], basis=basis)
    return cases | {
        "ResNet-18 last two layers, n=16, T=20": Case(None, subset=_LAST_TWO, limit_gib=4),
        "ResNet-18 all weights, n=16, T=20": Case(None, limit_gib=12),
    }


CASES = _cases()
QUICK_CASES = {
    "100k weights, n=4, T=5": Case(_WIDTHS["100k"], 4, 5),
    "100k weights, n=4, T=5, directory": Case(_WIDTHS["100k"], 4, 5, basis="directory"),
}


class Partial:
    """Results so far of an interrupted measurement, in a file that is removed at its end; failures are tried again."""

    def __init__(self, options: Options, name: str) -> None:
        self._path = options.out / f"{name}{'-quick' if options.quick else ''}.partial.json"
        found = json.loads(self._path.read_text())["cases"] if self._path.exists() else {}
        self.cases: dict[str, dict[str, Any]] = {k: v for k, v in found.items() if v["status"] != "failed"}

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Keep a result."""
        self.cases[name] = result
        write_json(self._path, {"cases": self.cases})

    def remove(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)


def run_alone(
    task: Callable[[Any, Send], None], argument: Any, address_space: int | None = None, from_server: bool = False
) -> dict[str, Any]:
    """Run ``task(argument, send)`` in a new process: all that it sent, and ``status``.

    ``status`` is ``finished``, ``memory``, ``time`` (an alarm that the task has set itself) or ``failed``. A process
    forked ``from_server``, which has done nothing but import the packages, is there at once instead of in ten seconds,
    but the packages' own pages are not counted in its resident memory.
    """
    multiprocessing.set_forkserver_preload(["laplace_fiber"])
    receiving, sending = multiprocessing.Pipe(duplex=False)
    new_process = _FORKSERVER.Process if from_server else _SPAWN.Process
    process = new_process(target=_in_process, args=(task, argument, sending, address_space), daemon=True)
    process.start()
    sending.close()
    results: dict[str, Any] = {}
    with suppress(EOFError):
        while True:
            results |= receiving.recv()
    process.join()
    if "status" not in results:
        ends = {-signal.SIGALRM: "time", -signal.SIGKILL: "memory", -signal.SIGABRT: "memory"}
        results["status"] = ends.get(process.exitcode or 0, "failed")
        results["error"] = f"the process ended with exit code {process.exitcode}"
    return results


def measure(options: Options) -> dict[str, Any]:
    """All cases, one process each."""
    partial = Partial(options, "memory")
    for name, case in tqdm((QUICK_CASES if options.quick else CASES).items(), desc="memory"):
        if name not in partial.cases:
            partial.add(name, run_alone(_measure_case, (name, case, options)))
    partial.remove()
    return {"cases": partial.cases}


def table(results: dict[str, Any]) -> str:
    """Predicted and measured memory of every case."""
    header = ["fit", "weights", "together", "basis", "predicted, MiB", "measured, MiB", "ratio", "anonymous, MiB"]
    header += ["process, MiB", "limit, MiB", "seconds"]
    rows = []
    for name, r in results["cases"].items():
        if r["status"] != "finished":
            rows.append([name, f"{r.get('n_weights', 0):,}", *["–"] * 8, r["status"]])
            continue
        mib = {key: f"{r[f'{key}_bytes'] / MIB:,.0f}" for key in ("predicted", "measured", "anonymous", "process_peak")}
        row = [name, f"{r['n_weights']:,}", str(r["group_size"]), r["basis_dtype"], mib["predicted"], mib["measured"]]
        row += [f"{r['ratio']:.2f}", mib["anonymous"], mib["process_peak"]]
        row += [f"{r['limit_gib'] * 1024:,.0f}" if r["limit_gib"] else "–", f"{r['fit_seconds']:.0f}"]
        rows.append(row)
    lead = "Memory that a fit adds, against the documented sum with the activations of one group."
    return f"{lead}\n\n{markdown_table(header, rows)}"


def _in_process(
    task: Callable[[Any, Send], None], argument: Any, sending: Connection, address_space: int | None
) -> None:
    """What the new process does."""
    if address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    warnings.simplefilter("ignore")  # fits advise on networks that are not at a minimum, which does not matter here
    try:
        task(argument, sending.send)
        sending.send({"status": "finished"})
    except Exception as error:  # one case shall not end the others
        sending.send({"status": "memory" if _is_about_memory(error) else "failed", "error": repr(error)[:2000]})


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error) for words in ("allocate memory", "bad_alloc"))


def _measure_case(argument: tuple[str, Case, Options], send: Send) -> None:
    """Fit, watched, after all that a first fit loads has been loaded."""
    name, case, options = argument
    torch.set_num_threads(options.threads if case.width else RESNET_THREADS)
    model, loader = _problem(case)
    _fit_something_small()
    _gradient(model, *next(iter(loader)))
    gradient_seconds, _ = seconds_of(lambda: _gradient(model, *next(iter(loader))))
    evaluations = case.n_particles * case.n_steps * (1 + case.refinement.max_steps)
    long = gradient_seconds * evaluations > 60
    if long:
        tqdm.write(f"{name}: the walk takes up to about {gradient_seconds * evaluations / 60:.0f} minutes")
    send({"gradient_seconds": gradient_seconds, "limit_gib": case.limit_gib})
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out) as folder:
        la = _posterior(case, model, folder)
        send({"n_weights": la.n_params})
        before = {key: _status(key) for key in ("VmRSS", "RssAnon")}
        environment.reset_peak_memory()
        with _anonymous_memory() as anonymous:
            seconds, _ = seconds_of(lambda: la.fit(loader, progress_bar=long))
        peak = _status("VmHWM")
        added = {"resident": peak - before["VmRSS"], "anonymous": max(anonymous) - before["RssAnon"]}
        parts, facts = _predicted(la, case, next(iter(loader))[0])
    measured, predicted = added["anonymous" if case.basis == "directory" else "resident"], sum(parts.values())
    send({**facts, "fit_seconds": seconds, "predicted_parts": parts, "predicted_bytes": predicted})
    send({"measured_bytes": measured, "ratio": measured / predicted, "anonymous_bytes": added["anonymous"]})
    send({"baseline_bytes": before["VmRSS"], "process_peak_bytes": peak, "process_anonymous_bytes": max(anonymous)})


def _problem(case: Case) -> tuple[nn.Module, DataLoader[tuple[Tensor, ...]]]:
    if case.width is not None:
        data = curve(150)
        return mlp(1, (case.width, case.width), 1), DataLoader(TensorDataset(*data), batch_size=len(data[0]))
    x, y = coloured_images(case.n_images)
    model = resnet18()
    settle_batch_norm(model, x[:RESNET_BATCH])
    return model, DataLoader(TensorDataset(x, y), batch_size=RESNET_BATCH)


def _posterior(case: Case, model: nn.Module, folder: str) -> FiberLaplace:
    dtype = torch.float16 if case.basis == "float16" else None
    sampler = TrajectorySampler(
        case.n_particles,
        case.n_steps,
        refinement=case.refinement,
        batch="full" if case.width else "loader",
        basis=BasisStorage(dtype, folder if case.basis == "directory" else None),
    )
    return FiberLaplace(
        model,
        "regression" if case.width else "classification",
        sigma_noise=NOISE if case.width else 1.0,
        prior_precision=unit_precision(model),
        subset=list(case.subset) if case.subset else "all",
        sampler=sampler,
    )


def _predicted(la: FiberLaplace, case: Case, x: Tensor) -> tuple[dict[str, int], dict[str, Any]]:
    """The parts of the documented sum in bytes, and what they were computed from."""
    if la.report is None:
        raise RuntimeError("Expected the report of a fit; got none.")
    p, n, g, size = la.n_params, case.n_particles, la.report.group_size, 4
    dtype: torch.dtype = la.state_dict()["basis"].dtype
    basis = 0 if case.basis == "directory" else la.report.basis_rank * p * dtype.itemsize
    with la.network.evaluation():
        activations = WORKING_COPIES * output_elements(la.network, x) * g * size
    parts = {"basis": basis, "particles": 3 * n * p * size, "group": 9 * g * p * size, "activations": activations}
    parts["autoencoder"] = 20 * (n * case.n_steps) ** 2 * size
    name = str(dtype).removeprefix("torch.")
    return parts, {"group_size": g, "basis_rank": la.report.basis_rank, "basis_dtype": name}


def _gradient(model: nn.Module, x: Tensor, y: Tensor) -> None:
    loss = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
    torch.autograd.grad(loss(model(x), y), list(model.parameters()))


def _fit_something_small() -> None:
    # 40 drifts: beyond 32 calls, evaluations and steps are recorded.
    sampler = TrajectorySampler(2, 40, refinement=FixedRefinement(2))
    FiberLaplace(mlp(1, (8, 8), 1), "regression", sampler=sampler).fit(DataLoader(TensorDataset(*curve(20)), 20))


@contextmanager
def _anonymous_memory() -> Iterator[list[int]]:
    """This process's anonymous memory while inside, every 20 ms."""
    seen, done = [_status("RssAnon")], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            seen.append(_status("RssAnon"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _status(key: str) -> int:
    """An entry of this process's status (Linux), in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
