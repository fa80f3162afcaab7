"""The latent autoencoder: its time against the number of weights and against the walk, and what its samples lose."""

from __future__ import annotations

import math
import statistics
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.datasets import Dataset, load
from benchmarks.methods import FULL, QUICK
from benchmarks.models import noise_scale, train, training_for
from benchmarks.report import markdown_table
from benchmarks.speed.common import Options, Spread, cell, interleaved, ratio, seconds_of, spread
from laplace_fiber import LatentAutoencoder, TrajectorySampler
from laplace_fiber.data import Batch, TrainingData
from laplace_fiber.latent import LatentLines
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.predictive import function_samples, negative_log_likelihood
from laplace_fiber.subspace import StreamingBasis
from laplace_fiber.walk_result import Trajectories
from laplace_fiber.weights import NetworkFunction

SIZES = {"2k": 2_000, "100k": 100_000, "1M": 1_000_000, "11M": 11_000_000}
QUICK_SIZES = {"2k": 2_000, "20k": 20_000}
SHAPE = (16, 20)
"""Particles and drifts of the made-up walk."""

QUICK_SHAPE = (4, 5)
REPEATS = 5

DATASETS = ("snelson", "banana", "australian", "glass", "ionosphere", "breast", "vehicle", "waveform")
SEEDS = 3
KNOTS = 400
FORMS = {"default": True, "gradients only": False}
"""With the decoder's closed form, and the paper's plain form."""


def measure(options: Options) -> dict[str, Any]:
    """Both parts."""
    seeds = 1 if options.quick else SEEDS
    _on_dataset("snelson", 0, Options(True, options.data_dir, options.out))  # what torch does once per process
    return {
        "sizes": _over_sizes(options.quick),
        "datasets": {name: _summary([_on_dataset(name, seed, options) for seed in range(seeds)]) for name in DATASETS},
    }


def _over_sizes(quick: bool) -> dict[str, Any]:
    """Seconds for the basis of a walk of that many weights, and for the autoencoder on its coordinates."""
    sizes, shape = (QUICK_SIZES, QUICK_SHAPE) if quick else (SIZES, SHAPE)
    seconds, coordinates = {}, {}
    for name, p in sizes.items():
        seconds[name], coordinates[name] = _made_up_walk(p, *shape)
    settings = LatentAutoencoder(**(QUICK if quick else FULL).autoencoder)
    times = interleaved({name: partial(settings.fit, c) for name, c in coordinates.items()}, 1 if quick else REPEATS)
    smallest = next(iter(times.values()))
    return {
        name: {
            "n_weights": sizes[name],
            "rank": coordinates[name].shape[-1],
            "basis_seconds": seconds[name],
            "autoencoder_seconds": spread(times[name]),
            "over_smallest": ratio(times[name], smallest),
        }
        for name in sizes
    }


def _made_up_walk(p: int, n: int, n_steps: int) -> tuple[float, Tensor]:
    """Seconds in the basis and coordinates of smooth random trajectories in p dimensions.

    Only the present states are kept, as in a walk: those of all steps would not fit for many weights.
    """
    generator = torch.Generator().manual_seed(0)
    basis = StreamingBasis(torch.zeros(p), n * n_steps)
    seconds, steps = 0.0, [torch.zeros(n, 0)]
    heading, place = torch.randn(n, p, generator=generator), torch.zeros(n, p)
    push = torch.empty(n, p)
    for _ in range(n_steps):
        heading.mul_(0.9).add_(push.normal_(generator=generator), alpha=math.sqrt(1 - 0.9**2))
        place.add_(heading, alpha=1 / (n_steps * math.sqrt(p)))
        taken, coordinates = seconds_of(partial(basis.append, place.clone()))
        seconds += taken
        steps.append(coordinates)
    padded = [torch.nn.functional.pad(c, (0, basis.rank - c.shape[1])) for c in steps]
    return seconds, torch.stack(padded, 1)


def _on_dataset(name: str, seed: int, options: Options) -> dict[str, Any]:
    """One walk from a trained network, and autoencoders of both forms on it."""
    effort = QUICK if options.quick else FULL
    dataset = load(name, seed, options.data_dir)
    model = train(dataset, seed, training_for(name).shortened(effort.epoch_share))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*dataset.train), batch_size=512)
    data = TrainingData(loader, torch.device("cpu"))
    network = NetworkFunction(model)
    joint = LogJoint(
        network, dataset.likelihood, data.n_data, torch.ones(1), torch.zeros(1), noise_scale(model, dataset)
    )
    sampler = TrajectorySampler(seed=seed, **effort.walk)
    with network.evaluation():
        walk_seconds, walk = seconds_of(partial(sampler.walk, joint, network.theta(), data))
        forms = {}
        for form, closed in FORMS.items():
            settings = LatentAutoencoder(seed=seed, closed_form=closed, **effort.autoencoder)
            seconds, lines = seconds_of(partial(settings.fit, walk.coordinates))
            forms[form] = {"seconds": seconds, "over_walk": seconds / walk_seconds}
            forms[form] |= _losses(joint, walk, lines, data.everything(), dataset)
    shape = {"n_weights": network.n_params, "n_data": data.n_data, "rank": walk.coordinates.shape[-1]}
    return {**shape, "walk_seconds": walk_seconds, "forms": forms}


def _losses(
    joint: LogJoint, walk: Trajectories, lines: LatentLines, batch: Batch, dataset: Dataset
) -> dict[str, float]:
    """Training loss per sample and validation loss of the average, of the walk's states and of decoded points.

    Both at the same random knots of the trajectories, the MAP left out.
    """
    generator = torch.Generator().manual_seed(0)
    n, t, _ = walk.coordinates.shape
    trajectory = torch.randint(n, (KNOTS,), generator=generator)
    knot = torch.randint(1, t, (KNOTS,), generator=generator)
    coordinates = {
        "states": walk.coordinates[trajectory, knot],
        "decoded": lines.coordinates(trajectory, knot / (t - 1)),
    }
    losses: dict[str, float] = {}
    for name, points in coordinates.items():
        # A few at a time: all outputs of 400 networks on thousands of points would fill the memory.
        weights = walk.subspace.to_weights(points).split(20)
        losses[f"train_{name}"] = float(torch.cat([joint.nll(rows, batch) for rows in weights]).mean())
        x, y = dataset.val
        outputs = torch.cat([function_samples(joint.network, rows, x) for rows in weights])
        averaged = negative_log_likelihood(outputs, y, dataset.likelihood, joint.sigma_noise)
        losses[f"validation_{name}"] = float(averaged)
    gap = losses["train_decoded"] - losses["train_states"]
    return losses | {"train_gap_percent": 100 * gap / abs(losses["train_states"])}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and ranges over seeds, beside the single runs."""
    forms: dict[str, dict[str, Spread]] = {
        form: {key: spread([run["forms"][form][key] for run in runs]) for key in runs[0]["forms"][form]}
        for form in FORMS
    }
    gaps = {
        form: statistics.fmean(
            run["forms"][form]["validation_decoded"] - run["forms"][form]["validation_states"] for run in runs
        )
        for form in FORMS
    }
    return {
        "n_weights": runs[0]["n_weights"],
        "walk_seconds": spread([run["walk_seconds"] for run in runs]),
        "forms": forms,
        "mean_validation_gap": gaps,
        "runs": runs,
    }


def table(results: dict[str, Any]) -> str:
    """One table for each part."""
    header = ["weights", "rank", "basis, s", "autoencoder, s", "over that of the fewest weights"]
    sizes = [
        [name, str(r["rank"]), f"{r['basis_seconds']:.2f}", cell(r["autoencoder_seconds"]), cell(r["over_smallest"])]
        for name, r in results["sizes"].items()
    ]
    columns = ["data", "decoder", "walk, s", "autoencoder, s", "over the walk", "training NLL per sample, states"]
    columns += ["decoded, %", "validation NLL, states", "validation NLL, decoded"]
    rows = [
        [
            *(name, form, cell(r["walk_seconds"]), cell(f["seconds"]), cell(f["over_walk"])),
            *(cell(f["train_states"], ".3f"), cell(f["train_gap_percent"], "+.1f")),
            *(cell(f["validation_states"], ".3f"), cell(f["validation_decoded"], ".3f")),
        ]
        for name, r in results["datasets"].items()
        for form, f in r["forms"].items()
    ]
    return f"{markdown_table(header, sizes)}\n\n{markdown_table(columns, rows)}"
