"""Image sets, networks, corruptions, limits of time and runs on images, on generated data."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
import time

import numpy as np
import pytest
import torch

from benchmarks import image_runs, images, models
from benchmarks.__main__ import main
from benchmarks.corruptions import CORRUPTIONS, corrupted
from benchmarks.datasets import Source
from benchmarks.limits import time_limit
from benchmarks.networks import Body, ConvNet, Head, ResNet, built_from
from benchmarks.run import run_all
from benchmarks.runs import Run
from laplace_fiber.comparison import METHODS
from laplace_fiber.data import TrainingData


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- files -----------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


@pytest.fixture
def idx_files(tmp_path, monkeypatch):
    """A tiny set in MNIST's place: 240 training images of ten classes, of which every pixel is the image's number."""
    numbers, classes = np.arange(240), np.arange(240) % 10
    blank = np.ones((1, 28, 28))
    contents = [idx(numbers[:, None, None] * blank), idx(classes), idx(np.ones((20, 28, 28))), idx(np.arange(20) % 10)]
    sources = {}
    for name, content in zip((*images.IDX_FILES, *images.IDX_TEST_FILES), contents, strict=True):
        (tmp_path / name).write_bytes(content)
        sources[name] = Source(name, digest(content), "https://example.org")
    monkeypatch.setitem(images.IDX_SETS, "mnist", sources)
    return tmp_path


def test_idx_files_give_the_first_of_each_class_split_by_the_seed(idx_files):
    data, again, other = (images.load("mnist", seed, idx_files) for seed in (0, 0, 1))
    numbers = torch.cat([images.levels(x, data)[:, 0, 0, 0] for x, _ in (data.train, data.val)])
    assert sorted(numbers.tolist()) == list(range(20))  # two of 24 in each class: 8.35 %, rounded down
    assert (len(data.train[0]), len(data.val[0]), len(data.test[0])) == (17, 3, 20)
    assert torch.equal(data.train[1], images.levels(data.train[0], data)[:, 0, 0, 0] % 10)
    assert torch.equal(data.train[0], again.train[0])
    assert not torch.equal(data.train[1], other.train[1])
    assert data.train[0].mean().abs() < 1e-5
    assert data.train[0].std() == pytest.approx(1, abs=1e-4)
    assert (data.test[0].shape, data.n_inputs) == ((20, 1, 28, 28), 784)


def test_altered_and_missing_image_files_are_named(idx_files):
    (idx_files / images.IDX_FILES[0]).write_bytes(b"other")
    with pytest.raises(ValueError, match="sha256"):
        images.load("mnist", 0, idx_files)
    with pytest.raises(FileNotFoundError, match="fashion_mnist"):
        images.load("fashion", 0, idx_files)
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.*kriz"):
        images.load("cifar10-small", 0, idx_files)
    with pytest.raises(ValueError, match="cifar10-small"):
        images.load("unknown", 0)


def test_an_idx_file_of_another_type_or_length_is_refused():
    whole = gzip.decompress(idx(np.arange(6).reshape(2, 3)))
    assert images.idx_array(whole).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match="5 values"):
        images.idx_array(whole[:-1])
    with pytest.raises(ValueError, match="type 13"):
        images.idx_array(b"\0\0\x0d" + whole[3:])


@pytest.fixture(params=["cifar-10-batches-py", "cifar10", "cifar-10-batches-py archive"])
def cifar_files(request, tmp_path, monkeypatch):
    """Five training batches of 12 images and a test batch, in a folder or in the archive."""
    rng = np.random.default_rng(0)
    contents = {}
    for batch in images.CIFAR_BATCHES:
        data = rng.integers(0, 256, (12, 3072), dtype=np.uint8)
        contents[batch] = pickle.dumps({b"data": data, b"labels": [i % 10 for i in range(12)]})
    monkeypatch.setattr(images, "CIFAR_BATCHES", {batch: digest(c) for batch, c in contents.items()})
    folder = tmp_path / request.param.removesuffix(" archive")
    folder.mkdir()
    if request.param.endswith("archive"):
        with tarfile.open(folder / images.CIFAR_ADDRESS.rpartition("/")[2], "w:gz") as tar:
            for batch, content in contents.items():
                member = tarfile.TarInfo(f"cifar-10-batches-py/{batch}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return tmp_path, contents
    for batch, content in contents.items():
        (folder / batch).write_bytes(content)
    return tmp_path, contents


def test_cifar_batches_are_read_from_either_folder_or_the_archive(cifar_files, monkeypatch):
    folder, contents = cifar_files
    small, whole = images.load("cifar10-small", 0, folder), images.load("cifar10", 0, folder)
    assert len(small.train[0]) + len(small.val[0]) == 12
    assert len(whole.train[0]) + len(whole.val[0]) == 60
    raw = pickle.loads(contents["test_batch"])[b"data"].reshape(12, 3, 32, 32)
    assert np.array_equal(images.levels(whole.test[0], whole).numpy(), raw)
    assert torch.allclose(whole.train[0].mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    monkeypatch.setitem(images.CIFAR_BATCHES, "test_batch", digest(b"another"))
    with pytest.raises(ValueError, match="sha256"):
        images.load("cifar10", 0, folder)


# --- shifts ----------------------------------------------------------------------------------------------------------


def test_rotation_turns_about_the_centre():
    x = torch.rand(2, 3, 9, 9, generator=generator())
    assert torch.equal(images.rotated(x, 0), x)
    assert torch.allclose(images.rotated(x, 90), torch.rot90(x, 1, (2, 3)), atol=1e-6)
    assert torch.allclose(images.rotated(x, 180), x.flip((2, 3)), atol=1e-6)
    corner = images.rotated(x, 45)[:, :, 0, 0]
    assert torch.equal(corner, x.min().expand(2, 3))


@pytest.fixture(scope="module")
def pictures():
    data = images.generated("cifar10-small", 0, images.Generated((3, 32, 32), n_test=20, noise=0.0))
    return images.levels(data.test[0], data)


ICE = [np.full((200, 180, 3), 200, np.uint8)]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_fixed_by_the_seed_and_change_the_images(name, pictures):
    state = torch.get_rng_state()
    first, again, other = (corrupted(pictures, name, 3, seed, ICE) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8
    assert first.shape == pictures.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, pictures)
    drawn = name in ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "fog")
    assert not (drawn and torch.equal(first, other))
    assert torch.equal(state, torch.get_rng_state())


# The others change several settings from one severity to the next, not all towards more.
GROWING = set(CORRUPTIONS) - {"glass_blur", "motion_blur", "frost", "elastic_transform"}


@pytest.mark.parametrize("name", sorted(GROWING))
def test_higher_severities_are_further_from_the_images(name, pictures):
    distances = [
        (corrupted(pictures, name, severity, 0, ICE).float() - pictures.float()).abs().mean().item()
        for severity in range(1, 6)
    ]
    assert distances == sorted(distances)
    assert distances[0] < distances[-1]


def test_corruptions_do_what_their_names_say(pictures):
    flat = torch.full((4, 3, 32, 32), 100, dtype=torch.uint8)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "pixelate", "elastic_transform"):
        assert (corrupted(flat, name, 5).float() - 100).abs().max() <= 1, name
    assert torch.equal(corrupted(flat, "brightness", 3), torch.full_like(flat, int(100 + 0.15 * 255)))
    noise = corrupted(flat, "gaussian_noise", 5).float().std() / 255
    assert noise == pytest.approx(0.1, rel=0.05)
    speckled = corrupted(flat, "impulse_noise", 5) != 100
    assert speckled.float().mean() == pytest.approx(0.07, rel=0.2)
    assert set(corrupted(flat, "impulse_noise", 5)[speckled].tolist()) == {0, 255}
    with pytest.raises(ValueError, match="frost_pictures"):
        corrupted(pictures, "frost", 1)
    with pytest.raises(ValueError, match="severity of 1 to 5"):
        corrupted(pictures, "fog", 6)


# --- networks --------------------------------------------------------------------------------------------------------


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_networks_have_the_published_sizes_and_are_fixed_by_the_generator():
    state = torch.get_rng_state()
    nets = [built_from(ConvNet(), 10, generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)
    assert not torch.equal(nets[0][0].weight, nets[2][0].weight)
    assert count(nets[0]) == 1828
    assert nets[0](torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert count(ResNet().build(10)) == 11_173_962  # ResNet-18 with a 3×3 stem and ten classes


def test_head_on_body_is_the_network_in_evaluation_mode():
    network = built_from(ResNet((4, 8), 1), 10, generator())
    x = torch.randn(16, 3, 32, 32, generator=generator())
    network.train()(x)  # moves the running statistics
    network.eval()
    head, body = Head(network).eval(), Body(network).eval()
    assert torch.allclose(head(body(x)), network(x), atol=1e-5)
    assert count(head) == 8 * 8 * 9 + 8 + 8 * 10 + 10
    assert all(p.requires_grad for p in head.parameters())


def test_augmented_images_are_mirrored_and_shifted():
    x = torch.zeros(500, 1, 9, 9)
    x[:, 0, 4, 3] = 1
    places = {tuple(p[1:]) for p in torch.nonzero(models.augmented(x, 1, generator())[:, 0]).tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4, 5, 6)}


def test_methods_that_go_on_with_the_training_see_augmented_images_in_whole_batches():
    x, y = torch.zeros(50, 1, 9, 9), torch.arange(50)
    x[:, 0, 4, 3] = 1
    training = models.AugmentedTraining(batch_size=20, shift=1)
    data = TrainingData(models.augmenting_loader((x, y), training, lambda images: 2 * images), x.device, "loader")
    assert data.n_data == 40  # two whole batches of twenty
    first = [data.next_batch().blocks[0] for _ in range(4)]
    assert all(len(torch.unique(labels)) == 20 and images.max() == 2 for images, labels in first)
    assert not torch.equal(first[0][1], first[2][1])  # another order in the second pass
    places = {tuple(p[1:]) for images, _ in first for p in torch.nonzero(images[:, 0]).tolist()}
    assert places == {(row, column) for row in (3, 4, 5) for column in (2, 3, 4, 5, 6)}
    data.restart()
    assert all(map(torch.equal, data.next_batch().blocks[0], first[0]))


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
@pytest.mark.parametrize(
    ("dataset", "method", "augmented"),
    [("cifar10-small", "sgld", True), ("cifar10-small", "last_layer", False), ("mnist", "sgld", False)],
)
def test_runs_tell_whether_the_method_saw_augmented_images(dataset, method, augmented, tmp_path, monkeypatch):
    monkeypatch.setattr(image_runs, "beyond_the_test_data", lambda *_: {})
    experiment = "mnist" if dataset == "mnist" else "cifar10"
    run = Run(experiment, dataset, method, 0, quick=True, out=tmp_path)
    assert image_runs.measure(run)["settings"]["augmented"] is augmented


# --- limits and runs -------------------------------------------------------------------------------------------------


def test_work_beyond_its_time_is_ended_with_its_progress():
    from tqdm import tqdm

    def work():
        for _ in tqdm(range(1000), desc="walk", mininterval=0):
            try:
                time.sleep(0.02)
            except Exception:  # as a search does that goes on with its next setting
                continue

    with pytest.raises(TimeoutError, match=r"did not finish within 0.3 s; progress: walk: .*/1000"), time_limit(0.3):
        work()


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
def test_a_run_on_mnist_scores_rotated_and_foreign_images(tmp_path):
    threads = torch.get_num_threads()
    options = ["--quick", "--methods", "linearised", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["run", "rotated-mnist", *options]) == 0
    torch.set_num_threads(threads)
    record = json.loads((tmp_path / "mnist-quick" / "mnist_linearised_0.json").read_text())
    assert set(record["metrics"]) == {"validation", "test"}
    assert list(record["shifts"]["rotation"]) == [str(angle) for angle in range(0, 181, 15)]
    assert set(record["shifts"]["rotation"]["15"]) <= {"nll", "nll_per_sample", "accuracy", "ece"}
    assert set(record["ood"]["fashion"]) == {"auroc_confidence", "auroc_entropy"}
    assert {"fit_seconds", "predict_seconds", "peak_memory_mib", "settings"} <= set(record)


@pytest.mark.filterwarnings("ignore:The network is not at a minimum")
@pytest.mark.parametrize(("dataset", "method"), [("cifar10-small", "fiber"), ("cifar10-small-all", "map")])
def test_a_run_on_cifar_scores_corrupted_images(dataset, method, tmp_path):
    run = Run("cifar10", dataset, method, 0, quick=True, out=tmp_path)
    assert run_all([run], jobs=1) == []
    record = json.loads(run.path.read_text())
    assert len(record["shifts"]["corruption"]) == 75
    assert set(record["shifts"]["corruption"]["gaussian_noise/1"]) >= {"nll", "accuracy", "ece"}
    assert "ood" not in record


def test_generated_images_can_be_learnt():
    data = images.generated("mnist", 0, images.Generated((1, 28, 28), n_train=400))
    model = models.train(data, 0, models.Training(lr=1e-2, epochs=20))
    with torch.no_grad():
        accuracy = (model(data.test[0]).argmax(1) == data.test[1]).float().mean()
    assert accuracy > 0.8


def test_methods_that_cannot_be_fitted_are_left_out():
    assert not image_runs.applies("cifar10-small", "mixture")
    assert image_runs.applies("mnist", "mixture")
    assert not image_runs.applies("cifar10-small-all", "hmc")
    assert not image_runs.applies("mnist", "riemannian_fisher")
    assert set(image_runs.AFFORDABLE_OVER_ALL_WEIGHTS) <= {*METHODS, "fiber+temperature"}
