"""The generated page and the README's results: from the committed files, and from made-up ones."""

import math

import pytest
import torch

from benchmarks import figures, page, paper
from benchmarks.__main__ import main
from benchmarks.collected import Collected, Difference
from benchmarks.page.gains import largest_gains
from benchmarks.page.tables import dataset_table, measure_table, rank_table
from benchmarks.page.verdicts import GOAL_SETS, goals, trainings, verdict
from benchmarks.runs import RESULTS
from tests import records

ROOT = RESULTS.parent.parent


# --- what is committed -----------------------------------------------------------------------------------------------


def test_the_page_shows_the_committed_results():
    results = Collected(RESULTS)
    for name, text in page.page_texts(results).items():
        assert (ROOT / "docs" / name).read_text() == text
    for name in figures.available(results):
        assert (ROOT / "docs" / figures.FOLDER / f"{name}.png").exists()


def test_the_readme_shows_the_committed_results():
    assert page.readme_block(Collected(RESULTS)) in (ROOT / "README.md").read_text()


def test_the_papers_numbers_are_found_by_our_names():
    assert paper.reported("nll", "fiber", "glass-raw") == (1.07, 0.07)
    assert paper.reported("accuracy", "swag", "mnist") == (0.97, 0.02)
    assert paper.reported("log_time", "riemannian", "cifar10") == (5.31, 0.08)
    assert paper.reported("nll", "fiber", "glass") is None  # standardised: not the paper's inputs
    assert paper.reported("nll", "map", "glass-raw") is None
    assert len(paper._values()) == 378


# --- comparisons -----------------------------------------------------------------------------------------------------


@pytest.fixture
def glass(tmp_path):
    """Fiber is 0.1 below HMC on one seed and 0.06 above it on the other; SWAG lacks a seed, VI is not finite."""
    losses = {
        "map": [1.0, 1.2],
        "fiber": [0.7, 0.96],
        "hmc": [0.8, 0.9],
        "ensemble": [0.6, 0.7],
        "swag": [0.1],
        "vi": [0.1, math.inf],
    }
    records.write_losses(tmp_path, "uci", "glass", losses, fit_seconds=10.0)
    return Collected(tmp_path)


def test_differences_are_paired_over_seeds(glass):
    scores = glass.scores("uci", "glass")
    gap = scores.difference("fiber", "hmc")
    assert gap.mean == pytest.approx((-0.1 + 0.06) / 2)
    assert gap.error == pytest.approx(0.16 / math.sqrt(2) / math.sqrt(2))
    assert gap.tied
    assert gap.no_worse
    assert scores.difference("swag", "hmc").n_seeds == 1
    assert scores.difference("fiber", "sgld") is None


@pytest.mark.parametrize(
    ("gap", "no_worse"),
    [
        (Difference(-0.1, 0.01, 3), True),
        (Difference(0.1, 0.2, 3), True),
        (Difference(0.1, 0.05, 3), False),
        (Difference(0.1, None, 1), False),
        (Difference(-0.1, None, 1), True),
    ],
)
def test_no_worse_means_lower_or_within_one_standard_error(gap, no_worse):
    assert gap.no_worse == no_worse


def test_only_methods_finite_on_every_seed_are_ranked(glass):
    scores = glass.scores("uci", "glass")
    assert scores.seeds == (0, 1)
    assert set(scores.complete()) == {"map", "fiber", "hmc", "ensemble"}
    assert scores.ranks() == {"ensemble": 1.0, "fiber": 2.0, "hmc": 3.0, "map": 4.0}
    assert scores.best(scores.single_network()) == "fiber"
    assert "| Fiber | 2.0 (1) | 2.0 (1) |" in rank_table([scores], {"nll": "a", "nll_per_sample": "b"})


def test_equal_means_share_their_rank(tmp_path):
    records.write_losses(tmp_path, "uci", "glass", {"map": [1.0], "hmc": [0.5], "fiber": [0.5]})
    assert Collected(tmp_path).scores("uci", "glass").ranks() == {"map": 3.0, "hmc": 1.5, "fiber": 1.5}


def test_tables_mark_the_best_of_one_network_and_what_is_missing(glass):
    table = measure_table([glass.scores("uci", "glass")], "nll")
    assert "| Fiber | **0.830 ± 0.130** |" in table
    assert "| HMC | **0.850 ± 0.050** |" in table
    assert "| Ensemble of five networks | 0.650 ± 0.050 |" in table
    assert "| SWAG | 0.100 (1) |" in table
    assert "inf" in table
    assert measure_table([glass.scores("uci", "glass")], "rmse") is None


def test_the_papers_column_stands_beside_single_samples(tmp_path):
    records.write_losses(tmp_path, "uci-raw", "glass-raw", {"fiber": [1.0, 1.2], "map": [2.0, 2.0]}, fit_seconds=100.0)
    head, _, *rows = dataset_table(Collected(tmp_path).scores("uci-raw", "glass-raw")).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]
    fiber = next(row for row in rows if row.startswith("| Fiber |"))
    cells = dict(zip(columns, (cell.strip() for cell in fiber.strip("|").split("|")), strict=True))
    assert columns[columns.index("NLL, single") + 1] == "NLL, paper"
    assert cells["NLL, paper"] == "1.07 ± 0.07"
    assert cells["NLL, single"] == "**1.200 ± 0.100**"
    assert cells["accuracy, single" if "accuracy, single" in columns else "accuracy"].startswith("0.8")
    assert cells["log time"] == "2.00 ± 0.00"
    assert cells["log time, paper"] == "1.64 ± 0.32"
    assert any(row.startswith("| Riemannian Laplace | – |") for row in rows)  # the paper's alone


def test_a_verdict_names_the_rivals_and_the_cost(glass):
    text = verdict(glass.scores("uci", "glass"))
    assert "Lowest NLL on one network: Fiber, 0.830" in text
    assert "Fiber: within one standard error of the best other, HMC (-0.020 ± 0.080)" in text
    assert "Fiber, typical set: not finished" in text
    assert "Ensemble: 0.650 ± 0.050; minus it: Fiber +0.180" in text
    assert trainings(glass.scores("uci", "glass"), "fiber") == pytest.approx(5.0)


def test_goals_count_data_sets(tmp_path):
    winning = {
        "map": [1.0, 1.0],
        "fiber": [0.5, 0.52],
        "sghmc": [0.4, 0.41],
        "swag": [0.7, 0.7],
        "ensemble": [0.6, 0.6],
    }
    losing = {**winning, "swag": [0.1, 0.1], "ensemble": [0.2, 0.2]}
    records.write_losses(tmp_path, "uci", "glass", winning)
    records.write_losses(tmp_path, "mnist", "mnist", losing)
    for seed in range(2):  # the ones whose calibration counts
        records.write(tmp_path, "uci", "glass", "map", seed, metrics=records.scores(1.0, ece=9.0))
    lines = goals(Collected(tmp_path)).splitlines()
    assert lines[0].endswith(
        "of 2 data sets Fiber on 0; Fiber, typical set on 0; Fiber, stochastic on 0; any of them on 0."
    )
    assert "Fiber on 1 (glass)" in lines[1]  # without the chains
    assert "Fiber on 1 (glass)" in lines[2]  # against the ensemble
    assert "of 1 data sets Fiber on 1 (glass)" in lines[4]
    assert "NLL at most 0.12 on mnist: Fiber 0.510" in lines[5]
    assert lines[-1].startswith("- No finished runs of FiberLaplace: snelson, banana, australian")
    assert len(GOAL_SETS) == 10


# --- the page --------------------------------------------------------------------------------------------------------


def test_without_results_the_page_says_which_commands_make_them(tmp_path):
    text = page.page_texts(Collected(tmp_path))[page.PAGE]
    for command in ("run snelson", "run uci", "run mnist", "run scaling", "run pictures", "fidelity run"):
        assert command in text
    assert "insert:" not in text
    assert "No results yet" in page.readme_block(Collected(tmp_path))


def test_failed_and_unfinished_runs_are_listed_with_their_seeds(tmp_path):
    records.write_losses(tmp_path, "uci", "glass", {"map": [1.0]})
    for seed in (0, 2):
        records.write(tmp_path, "uci", "glass", "hmc", seed, status="failed", error="RuntimeError('no `step`')")
    records.write(tmp_path, "uci", "glass", "sgld", 0, status="unfinished", progress="40 of 100 steps")
    text = page.page_texts(Collected(tmp_path))[page.PAGE]
    assert "- uci, glass, HMC, seeds 0, 2: failed, `RuntimeError('no 'step'')`" in text
    assert "- uci, glass, SGLD, seed 0: unfinished, `40 of 100 steps`" in text
    assert "- uci, Fiber: all data sets" in text
    assert "- uci, MAP: australian" in text


def test_every_experiment_has_its_tables(tmp_path):
    records.write_all(tmp_path)
    text = page.page_texts(Collected(tmp_path))[page.PAGE]
    assert "| hidden layers | 1 | 2 | 3 |" in text
    assert "| data | 0.5 | 1 | 2 |" in text
    assert "| data | 5 | default |" in text
    assert "| Fiber | -0.910 | -1.077 | -1.243 |" in text  # rotations by 0, 15 and 30 degrees
    assert "| Fiber | -1.110 | -1.310 |" in text  # severities
    assert "| method | mnist against fashion |" in text
    assert "| Fiber | 0.800 ± 0.000 |" in text
    assert "| Fiber | 0.910 ± 0.010 | **1.010 ± 0.010** | 0.12 ± 0.01 |" in text.replace(
        "**0.910 ± 0.010**", "0.910 ± 0.010"
    )


def test_a_template_and_its_inserts_must_agree():
    assert page.fill("a\n<!-- insert: x -->\n", {"x": "b"}) == "a\nb\n"
    with pytest.raises(ValueError, match="y"):
        page.fill("<!-- insert: x -->", {"x": "b", "y": "c"})
    with pytest.raises(ValueError, match="x"):
        page.fill("<!-- insert: x -->", {})


def test_a_readme_without_marks_is_left_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="no such place"):
        page.update_readme(readme, Collected(tmp_path))


def test_the_command_writes_page_figures_and_readme(tmp_path, capsys):
    threads = torch.get_num_threads()
    records.write_losses(tmp_path / "out", "snelson", "snelson", {"map": [1.0, 1.1], "fiber": [0.5, 0.7]})
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + "\n".join(page.README_MARKS) + "\nafter")
    options = ["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"), "--readme", str(readme)]
    assert main(["report", "snelson", *options]) == 0
    assert "benchmarks.md" in capsys.readouterr().out
    assert "Fiber: below the best other, MAP" in (tmp_path / "docs" / page.PAGE).read_text()
    assert (tmp_path / "docs" / figures.FOLDER / "cost.png").exists()
    text = readme.read_text()
    assert text.startswith("before\n<!-- results -->")
    assert "**0.600 ± 0.100**" in text
    assert text.endswith("<!-- /results -->\nafter")
    torch.set_num_threads(threads)


def test_gains_of_single_settings_are_paired_and_need_every_seed(tmp_path):
    for seed, value in enumerate((0.9, 1.1)):
        settings = {"axis": "default", "value": None}
        records.write(
            tmp_path, "sensitivity", "glass", "default", seed, metrics=records.scores(value), settings=settings
        )
        for k, gain in enumerate((0.3, 0.1, -0.2, 0.0)):
            found = records.scores(value - gain - 0.02 * seed)
            settings = {"axis": "reach", "value": k}
            records.write(tmp_path, "sensitivity", "glass", f"reach={k}", seed, metrics=found, settings=settings)
    records.write(tmp_path, "sensitivity", "glass", "reach=9", 0, metrics=records.scores(0.0), settings=settings)
    rows = largest_gains(Collected(tmp_path)).splitlines()[2:]
    assert rows[0] == "| glass | `reach=0` | -0.310 ± 0.010 | -0.310 ± 0.010 |"
    assert [row.split("|")[2].strip() for row in rows] == ["`reach=0`", "`reach=1`", "`reach=3`"]
