"""What made-up distances from HMC come to on the page and in the figure."""

import pytest

from benchmarks import figures, page
from benchmarks.collected import Collected
from benchmarks.fidelity.conditions import LINEARISED, PLAIN, STOCHASTIC, TYPICAL, all_conditions
from benchmarks.fidelity.methods import METHODS
from benchmarks.page.fidelity import goals, references
from tests import records


@pytest.fixture
def conditions(tmp_path):
    """On glass the walk to the typical set is tied with SGLD, on linear far behind the linearised Laplace."""
    outside = {
        "glass": {TYPICAL: (0.11, 0.09), "sgld": (0.09, 0.10), STOCHASTIC: (0.2, 0.2), LINEARISED: (0.3, 0.3)},
        "linear": {TYPICAL: (0.5, 0.5), LINEARISED: (0.1, 0.1)},
    }
    losses = {TYPICAL: (1.0, 1.1), LINEARISED: (1.0, 1.05), PLAIN: (0.98, 1.2), "hmc": (0.9, 0.9)}
    for name, found in outside.items():
        for method in ("hmc", *METHODS):
            for seed in range(2):
                distance, nll = (values.get(method, (1.0, 1.0))[seed] for values in (found, losses))
                converged = method != "hmc" or (name, seed) != ("linear", 1)
                records.write_distance(tmp_path, name, method, seed, outside=distance, nll=nll, converged=converged)
    records.write_distance(tmp_path, "snelson-wide", TYPICAL, 0, outside=0.5, nll=1.0)
    return all_conditions(Collected(tmp_path))


def test_problems_are_counted_where_every_method_was_run(conditions):
    (only,) = conditions
    assert only.title == "tanh, τ = 1"
    assert set(only.problems) == {"glass", "linear", "snelson-wide"}
    assert set(only.compared) == {"glass", "linear"}


def test_the_closest_may_be_tied_and_walks_do_not_compete_with_each_other(conditions):
    (only,) = conditions
    assert only.lowest("glass", "wasserstein_outside") == ["sgld", TYPICAL]
    assert only.closest_outside(TYPICAL) == ["glass"]  # SGLD is 0.005 ± 0.015 closer
    assert only.closest_outside(STOCHASTIC) == []
    assert only.mean("snelson-wide", TYPICAL, "wasserstein_outside") == 0.5
    assert only.mean("snelson-wide", "sgld", "wasserstein_outside") is None
    assert only.lowest("snelson-wide", "wasserstein_outside", ["sgld"]) == []


def test_inside_and_in_loss_walks_are_compared_with_their_rivals(conditions):
    (only,) = conditions
    assert only.close_inside(TYPICAL) == ["glass"]
    assert set(only.predicts_as_well(TYPICAL, [LINEARISED])) == {"glass", "linear"}  # 0.025 ± 0.025
    assert set(only.predicts_as_well(TYPICAL, [PLAIN, LINEARISED])) == {"glass", "linear"}
    assert only.predicts_as_well(TYPICAL, ["hmc"]) == []


def test_goals_name_the_problems_that_are_missing(conditions):
    row = next(line for line in goals(conditions).splitlines() if line.startswith("| Fiber, typical set |"))
    assert row.split("|")[2:6] == [" tanh, τ = 1 ", " 1 of 2 (not linear) ", " 1 of 2 (not linear) ", " 2 of 2 "]
    assert "| 0 of 2 |" in row


def test_chains_that_did_not_converge_are_listed(conditions):
    assert references(conditions).splitlines() == [
        "Of 4 references 1 stopped at their limit:",
        "",
        "- linear, tanh, τ = 1, seed 1: R-hat 1.200, 900 effective draws after 30 s",
    ]


def test_the_page_marks_the_closest(conditions, tmp_path):
    text = page.page_texts(Collected(tmp_path))[page.FIDELITY_PAGE]
    assert "| SGLD | **0.048** · **0.095** |" in text
    assert "| Fiber, typical set | **0.050** · **0.100** | 0.250 · 0.500 | **0.250** · **0.500** |" in text
    assert "| HMC, half against half | 0.500 · 1.000 |" in text
    assert "![Distances from long HMC](img/benchmarks/distances.png)" in text


def test_without_results_the_page_says_how_to_make_them(tmp_path):
    text = page.page_texts(Collected(tmp_path))[page.FIDELITY_PAGE]
    assert "No results yet: `python -m benchmarks.fidelity run" in text


def test_the_figure_has_a_dot_for_each_problem(conditions, tmp_path):
    (picture,) = (p for p in figures.PICTURES if p.name == "distances")
    inside, outside = picture.draw(Collected(tmp_path)).axes[:2]
    names = [text.get_text() for text in inside.get_yticklabels()]
    row = names.index("Fiber, typical set")
    dots, middle = outside.lines[2 * row], outside.lines[2 * row + 1]
    assert sorted(dots.get_xdata()) == pytest.approx([0.1, 0.5])
    assert middle.get_xdata()[0] == pytest.approx(0.05**0.5)
