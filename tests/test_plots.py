"""Pictures show the numbers that they are given, and refuse what they cannot show."""

import importlib
import re
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib import pyplot

import laplace_fiber
from benchmarks import style as benchmark_style
from laplace_fiber import FiberLaplace, comparison, plots
from laplace_fiber.metrics import TargetDistribution, reliability
from laplace_fiber.plots import style
from laplace_fiber.selection import area, risk_coverage_curve

matplotlib.use("agg")
Y = torch.tensor([0, 1, 1, 0])
PROBS = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3], [0.8, 0.2]])


@pytest.fixture(autouse=True)
def _close():
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return pyplot.subplots()[1]


def names_in(legend):
    return [text.get_text() for text in legend.get_texts()]


# --- style -----------------------------------------------------------------------------------------------------------


def test_every_method_has_one_name_and_one_look():
    assert set(style.COMPARED) == {*comparison.METHODS, "fiber+temperature"}
    looks = [tuple(style.mark(m).values()) for m in style.COMPARED]
    assert len(set(looks)) == len(looks)
    assert {style.label(m) for m in comparison.METHODS} == {m.label for m in comparison.METHODS.values()}


def test_benchmarks_take_their_looks_from_the_same_place():
    for name in style.COMPARED:
        assert benchmark_style.mark(name) == style.mark(name)


def test_methods_without_a_colour_get_free_ones():
    found = style.marks(["fiber", "mine", "yours", "hmc"])
    assert found["fiber"] == style.mark("fiber")
    colours = [mark["color"] for mark in found.values()]
    assert len(set(colours)) == 4
    many = style.marks([f"method {i}" for i in range(20)])
    assert len({tuple(mark.values()) for mark in many.values()}) == 20


# --- regression ------------------------------------------------------------------------------------------------------


def band_edges(axis):
    return {c.get_label(): c.get_datalim(axis.transData) for c in axis.collections}


def test_bands_are_two_standard_deviations(ax):
    x = torch.tensor([[1.0], [0.0], [2.0]])
    mean, variance = torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[0.25], [1.0], [4.0]])
    assert plots.bands(x, (mean, variance), sigma_noise=1.5, method="hmc", ax=ax) is ax
    edges = band_edges(ax)
    assert edges["f, two sigma"].y1 == pytest.approx(4.0)
    assert edges["y, two sigma"].y1 == pytest.approx(5.0)  # sqrt(4 + 2.25) = 2.5
    (line,) = ax.lines
    assert list(line.get_xdata()) == [0.0, 1.0, 2.0]  # sorted
    assert list(line.get_ydata()) == [0.0, 1.0, 0.0]
    assert line.get_color() == style.COLOURS["hmc"]
    assert ax.get_title() == "HMC"


def test_bands_of_samples_can_be_drawn_one_by_one(ax):
    samples = torch.randn(7, 5, 1, generator=torch.Generator().manual_seed(0))
    plots.bands(torch.arange(5.0), samples, draws=3, data=(torch.ones(2), torch.zeros(2)), ax=ax)
    assert names_in(ax.get_legend()) == ["mean", "3 draws of f", "data"]
    assert len(ax.lines) == 5
    assert list(ax.lines[2].get_ydata()) == pytest.approx(samples[1].flatten().tolist())


def test_a_distribution_of_targets_has_one_band(ax):
    plots.bands(torch.arange(3.0), TargetDistribution(torch.zeros(3, 1), torch.full((3, 1), 0.25)), ax=ax)
    assert {name: edge.y1 for name, edge in band_edges(ax).items()} == {"y, two sigma": 1.0}


def test_bands_take_the_covariance_of_a_linearised_network(ax):
    mean, covariance = torch.zeros(3, 1), torch.full((3, 1, 1), 0.25)
    plots.bands(torch.arange(3.0), (mean, covariance), ax=ax)
    assert {name: edge.y1 for name, edge in band_edges(ax).items()} == {"f, two sigma": 1.0}
    flat, full = pyplot.subplots(1, 2)[1]
    y = torch.randn(3, 1, generator=torch.Generator().manual_seed(0))
    for axis, variance in ((flat, covariance[..., 0]), (full, covariance)):
        plots.reliability({"linearised": (mean, variance)}, y, ax=axis)
    assert flat.lines[1].get_xydata().tolist() == full.lines[1].get_xydata().tolist()


def test_bands_refuse_several_outputs_and_draws_without_samples():
    with pytest.raises(ValueError, match="one output for each of 3 inputs"):
        plots.bands(torch.arange(3.0), torch.zeros(7, 3, 2))
    with pytest.raises(ValueError, match="expected function samples"):
        plots.bands(torch.arange(3.0), (torch.zeros(3, 1), torch.ones(3, 1)), draws=2)
    with pytest.raises(ValueError, match=r"expected x of shape \(b,\) or \(b, 1\)"):
        plots.bands(torch.zeros(3, 2), torch.zeros(7, 3, 1))


# --- surfaces --------------------------------------------------------------------------------------------------------


def sides(x):
    p = torch.sigmoid(4 * x[:, :1])
    return torch.cat([1 - p, p], 1)


@pytest.mark.parametrize("show", ["probability", "spread", "entropy"])
def test_surfaces_are_evaluated_on_a_grid_around_the_data(show, ax):
    seen = []

    def predict(x):
        seen.append(x)
        return torch.stack([sides(x), sides(x + 0.1)])

    x = torch.tensor([[-1.0, 0.0], [1.0, 2.0]])
    plots.decision_surface(predict, x, torch.tensor([0, 1]), show=show, margin=0.5, points=11, ax=ax)
    assert seen[0].shape == (121, 2)
    assert seen[0].min(0).values.tolist() == pytest.approx([-2.0, -1.0])
    assert seen[0].max(0).values.tolist() == pytest.approx([2.0, 3.0])
    assert [a.get_ylabel() for a in ax.figure.axes][1:] != [""]  # the colour bar


def test_surfaces_of_several_classes_mix_their_colours(ax):
    def predict(x):
        return (torch.stack([x[:, 0], x[:, 1], -x.sum(1)], 1) * 5).softmax(-1)

    plots.decision_surface(predict, torch.randn(9, 2), torch.arange(9) % 3, points=8, ax=ax)
    (image,) = ax.images
    assert image.get_array().shape == (8, 8, 3)
    assert 0 <= image.get_array().min() <= image.get_array().max() <= 1


def test_surfaces_refuse_what_they_cannot_show():
    x, y = torch.randn(4, 2), torch.arange(4) % 2
    with pytest.raises(ValueError, match=r"inputs of shape \(b, 2\)"):
        plots.decision_surface(sides, torch.randn(4, 3), y)
    with pytest.raises(ValueError, match="expected one of"):
        plots.decision_surface(sides, x, y, show="doubt")
    with pytest.raises(ValueError, match=r"pass la\.predictive_samples"):
        plots.decision_surface(sides, x, y, show="spread")


# --- fits ------------------------------------------------------------------------------------------------------------


def test_the_walk_is_that_of_the_report(classification):
    la, _ = classification
    objective, nll, distance, rejected = plots.walk(la)
    trace = la.report.trace
    for axis, values in ((objective, trace.objective), (nll, trace.nll), (distance, trace.distance)):
        assert len(axis.lines) == len(values) + 1
        assert list(axis.lines[-1].get_ydata()) == pytest.approx(values.mean(0).tolist())
    assert list(rejected.lines[0].get_ydata()) == pytest.approx((100 * trace.rejected_share[1:]).tolist())
    assert nll.lines[-1].get_ydata()[0] == pytest.approx(la.report.nll_map)
    with pytest.raises(ValueError, match="expected 4 axes, got 1"):
        plots.walk(la, [objective])


def test_latent_lines_begin_at_the_map_and_end_at_the_last_states(classification, ax):
    la, _ = classification
    plots.latent_space(la, ax)
    chords, paths = ax.collections[:2]
    for chord, path in zip(chords.get_segments(), paths.get_segments(), strict=True):
        assert chord[0] == pytest.approx([0, 0], abs=1e-9)
        assert chord[1] == pytest.approx(path[-1])
    assert len(chords.get_segments()) == la.report.n_particles
    lines = la.fitted.lines
    torch.testing.assert_close(lines.path[:, -1], lines.ends)


def test_a_loaded_state_has_no_walk_to_show(classification):
    la, _ = classification
    loaded = FiberLaplace(la.model, "classification")
    loaded.load_state_dict(la.state_dict())
    for draw in (plots.walk, plots.latent_space):
        with pytest.raises(RuntimeError, match="fitted in this process"):
            draw(loaded)
    with pytest.raises(RuntimeError, match="has not been fitted"):
        plots.latent_space(FiberLaplace(la.model, "classification"))


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_lines_have_the_losses_of_their_points(likelihood, request, ax):
    la, data = request.getfixturevalue(likelihood)
    plots.line_losses(la, data, n_lines=3, n_points=5, ax=ax)
    curves = dict(zip(names_in(ax.get_legend()), ax.lines, strict=True))
    ends = {name: line.get_ydata()[[0, -1]] for name, line in curves.items()}
    x, y = data.dataset.tensors
    with la.network.evaluation():
        thetas = torch.stack([la.mean, *la.fitted.subspace.to_weights(la.fitted.states[:3, -1])])
        losses = [loss_of(la, x, y, theta) for theta in thetas]
    expected = [losses[0], sum(losses[1:]) / 3]
    assert ends["Fiber, straight lines"] == pytest.approx(expected)
    assert ends["Fiber, states of the walk"] == pytest.approx(expected)
    assert ends["Fiber, latent"][0] == pytest.approx(expected[0], abs=0.05)
    with pytest.raises(ValueError, match="n_points >= 2"):
        plots.line_losses(la, data, n_points=1)


def loss_of(la, x, y, theta):
    outputs = la.network.one(theta, x).detach()
    if la.likelihood == "classification":
        return float(torch.nn.functional.cross_entropy(outputs, y))
    return float(-torch.distributions.Normal(outputs, la.sigma_noise).log_prob(y).sum(1).mean())


def test_weights_keep_their_distances_in_the_plane(ax):
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(6, 2, generator=generator, dtype=torch.float64))[0].T
    points = {name: torch.randn(9, 2, generator=generator, dtype=torch.float64) for name in ("fiber", "hmc")}
    plots.weight_components({name: 3 + p @ plane for name, p in points.items()}, torch.full((6,), 3.0), ax)
    drawn = torch.cat([torch.as_tensor(c.get_offsets().data) for c in ax.collections])
    torch.testing.assert_close(torch.pdist(drawn), torch.pdist(torch.cat(list(points.values()))))
    star = torch.tensor(ax.lines[0].get_xydata()[0])
    torch.testing.assert_close((drawn - star).norm(dim=1), torch.cat(list(points.values())).norm(dim=1))
    assert names_in(ax.get_legend()) == ["Fiber", "HMC", "trained weights"]
    with pytest.raises(ValueError, match="two samples and weights or more"):
        plots.weight_components({"a": torch.zeros(1, 3)})
    with pytest.raises(ValueError, match="over the same weights"):
        plots.weight_components({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)})


# --- scores ----------------------------------------------------------------------------------------------------------


def test_reliability_is_that_of_the_metrics(ax):
    plots.reliability({"map": PROBS, "mine": PROBS[None]}, Y, ax=ax)
    expected = reliability(PROBS, Y)
    assert names_in(ax.get_legend()) == ["MAP", "mine"]
    assert list(ax.lines[1].get_xdata()) == pytest.approx(expected["expected"])
    assert list(ax.lines[1].get_ydata()) == pytest.approx(expected["observed"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("confidence", "accuracy")


def test_bins_with_few_inputs_are_left_out_of_reliability(ax):
    confidence = torch.cat([torch.full((195,), 0.95), torch.full((5,), 0.75)])
    plots.reliability({"map": torch.stack([confidence, 1 - confidence], 1)}, torch.zeros(200, dtype=torch.long), ax=ax)
    assert list(ax.lines[1].get_xdata()) == pytest.approx([0.95])


def test_reliability_of_a_regression_is_coverage(ax):
    y = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    plots.reliability({"map": (torch.zeros(50, 1), torch.zeros(50, 1))}, y, sigma_noise=1.0, ax=ax)
    assert ax.get_ylabel() == "empirical coverage"
    assert list(ax.lines[1].get_xdata()) == pytest.approx([k / 10 for k in range(1, 10)])


def test_risk_grows_with_coverage_where_doubt_finds_the_errors():
    coverage, risk = risk_coverage_curve(PROBS, Y)  # surest first: 0.9 and 0.8 right, 0.7 wrong, 0.6 right
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert area(coverage, risk) == pytest.approx((1 / 3 + 1 / 4) / 4)


def test_equal_doubts_share_their_risk():
    same = torch.tensor([[0.8, 0.2]]).repeat(4, 1)
    assert risk_coverage_curve(same, Y)[1].tolist() == pytest.approx([0.5] * 4)


def test_risk_of_a_regression_is_its_error():
    mean, variance = torch.zeros(3, 1), torch.tensor([[3.0], [1.0], [2.0]])
    _, risk = risk_coverage_curve((mean, variance), torch.tensor([[3.0], [1.0], [2.0]]))
    assert risk.tolist() == pytest.approx([1.0, (5 / 2) ** 0.5, (14 / 3) ** 0.5])


def test_risk_and_coverage_are_drawn_with_their_area(ax):
    plots.risk_coverage({"map": PROBS}, Y, ax)
    assert names_in(ax.get_legend()) == ["MAP (area 0.146)"]
    assert list(ax.lines[0].get_ydata()) == pytest.approx([0, 0, 1 / 3, 1 / 4])


def test_shifts_have_means_and_standard_errors(ax):
    plots.shift_curves({"fiber": {2: [1.0, 3.0], 1: 0.5}, "map": {1: 1.0, 2: 2.0}}, "angle", "NLL", ax)
    assert names_in(ax.get_legend()) == ["MAP", "Fiber"]
    line, _, (bars,) = ax.containers[1]
    assert line.get_xydata().tolist() == [[1.0, 0.5], [2.0, 2.0]]
    assert bars.get_segments()[1][:, 1].tolist() == pytest.approx([1.0, 3.0])  # 2 ± √2 / √2


def test_costs_are_numbered_from_the_lowest_loss(ax):
    points = {"map": [(0.0, 0.5)], "fiber": [(1.0, 0.2), (3.0, 0.4)], "hmc": [(9.0, 70.0)]}
    plots.cost(points, {"hmc": "chains"}, ax)
    assert names_in(ax.get_legend()) == ["1  Fiber", "2  MAP", "3  chains, NLL 70"]
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3 ↑"]
    means = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_alpha() is None]
    assert means == [[2.0, pytest.approx(0.3)], [0.01, 0.5], [9.0, 0.5]]
    with pytest.raises(ValueError, match="at least one seed of fiber"):
        plots.cost({"fiber": []})


@pytest.mark.parametrize("draw", [plots.reliability, plots.risk_coverage])
def test_nothing_to_draw_is_said(draw):
    with pytest.raises(ValueError, match="at least one method"):
        draw({}, Y)


# --- everywhere ------------------------------------------------------------------------------------------------------


def test_new_figures_are_made_where_no_axes_are_given(classification):
    la, data = classification
    x, y = data.dataset.tensors
    drawn = [
        plots.decision_surface(la, x, y, points=4),
        plots.latent_space(la),
        plots.line_losses(la, data, 2, 3),
        plots.weight_components({"fiber": la.sample(5)}),
        plots.reliability({"fiber": la(x)}, y),
        plots.risk_coverage({"fiber": la(x)}, y),
        plots.shift_curves({"fiber": {0: 1.0}}),
        plots.cost({"fiber": [(1.0, 1.0)]}),
    ]
    assert len({axis.figure.number for axis in drawn}) == len(drawn)
    assert set(plots.__all__) == {"bands", "walk"} | {
        "decision_surface",
        "latent_space",
        "line_losses",
        "weight_components",
        "reliability",
        "risk_coverage",
        "shift_curves",
        "cost",
    }


def test_pictures_are_imported_where_they_are_drawn_alone():
    """At the top of a file, only the modules of pictures import them or matplotlib."""
    package = Path(laplace_fiber.__file__).parent
    modules = [file for file in package.rglob("*.py") if "plots" not in str(file.relative_to(package))]
    assert len(modules) > 80
    drawing = re.compile(r"^(from|import) (matplotlib|\S+\.plots)|^from .* import .*\bplots\b", re.MULTILINE)
    assert drawing.search("from laplace_fiber.plots.style import marks")
    assert [file.name for file in modules if drawing.search(file.read_text())] == []


def test_matplotlib_is_asked_for_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [name for name in sys.modules if name.startswith("laplace_fiber.plots")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match=r"pip install 'laplace-fiber\[plots\]'"):
        importlib.import_module("laplace_fiber.plots")
