"""A walk spread over several processes: ``torchrun --nproc-per-node 2 docs/examples/torchrun_walk.py``.

Every process trains the same network (or loads the same file) and reads the same data; particles are spread over them,
and all end with the whole posterior. A checkpoint lets a walk that was interrupted go on, also on another number of
processes. Without torchrun the script walks alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import Checkpoint, FiberLaplace, TrajectorySampler


def data(n: int) -> tuple[Tensor, Tensor]:
    """Two clouds; the same on every process."""
    y = torch.arange(n) % 2
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) + 1.5 * y[:, None], y


def train(x: Tensor, y: Tensor) -> nn.Module:
    """Seeded, so that every process has the same weights; FiberLaplace refuses to walk otherwise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def main(short: bool = False, out: Path | None = None) -> Tensor:
    """Fit on all processes; the first one writes the posterior to ``out``."""
    together = "RANK" in os.environ
    if together:
        dist.init_process_group("gloo")
    rank, size = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
    x, y = data(100 if short else 1000)
    model = train(x, y)

    with tempfile.TemporaryDirectory() as own:
        folders = [own]
        if together:
            dist.broadcast_object_list(folders)  # that of the first process, for all
        walk = {"n_particles": 6, "n_steps": 5} if short else {}
        sampler = TrajectorySampler(checkpoint=Checkpoint(Path(folders[0]) / "walk"), **walk)
        la = FiberLaplace(model, "classification", sampler=sampler)
        la.fit(DataLoader(TensorDataset(x, y), batch_size=100))
        if together:
            dist.barrier()  # before the first process removes the folder

    probabilities = la(torch.tensor([[0.75, 0.75], [6.0, -6.0]]))[:, 1]
    shown = [round(p, 3) for p in probabilities.tolist()]
    print(f"process {rank + 1} of {size}: {len(la.fitted.states)} particles, probabilities {shown}")
    if rank == 0 and out is not None:
        torch.save(la.state_dict(), out)
    if together:
        dist.destroy_process_group()
    return probabilities


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="less data and a shorter walk")
    parser.add_argument("--out", type=Path, help="where to save the posterior")
    main(**vars(parser.parse_args()))
