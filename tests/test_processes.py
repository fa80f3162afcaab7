"""Walks spread over processes, walks whose process died, and walks that were interrupted."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import walkers
from problems import FAST, classifier, joint_of
from tqdm import tqdm

from laplace_fiber import BasisStorage, Checkpoint, FiberLaplace, TrajectorySampler
from laplace_fiber.distributed import Ranks

SCRIPT = str(Path(walkers.__file__))


def start(*arguments: str, **variables: str) -> subprocess.Popen:
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_ranks(size: int, *arguments: str) -> list[subprocess.Popen]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(size)]


def finish(processes: list[subprocess.Popen], timeout: float = 180) -> list[str]:
    return [process.communicate(timeout=timeout)[0] for process in processes]


def saved(path: Path, rank: int = 0) -> dict:
    return torch.load(f"{path}.{rank}", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The state of a walk of seven particles in one process."""
    out = tmp_path_factory.mktemp("alone") / "state"
    walkers.walk(str(out), "7")
    return saved(out)


def assert_same_posterior(state: dict, expected: dict, tolerance: float) -> None:
    """States of the walk and decoded samples agree to ``tolerance`` of the walk's size, whatever the basis."""
    posteriors = []
    for values in (state, expected):
        la = FiberLaplace(walkers.streamed_classifier()[0], "classification", autoencoder=FAST)
        la.load_state_dict(values)
        posteriors.append(la)
    walks = [la._fitted.subspace.to_weights(la._fitted.states.flatten(0, 1)) for la in posteriors]
    size = float((walks[1] - walks[1][0]).norm(dim=-1).max())
    torch.testing.assert_close(walks[0], walks[1], rtol=0, atol=tolerance * size)
    samples = [la.sample(50) for la in posteriors]
    torch.testing.assert_close(samples[0], samples[1], rtol=0, atol=100 * tolerance * size)


@pytest.mark.parametrize(("size", "n_particles"), [(2, 7), (3, 7), (3, 2)])
def test_ranks_end_with_the_posterior_of_one_process(size, n_particles, alone, tmp_path):
    """To 1e-9 of the walk's size in float64, also where particles do not divide evenly or a rank has none."""
    expected = alone
    if n_particles != 7:
        walkers.walk(str(tmp_path / "alone"), str(n_particles))
        expected = saved(tmp_path / "alone")
    outputs = finish(start_ranks(size, "walk", str(tmp_path / "state"), str(n_particles)))
    states = [saved(tmp_path / "state", rank) for rank in range(size)], outputs
    for state in states[0]:
        assert_same_posterior(state, expected, 1e-9)
        for one, other in zip(state["lines"], states[0][0]["lines"], strict=True):
            assert torch.equal(one, other)


def test_ranks_end_in_the_typical_set_of_one_process(tmp_path):
    """The moves' step size follows the acceptance of all ranks, one of which has no particles."""
    walkers.walk(str(tmp_path / "alone"), "2", "typical")
    finish(start_ranks(3, "walk", str(tmp_path / "state"), "2", "typical"))
    for rank in range(3):
        state, expected = saved(tmp_path / "state", rank), saved(tmp_path / "alone")
        assert_same_posterior(state, expected, 1e-7)


def test_stochastic_walks_are_shared_and_resumed(tmp_path):
    """Two ranks until one is killed, then three, among which one has no particle; gradients begin anew at a drift."""
    walkers.walk(str(tmp_path / "alone"), "2", "stochastic")
    folder = f"folder={tmp_path / 'walk'}"
    finish(start_ranks(2, "walk", str(tmp_path / "first"), "2", "stochastic", folder, "dies=0", "at=4"))
    assert (tmp_path / "walk" / "walk.pt").exists()
    finish(start_ranks(3, "walk", str(tmp_path / "second"), "2", "stochastic", folder))
    for rank in range(3):
        state, expected = saved(tmp_path / "second", rank), saved(tmp_path / "alone")
        assert_same_posterior(state, expected, 1e-9)


def test_torchrun(alone, tmp_path):
    """The documented command."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT]
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [*command, "walk", str(tmp_path / "state"), "7"],
        env={**os.environ, "PYTHONPATH": root},
        check=True,
        timeout=180,
    )
    assert_same_posterior(saved(tmp_path / "state", 1), alone, 1e-9)


def test_when_a_rank_dies_the_others_say_so():
    processes = start_ranks(3, "walk", "unused", "7", "dies=1", "at=3")
    started = time.monotonic()
    outputs = finish(processes)
    assert time.monotonic() - started < walkers.TIMEOUT + 60
    assert processes[1].returncode == -signal.SIGKILL
    for rank in (0, 2):
        assert processes[rank].returncode == 1
        assert "expected 3 processes to take part, but another one stopped" in outputs[rank]


def test_a_distributed_walk_resumes_with_another_number_of_ranks(alone, tmp_path):
    folder = tmp_path / "walk"
    finish(start_ranks(2, "walk", str(tmp_path / "first"), "7", f"folder={folder}", "dies=0", "at=6"))
    assert (folder / "walk.pt").exists()
    finish(start_ranks(3, "walk", str(tmp_path / "second"), "7", f"folder={folder}"))
    assert_same_posterior(saved(tmp_path / "second"), alone, 1e-9)
    assert not folder.exists()


def test_ranks_with_other_data_are_refused():
    outputs = finish(start_ranks(2, "other_data", "unused"))
    for output in outputs:
        assert "distributed walk: expected the same n_data on all ranks, got [40, 36]" in output


def test_distributed_needs_a_process_group():
    with pytest.raises(ValueError, match="expected an initialised process group"):
        Ranks(True)
    assert Ranks().size == Ranks(False).size == 1


@pytest.mark.parametrize("at", ["1", "4", "8"])
def test_a_killed_walk_resumes_to_the_same_posterior(at, alone, tmp_path):
    """Killed in the first drift, half-way and in the last one: the same numbers, bit by bit."""
    folder = tmp_path / "walk"
    killed = start("walk", str(tmp_path / "killed"), "7", f"folder={folder}", "dies=0", f"at={at}")
    finish([killed])
    assert killed.returncode == -signal.SIGKILL
    assert (folder / "walk.pt").exists() == (at != "1")
    walkers.walk(str(tmp_path / "resumed"), "7", f"folder={folder}")
    assert not folder.exists()
    resumed = saved(tmp_path / "resumed")
    assert torch.equal(resumed["basis"], alone["basis"])
    assert torch.equal(resumed["states"], alone["states"])


def test_interrupted_and_resumed(tmp_path):
    """Ctrl-C: the model is as it was, the object unfitted, and the walk goes on where it was saved."""
    progress, folder = tmp_path / "progress", tmp_path / "walk"
    process = start("slow", str(progress), str(folder))
    deadline = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "interrupted True True" in finish([process])[0]
    first_drifts = []

    class Watched(tqdm):
        def __init__(self, *args, initial=0, **kwargs):
            first_drifts.append(initial)
            super().__init__(*args, initial=initial, **kwargs)

    model, data = walkers.streamed_classifier()
    sampler = TrajectorySampler(
        n_particles=6, n_steps=8, batch="loader", checkpoint=Checkpoint(folder, 2), chunk_size=4
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("laplace_fiber.walk.tqdm", Watched)
        FiberLaplace(model, "classification", sampler=sampler, autoencoder=FAST).fit(data)
    assert first_drifts[0] == 4  # saved after every second drift


def test_an_interrupted_refit_leaves_the_object_unfitted(monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    model, data = classifier()
    la = FiberLaplace(model, "classification", sampler=TrajectorySampler(n_particles=3, n_steps=2), autoencoder=FAST)
    la.fit(data)
    monkeypatch.setattr("laplace_fiber.walk.Walk._keep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        la.fit(data)
    assert la.mean is None
    with pytest.raises(RuntimeError, match="call fit"):
        la.sample(3)
    assert model.training


def test_a_checkpoint_of_another_walk_is_refused(tmp_path):
    model, data = classifier()
    joint, training = joint_of(model, data, "classification")
    checkpoint = Checkpoint(tmp_path / "walk", every=1)
    sampler = TrajectorySampler(n_particles=3, n_steps=2, checkpoint=checkpoint)
    with joint.network.evaluation():
        sampler.walk(joint, joint.network.theta(), training)
        for other in [
            TrajectorySampler(n_particles=4, n_steps=2, checkpoint=checkpoint),
            TrajectorySampler(n_particles=3, n_steps=2, seed=1, checkpoint=checkpoint),
        ]:
            with pytest.raises(ValueError, match=r"checkpoint: expected settings .*remove the folder, or name another"):
                other.walk(joint, joint.network.theta(), training)
        with pytest.raises(ValueError, match="checkpoint: expected weights"):
            sampler.walk(joint, joint.network.theta() + 1, training)
        # How the basis is kept changes nothing: the finished walk is taken over as it is.
        kept = TrajectorySampler(n_particles=3, n_steps=2, checkpoint=checkpoint, basis=BasisStorage(torch.float32))
        assert kept.walk(joint, joint.network.theta(), training).coordinates.shape[:2] == (3, 3)
    with pytest.raises(ValueError, match="expected every >= 1"):
        Checkpoint(tmp_path, every=0)
