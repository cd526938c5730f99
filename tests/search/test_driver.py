"""The search: budget, interruption, failures and the resulting pool of runs."""

import json
import re
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from keras_committee.cli import main
from keras_committee.errors import DivergedError, Interrupted, RecipeError, RunError
from keras_committee.evaluation import load_pool
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.search import Budget, ParameterRange, driver, parse_ranges
from keras_committee.search.driver import search

TINY = RecipeFile.read(Path(__file__).parents[1] / "recipes" / "tiny.py")
PARAMETERS = TINY.resolve(["epochs=1", "seed=5"])
RANGES = parse_ranges(TINY, ["learning_rate=0.01:0.3:log", "batch_size=32,64"])
GFLOPS_PER_IMAGE = 3 * 2 * 8 * 8 * 3 * 10 / 1e9


@pytest.fixture(scope="module")
def images():
    return len(TINY.build(PARAMETERS).data.load().train)


@pytest.fixture
def start_search(tmp_path, images, monkeypatch):
    monkeypatch.setattr(driver, "MAX_REJECTED_PROPOSALS", 2)

    def start(members, ranges=RANGES):
        budget = Budget(gflops=(members + 0.5) * GFLOPS_PER_IMAGE * images)
        return search(TINY, PARAMETERS, ranges, budget, tmp_path / "search", command="test", report=lambda _: None)

    return start


@pytest.mark.slow
def test_a_search_spends_its_budget_and_continues_with_a_larger_one(start_search):
    first = start_search(1)
    assert [Path(run).name for run in first["runs"]] == ["member-000"]
    assert first["gflops"] == pytest.approx(first["members"][0]["gflops"])
    second = start_search(2)
    assert second["members"][0] == first["members"][0]
    assert second["gflops"] == pytest.approx(2 * first["gflops"])
    pool = load_pool([Run.open(run) for run in second["runs"]])
    assert len(pool.members) == 2
    parameters = [Run.open(run).parameters() for run in second["runs"]]
    rates = [member["parameters"]["learning_rate"] for member in second["members"]]
    assert [values["learning_rate"] for values in parameters] == rates
    assert {values["batch_size"] for values in parameters} <= {32, 64}
    assert parameters[0]["seed"] == 5
    assert parameters[1]["seed"] > 5
    assert all(member["minutes"] > 0 for member in second["members"])
    gains = [member["gain"] for member in second["members"]]
    assert second["best_nll"] == pytest.approx(2.302585 - sum(gains), abs=1e-6)


def test_an_interrupted_search_resumes_with_the_same_member(start_search, monkeypatch):
    def stop(*_, **__):
        raise Interrupted("stopped", 130)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "train_committee", stop)
        with pytest.raises(Interrupted):
            start_search(1)
    result = start_search(1)
    assert [(Path(member["run"]).name, member["gain"] > 0) for member in result["members"]] == [("member-000", True)]


def test_a_diverged_member_is_excluded_but_counts_against_the_budget(start_search, monkeypatch):
    def diverge(*_, **__):
        raise DivergedError("member 0: the loss is not finite")

    monkeypatch.setattr(driver, "train_committee", diverge)
    result = start_search(2)
    assert (result["runs"], len(result["members"]), result["best_nll"]) == ([], 2, None)


def test_a_search_of_some_trials_continues_with_more_as_if_it_had_not_stopped(tmp_path, monkeypatch):
    def diverge(*_, **__):
        raise DivergedError("member 0: the loss is not finite")

    def start(folder, trials):
        budget, messages = Budget(trials=trials), []
        result = search(TINY, PARAMETERS, RANGES, budget, tmp_path / folder, command="test", report=messages.append)
        return [member["parameters"] for member in result["members"]], messages

    monkeypatch.setattr(driver, "train_committee", diverge)
    first, _ = start("a", 2)
    assert start("a", 2) == (first, [])  # no member, and no proposal
    continued, messages = start("a", 4)
    assert messages[0].startswith("member 2 (trial 3 of 4): learning_rate=0.")
    assert continued[:2] == first
    assert start("b", 4)[0] == continued
    assert len(continued) == 4


def test_the_folder_of_another_search_is_an_error_if_it_has_members(start_search, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "MAX_REJECTED_PROPOSALS", 0)
    start_search(0)
    other = parse_ranges(TINY, ["learning_rate=0.01:0.2:log", "batch_size=16,128"])
    start_search(0, other)
    (Run(tmp_path / "search" / "member-000").member(0).state / "step-000000000").mkdir(parents=True)
    with pytest.raises(RunError, match=r"belongs to a search with a different search space\.\n  No file was changed"):
        start_search(0)
    start_search(0, other)


def test_search_at_the_command_line(tmp_path, capfd, images):
    recipe = ["search", str(TINY.path), "--search-space", "learning_rate=0.01:0.3", "--out", str(tmp_path / "s")]
    assert main(recipe) == 2
    assert "requires --trials N, --budget-gflops X or --budget-minutes X" in capfd.readouterr().err
    budget = ["--budget-gflops", str(1.2 * GFLOPS_PER_IMAGE * images), "--set", "epochs=1"]
    assert main([*recipe, *budget, "--json"]) == 0
    captured = capfd.readouterr()
    result = json.loads(captured.out)
    assert result["runs"] == [f"{tmp_path}/s/member-000"]
    assert "validation NLL of the committee: 2.3026 -> " in captured.err
    [member] = result["members"]
    assert member["validation_nll"] == pytest.approx(result["best_nll"], abs=1e-6)  # a committee of one
    assert member["accuracy_interval"]["low"] < member["validation_accuracy"] < member["accuracy_interval"]["high"]
    assert main([*recipe, *budget, "--trials", "1"]) == 0
    printed = capfd.readouterr().out
    assert re.search(rf"000 .*{member['parameters']['learning_rate']:.4g} .*{member['validation_nll']:.4f}", printed)
    assert "Trained 1 member for" in printed
    assert "the budget of 1 trial and " in printed


def trial_states(folder):
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.log")))
    return [trial.state.name for trial in optuna.load_study(study_name="search", storage=storage).trials]


def test_a_recipe_that_rejects_its_parameters_ends_the_search_and_fails_the_trial(start_search, tmp_path):
    with pytest.raises(RecipeError, match=r"Recipe\(epochs=\.\.\.\) must be an integer of 1 or more"):
        start_search(1, [ParameterRange("epochs", (0, -1), "choice")])
    assert trial_states(tmp_path / "search") == ["FAIL"]
    start_search(0, parse_ranges(TINY, ["epochs=1,2"]))  # it blocks nothing


def test_a_trial_that_was_killed_while_it_was_proposed_has_failed(start_search, tmp_path, monkeypatch):
    def kill(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(ParameterRange, "suggest", kill)
        with pytest.raises(MemoryError):
            start_search(1)
    assert trial_states(tmp_path / "search") == ["RUNNING"]
    monkeypatch.setattr(driver, "MAX_REJECTED_PROPOSALS", 0)
    start_search(1)
    assert trial_states(tmp_path / "search") == ["FAIL"]
