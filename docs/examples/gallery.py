"""Every picture of docs/plots.md, from generated data: ``python docs/examples/gallery.py [--out FOLDER]``."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from laplace import Laplace
from matplotlib import pyplot
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler, plots, typical_set_walk
from laplace_fiber.baselines import HMC, SWAG, DeepEnsemble
from laplace_fiber.metrics import Prediction, negative_log_likelihood

FOLDER = Path(__file__).parent.parent / "img" / "plots"
ANGLES, NOISES = (0, 15, 30, 45, 60, 75, 90), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WAVE_NOISE = 0.15
SETTINGS = {
    "fiber": {"n_particles": 16, "n_steps": 20},
    "autoencoder": {"n_steps": 600},
    "typical": {"n_particles": 48},
    "hmc": {"n_warmup": 50, "n_kept": 100},
    "swag": {},
    "ensemble": {},
    "networks": 3,
}
SHORT_SETTINGS = {
    "fiber": {"n_particles": 4, "n_steps": 3},
    "autoencoder": {"n_steps": 20},
    "typical": {"n_particles": 4, "n_steps": 2, "thermal": None},
    "hmc": {"n_chains": 2, "n_warmup": 15, "n_kept": 10, "max_leapfrog": 5},
    "swag": {"n_collected": 4, "n_skipped": 1},
    "ensemble": {"n_members": 2, "n_epochs": 2, "min_steps": 10},
    "networks": 1,
}


def wave(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A noisy sine with a gap."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, generator=generator) * 2 - 1
    x = x.sign() * (0.6 + x.abs())
    return x, torch.sin(2.5 * x) + WAVE_NOISE * torch.randn(n, 1, generator=generator)


def crescents(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two crescents that overlap a little, in equal parts."""
    generator = torch.Generator().manual_seed(seed)
    y, angle = torch.arange(n) % 2, torch.pi * torch.rand(n, generator=generator)
    sign = 1 - 2.0 * y
    x = torch.stack([sign * angle.cos() - 0.5 * sign, sign * angle.sin() - 0.25 * sign], 1)
    return x + 0.3 * torch.randn(n, 2, generator=generator), y


def loader(data: tuple[Tensor, Tensor]) -> DataLoader:
    """Batches of 50."""
    return DataLoader(TensorDataset(*data), batch_size=50)


def trained(data: tuple[Tensor, Tensor], n_outputs: int, loss: Callable[..., Tensor], n_epochs: int) -> nn.Module:
    """A small network at a minimum of its loss with weight decay 1 / n, which is prior precision 1."""
    x, y = data
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, n_outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(n_epochs):
        optimizer.zero_grad()
        penalty = sum(p.square().sum() for p in model.parameters()) / (2 * len(x))
        (loss(model(x), y) + penalty).backward()
        optimizer.step()
    return model


def fiber(model: nn.Module, settings: dict[str, Any], seed: int = 0, **options: object) -> FiberLaplace:
    """A FiberLaplace with these settings."""
    sampler = TrajectorySampler(**settings["fiber"], seed=seed)
    return FiberLaplace(model, sampler=sampler, autoencoder=LatentAutoencoder(**settings["autoencoder"]), **options)


def pictures(short: bool) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each function of ``laplace_fiber.plots``."""
    n, n_epochs, settings = (40, 50, SHORT_SETTINGS) if short else (200, 1000, SETTINGS)
    yield "bands", _bands(wave(n // 4, 0), n_epochs, settings)

    data = crescents(n, 0)
    model = trained(data, 2, nn.functional.cross_entropy, n_epochs)
    la = fiber(model, settings, likelihood="classification")
    la.fit(loader(data))
    figure, axes = _panels(3, (13, 3.6))
    plots.decision_surface(la, *data, ax=axes[0])
    plots.decision_surface(la.predictive_samples, *data, show="spread", ax=axes[1])
    plots.decision_surface(la, *data, show="entropy", ax=axes[2])
    yield "decision_surface", figure
    yield "walk", plots.walk(la)[0].figure
    yield "latent_space", plots.latent_space(la).figure
    yield "line_losses", plots.line_losses(la, loader(data)).figure

    methods = fitted_methods(model, data, settings) | {"fiber": la}
    names = {"laplace": "linearised"}  # the same Gaussian: its samples, and its linearised predictive
    drawn = ("laplace", "hmc", "swag", "fiber", "fiber_typical")
    sampled = {name: methods[names.get(name, name)].sample(100) for name in drawn}
    yield "weight_components", plots.weight_components(sampled, la.mean).figure

    test = crescents(5 * n, 1)
    predictions = predicted(model, methods, test[0])
    yield "reliability", plots.reliability(predictions, test[1]).figure
    yield "risk_coverage", plots.risk_coverage(predictions, test[1]).figure
    yield "shift_curves", _shifts(model, methods, test)
    yield "cost", _costs(n // 2, n_epochs // 2, test, settings)


def fitted_methods(model: nn.Module, data: tuple[Tensor, Tensor], settings: dict[str, Any]) -> dict[str, object]:
    """Posteriors by the names of :mod:`laplace_fiber.plots.style`, fitted around one network."""
    methods = {
        "linearised": Laplace(model, "classification", subset_of_weights="all", hessian_structure="full"),
        "hmc": HMC(model, "classification", **settings["hmc"]),
        "swag": SWAG(model, "classification", **settings["swag"]),
        "fiber_typical": FiberLaplace(model, "classification", sampler=typical_set_walk(**settings["typical"])),
    }
    for posterior in methods.values():
        posterior.fit(loader(data))
    return methods


def predicted(model: nn.Module, methods: dict[str, object], x: Tensor) -> dict[str, Prediction]:
    """Class probabilities of the trained network and of each posterior."""
    with torch.no_grad():
        found = {"map": model(x).softmax(-1)}
    for name, posterior in methods.items():
        found[name] = posterior(x)
    return found


def _bands(data: tuple[Tensor, Tensor], n_epochs: int, settings: dict[str, Any]) -> Figure:
    def loss(f: Tensor, y: Tensor) -> Tensor:
        return ((f - y) / WAVE_NOISE).square().mean() / 2

    model = trained(data, 1, loss, 3 * n_epochs)
    la = fiber(model, settings, likelihood="regression", sigma_noise=WAVE_NOISE)
    la.fit(loader(data))
    x = torch.linspace(-2.5, 2.5, 200)[:, None]
    figure, axes = _panels(2, (9, 3.6), sharey=True)
    plots.bands(x, la(x), sigma_noise=WAVE_NOISE, data=data, ax=axes[0])
    plots.bands(x, la.functional_samples(x), draws=20, data=data, ax=axes[1])
    axes[0].set_ylim(-3, 3)
    return figure


def _shifts(model: nn.Module, methods: dict[str, object], test: tuple[Tensor, Tensor]) -> Figure:
    figure, axes = _panels(2, (9, 3.8))
    x, y = test
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    shifts = ((ANGLES, _rotated, "rotation (degrees)"), (NOISES, lambda x, s: x + s * noise, "noise on the inputs"))
    for axis, (sizes, shifted, name) in zip(axes, shifts, strict=True):
        scores: dict[str, dict[float, float]] = {}
        for size in sizes:
            for method, prediction in predicted(model, methods, shifted(x, size)).items():
                scores.setdefault(method, {})[size] = negative_log_likelihood(prediction, y)
        plots.shift_curves(scores, name, ax=axis)
    axes[1].get_legend().remove()
    return figure


def _rotated(x: Tensor, degrees: float) -> Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return x @ torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])


def _costs(n: int, n_epochs: int, test: tuple[Tensor, Tensor], settings: dict[str, Any]) -> Figure:
    """Several networks, each with the methods around it."""
    points: dict[str, list[tuple[float, float]]] = {}
    for seed in range(settings["networks"]):
        part = crescents(n, seed)
        model = trained(part, 2, nn.functional.cross_entropy, n_epochs)
        methods = {
            "linearised": Laplace(model, "classification", subset_of_weights="all", hessian_structure="full"),
            "swag": SWAG(model, "classification", seed=seed, **settings["swag"]),
            "ensemble": DeepEnsemble(model, "classification", seed=seed, **settings["ensemble"]),
            "fiber": fiber(model, settings, seed, likelihood="classification"),
        }
        seconds = {"map": 0.0}
        for name, posterior in methods.items():
            start = time.perf_counter()
            posterior.fit(loader(part))
            if name == "linearised":
                posterior.optimize_prior_precision(method="marglik")
            if name == "fiber":
                posterior.optimize_prior_precision(method="gridsearch", val_loader=loader(crescents(100, 10 + seed)))
            seconds[name] = time.perf_counter() - start
        for name, prediction in predicted(model, methods, test[0]).items():
            points.setdefault(name, []).append((seconds[name], negative_log_likelihood(prediction, test[1])))
    return plots.cost(points).figure


def _panels(n: int, size: tuple[float, float], **options: bool) -> tuple[Figure, list]:
    figure, axes = pyplot.subplots(1, n, figsize=size, layout="constrained", **options)
    return figure, list(axes)


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--short", action="store_true", help="small data and networks that are hardly trained")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    pyplot.switch_backend("agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains and walks that are short on purpose
        for name, figure in pictures(arguments.short):
            figure.savefig(arguments.out / f"{name}.png", dpi=110, facecolor="white")
            pyplot.close(figure)
            print(arguments.out / f"{name}.png")


if __name__ == "__main__":
    main()
