"""Draw the pictures of the failure signs from real fits: ``python docs/signs/pictures.py``, in a minute.

Each sign is a fit whose report shows it, and one whose report does not. The script stops where that is no longer so.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import (
    FiberLaplace,
    FixedRefinement,
    LatentAutoencoder,
    TrajectorySampler,
    plots,
    stochastic_walk,
    typical_set_walk,
)

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "img" / "signs"
SIGMA = 0.3
JITTER = 0.3
SHORT = {"n_particles": 16, "n_steps": 10}
N_DRAWS = 20
FAR = 1000.0
PANEL = (4.2, 3.3)


@dataclass(frozen=True)
class Sign:
    """A failure sign.

    Attributes
    ----------
    name
        Of its page and picture.
    says
        How the report's sentence begins, numbers left out.
    trouble, remedied
        A fit that shows it, and one that does not.
    draw
        Draws one of them into some axes.
    columns
        How many axes that takes.
    """

    name: str
    says: str
    trouble: Callable[[], FiberLaplace]
    remedied: Callable[[], FiberLaplace]
    draw: Callable[[FiberLaplace, Sequence[Axes]], Any]
    columns: int = 1


@cache
def snelson() -> tuple[Tensor, Tensor]:
    """Snelson's 200 points: inputs with mean 0 and variance 1, targets as they are."""
    folder = ROOT / "benchmarks" / "data" / "snelson"
    x, y = (torch.from_numpy(np.loadtxt(folder / f"train_{part}")).float()[:, None] for part in ("inputs", "outputs"))
    return (x - x.mean()) / x.std(), y


class Exponential(nn.Module):
    """A network whose output is the exponential of another one's: large weights overflow."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        """exp(f(x))."""
        return self.inside(x).exp()


@cache
def network(width: int = 24, exponential: bool = False) -> nn.Module:
    """A tanh network of two hidden layers at a minimum of J for prior precision 1."""
    x, y = snelson()
    generator = torch.random.get_rng_state()
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    torch.random.set_rng_state(generator)
    model = Exponential(inside) if exponential else inside
    targets = positive(y) if exponential else y
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2000)
    for _ in range(2000):
        optimizer.zero_grad()
        weights = sum(p.square().sum() for p in model.parameters())
        (0.5 * (((model(x) - targets) / SIGMA).square().sum() + weights)).backward()
        optimizer.step()
        schedule.step()
    return model


def positive(y: Tensor) -> Tensor:
    """Targets that an exponential can have."""
    return y - y.min() + 0.5


def fit(
    targets: Tensor | None = None, model: nn.Module | None = None, batch_size: int = 200, **settings: Any
) -> FiberLaplace:
    """A fit to Snelson's inputs with its or other targets."""
    x, y = snelson()
    y = y if targets is None else targets
    la = FiberLaplace(model or network(), "regression", sigma_noise=SIGMA, **settings)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=batch_size))
    return la


def walk(**settings: Any) -> TrajectorySampler:
    """A short walk."""
    return TrajectorySampler(**{**SHORT, **settings})


class Jittered(DataLoader[tuple[Tensor, ...]]):
    """A loader whose inputs come with noise, anew each time."""

    def __iter__(self) -> Any:
        """Batches of noisy inputs and targets."""
        return ((x + JITTER * torch.randn_like(x), y) for x, y in super().__iter__())


@cache
def arcs() -> tuple[Tensor, Tensor]:
    """Two classes of 60 points each, along arcs and overlapping a little."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(2, 60, generator=generator) * torch.pi
    x = torch.stack([angle.cos(), angle.sin()], dim=-1)
    x[1] = torch.tensor([1.0, 0.3]) - x[1]
    return (x + 0.25 * torch.randn(x.shape, generator=generator)).flatten(0, 1), torch.arange(2).repeat_interleave(60)


@cache
def classifier() -> nn.Module:
    """A network trained on noisy inputs, so that its boundary is smooth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loader = Jittered(TensorDataset(*arcs()), batch_size=30, shuffle=True)
        for x, y in (batch for _ in range(200) for batch in loader):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def classify(loader: type[DataLoader[Any]]) -> FiberLaplace:
    """A walk among batches from that network, on the points as they are or on noisy ones."""
    la = FiberLaplace(classifier(), "classification", prior_precision=0.03, sampler=stochastic_walk(n_particles=8))
    la.fit(loader(TensorDataset(*arcs()), batch_size=30, shuffle=True))
    return la


def draw_classes(la: FiberLaplace, axes: Sequence[Axes]) -> None:
    """Class probabilities around the points."""
    plots.decision_surface(la.predictive_samples, *arcs(), ax=axes[0])


def draw_functions(la: FiberLaplace, axes: Sequence[Axes]) -> None:
    """Single functions of the posterior, and the data."""
    x, y = snelson()
    grid = torch.linspace(-3.0, 3.0, 200)[:, None]
    samples, sigma = la.functional_samples(grid), float(la.sigma_noise)
    plots.bands(grid, samples, sigma_noise=sigma, data=(x, y), draws=N_DRAWS, ax=axes[0])
    axes[0].set_ylim(-5.0, 5.0)


def draw_lines(la: FiberLaplace, axes: Sequence[Axes]) -> None:
    """The loss along the latent lines and along the walk."""
    x, y = snelson()
    plots.line_losses(la, DataLoader(TensorDataset(x, y), batch_size=200), ax=axes[0])
    axes[0].set_yscale("log")


def draw_latent(la: FiberLaplace, axes: Sequence[Axes]) -> None:
    """The latent space."""
    plots.latent_space(la, ax=axes[0])


def draw_walk(la: FiberLaplace, axes: Sequence[Axes]) -> None:
    """The walk, drift by drift; on logarithmic axes what ranges widely."""
    objective, nll, distance, _ = plots.walk(la, ax=axes)
    for axis in (objective, nll):
        low, high = axis.get_ylim()
        if high > 10 * abs(low):
            axis.set_yscale("log")
    if distance.get_ylim()[1] > FAR:
        distance.set_yscale("symlog", linthresh=10)
        distance.set_ylim(bottom=0)


SIGNS = (
    Sign(
        "near_the_map",
        "Samples cluster near the trained weights",
        lambda: fit(model=network(1), sampler=walk(refinement=FixedRefinement(200))),
        lambda: fit(model=network(1), sampler=walk()),
        draw_walk,
        4,
    ),
    Sign(
        "leaves_the_low_loss_set",
        "The walk leaves the low-loss set",
        lambda: fit(sampler=walk(n_steps=20, descent="plain", refinement=FixedRefinement(3))),
        lambda: fit(sampler=walk(n_steps=20)),
        draw_functions,
    ),
    Sign(
        "fits_too_closely",
        "Samples fit the training data much more closely",
        lambda: classify(DataLoader),
        lambda: classify(Jittered),
        draw_classes,
    ),
    Sign(
        "decoded_samples_differ",
        "Decoded samples differ from the walk's states",
        lambda: fit(sampler=walk(n_steps=20), autoencoder=LatentAutoencoder(closed_form=False, n_steps=200)),
        lambda: fit(sampler=walk(n_steps=20)),
        draw_lines,
    ),
    Sign(
        "bent_latent_space",
        "The latent space bends the walk",
        lambda: fit(model=network(3), sampler=walk(descent="quasi-newton", refinement=FixedRefinement(100))),
        lambda: fit(model=network(3), sampler=walk()),
        draw_latent,
    ),
    Sign(
        "rejected_steps",
        "of refinement steps raised the objective and were taken back",
        lambda: fit(sampler=walk(descent="monotone", step_size=1e6, refinement=FixedRefinement(2))),
        lambda: fit(sampler=walk()),
        draw_walk,
        4,
    ),
    Sign(
        "lost_particles",
        "particles met an objective that was not finite",
        lambda: fit(positive(snelson()[1]), network(exponential=True), sampler=walk(reach=400.0)),
        lambda: fit(positive(snelson()[1]), network(exponential=True), sampler=walk()),
        draw_walk,
        4,
    ),
    Sign(
        "not_at_minimum",
        "The network is not at a minimum of the objective",
        lambda: fit(sampler=walk(), prior_precision=100.0),
        lambda: fit(sampler=walk()),
        draw_functions,
    ),
    Sign(
        "typical_set_missed",
        "nats above the minimum of J, where",
        lambda: fit(batch_size=20, sampler=typical_set_walk(n_particles=32, batch="loader")),
        lambda: fit(batch_size=20, sampler=typical_set_walk(n_particles=32)),
        draw_functions,
    ),
    Sign(
        "evidence_without_maximum",
        "The evidence has no maximum",
        lambda: fit(network()(snelson()[0]).detach(), sampler=walk(evidence=True)),
        lambda: fit(sampler=walk(evidence=True)),
        draw_functions,
    ),
)


def shows(sign: Sign, la: FiberLaplace) -> bool:
    """Whether the report of a fit names the sign."""
    return la.report is not None and any(sign.says in sentence for sentence in la.report.advice())


def fits(sign: Sign) -> tuple[FiberLaplace, FiberLaplace]:
    """Both fits of a sign; ``RuntimeError`` where the first does not show it, or the second does."""
    both = sign.trouble(), sign.remedied()
    found = [shows(sign, la) for la in both]
    if found != [True, False]:
        raise RuntimeError(f"{sign.name}: expected the sign in the first fit alone, got {found}; change the settings.")
    return both


def picture(sign: Sign) -> Figure:
    """Both fits of a sign, one beside the other, or one above the other where each takes several axes."""
    wide = sign.columns > 1
    rows, columns = (2, sign.columns) if wide else (1, 2)
    width, height = PANEL
    figure = Figure(figsize=((0.75 if wide else 1.0) * width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    groups = list(axes) if wide else [axes[0, :1], axes[0, 1:]]
    for la, group, title in zip(fits(sign), groups, ("the sign", "after the remedy"), strict=True):
        sign.draw(la, list(group))
        group[0].set_title(title)
    return figure


def main(names: Sequence[str]) -> None:
    """Draw the named signs, or all."""
    torch.set_num_threads(1)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for sign in SIGNS:
        if not names or sign.name in names:
            picture(sign).savefig(PICTURES / f"{sign.name}.png", dpi=90)


if __name__ == "__main__":
    main(sys.argv[1:])
