"""FiberLaplace among real code: loaders, kinds of network, dtypes, copies and files, and the libraries around it."""

import contextlib
import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections import UserDict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from laplace import marglik_training
from laplace.curvature import CurvlinopsGGN
from problems import FAST, classifier, fitted, loader, regressor
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, SubsetRandomSampler

from laplace_fiber import FiberLaplace, LatentAutoencoder, TrajectorySampler

# The networks here are trained for a moment only, if at all.
pytestmark = pytest.mark.filterwarnings("ignore:The network is not at a minimum")

FORMS = ("latent", "states", "line", "gaussian")
SUBSETS = ["all", "last_layer", torch.tensor([7, 0, 12, 3])]
SHORT = TrajectorySampler(n_particles=3, n_steps=3)
MINI_BATCHES = TrajectorySampler(n_particles=3, n_steps=4, batch="loader")
TINY = LatentAutoencoder(latent_size=4, width=16, n_steps=5)
N, CLASSES = 12, 3
Y = torch.arange(N) % CLASSES


def fit(model, data, likelihood="classification", **options):
    return fitted(model, data, likelihood, **{"sampler": SHORT, "autoencoder": TINY, **options})


def seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def tokens(n=N, length=5, vocabulary=11):
    return torch.randint(0, vocabulary, (n, length), generator=torch.Generator().manual_seed(0))


def mlp(n_in=4, n_out=CLASSES, dtype=torch.float64):
    return seeded(lambda: nn.Sequential(nn.Linear(n_in, 5), nn.Tanh(), nn.Linear(5, n_out))).to(dtype)


def train(model, x, y, n_steps=20):
    mode = model.training
    optimizer = torch.optim.Adam(model.train().parameters(), lr=0.01)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(n_steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten()).backward()
            optimizer.step()
    optimizer.zero_grad()
    return model.train(mode)


def with_weights(model, subset, theta, head):
    """A copy of the model, in eval mode, with its moving weights changed in place."""
    changed = copy.deepcopy(model).eval()
    if isinstance(subset, torch.Tensor):
        flat = nn.utils.parameters_to_vector(changed.parameters()).detach()
        flat[subset] = theta
        nn.utils.vector_to_parameters(flat, changed.parameters())
    else:
        moving = changed if subset == "all" else changed.get_submodule(head)
        nn.utils.vector_to_parameters(theta, moving.parameters())
    return changed


def result_or_error(call):
    """What the call returns, or the documented kind of error it raises."""
    try:
        return call()
    except (ValueError, TypeError, NotImplementedError) as error:
        return error


@contextlib.contextmanager
def at_most_one_warning_that_it_loops():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = [str(w.message) for w in caught if "not at a minimum" not in str(w.message) and w.category is UserWarning]
    loops = [message for message in ours if message.startswith("torch.func.vmap cannot batch this network (")]
    assert len(loops) <= 1
    torchs = ("Converting a tensor with requires_grad=True to a scalar", "There is a performance drop because")
    assert [message for message in ours if message not in loops and not message.startswith(torchs)] == []


# --- dict-like batches -----------------------------------------------------------------------------------------------


class OnNestedDicts(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(batch["features"]["x"])


@pytest.mark.parametrize("mapping", [dict, UserDict])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_nested_dicts_give_what_tensors_give(mapping, subset):
    model, x = mlp(), normal(N, 4)
    points = [{"features": {"x": row}, "target": label} for row, label in zip(x, Y, strict=True)]
    data = DataLoader(points, batch_size=5, collate_fn=lambda rows: mapping(torch.utils.data.default_collate(rows)))
    wrapped = fit(OnNestedDicts(model), data, subset=subset, dict_key_x="features", dict_key_y="target")
    plain = fit(model, loader(x, Y, 5), subset=subset)
    batch = mapping({"features": {"x": x}})
    for arguments in ({}, {"pred_type": "glm"}, {"pred_type": "glm", "link_approx": "probit"}):
        torch.testing.assert_close(wrapped(batch, **arguments), plain(x, **arguments), rtol=1e-6, atol=1e-8)
    assert float(wrapped.log_marginal_likelihood()) == pytest.approx(float(plain.log_marginal_likelihood()), rel=1e-6)


@pytest.mark.parametrize("loss", [None, nn.functional.nll_loss])
def test_grid_search_on_nested_dicts(loss):
    points = [{"features": {"x": row}, "target": label} for row, label in zip(normal(N, 4), Y, strict=True)]
    data = DataLoader(points, batch_size=5)
    la = fit(OnNestedDicts(mlp()), data, dict_key_y="target")
    la.optimize_prior_precision(method="gridsearch", val_loader=data, grid_size=3, loss=loss)
    assert float(la.prior_precision) >= 1.0


def test_grid_search_takes_every_iterable_that_fit_takes():
    batches = [(x, y) for x, y in loader(normal(N, 4), Y, 5)]
    la = fit(mlp(), batches)
    la.optimize_prior_precision(method="gridsearch", val_loader=batches, grid_size=3)
    assert float(la.prior_precision) >= 1.0


def test_named_tuples_inside_batches():
    pair = namedtuple("pair", ["left", "right"])

    class OnPairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = mlp()

        def forward(self, batch):
            return self.model(batch["inputs"].left + batch["inputs"].right)

    x = normal(N, 4)
    batch = {"inputs": pair(x, x), "labels": Y}
    torch.testing.assert_close(fit(OnPairs(), [batch])(batch), fit(mlp(), [(2 * x, Y)])(2 * x))


class Logits(nn.Module):
    """A Hugging Face classifier whose output is its logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return self.inner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def hugging_face(name, attention):
    transformers = pytest.importorskip("transformers")
    if name == "DistilBert":
        sizes = {"n_layers": 2, "dim": 16, "hidden_dim": 32, "n_heads": 2}
    else:
        sizes = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    options = {"vocab_size": 30, "max_position_embeddings": 16, "num_labels": CLASSES, "attn_implementation": attention}
    config = getattr(transformers, f"{name}Config")(**sizes, **options)
    model = seeded(lambda: Logits(getattr(transformers, f"{name}ForSequenceClassification")(config)))
    ids, mask = tokens(length=6, vocabulary=30), torch.ones(N, 6, dtype=torch.long)
    mask[::2, 4:] = 0

    def batch(rows):
        return transformers.BatchEncoding({"input_ids": ids[rows], "attention_mask": mask[rows], "labels": Y[rows]})

    train(model, batch(slice(None)), Y, 10)
    return model, [batch(slice(0, 5)), batch(slice(5, 10)), batch(slice(10, N))], batch(slice(None))


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize(("name", "attention"), [("DistilBert", "sdpa"), ("Bert", "sdpa"), ("DistilBert", "eager")])
def test_hugging_face_transformers(name, attention, subset):
    model, batches, everything = hugging_face(name, attention)
    with at_most_one_warning_that_it_loops():
        la = fit(model, batches, subset=subset)
        probabilities = la(everything, n_samples=5)
        linearised = la(everything, pred_type="glm", link_approx="probit")
    assert la.n_data == N
    for prediction in (probabilities, linearised):
        assert prediction.shape == (N, CLASSES)
        torch.testing.assert_close(prediction.sum(-1), torch.ones(N))
    samples = la.functional_samples(everything, n_samples=2)
    for theta, sample in zip(la.sample(2), samples, strict=True):
        with torch.no_grad():
            expected = with_weights(model, subset, theta, "inner.classifier")(everything)
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-5)


# --- further arguments of the network --------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, fixed=None):
        super().__init__()
        self.model, self.fixed = mlp(), fixed

    def forward(self, x, scale=1.0):
        return (self.fixed or scale) * self.model(x)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("pred_type", ["nn", "glm"])
def test_arguments_of_the_network(pred_type, subset):
    """As by a network with the argument fixed, under the same weight samples."""
    x = normal(N, 4)
    la = fit(Scaled(), loader(x, Y), subset=subset)
    twin = FiberLaplace(Scaled(fixed=2.0), "classification", subset=subset)
    twin.load_state_dict(la.state_dict())
    for name in ("__call__", "functional_samples", "predictive_samples"):
        ours, theirs = getattr(la, name)(x, pred_type, scale=2.0), getattr(twin, name)(x, pred_type)
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(la(x, pred_type, scale=2.0), la(x, pred_type))


@pytest.mark.parametrize("link", ["probit", "bridge"])
def test_arguments_of_the_network_are_never_ignored(link):
    x = normal(N, 4)
    la = fit(Scaled(), loader(x, Y))
    twin = FiberLaplace(Scaled(fixed=2.0), "classification")
    twin.load_state_dict(la.state_dict())
    expected = twin(x, "glm", link_approx=link)
    prediction = result_or_error(lambda: la(x, "glm", link_approx=link, scale=2.0))
    if isinstance(prediction, Exception):
        assert "scale" in str(prediction) or "model_kwargs" in str(prediction)
    else:
        torch.testing.assert_close(prediction, expected)


# --- loaders ---------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_full_batches_do_not_depend_on_the_loader(subset):
    """Batches of any size, an uneven last one, shuffled, or without a length: the same up to rounding."""
    model, x = mlp(), normal(N, 4)
    dataset = loader(x, Y).dataset
    expected = fit(model, DataLoader(dataset, batch_size=N), subset=subset)
    loaders = {
        "uneven": DataLoader(dataset, batch_size=5),
        "single": DataLoader(dataset, batch_size=1),
        "shuffled": DataLoader(dataset, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(5)),
        "stream": DataLoader(Stream(dataset), batch_size=5),
    }
    for name, data in loaders.items():
        la = fit(model, data, subset=subset)
        assert la.n_data == N, name
        torch.testing.assert_close(la(x), expected(x), rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_workers_change_nothing(n_workers, shuffle):
    """Bit by bit, where groups of particles are fixed: timings choose them otherwise, and sizes round differently."""
    model, x = mlp(), normal(N, 4)
    dataset = loader(x, Y).dataset
    for sampler in (SHORT, MINI_BATCHES):
        fixed = replace(sampler, chunk_size=2)
        alone, helped = (
            fit(model, DataLoader(dataset, batch_size=5, shuffle=shuffle, num_workers=n), sampler=fixed)
            for n in (0, n_workers)
        )
        assert torch.equal(alone(x), helped(x))


def test_mini_batches_with_an_uneven_last_one_repeat():
    model, x = mlp(), normal(N, 4)
    data = DataLoader(loader(x, Y).dataset, batch_size=5, shuffle=True)
    first, second = (fit(model, data, sampler=replace(MINI_BATCHES, chunk_size=2)) for _ in range(2))
    assert torch.equal(first(x), second(x))
    assert bool(torch.isfinite(first.sample()).all())


class Batched(torch.utils.data.Dataset):
    """Items that are batches already, of four points each."""

    def __len__(self):
        return N // 4

    def __getitem__(self, k):
        return normal(N, 4)[4 * k : 4 * k + 4], Y[4 * k : 4 * k + 4]


@pytest.mark.parametrize("sampler", [SHORT, MINI_BATCHES], ids=["full", "loader"])
@pytest.mark.parametrize(
    ("build", "n_points"),
    [
        (lambda d: DataLoader(d, batch_size=5, drop_last=True), 10),
        (lambda d: DataLoader(d, batch_size=4, sampler=SubsetRandomSampler(range(7))), 7),
        (lambda d: DataLoader(d, batch_sampler=BatchSampler(SequentialSampler(range(9)), 4, False)), 9),
        (lambda _: DataLoader(Batched(), batch_size=None), 12),
    ],
    ids=["drop_last", "subset sampler", "batch sampler", "batches as items"],
)
def test_data_points_are_those_that_the_loader_delivers(build, n_points, sampler):
    """The data term of J weighs what was seen, not what the data set could have shown."""
    la = fit(mlp(), build(loader(normal(N, 4), Y).dataset), sampler=sampler)
    assert la.n_data == n_points
    assert float(-la.log_likelihood) == pytest.approx(n_points * la.report.nll_map)


# --- kinds of network ------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.block = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h + self.block(self.norm(h)).tanh())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.layer(self.embedding(x)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind, every_step=False):
        super().__init__()
        self.layer, self.head, self.every_step = kind(4, 5, batch_first=True), nn.Linear(5, CLASSES), every_step

    def forward(self, x):
        out = self.head(self.layer(x)[0])
        return out if self.every_step else out[:, -1]


class Branching(nn.Module):
    """Control flow that depends on values."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        h = self.stem(x)
        return self.head(h if float(h.sum()) > 0 else h.tanh())


def convolution():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(18, CLASSES))


def embedding():
    return nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.LayerNorm(20), nn.Linear(20, CLASSES))


def bag():
    return nn.Sequential(nn.EmbeddingBag(11, 4), nn.Linear(4, CLASSES))


NETWORKS = {
    "convolution": (convolution, lambda: normal(N, 1, 5, 5), "4"),
    "embedding": (embedding, tokens, "3"),
    "bag": (bag, tokens, "1"),
    "attention": (Attention, tokens, "head"),
    "residual": (Residual, lambda: normal(N, 4), "head"),
    "gru": (lambda: Recurrent(nn.GRU), lambda: normal(N, 5, 4), "head"),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: normal(N, 5, 4), "head"),
    "branching": (Branching, lambda: normal(N, 4), "head"),
}


def network(name, dtype=torch.float64):
    build, inputs, head = NETWORKS[name]
    model, x = seeded(build).to(dtype).train(), inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    return train(model, x, Y), x, head


@pytest.mark.parametrize(("dtype", "subset"), [*((torch.float64, s) for s in SUBSETS), (torch.float32, "all")], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_predictions_are_those_of_the_network_under_its_samples(name, subset, dtype):
    """The network left in train mode; against copies of it with their weights changed in place."""
    model, x, head = network(name, dtype)
    buffers = copy.deepcopy(dict(model.named_buffers()))
    with at_most_one_warning_that_it_loops():
        la = fit(model, loader(x, Y), subset=subset)
        samples = la.functional_samples(x, n_samples=4)
    tolerance = {"rtol": 1e-8, "atol": 1e-10} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    for theta, sample in zip(la.sample(4), samples, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(sample, with_weights(model, subset, theta, head)(x), **tolerance)
    torch.testing.assert_close(la(x, n_samples=4), samples.softmax(-1).mean(0))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("subset", SUBSETS[::2], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_linearised_predictions_and_evidence_for_each_network(name, subset, dtype):
    """Linearised samples against central differences of the network (float64); evidence and links are finite."""
    model, x, head = network(name, dtype)
    with at_most_one_warning_that_it_loops():
        la = fit(model, loader(x, Y), subset=subset)
        samples = la.functional_samples(x, pred_type="glm", n_samples=2)
        assert bool(torch.isfinite(la(x, "glm", link_approx="probit")).all())
        assert float(la.log_marginal_likelihood()) < 0
    if dtype == torch.float64:
        step = 1e-5
        for theta, sample in zip(la.sample(2), samples, strict=True):
            with torch.no_grad():
                at, above, below = (
                    with_weights(model, subset, la.mean + share * (theta - la.mean), head)(x)
                    for share in (0, step, -step)
                )
            torch.testing.assert_close(sample, at + (above - below) / (2 * step), rtol=1e-5, atol=1e-6)


def test_a_loaded_state_finds_out_anew_that_its_network_must_be_looped():
    model, x, _ = network("branching")
    with at_most_one_warning_that_it_loops():
        la = fit(model, loader(x, Y))
    for arguments in ({}, {"pred_type": "glm"}, {"pred_type": "glm", "link_approx": "probit"}):
        fresh = FiberLaplace(model, "classification")
        fresh.load_state_dict(la.state_dict())
        with at_most_one_warning_that_it_loops():
            torch.testing.assert_close(fresh(x, **arguments), la(x, **arguments))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["linear", "gru"])
def test_one_prediction_per_token(kind, form):
    """Logits (b, t, c)."""
    build = (lambda: mlp()) if kind == "linear" else (lambda: Recurrent(nn.GRU, every_step=True).double())
    model, x = seeded(build), normal(N, 5, 4)
    y = (Y[:, None] + torch.arange(5)) % CLASSES
    with at_most_one_warning_that_it_loops():
        la = fit(train(model, x, y), loader(x, y), posterior=form)
        probabilities = la(x, n_samples=6)
    assert probabilities.shape == (N, 5, CLASSES)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(N, 5, dtype=torch.float64))
    torch.testing.assert_close(la.predictive_samples(x, n_samples=6).mean(0), probabilities)
    torch.testing.assert_close(la(x, "glm", n_samples=6).sum(-1), torch.ones(N, 5, dtype=torch.float64))
    la.optimize_prior_precision(method="gridsearch", val_loader=loader(x, y), grid_size=3)
    assert float(la.log_marginal_likelihood()) < 0


def test_regression_of_sequences():
    x, y = normal(N, 5, 4), normal(N, 5, 2)
    la = fit(mlp(n_out=2), loader(x, y), "regression", sigma_noise=0.3)
    mean, variance = la(x)
    assert mean.shape == variance.shape == (N, 5, 2)
    assert bool((variance >= 0).all())
    la.optimize_prior_precision(method="gridsearch", val_loader=loader(x, y), grid_size=3)
    assert bool(torch.isfinite(la.log_marginal_likelihood()))


class Wrapped(nn.Module):
    """A network whose outputs come in a container."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize("wrap", [lambda f: (f, None), lambda f: {"logits": f}], ids=["tuple", "dict"])
def test_outputs_in_a_container_are_refused(wrap):
    with pytest.raises(ValueError, match=r"expected one tensor of outputs, got a (tuple|dict); wrap the network"):
        fit(Wrapped(mlp(), wrap), loader(normal(N, 4), Y))


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_gradient_checkpointing_is_refused(engine):
    """The backward pass would run the layers with other weights than the forward pass."""

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    with pytest.raises(RuntimeError, match=r"got gradient checkpointing, .* switch it off"):
        fit(Checkpointed(), loader(normal(N, 4), Y), engine=engine)


# --- dtypes ----------------------------------------------------------------------------------------------------------


def problem_of(dtype, likelihood):
    x = normal(N, 4, dtype=dtype)
    y = Y if likelihood == "classification" else x[:, :CLASSES].sin()
    return mlp(dtype=dtype), loader(x, y), x


def tensors_of(prediction):
    return prediction if isinstance(prediction, tuple) else (prediction,)


@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("likelihood", ["classification", "regression"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_are_kept(dtype, likelihood, subset):
    model, data, x = problem_of(dtype, likelihood)
    la = fit(model, data, likelihood, subset=subset)
    for form in FORMS:
        la.posterior = form
        everything = [la.sample(5), *tensors_of(la(x)), la.mean, la.functional_samples(x, n_samples=3)]
        assert {t.dtype for t in everything} == {dtype}
        assert all(bool(torch.isfinite(t).all()) for t in everything)
    assert bool(torch.isfinite(la.log_marginal_likelihood()))
    assert {p.dtype for p in model.parameters()} == {dtype}


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_are_kept_by_the_linearised_predictive(dtype, likelihood):
    model, data, x = problem_of(dtype, likelihood)
    la = fit(model, data, likelihood)
    for form in FORMS:
        la.posterior = form
        for link in ("mc", "probit", "bridge", "bridge_norm"):
            prediction = tensors_of(la(x, "glm", link_approx=link))
            assert {t.dtype for t in prediction} == {dtype}
            assert all(bool(torch.isfinite(t).all()) for t in prediction)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_half_precision_is_refused_or_finite(likelihood, form):
    model, data, x = problem_of(torch.float16, likelihood)
    la = result_or_error(lambda: fit(model, data, likelihood, posterior=form))
    if isinstance(la, Exception):
        assert "float16" in str(la)
    else:
        assert all(bool(torch.isfinite(t).all()) for t in (la.sample(20), *tensors_of(la(x))))


# --- weights that are shared, frozen or wrapped ----------------------------------------------------------------------


class Tied(nn.Module):
    """A language model whose output layer shares its weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.body(self.embedding(x)).tanh().mean(1))


@pytest.mark.parametrize("subset", ["all", ["head"], ["body"], torch.tensor([0, 30, 5])], ids=str)
def test_tied_weights_move_together(subset):
    model, x = seeded(Tied).double(), tokens(vocabulary=7)
    la = fit(model, loader(x, Y), subset=subset)
    assert la.n_params == {"all": 48, "['head']": 28, "['body']": 20}.get(str(subset), 3)
    for theta, sample in zip(la.sample(3), la.functional_samples(x, n_samples=3), strict=True):
        changed = copy.deepcopy(model)
        assert changed.head.weight is changed.embedding.weight
        if isinstance(subset, list):
            nn.utils.vector_to_parameters(theta, changed.get_submodule(subset[0]).parameters())
        else:
            changed = with_weights(changed, subset, theta, "head")
        with torch.no_grad():
            torch.testing.assert_close(sample, changed(x))
    clone = pickle.loads(pickle.dumps(la))
    assert torch.equal(clone(x), la(x))


@pytest.mark.parametrize("subset", ["all", "last_layer", torch.tensor([7, 0, 12])], ids=str)
def test_frozen_tensors_stay(subset):
    model, x = mlp(), normal(N, 4)
    model[2].weight.requires_grad_(False)
    la = fit(model, loader(x, Y), subset=subset)
    assert la.n_params == {"all": 28, "last_layer": 3}.get(str(subset), 3)
    for theta, sample in zip(la.sample(3), la.functional_samples(x, n_samples=3), strict=True):
        changed = copy.deepcopy(model)
        free = [p for p in changed.parameters() if p.requires_grad]
        if subset == "last_layer":
            free = [changed[2].bias]
        flat = nn.utils.parameters_to_vector(free).detach()
        flat[subset if isinstance(subset, torch.Tensor) else slice(None)] = theta
        nn.utils.vector_to_parameters(flat, free)
        with torch.no_grad():
            torch.testing.assert_close(sample, changed(x))


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.jit.script], ids=["DataParallel", "script"])
def test_wrappers_work_or_say_what_to_pass(wrap):
    model, x = mlp(), normal(N, 4)
    la = result_or_error(lambda: fit(wrap(model), loader(x, Y)))
    if isinstance(la, Exception):
        assert "model" in str(la)
        assert "pass" in str(la)
    else:
        torch.testing.assert_close(la(x), fit(model, loader(x, Y))(x))


@pytest.mark.parametrize("subset", ["all", ["2"]])
@pytest.mark.parametrize("in_place", [False, True], ids=["torch.compile", "Module.compile"])
def test_compiled_networks_are_run_as_written(in_place, subset):
    model, x = mlp(), normal(N, 4)
    expected = fit(model, loader(x, Y), subset=subset)(x)
    if in_place:
        model.compile()
    given = model if in_place else torch.compile(model)
    given(x)  # with the compiler that users have, whose code cannot be differentiated as posteriors need it
    calls = given.__dict__.get("_compiled_call_impl")
    torch.testing.assert_close(fit(given, loader(x, Y), subset=subset)(x), expected)
    assert given.__dict__.get("_compiled_call_impl") is calls
    assert bool(calls) == in_place


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fits_in_a_mode_for_predictions(mode):
    def chosen():
        la = fit(model, loader(x, Y))
        la.optimize_prior_precision()
        return la

    model, x = mlp(), normal(N, 4)
    expected = chosen()
    with mode():
        la = chosen()
        assert torch.equal(la.prior_precision, expected.prior_precision)
        assert torch.equal(la(x), expected(x))


def test_tensors_that_modules_make_of_their_weights_are_put_back():
    class Caching(nn.Linear):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    model, x = mlp(), normal(N, 4)
    model[0] = Caching(4, 5, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model[2] = nn.utils.weight_norm(model[2])  # the old one, whose hook keeps the weight as an attribute
    weight = model[2].weight
    fit(model, loader(x, Y))
    assert model[2].weight is weight
    assert not hasattr(model[0], "last")
    model(x)
    last = model[0].last
    fit(model, loader(x, Y))(x)
    assert model[0].last is last


def test_threads_share_a_network():
    model, x = mlp(), normal(N, 4)
    posteriors = [fit(model, loader(x, Y), subset=subset) for subset in ("all", "last_layer")]
    expected = [la(x) for la in posteriors]
    with ThreadPoolExecutor(4) as threads:  # enough calls for recordings to be made meanwhile
        results = list(threads.map(lambda i: posteriors[i % 2](x.clone()), range(100)))
    for i, result in enumerate(results):
        torch.testing.assert_close(result, expected[i % 2])


# --- copies and files ------------------------------------------------------------------------------------------------


def through_pickle(la):
    return pickle.loads(pickle.dumps(la))


def through_torch_save(la):
    buffer = io.BytesIO()
    torch.save(la, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("sampler", [SHORT, MINI_BATCHES], ids=["full", "loader"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
def test_copies_predict_the_same_bit_for_bit(duplicate, subset, sampler):
    x = normal(N, 4)
    shuffled = DataLoader(loader(x, Y).dataset, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1))
    la = fit(mlp(), shuffled, sampler=sampler, subset=subset)
    clone = duplicate(la)
    for form in FORMS:
        la.posterior = clone.posterior = form
        assert torch.equal(clone(x), la(x))
        ours, theirs = (m(x, generator=torch.Generator().manual_seed(4)) for m in (la, clone))
        assert torch.equal(ours, theirs)
    assert torch.equal(clone(x, "glm", link_approx="probit"), la(x, "glm", link_approx="probit"))
    assert str(clone.report) == str(la.report)
    before = la(x)
    clone.prior_precision = 50.0
    clone.fit(clone._data.loader)
    assert torch.equal(la(x), before)
    assert not torch.equal(clone(x), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_before_fit_and_after_the_evidence(duplicate):
    x = normal(N, 4)
    unfitted = duplicate(FiberLaplace(mlp(), "classification", sampler=SHORT, autoencoder=TINY))
    unfitted.fit(loader(x, Y))
    la = fit(mlp(), loader(x, Y))
    assert torch.equal(unfitted(x), la(x))
    la.optimize_prior_precision(method="marglik", n_steps=3)
    clone = duplicate(la)
    assert torch.equal(clone(x), la(x))
    assert torch.equal(clone.log_marginal_likelihood(), la.log_marginal_likelihood())


IN_ANOTHER_PROCESS = """
import sys, torch
from torch import nn
from laplace_fiber import FiberLaplace
torch.set_num_threads(1)
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
model.load_state_dict(saved["model"])
predictions = []
for subset, state in zip(saved["subsets"], saved["states"]):
    la = FiberLaplace(model, "classification", subset=subset)
    la.load_state_dict(state)
    drawn = la(saved["x"], generator=torch.Generator().manual_seed(9))
    predictions.append([la(saved["x"]), drawn, la(saved["x"], "glm", link_approx="probit"), la.sample(3)])
torch.save(predictions, sys.argv[2])
"""


def test_states_predict_the_same_in_another_process(tmp_path):
    model, x = mlp(), normal(N, 4)
    fits = [fit(model, loader(x, Y), subset=s, posterior=f) for s, f in zip(SUBSETS, FORMS, strict=False)]
    states = {"model": model.state_dict(), "x": x, "subsets": SUBSETS, "states": [la.state_dict() for la in fits]}
    torch.save(states, tmp_path / "in.pt")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        IN_ANOTHER_PROCESS,
        str(tmp_path / "in.pt"),
        str(tmp_path / "out.pt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for la, there in zip(fits, torch.load(tmp_path / "out.pt", weights_only=True), strict=True):
        drawn = la(x, generator=torch.Generator().manual_seed(9))
        here = [la(x), drawn, la(x, "glm", link_approx="probit"), la.sample(3)]
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


# --- the libraries around it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["scalar", "layerwise", "diag"])
@pytest.mark.parametrize(("problem", "likelihood"), [(classifier, "classification"), (regressor, "regression")])
def test_marglik_training(problem, likelihood, structure, monkeypatch):
    """laplace-torch builds the flavour itself, so that its defaults are made small here."""
    monkeypatch.setattr("laplace_fiber.fiber.TrajectorySampler", lambda: SHORT)
    monkeypatch.setattr("laplace_fiber.fiber.LatentAutoencoder", lambda: FAST)
    model, data = problem()
    la, trained, margliks, losses = marglik_training(
        model,
        data,
        likelihood,
        "fiber",
        backend=CurvlinopsGGN,
        prior_structure=structure,
        n_epochs=3,
        n_epochs_burnin=0,
        marglik_frequency=1,
        n_hypersteps=4,
    )
    assert type(la) is FiberLaplace
    assert la.model is trained
    assert len(losses) == 3
    assert len(margliks) == 12
    assert all(abs(value) < float("inf") for value in margliks)
    assert la.prior_precision.numel() == {"scalar": 1, "layerwise": 4, "diag": la.n_params}[structure]
    assert not la.sample(2).requires_grad
    assert all(bool(torch.isfinite(t).all()) for t in tensors_of(la(data.dataset.tensors[0])))
    through_pickle(la)


def bayesian_optimisation():
    """BoTorch's view of the first output of :func:`regressor`: Gaussian moments, or the functions themselves."""
    pytest.importorskip("botorch")
    from botorch.models.model import Model
    from botorch.posteriors import GPyTorchPosterior
    from botorch.posteriors.ensemble import EnsemblePosterior
    from gpytorch.distributions import MultivariateNormal

    class Surrogate(Model):
        num_outputs, batch_shape = 1, torch.Size([])

        def __init__(self, la, as_functions):
            super().__init__()
            self.la, self.as_functions = la, as_functions

        def posterior(self, X, output_indices=None, observation_noise=False, posterior_transform=None):  # noqa: N803
            inputs = X.flatten(0, -2)
            if self.as_functions:
                functions = self.la.functional_samples(inputs, n_samples=16)
                return EnsemblePosterior(functions.unflatten(1, X.shape[:-1]).movedim(0, -3))
            mean, variance = (t.view(X.shape[:-1]) for t in self.la(inputs, n_samples=16))
            return GPyTorchPosterior(MultivariateNormal(mean, torch.diag_embed(variance)))

    model, data = regressor()
    x, y = data.dataset.tensors
    first = nn.Linear(6, 1).double()
    with torch.no_grad():
        first.weight.copy_(model[2].weight[:1])
        first.bias.copy_(model[2].bias[:1])
    model = nn.Sequential(model[0], model[1], first)
    la = fitted(model, loader(x, y[:, :1]), "regression", sigma_noise=0.2, enable_backprop=True)
    return lambda as_functions: Surrogate(la, as_functions)


@pytest.mark.parametrize("acquisition", ["LogExpectedImprovement", "UpperConfidenceBound", "qLogExpectedImprovement"])
def test_botorch_optimises_acquisitions_over_it(acquisition):
    """The optimum is no worse than the best point of a grid, and its gradient is that of differences."""
    surrogate = bayesian_optimisation()
    from botorch import acquisition as acquisitions
    from botorch.optim import optimize_acqf

    options = {"beta": 2.0} if acquisition == "UpperConfidenceBound" else {"best_f": 0.5}
    value = getattr(acquisitions, acquisition)(surrogate(acquisition.startswith("q")), **options)
    x = torch.tensor([[[0.4]]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(x).sum(), x)
    step = 1e-5
    above, below = (float(value((x + sign * step).detach())) for sign in (1, -1))
    assert float(gradient) == pytest.approx((above - below) / (2 * step), rel=1e-3)
    bounds = torch.tensor([[-2.0], [2.0]], dtype=torch.float64)
    candidate, best = seeded(lambda: optimize_acqf(value, bounds, q=1, num_restarts=4, raw_samples=32))
    with torch.no_grad():
        grid = value(torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None, None])
    assert candidate.shape == (1, 1)
    assert float(best) >= float(grid.max()) - 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("subset", SUBSETS, ids=str)
@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_cuda(likelihood, subset):
    """The data may stay on the CPU; a state saved on the GPU loads on the CPU."""
    model, data, x = problem_of(torch.float64, likelihood)
    expected = fit(model, data, likelihood, subset=subset)
    there = copy.deepcopy(model).cuda()
    la = fit(there, data, likelihood, subset=subset)
    for form in FORMS:
        la.posterior = form
        generator = torch.Generator("cuda").manual_seed(0)
        for arguments in ({}, {"pred_type": "glm"}, {"pred_type": "glm", "link_approx": "probit"}):
            for prediction in tensors_of(la(x.cuda(), generator=generator, **arguments)):
                assert prediction.device.type == "cuda"
                assert bool(torch.isfinite(prediction).all())
    assert float(la.log_marginal_likelihood()) == pytest.approx(float(expected.log_marginal_likelihood()), rel=1e-3)
    with pytest.raises(ValueError, match=r"generator: expected a torch\.Generator on cuda"):
        la(x.cuda(), generator=torch.Generator())
    buffer = io.BytesIO()
    torch.save(la.state_dict(), buffer)
    buffer.seek(0)
    here = FiberLaplace(model, likelihood, subset=subset)
    here.load_state_dict(torch.load(buffer, map_location="cpu", weights_only=True))
    assert all(t.device.type == "cpu" for t in tensors_of(here(x)))
    assert torch.equal(through_pickle(la)(x.cuda())[0], la(x.cuda())[0])
