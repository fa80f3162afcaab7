"""ResNet-18 on a GPU: fits and predictions of FiberLaplace, an ensemble, and laplace-torch's last layer."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from laplace import Laplace
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.datasets import indexed_loader
from benchmarks.report import markdown_table
from benchmarks.speed.common import Options, Spread, cell, interleaved, ratio, spread
from benchmarks.speed.networks import coloured_images, n_weights, resnet18, unit_precision
from laplace_fiber import FiberLaplace, RefineToLevel, TrajectorySampler
from laplace_fiber.data import Batch
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.recording import Recorded
from laplace_fiber.subspace import BasisStorage
from laplace_fiber.weights import NetworkFunction

SUBSETS: dict[str, list[str] | None] = {"all weights": None, "layer4 and fc": ["layer4", "fc"]}
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
WEIGHT_DECAY = 5e-4
GIB = 2**30
GRADIENT_REPEATS = 20


@dataclass(frozen=True)
class Sizes:
    """How much data, and what every method may spend. ``max_steps`` bounds the refinement steps after a drift."""

    n_images: int = 50_000
    batch: int = 128
    n_particles: int = 16
    n_steps: int = 20
    max_steps: int = 10
    n_samples: int = 100
    n_inputs: int = 1000
    n_members: int = 5
    epochs: int = 100
    gradient_batches: tuple[int, ...] = (64, 128)
    limit_seconds: float = 150.0
    """After which no further method begins."""


FULL = Sizes()
QUICK = Sizes(n_images=1024, n_particles=4, n_steps=3, max_steps=2, n_samples=10, n_inputs=100)

Loader = DataLoader[tuple[Tensor, ...]]


def measure(options: Options) -> dict[str, Any]:
    """All methods on the GPU.

    Raises
    ------
    SystemExit
        There is no CUDA device.
    """
    if not torch.cuda.is_available():
        raise SystemExit(
            "python -m benchmarks.speed gpu: expected a CUDA device, found none; run it where there is one."
        )
    return measure_on(torch.device("cuda"), QUICK if options.quick else FULL)


def measure_on(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    """All methods on ``device``, one after another; what fails is recorded."""
    warnings.simplefilter("ignore")  # advice on a network that was trained for one epoch
    x, y = (tensor.to(device) for tensor in coloured_images(sizes.n_images, learnable=True))
    loader = _loader(x, y, sizes.batch)
    models = {name: resnet18().to(device) for name in PRECISIONS}
    epochs = {name: _epoch_seconds(models[name], loader, PRECISIONS[name]) for name in PRECISIONS}
    model, inputs = models["float32"].eval(), x[: sizes.n_inputs]
    some = {b: (inputs[:b], y[:b]) for b in sizes.gradient_batches}
    gradients = {
        f"{b} images, {name}": gradient_seconds(model, *some[b], precision)
        for b, (name, precision) in itertools.product(some, PRECISIONS.items())
    }
    methods: dict[str, Callable[[], dict[str, Any]]] = {
        "Laplace, last layer, Kronecker": partial(_laplace, model, loader, inputs, sizes)
    }
    for subset, precision in itertools.product(SUBSETS, PRECISIONS):
        name = f"Fiber, {subset}, {precision}"
        methods[name] = partial(_fiber, model, loader, inputs, sizes, subset, precision)
    results, start = {}, time.perf_counter()
    for name, method in tqdm(methods.items(), desc="methods"):
        in_time = time.perf_counter() - start < sizes.limit_seconds
        results[name] = _recorded(method, device) if in_time else {"status": "not begun in time"}
        tqdm.write(f"{name}: {results[name]}")
    for name, seconds in epochs.items():
        forward = _predict_seconds(lambda: [_outputs(model, inputs) for _ in range(sizes.n_members)], device)
        fit = seconds * sizes.n_members * sizes.epochs
        results[f"Ensemble, {name}"] = {"status": "finished", "epoch_seconds": seconds, "fit_seconds": fit, **forward}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none"
    found = {"gpu": gpu, "n_weights": n_weights(model), "sizes": asdict(sizes)}
    return {**found, "gradients": gradients, "methods": results}


def table(results: dict[str, Any]) -> str:
    """Seconds of fits and predictions, and the GPU memory of fits."""
    sizes = results["sizes"]
    header = ["method", "fit, s", f"{sizes['n_samples']} samples at {sizes['n_inputs']} inputs, s", "fit, GiB"]
    header += ["gradients per particle", "together", "share of the float32 ensemble's time"]
    ensemble = results["methods"]["Ensemble, float32"]["fit_seconds"]
    rows = []
    for name, r in results["methods"].items():
        if "fit_seconds" not in r:
            rows.append([name, r["status"], *["–"] * 5])
            continue
        row = [
            name,
            f"{r['fit_seconds']:.1f}",
            f"{r['predict_seconds']:.2f}" if "predict_seconds" in r else r["status"],
        ]
        row += [f"{r['fit_peak_bytes'] / GIB:.1f}" if "fit_peak_bytes" in r else "–"]
        row += [f"{r['gradient_evaluations']:.0f}" if "gradient_evaluations" in r else "–"]
        row += [str(r.get("group_size", "–")), f"{r['fit_seconds'] / ensemble:.2%}"]
        rows.append(row)
    lead = (
        f"ResNet-18 with {results['n_weights']:,} weights on {results['gpu']}; {sizes['n_images']:,} generated images. "
        f"The ensemble's time is {sizes['n_members']} members times {sizes['epochs']} epochs, one of them measured; "
        "its prediction is one forward pass per member."
    )
    return f"{lead}\n\n{markdown_table(header, rows)}{_gradient_table(results)}"


def _gradient_table(results: dict[str, Any]) -> str:
    if "gradients" not in results:
        return ""
    rows = [
        [name, *(f"{1000 * seconds[how]['median']:.1f}" for how in ("plain", "recorded")), cell(seconds["ratio"])]
        for name, seconds in results["gradients"].items()
    ]
    header = ["gradient of the loss on", "kernel by kernel, ms", "recorded and captured, ms", "ratio"]
    return f"\n\n{markdown_table(header, rows)}"


def gradient_seconds(model: nn.Module, x: Tensor, y: Tensor, precision: torch.dtype | None) -> dict[str, Spread]:
    """Of one gradient in all weights, by plain calls and by a recording (on a GPU a CUDA graph), and their ratio."""
    network, one = NetworkFunction(model), x.new_ones(1)
    joint = LogJoint(network, "classification", len(y), one, 0 * one, autocast=precision)
    theta, batch = network.theta()[None], Batch([(x, y)], len(y))
    with network.evaluation():
        recorded = Recorded(lambda m, f: tuple(joint.evaluate(m[0], batch.with_tensors(f))), [theta], [x, y])

        def plain() -> None:
            joint.evaluate(theta, batch)
            _wait_for(x.device)

        def again() -> None:
            recorded([theta], [x, y])
            _wait_for(x.device)

        seconds = interleaved({"plain": plain, "recorded": again}, GRADIENT_REPEATS)
    found = {name: spread(values) for name, values in seconds.items()}
    return {**found, "ratio": ratio(seconds["plain"], seconds["recorded"])}


def _fiber(
    model: nn.Module, loader: Loader, inputs: Tensor, sizes: Sizes, subset: str, precision: str
) -> dict[str, Any]:
    sampler = TrajectorySampler(
        sizes.n_particles,
        sizes.n_steps,
        refinement=RefineToLevel(max_steps=sizes.max_steps),
        batch="loader",
        autocast=PRECISIONS[precision],
        basis=BasisStorage(torch.float16),
    )
    la = FiberLaplace(
        model,
        "classification",
        prior_precision=unit_precision(model),
        subset=SUBSETS[subset] or "all",
        sampler=sampler,
    )
    found = _fit(la, loader, inputs.device)
    kept = ("gradient_evaluations", "group_size", "basis_rank", "lost_particles", "nll_map", "nll_walk", "nll_decoded")
    found |= {key: getattr(la.report, key) for key in kept}
    return found | _predict_seconds(lambda: la(inputs, n_samples=sizes.n_samples), inputs.device)


def _laplace(model: nn.Module, loader: Loader, inputs: Tensor, sizes: Sizes) -> dict[str, Any]:
    la = Laplace(model, "classification", "last_layer", "kron", prior_precision=unit_precision(model))
    found = _fit(la, loader, inputs.device)
    options = {"pred_type": "nn", "link_approx": "mc", "n_samples": sizes.n_samples}
    return found | _predict_seconds(lambda: la(inputs, **options), inputs.device)


def _fit(la: Any, loader: Loader, device: torch.device) -> dict[str, Any]:
    """Seconds of a fit, and the GPU memory at its peak, the data's and the network's included."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    found = {"fit_seconds": _seconds(lambda: la.fit(loader), device)}
    if device.type == "cuda":
        found["fit_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def _predict_seconds(predict: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of a first prediction, which tries out group sizes, and of a second one."""
    return {name: _seconds(predict, device) for name in ("first_predict_seconds", "predict_seconds")}


def _epoch_seconds(model: nn.Module, loader: Loader, precision: torch.dtype | None) -> float:
    """Train for one epoch, after some steps that are not counted; momentum, weight decay, no augmentation."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=WEIGHT_DECAY, fused=True)
    device = next(model.parameters()).device

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        with _autocast(device, precision):
            loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    def epoch() -> None:
        for x, y in loader:
            step(x, y)

    model.train()
    for (x, y), _ in zip(loader, range(3), strict=False):
        step(x, y)
    return _seconds(epoch, device)


def _autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if precision is None else torch.autocast(device.type, precision)


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        outputs: Tensor = model(inputs)
    return outputs


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds until the work that a call gives to the device is done."""
    _wait_for(device)
    start = time.perf_counter()
    function()
    _wait_for(device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _recorded(method: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    try:
        return {"status": "finished", **method()}
    except Exception as error:  # the other methods shall go on
        about_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        return {"status": "memory" if about_memory else "failed", "error": repr(error)[:2000]}
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _loader(x: Tensor, y: Tensor, batch: int) -> Loader:
    """Shuffled batches, each taken from the device's memory by one indexing operation."""
    return indexed_loader((x, y), batch, shuffled=True)
