"""A search trains members until the budget is spent, goes on where it was stopped, and leaves a pool."""

import json
from pathlib import Path

import pytest

from keras_committee.cli import main
from keras_committee.errors import DivergedError, Interrupted, RunError
from keras_committee.evaluation import load_pool
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.search import Budget, driver, parse_ranges
from keras_committee.search.driver import search

TINY = RecipeFile.read(Path(__file__).parents[1] / "recipes" / "tiny.py")
KNOBS = TINY.resolve(["epochs=1", "seed=5"])
RANGES = parse_ranges(TINY, ["learning_rate=0.01:0.3:log", "batch_size=32,64"])
ONE = 3 * 2 * 8 * 8 * 3 * 10 / 1e9  # GFLOPs of an image


@pytest.fixture(scope="module")
def images():
    return len(TINY.build(KNOBS).data.load().train)


@pytest.fixture
def searching(tmp_path, images, monkeypatch):
    monkeypatch.setattr(driver, "MAX_REJECTED_PROPOSALS", 2)

    def start(members, ranges=RANGES):
        budget = Budget(gflops=(members + 0.5) * ONE * images)
        return search(TINY, KNOBS, ranges, budget, tmp_path / "search", command="test", report=lambda _: None)

    return start


def test_a_search_spends_its_budget_and_goes_on_with_a_larger_one(searching):
    first = searching(1)
    assert [Path(run).name for run in first["runs"]] == ["member-000"]
    assert first["gflops_images"] == pytest.approx(first["members"][0]["gflops_images"])
    again = searching(2)
    assert again["members"][0] == first["members"][0]
    assert again["gflops_images"] == pytest.approx(2 * first["gflops_images"])
    pool = load_pool([Run.open(run) for run in again["runs"]])
    assert len(pool.members) == 2
    knobs = [Run.open(run).parameters() for run in again["runs"]]
    assert [each["learning_rate"] for each in knobs] == [each["knobs"]["learning_rate"] for each in again["members"]]
    assert {each["batch_size"] for each in knobs} <= {32, 64}
    assert knobs[0]["seed"] == 5
    assert knobs[1]["seed"] > 5
    gains = [each["gain"] for each in again["members"]]
    assert again["best_nll"] == pytest.approx(2.302585 - sum(gains), abs=1e-6)


def test_a_search_that_was_stopped_goes_on_with_the_same_member(searching, monkeypatch):
    def stop(*_, **__):
        raise Interrupted("stopped", 130)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "train_committee", stop)
        with pytest.raises(Interrupted):
            searching(1)
    result = searching(1)
    assert [(Path(each["run"]).name, each["gain"] > 0) for each in result["members"]] == [("member-000", True)]


def test_a_member_that_diverges_is_left_out_and_paid_for(searching, monkeypatch):
    def diverge(*_, **__):
        raise DivergedError("member 0: the loss is no number")

    monkeypatch.setattr(driver, "train_committee", diverge)
    result = searching(2)
    assert (result["runs"], len(result["members"]), result["best_nll"]) == ([], 2, None)


def test_a_folder_of_another_search_is_refused(searching, monkeypatch):
    monkeypatch.setattr(driver, "MAX_REJECTED_PROPOSALS", 0)
    searching(0)
    with pytest.raises(RunError, match=r"belongs to another search: other ranges\.\n  Nothing was touched"):
        searching(0, parse_ranges(TINY, ["learning_rate=0.01:0.2:log", "batch_size=32,64"]))


def test_search_at_the_command_line(tmp_path, capfd, images):
    recipe = ["search", str(TINY.path), "--search-space", "learning_rate=0.01:0.3", "--out", str(tmp_path / "s")]
    assert main(recipe) == 2
    assert "requires --budget-gflops X or --budget-minutes X" in capfd.readouterr().err
    budget = ["--budget-gflops", str(1.2 * ONE * images), "--set", "epochs=1", "--json"]
    assert main([*recipe, *budget]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out)["runs"] == [f"{tmp_path}/s/member-000"]
    assert "the committee's NLL on validation went from 2.3026 to" in captured.err
