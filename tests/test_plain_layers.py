"""Recurrent layers, bags of embeddings and others in plain operations, against the library's own."""

import itertools
import warnings

import pytest
import torch
from problems import fitted, loader
from torch import nn
from torch.func import functional_call, jvp, vmap
from torch.nn import functional

from laplace_fiber import TrajectorySampler
from laplace_fiber.engines import output_elements
from laplace_fiber.plain_layers import PlainLayers, has_plain_form
from laplace_fiber.weights import NetworkFunction

N, STEPS, FEATURES, HIDDEN, TOKENS = 4, 6, 5, 4, 9
KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm projected": (nn.LSTM, {"proj_size": 3}),
    "gru": (nn.GRU, {}),
    "rnn tanh": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def several(layer, n=3):
    """Weights of n layers like this one, stacked."""
    weights = {name: torch.stack([p.detach()] * n) for name, p in layer.named_parameters()}
    return {name: p + 0.2 * normal(*p.shape) for name, p in weights.items()}


def tensors_of(result):
    outputs, state = result
    return (outputs, *(state if isinstance(state, tuple) else (state,)))


@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first", "bias"), list(itertools.product((1, 2), *[(False, True)] * 3))
)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_with_many_weights(kind, layers, bidirectional, batch_first, bias):
    """Outputs and last states under each of several weights, from a state that is given."""
    build, options = KINDS[kind]
    torch.manual_seed(0)
    layer = build(
        FEATURES, HIDDEN, layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias, **options
    ).double()
    x, weights = normal(*((N, STEPS) if batch_first else (STEPS, N)), FEATURES), several(layer)
    _, state = layer(x)
    start = tuple(0.3 * s.detach() for s in state) if isinstance(state, tuple) else 0.3 * state.detach()

    def run(named):
        return tensors_of(functional_call(layer, named, (x, start)))

    with PlainLayers():
        together = vmap(run)(weights)
    for i in range(3):
        alone = run({name: w[i] for name, w in weights.items()})
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many[i], one)


class Cells(nn.Module):
    """A cell that is called step by step."""

    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.cell = kind(FEATURES, HIDDEN, **options).double()

    def forward(self, x):
        state = None
        for now in x.unbind(1):
            state = self.cell(now, state)
        return torch.cat(state, -1) if isinstance(state, tuple) else state


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(nn.LSTMCell, {}), (nn.GRUCell, {}), (nn.RNNCell, {}), (nn.RNNCell, {"nonlinearity": "relu"})],
)
def test_cells_are_batched(kind, options, bias):
    assert_batched(Cells(kind, bias=bias, **options), normal(N, STEPS, FEATURES))


@pytest.mark.parametrize("bias", [False, True])
def test_bilinear_layers_are_batched(bias):
    class Form(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Bilinear(2, 3, 4, bias=bias).double()

        def forward(self, x):
            return self.layer(x[..., :2], x[..., 2:])

    assert_batched(Form(), normal(N, STEPS, 5))


def assert_batched(model, x):
    """Outputs of several weights at once, without a warning, are those of each."""
    network = NetworkFunction(model)
    thetas = network.theta() + 0.2 * normal(3, network.n_params)
    with network.evaluation(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        together = network.many(thetas, x)
        for theta, found in zip(thetas, together, strict=True):
            torch.testing.assert_close(found, network.one(theta, x))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings_with_many_weights(mode):
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(TOKENS, 3, mode=mode).double()
    x, weights = torch.arange(N * STEPS).view(N, STEPS) % TOKENS, several(bag)
    shares = normal(N, STEPS) if mode == "sum" else None
    with PlainLayers():
        together = vmap(lambda named: functional_call(bag, named, (x, None, shares)))(weights)
    for i in range(3):
        torch.testing.assert_close(
            together[i], functional.embedding_bag(x, weights["weight"][i], mode=mode, per_sample_weights=shares)
        )


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("dim", [0, 1, -2, None])
@pytest.mark.parametrize("normalised", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_normalised_weights_are_batched(normalised, dim):
    torch.manual_seed(0)
    model = nn.Sequential(normalised(nn.Conv1d(FEATURES, HIDDEN, 3), dim=dim)).double()
    assert_batched(model, normal(N, FEATURES, STEPS))


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"max_norm": 0.1}], ids=str)
def test_bags_that_have_no_plain_form_are_left_to_the_library(options):
    bag = nn.EmbeddingBag(TOKENS, 3, **options).double()
    x = torch.arange(N * STEPS).view(N, STEPS) % TOKENS
    network = NetworkFunction(nn.Sequential(bag, nn.Linear(3, 2).double()))
    with network.evaluation(), torch.no_grad(), pytest.warns(UserWarning, match="looping"):
        found = network.many(network.theta().repeat(2, 1), x)
    torch.testing.assert_close(found[0], network.model(x).detach())


class Sequences(nn.Module):
    """One output for each sequence, which may be packed on the way."""

    def __init__(self, packed=False, kind=nn.GRU):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = kind(FEATURES, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 2)
        self.packed = packed
        self.double()

    def forward(self, x):
        if self.packed:
            x = nn.utils.rnn.pack_padded_sequence(x, [STEPS] * len(x), batch_first=True)
        state = self.layer(x)[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[0])


def test_gradients_and_products_are_those_of_the_library():
    """Backward derivatives of a batch of weights, forward and second ones of single weights, for which the library's
    layers are differentiated by central differences."""
    network, x = NetworkFunction(Sequences()), normal(N, STEPS, FEATURES)
    thetas = (network.theta() + 0.3 * normal(3, network.n_params)).requires_grad_()
    direction, step = normal(network.n_params), 1e-5
    with network.evaluation():
        (together,) = torch.autograd.grad(network.many(thetas, x).square().sum(), thetas)
        for i in range(3):
            theta = thetas[i].detach().requires_grad_()
            alone = network.one(theta, x)
            (gradient,) = torch.autograd.grad(alone.square().sum(), theta)
            torch.testing.assert_close(together[i], gradient)
        theta = thetas[0].detach()

        def at(shift):
            return network.one(theta + shift * step * direction, x).detach()

        _, forward = jvp(lambda t: network.one(t, x), (theta,), (direction,))
        torch.testing.assert_close(forward, (at(1) - at(-1)) / (2 * step), rtol=1e-6, atol=1e-8)
        _, bent = jvp(lambda t: jvp(lambda s: network.one(s, x), (t,), (direction,))[1], (theta,), (direction,))
        torch.testing.assert_close(bent, (at(1) - 2 * at(0) + at(-1)) / step**2, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recurrent_layers_on_a_gpu_have_gradients_in_eval_mode():
    network, x = NetworkFunction(Sequences().cuda()), normal(N, STEPS, FEATURES)
    on_cpu, theta = NetworkFunction(Sequences()), network.theta().requires_grad_()
    with network.evaluation():
        (gradient,) = torch.autograd.grad(network.one(theta, x.cuda()).square().sum(), theta)
    theta = on_cpu.theta().requires_grad_()
    (expected,) = torch.autograd.grad(on_cpu.one(theta, x).square().sum(), theta)
    torch.testing.assert_close(gradient.cpu(), expected)


def test_a_fit_batches_them_without_a_word():
    x = normal(24, STEPS, FEATURES)
    y = (x[:, 0, 0] > 0).long()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*vmap cannot batch")
        la = fitted(Sequences(), loader(x, y), sampler=TrajectorySampler(4, 3, reach=0.5))
    assert la.report.group_size > 1
    for theta, outputs in zip(la.sample(2), la.functional_samples(x, n_samples=2), strict=True):
        model = Sequences()
        nn.utils.vector_to_parameters(theta, model.parameters())
        torch.testing.assert_close(outputs, model(x).detach())


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_packed_sequences_are_looped_with_a_warning(kind):
    network, x = NetworkFunction(Sequences(packed=True, kind=kind)), normal(N, STEPS, FEATURES)
    with network.evaluation(), torch.no_grad(), pytest.warns(UserWarning, match="vmap cannot batch"):
        found = network.many(network.theta().repeat(2, 1), x)
    torch.testing.assert_close(found[1], Sequences(kind=kind)(x).detach())


def test_what_is_counted_of_layers_with_layers_inside():
    """Three numbers for each of an LSTM's four gates, in each layer: 12 times the outputs of one layer, 24 of two."""
    x = normal(N, STEPS, FEATURES)
    one, two = (NetworkFunction(nn.LSTM(FEATURES, HIDDEN, layers).double()) for layers in (1, 2))
    assert output_elements(one, x) == 12 * N * STEPS * HIDDEN
    assert output_elements(two, x) == 24 * N * STEPS * HIDDEN
    assert has_plain_form(one.model)
    assert not has_plain_form(nn.Linear(2, 2))
