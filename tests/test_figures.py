"""Figures drawn from made-up results, and the pictures that are computed for them."""

import json
import math
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks import datasets, figures, models, pictures, style
from benchmarks.collected import Collected
from benchmarks.figures import curves
from benchmarks.run import run_all
from benchmarks.runs import RESULTS, Run
from laplace_fiber import comparison
from laplace_fiber.comparison.task import Task
from tests import records


@pytest.fixture
def results(tmp_path):
    records.write_all(tmp_path)
    return Collected(tmp_path)


def drawn(results, name):
    (picture,) = (p for p in figures.PICTURES if p.name == name)
    assert picture.has_results(results)
    return picture.draw(results)


def line_named(axis, name):
    handles, labels = axis.get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))[name].lines[0]


def test_every_compared_method_has_a_colour_and_a_marker_of_its_own():
    assert set(style.COMPARED) == {*comparison.METHODS, "fiber+temperature"}
    colours = [style.COLOURS[m] for m in style.COMPARED]
    assert len(set(colours)) == len(colours)
    assert all(style.mark(m)["marker"] for m in style.COMPARED)


def test_rotated_digits_are_drawn_as_log_likelihoods(results):
    (axis,) = drawn(results, "figure-7").axes
    x, y = line_named(axis, "Fiber").get_data()
    assert list(x) == [0.0, 15.0, 30.0]
    assert list(y) == pytest.approx([-(0.91 + angle / 90) for angle in (0, 15, 30)])
    assert axis.get_xlabel() == "rotation (degrees)"


def test_lines_are_those_of_the_papers_methods(results):
    (axis,) = drawn(results, "figure-7").axes
    assert axis.get_legend_handles_labels()[1] == ["MAP", "Ensemble of five networks", "Fiber"]
    assert {"map", "fiber", "fiber_typical", "laplace"} < set(curves.LINES) <= set(style.COMPARED)


def test_each_corruption_has_a_panel(results):
    shown = [axis for axis in drawn(results, "figure-6").axes if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == ["fog", "gaussian noise"]
    assert list(line_named(shown[0], "MAP").get_ydata()) == pytest.approx([-1.21, -1.41])


def test_failures_are_crosses_and_only_fits_have_a_time(results):
    time_axis, loss_axis = drawn(results, "figure-5").axes
    assert list(line_named(time_axis, "Fiber").get_ydata()) == pytest.approx([math.log10(2.5)] * 3)
    assert "MAP" not in time_axis.get_legend_handles_labels()[1]
    assert list(line_named(loss_axis, "MAP").get_ydata()) == pytest.approx([2.01, 3.01, 4.01])
    crosses = [line for line in loss_axis.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[4]]


def test_losses_off_the_scale_are_triangles_at_its_edge():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 2], [0.5, 0.6])
    curves._leave_off_scale(axis, {"map": {1: 0.5, 2: 0.6}, "laplace": {1: 0.4, 2: 1e5}})
    (triangle,) = [line for line in axis.lines if line.get_marker() == "^"]
    assert list(triangle.get_xdata()) == [2]
    low, high = axis.get_ylim()
    assert low < 0.4
    assert high == pytest.approx(1.2)
    curves._leave_off_scale(axis, {"map": {1: 0.5}, "laplace": {1: 0.9}})
    assert axis.get_ylim() == (low, high)  # nothing is off it


def test_settings_of_the_walk_and_the_others_have_a_figure_each(results):
    expected = (
        ("figure-10", "reach / prior radius", [0.5, 0.9, 2.0]),  # the default's run in the middle
        ("figure-11", "latent size", [2, 8, 0.9]),
    )
    for name, setting, losses in expected:
        axis = {a.get_xlabel(): a for a in drawn(results, name).axes}[setting]
        assert list(line_named(axis, "Fiber, test").get_ydata()) == losses


def test_a_default_that_is_no_number_comes_last(results):
    axis = {a.get_xlabel(): a for a in drawn(results, "figure-10").axes}["refinements M"]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["5", "default"]
    assert list(line_named(axis, "Fiber, test").get_ydata()) == [5, 0.9]


def test_differences_to_the_map_are_paired_over_seeds(results):
    axis = drawn(results, "nll-against-map").axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    row = names.index("Fiber")
    at_row = [line for line in axis.lines if list(line.get_ydata()) == [row]]
    assert at_row[0].get_xdata()[0] == pytest.approx(-0.1)


def test_figures_with_results_are_available(results):
    names = set(figures.available(results))
    assert names == {p.name for p in figures.PICTURES if p.experiment != "pictures"}


def test_files_are_the_same_each_time(results, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "PICTURES", [p for p in figures.PICTURES if p.name in ("figure-7", "figure-2")])
    first, again = (figures.draw_all(results, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert [path.name for path in first] == ["figure-7.png"]  # the other has no results


def test_large_files_get_a_palette(results, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "PICTURES", [p for p in figures.PICTURES if p.name == "figure-7"])
    (full,) = figures.draw_all(results, tmp_path / "a")
    monkeypatch.setattr(figures, "LARGEST_FILE", 1000)
    (small,) = figures.draw_all(results, tmp_path / "b")
    assert small.stat().st_size < full.stat().st_size


def test_the_committed_pictures_can_be_drawn():
    results = Collected(RESULTS)
    assert len(drawn(results, "figure-2").axes) == len(pictures.POSTERIORS) + 3
    components = drawn(results, "figure-12")
    assert len(components.axes) == len(pictures.COMPONENT_STEPS) + 1


# --- the experiment behind them --------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(pictures, "SURFACE_POINTS", 5)
    return tmp_path / "out"


@pytest.mark.filterwarnings("ignore:The network is not at a minimum", "ignore:.*acceptance", "ignore:.*R-hat")
def test_quick_pictures_of_banana_need_no_file(tiny):
    runs = [Run("pictures", "banana", method, 0, quick=True, out=tiny) for method in ("fiber", "components")]
    assert run_all(runs, jobs=1) == []
    surface, components = (json.loads(run.path.read_text())["picture"] for run in runs)
    assert set(surface["forms"]) == set(pictures.FORMS)
    means = torch.tensor(surface["forms"]["latent"]["mean"])
    assert means.shape == (25,)
    assert ((means >= 0) & (means <= 1)).all()
    assert len(surface["data"]["class"]) == len(surface["data"]["x"])
    assert set(components["points"]) == {"hmc", "steps-2", "steps-4", "typical"}
    assert all(len(x) == len(y) == 10 for x, y in components["points"].values())
    assert 0 < sum(components["explained"]) <= 1.001


def test_longer_walks_reach_further_and_finer_ones_do_not(tiny):
    task = Task((torch.nn.Linear(1, 1),), "regression", [], [])
    default = pictures._sampler(Run("pictures", "snelson", "fiber", 0), task)
    radius = math.sqrt(2)
    changed = {m: pictures._sampler(Run("pictures", "snelson", m, 0), task) for m in pictures.CHANGES}
    assert default.reach is None  # the prior's radius
    assert changed["steps-80"] == replace(default, n_steps=80, reach=2 * radius)
    assert changed["alpha-0.25"] == replace(default, reach=radius / 4)
    assert changed["particles-2"] == replace(default, n_particles=2)


def test_the_defaults_of_the_figures_are_those_of_the_walk():
    sampler = pictures._sampler(Run("pictures", "snelson", "fiber", 0), Task((), "regression", [], []))
    assert (sampler.n_steps, sampler.n_particles) == (pictures.DEFAULTS["n_steps"], pictures.DEFAULTS["n_particles"])


def test_probabilities_of_one_class_become_mean_and_spread():
    samples = torch.tensor([[[0.2, 0.8]], [[0.6, 0.4]]])
    mean, variance = pictures.moments(pictures._of_last_class(samples, classes=True))
    assert mean.item() == pytest.approx(0.6)
    assert variance.sqrt().item() == pytest.approx(0.4 / math.sqrt(2))
    averaged, none = pictures.moments(pictures._of_last_class(samples.mean(0), classes=True))
    assert averaged.item() == pytest.approx(0.6)
    assert none.item() == 0.0
    assert datasets.snelson_grid().shape == (301, 1)
