"""100 posterior samples on 1000 inputs, against as many plain forward passes and against laplace-torch.

The floor is 100 calls of the network as it is: no posterior that averages over 100 networks can predict in less, unless
it evaluates several at once. Fits are made up: bases and decoders have the sizes that the default walk leaves, which
decide what a draw costs, but random directions. Drawing alone is measured at a million weights.
"""

from __future__ import annotations

import copy
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from laplace import KronLaplace, Laplace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.report import markdown_table
from benchmarks.speed.common import Options, cell, in_turn, interleaved, ratio, seconds_of, spread
from benchmarks.speed.problems import clouds, images, lenet, mlp, moons
from laplace_fiber import FiberLaplace, FixedRefinement, LatentAutoencoder, TrajectorySampler
from laplace_fiber.memory import available_bytes
from laplace_fiber.predictive import RECORD_AFTER
from laplace_fiber.subspace import BasisStorage, Subspace

FIT_POINTS = 64
FIT_BATCH = 8
"""Few points at a time: laplace-torch's Jacobians take memory that grows with their square."""

MEMORY_SHARE = 0.4
REPEATS = 3


@dataclass(frozen=True)
class Case:
    """A network with data; the linearised predictive of laplace-torch is asked for ``glm_batches`` inputs at a time."""

    network: Callable[[], nn.Module]
    data: Callable[[int], tuple[Tensor, Tensor]]
    glm_batches: tuple[int, ...]
    subset: Literal["all", "last_layer"] = "all"
    structure: Literal["kron", "diag"] = "kron"
    """Of that predictive; Kronecker factors are laplace-torch's default."""
    large: bool = False
    """Linearised predictions take minutes: only once."""


@dataclass(frozen=True)
class Sizes:
    """Samples and inputs of a prediction, repeats, and those of the drawing of weights."""

    n_samples: int
    n_inputs: int
    repeats: int
    hidden: tuple[int, ...]
    particles: int
    drifts: int


def _million() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *mlp(784, (800, 400), 10))


CASES = {
    "2-32-32-2": Case(partial(mlp, 2, (32, 32), 2), moons, (100,)),
    "14-32-32-2": Case(partial(mlp, 14, (32, 32), 2), partial(clouds, n_features=14), (100,)),
    "LeNet, last layer": Case(lenet, images, (100,), "last_layer"),
    "LeNet": Case(lenet, images, (5, 50), large=True),
    "784-800-400-10": Case(_million, images, (5,), structure="diag", large=True),
}
QUICK_CASES = {name: CASES[name] for name in ("2-32-32-2", "LeNet, last layer", "LeNet")}
FULL = Sizes(100, 1000, REPEATS, (800, 400), 32, 40)
QUICK = Sizes(10, 100, 1, (40, 20), 4, 5)


def measure(options: Options) -> dict[str, Any]:
    """All networks, and the drawing of weights."""
    cases, sizes = (QUICK_CASES, QUICK) if options.quick else (CASES, FULL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the networks are untrained, which fits say
        return {
            "predictions": {name: _predictions(case, sizes) for name, case in cases.items()},
            "drawing": _drawing(sizes),
        }


def _predictions(case: Case, sizes: Sizes) -> dict[str, Any]:
    model = case.network().eval()
    points, (x, _) = case.data(FIT_POINTS), case.data(sizes.n_inputs)
    fiber = _fitted(copy.deepcopy(model), points, sizes, case.subset)
    other, default = (_laplace(model, points, case.subset, structure) for structure in ("diag", case.structure))
    generator, n = torch.Generator().manual_seed(0), sizes.n_samples
    functions: dict[str, Callable[[], object]] = {
        "floor": partial(_forward_passes, model, x, n),
        "first call": lambda: copy.copy(fiber)(x, n_samples=n),  # a copy has nothing kept to be fast
        "repeated call": partial(fiber, x, n_samples=n),
        "fresh samples": partial(fiber, x, n_samples=n, generator=generator),
        "laplace-torch": partial(other, x, pred_type="nn", link_approx="mc", n_samples=n),
    }
    _settle(fiber, functions["repeated call"])
    times = interleaved(functions, sizes.repeats)
    linearised = {
        f"{case.structure}, {size} at a time": _linearised(default, x, size, 1 if case.large else sizes.repeats)
        for size in case.glm_batches
    }
    ours = ("first call", "repeated call", "fresh samples")
    return {
        "n_weights": sum(p.numel() for p in model.parameters()),
        "n_inputs": len(x),
        "n_samples": n,
        "seconds": {name: spread(values) for name, values in times.items()},
        "over_floor": {name: ratio(times[name], times["floor"]) for name in times},
        "laplace_torch_over_ours": {name: ratio(times["laplace-torch"], times[name]) for name in ours},
        "linearised": {way: t if isinstance(t, str) else spread(t) for way, t in linearised.items()},
    }


def _fitted(
    model: nn.Module,
    points: tuple[Tensor, Tensor],
    sizes: Sizes,
    subset: Literal["all", "last_layer"] = "all",
    storage: BasisStorage | None = None,
) -> FiberLaplace:
    """After a short walk, replaced by one of the given size in random directions."""
    sampler = TrajectorySampler(2, 2, reach=1.0, refinement=FixedRefinement(1))
    autoencoder = LatentAutoencoder(n_steps=50)
    fiber = FiberLaplace(model, "classification", sampler=sampler, autoencoder=autoencoder, subset=subset)
    fiber.fit(_loader(points))
    fit, generator = fiber.fitted, torch.Generator().manual_seed(0)
    n, t, p = sizes.particles, sizes.drifts, fiber.n_params
    rank = min(n * t, p)
    basis = (storage or BasisStorage()).allocate(rank, fit.subspace.origin)
    if rank == p:
        basis.copy_(torch.eye(p))  # as a walk leaves it
    else:
        for row in basis:
            row.copy_(torch.randn(p, generator=generator) * p**-0.5)
    steps = torch.randn(n, t, rank, generator=generator) / (rank * t) ** 0.5
    states = torch.cat([torch.zeros(n, 1, rank), steps.cumsum(1)], 1)
    lines = autoencoder.fit(states)
    fiber._fitted = replace(fit, subspace=Subspace(fit.subspace.origin, basis), states=states, lines=lines)
    _ = fiber._fitted.decoded_space  # as a fit leaves it
    return fiber


def _laplace(model: nn.Module, points: tuple[Tensor, Tensor], subset: str, structure: str) -> Any:
    la = Laplace(copy.deepcopy(model), "classification", subset_of_weights=subset, hessian_structure=structure)
    la.fit(_loader(points))
    return la


def _forward_passes(model: nn.Module, x: Tensor, n: int) -> None:
    with torch.no_grad():
        for _ in range(n):
            model(x)


def _settle(fiber: FiberLaplace, call: Callable[[], object]) -> None:
    """Call until evaluations are recorded, as they are in a long series of predictions."""
    for _ in range(RECORD_AFTER + 2):
        call()
        if max(fiber._recorder.calls.values(), default=0) > RECORD_AFTER:
            return


def _linearised(other: Any, x: Tensor, batch: int, repeats: int) -> list[float] | str:
    """Seconds of laplace-torch's default predictions; where they do not fit into the memory, what was raised."""

    def predict() -> None:
        for inputs in x.split(batch):
            other(inputs)

    try:
        with _memory_limit():
            return in_turn({"": lambda: seconds_of(predict)[0]}, repeats)[""]
    except (RuntimeError, MemoryError) as reason:
        return f"failed: {next(iter(str(reason).splitlines()), type(reason).__name__)}"


@contextmanager
def _memory_limit() -> Iterator[None]:
    """Let allocations fail before the system has to end processes: Jacobians can ask for any amount."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    in_use = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    limit = in_use + int(MEMORY_SHARE * available_bytes(torch.device("cpu")))
    hard = limit if old[1] == resource.RLIM_INFINITY else old[1]
    resource.setrlimit(resource.RLIMIT_AS, (min(limit, hard), old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def _drawing(sizes: Sizes) -> dict[str, Any]:
    """Weight samples in the basis of a made-up walk, in either precision, and of laplace-torch's Kronecker form."""
    model, points = mlp(784, sizes.hidden, 10), clouds(FIT_POINTS, 784, 10)
    kron = KronLaplace(copy.deepcopy(model), "classification")
    kron.fit(_loader(points))
    single, half = (_fitted(model, points, sizes, storage=BasisStorage(d)) for d in (torch.float32, torch.float16))
    generator, n = torch.Generator().manual_seed(0), sizes.n_samples
    times = interleaved(
        {
            "float32 basis": partial(single.sample, n, generator),
            "float16 basis": partial(half.sample, n, generator),
            "laplace-torch": partial(kron.sample, n, generator),
        },
        sizes.repeats,
    )
    return {
        "n_weights": single.n_params,
        "rank": len(single.fitted.subspace.basis),
        "n_samples": n,
        "seconds": {name: spread(values) for name, values in times.items()},
        "over_laplace_torch": {name: ratio(times[name], times["laplace-torch"]) for name in times},
    }


def _loader(points: tuple[Tensor, Tensor]) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*points), batch_size=FIT_BATCH)


def table(results: dict[str, Any]) -> str:
    """Seconds, ratios to the floor, and of laplace-torch to here."""
    header = ["network", "weights", "floor, s", "first call / floor", "repeated / floor", "fresh samples / floor"]
    header += [
        "laplace-torch / floor",
        "laplace-torch / repeated",
        "laplace-torch / fresh",
        "laplace-torch linearised, s",
    ]
    rows = []
    for name, r in results["predictions"].items():
        over, other = r["over_floor"], r["laplace_torch_over_ours"]
        row = [cell(over[way]) for way in ("first call", "repeated call", "fresh samples", "laplace-torch")]
        row += [cell(other["repeated call"]), cell(other["fresh samples"])]
        row.append(
            "; ".join(f"{way}: {t if isinstance(t, str) else cell(t, '.3g')}" for way, t in r["linearised"].items())
        )
        rows.append([name, f"{r['n_weights']:,}", cell(r["seconds"]["floor"], ".3g"), *row])
    drawing = results["drawing"]
    lead = f"{drawing['n_samples']} samples of {drawing['n_weights']:,} weights, rank {drawing['rank']}."
    drawn = [
        [name, cell(seconds), cell(drawing["over_laplace_torch"][name])] for name, seconds in drawing["seconds"].items()
    ]
    columns = ["drawing", "seconds", "over laplace-torch's"]
    return f"{markdown_table(header, rows)}\n\n{lead}\n\n{markdown_table(columns, drawn)}"
