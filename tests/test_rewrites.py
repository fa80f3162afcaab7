"""Rewritten graphs against the functions they were recorded from."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from laplace_fiber.rewrites import simplify

aten = torch.ops.aten


def rewritten(function, *args):
    graph = make_fx(function)(*args)
    before = {n.target for n in graph.graph.nodes if n.op == "call_function"}
    simplify(graph.graph)
    graph.recompile()
    return graph, before, {n.target for n in graph.graph.nodes if n.op == "call_function"}


def draws(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize(
    ("pooling", "gone"),
    [
        (nn.MaxPool2d(2), {aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default}),
        (nn.MaxPool2d((2, 3)), {aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default}),
        (nn.AvgPool2d(2), {aten.avg_pool2d.default, aten.avg_pool2d_backward.default}),
        (nn.AvgPool2d((3, 1)), {aten.avg_pool2d.default, aten.avg_pool2d_backward.default}),
        (nn.MaxPool2d(3, 2), set()),
        (nn.MaxPool2d(2, padding=1), set()),
        (nn.MaxPool2d(2, ceil_mode=True), set()),
        (nn.MaxPool2d(2, dilation=2), set()),
        (nn.AvgPool2d(2, divisor_override=3), set()),
        (nn.AvgPool2d(2, ceil_mode=True), set()),
        (nn.AvgPool2d(2, padding=1), set()),
    ],
)
@pytest.mark.parametrize("shape", [(3, 2, 6, 6), (2, 7, 8), (2, 3, 5, 7)])
def test_pooling_and_its_derivative_stay_the_same(pooling, gone, shape):
    """With ties, whose first place takes the derivative, and with rows and columns left over at the end."""
    (x,) = draws(shape)
    x = x.relu()
    (weights,) = draws(pooling(x).shape)

    def value_and_gradient(x, weights):
        x = x.detach().requires_grad_()
        y = pooling(x)
        return y.detach(), torch.autograd.grad((y * weights).sum(), x)[0]

    graph, before, after = rewritten(value_and_gradient, x, weights)
    assert gone <= before
    assert not gone & after
    assert gone or before & after & {aten.max_pool2d_with_indices.default, aten.avg_pool2d.default}
    for again in (x, x.flip(-1)):
        for new, old in zip(graph(again, weights), value_and_gradient(again, weights), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-14, atol=1e-14)


def test_pooling_whose_places_are_asked_for_is_left_alone():
    (x,) = draws((2, 2, 4, 4))
    graph, _, after = rewritten(lambda x: functional.max_pool2d(x, 2, return_indices=True), x)
    assert aten.max_pool2d_with_indices.default in after
    for new, old in zip(graph(x), functional.max_pool2d(x, 2, return_indices=True), strict=True):
        assert torch.equal(new, old)


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize(("inner", "columns"), [(1, 5), (5, 1), (5, 3), (1, 1), (7, 6)])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_every_shape_stay_the_same(rows, inner, columns, biased):
    """Also where they are followed by a transpose, as the gradients of weights are."""
    a, b, bias = draws((4, rows, inner), (4, columns, inner), (4, 1, columns))

    def function(a, b, bias):
        product = torch.bmm(a, b.transpose(1, 2))
        product = bias + product if biased else product
        turned = torch.bmm(product.transpose(1, 2), a).transpose(1, 2)
        return product.tanh().reshape(4, -1), turned.contiguous().view(4, -1), turned.transpose(1, 2)

    graph, _, after = rewritten(function, a, b, bias)
    for new, old in zip(graph(a, b, bias), function(a, b, bias), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-13, atol=1e-13)
    if inner == 1:
        assert after & {aten.addcmul.default, aten.mul.Tensor}


def test_constants_and_detours_go():
    (x,) = draws((3, 1, 4))

    def function(x):
        y = torch.ones_like(x) * x.transpose(1, 2).view(3, 2, 2).view(3, 4, 1).transpose(1, 2).transpose(1, 2)[:, :1]
        return y + x.new_zeros(3, 1, 4)

    graph, _, after = rewritten(function, x)
    assert torch.equal(graph(x), function(x))
    assert not after & {aten.ones_like.default, aten.new_zeros.default, aten.transpose.int}


def test_large_products_are_written_where_they_belong(monkeypatch):
    monkeypatch.setattr("laplace_fiber.rewrites.LARGE", 12)

    def parts(a, b, c):
        return torch.cat([(a @ b).view(-1), c, (b.T @ a.T).view(-1)]), (c @ c)[None]

    a, b, c = draws((3, 5), (5, 4), (7,))
    graph, _, after = rewritten(parts, a, b, c)
    assert aten.addmm_.default in after
    assert aten.cat.default not in after
    for _ in range(2):
        torch.testing.assert_close(graph(a, b, c), parts(a, b, c), rtol=0, atol=1e-12)
        a = a + 1


def test_a_product_needed_elsewhere_is_not_moved(monkeypatch):
    monkeypatch.setattr("laplace_fiber.rewrites.LARGE", 1)

    def parts(a, b):
        product = a @ b
        return torch.cat([product.view(-1), b.view(-1)]), product

    graph, _, after = rewritten(parts, *draws((3, 5), (5, 4)))
    assert aten.cat.default in after
    torch.testing.assert_close(graph(*draws((3, 5), (5, 4))), parts(*draws((3, 5), (5, 4))))


def batched_gradients(network, rows):
    """A function of weights and images: outputs and gradients of several weight vectors; and the weights."""
    names = [name for name, _ in network.named_parameters()]

    def function(x, *weights):
        moving = [w.detach().requires_grad_() for w in weights]
        named = dict(zip(names, moving, strict=True))
        outputs = torch.func.vmap(lambda own: functional_call(network, own, (x,)))(named)
        return outputs.detach(), *torch.autograd.grad(outputs.square().sum(), moving)

    return function, draws(*((rows, *p.shape) for p in network.parameters()))


CONVOLUTIONAL = {
    "mean pooling": [nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(2, 3, 2), nn.Tanh(), nn.AvgPool2d(2)],
    "maxima": [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.ReLU()],
    "in place": [nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Hardtanh(inplace=True)],
    "left over": [nn.Conv2d(1, 2, 4), nn.Tanh(), nn.AvgPool2d(2), nn.MaxPool2d((1, 2)), nn.Conv2d(2, 3, 1), nn.Tanh()],
    "pooling first": [nn.AvgPool2d(2), nn.Conv2d(1, 2, 3, bias=False), nn.ReLU()],
    "strides": [nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2, padding=2, groups=2), nn.Tanh()],
    "turned": [nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.AvgPool2d(3), nn.ConvTranspose2d(2, 1, 1)],
    "one dimension": [nn.Flatten(2), nn.Conv1d(1, 3, 4), nn.Tanh(), nn.Conv1d(3, 2, 1)],
}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("layers", CONVOLUTIONAL.values(), ids=CONVOLUTIONAL)
def test_batched_convolutions_stay_the_same(layers, rows):
    network = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)).double()
    (x,) = draws((4, 1, 10, 10))
    network(x)
    function, weights = batched_gradients(network, rows)
    graph, before, after = rewritten(function, x, *weights)
    assert aten.convolution.default in before & after
    for again in (x, 2 * x):
        for new, old in zip(graph(again, *weights), function(again, *weights), strict=True):
            torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)


def test_batched_convolutions_take_their_bias_and_pass_images_on_as_they_are():
    network = nn.Sequential(*CONVOLUTIONAL["mean pooling"], nn.Flatten(), nn.Linear(3, 2)).double()
    function, weights = batched_gradients(network, 3)
    (x,) = draws((4, 1, 10, 10))
    graph, _, _ = rewritten(function, x, *weights)
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    convolutions = [node for node in nodes if node.target is aten.convolution.default]
    assert len(convolutions) == 2
    assert all(node.args[2] is not None for node in convolutions)
    copied = [tuple(node.meta["val"].shape) for node in nodes if node.target is aten.clone.default]
    assert not {(3, 4, 2, 8, 8), (4, 3, 2, 8, 8), (3, 4, 2, 4, 4), (4, 3, 2, 4, 4)} & set(copied)


@pytest.mark.parametrize("written", ["source", "copy"])
def test_copies_of_what_is_written_to_are_kept(written):
    (x,) = draws((2, 3, 4))

    def function(x):
        source = x.tanh()
        copy = source.clone()
        (source if written == "source" else copy).mul_(2)
        return (source - copy).sin()

    graph, _, _ = rewritten(function, x)
    torch.testing.assert_close(graph(x), function(x))
    assert float(graph(x).abs().sum()) > 0


def test_copies_that_are_returned_are_kept():
    (x,) = draws((2, 3))

    def function(x):
        sine = x.sin()
        return sine, sine.clone().view(3, 2)

    first, second = rewritten(function, x)[0](x)
    assert first.data_ptr() != second.data_ptr()
