"""What the processes of the distributed and the checkpointed tests run: ``python walkers.py TASK ARGUMENTS``."""

import datetime
import os
import signal
import sys
import time
from pathlib import Path

import torch
from problems import FAST, classifier, loader

from laplace_fiber import (
    Checkpoint,
    FiberLaplace,
    StochasticRefinement,
    Thermalisation,
    TrajectorySampler,
    stochastic_walk,
    typical_set_walk,
)

TIMEOUT = 60


def streamed_classifier():
    """The classifier, on batches of a shuffling loader."""
    model, data = classifier()
    return model, torch.utils.data.DataLoader(data.dataset, batch_size=16, shuffle=True)


def walk(out: str, n_particles: str, *options: str) -> None:
    """Fit, save the state, and say how far the process group got."""
    settings = dict(option.split("=") for option in options if "=" in option)
    checkpoint = Checkpoint(settings["folder"], every=2) if "folder" in settings else None
    sampler = TrajectorySampler(
        n_particles=int(n_particles), n_steps=8, batch="loader", checkpoint=checkpoint, chunk_size=4
    )
    if "typical" in options:
        thermal = Thermalisation(n_trajectories=3, n_leapfrog=5, n_kept=2)
        sampler = typical_set_walk(n_particles=int(n_particles), n_steps=3, thermal=thermal, chunk_size=4)
    if "stochastic" in options:
        refinement = StochasticRefinement(epochs=1.0, min_steps=4)
        sampler = stochastic_walk(
            n_particles=int(n_particles), n_steps=8, refinement=refinement, checkpoint=checkpoint, chunk_size=4
        )
    model, data = streamed_classifier()
    la = FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST)
    rank = int(os.environ.get("RANK", 0))
    if settings.get("dies") == str(rank):
        stop_at_drift(int(settings["at"]))
    la.fit(data)
    torch.save(la.state_dict(), f"{out}.{rank}")


def other_data(out: str) -> None:
    """Each rank with data of its own: an error."""
    model, data = classifier()
    x, y = data.dataset.tensors
    keep = 40 - 4 * int(os.environ["RANK"])
    FiberLaplace(model, "classification", autoencoder=FAST).fit(loader(x[:keep], y[:keep]))


def stop_at_drift(t: int) -> None:
    """End this process as a kill would, at the start of drift t."""
    from laplace_fiber.walk import Walk

    drift = Walk._drift

    def dying(self: Walk) -> None:
        if self.t == t:
            os.kill(os.getpid(), 9)
        drift(self)

    Walk._drift = dying


def slow(out: str, folder: str) -> None:
    """A walk that stops before its fifth drift until it is interrupted from outside."""
    from laplace_fiber.walk import Walk

    drift = Walk._drift

    def pausing(self: Walk) -> None:
        if self.t == 5:
            Path(out).write_text("waiting")
            time.sleep(300)
        drift(self)

    Walk._drift = pausing
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are started deaf to it
    model, data = streamed_classifier()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampler = TrajectorySampler(
        n_particles=6, n_steps=8, batch="loader", checkpoint=Checkpoint(folder, 2), chunk_size=4
    )
    la = FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST)
    try:
        la.fit(data)
    except KeyboardInterrupt:
        untouched = all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        print("interrupted", untouched and model.training, la.mean is None, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    {"walk": walk, "other_data": other_data, "slow": slow}[sys.argv[1]](*sys.argv[2:])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
