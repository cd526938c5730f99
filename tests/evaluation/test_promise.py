"""Promises: the division of the validation split, what is fitted to which part, refusals, and the command."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from pools import synthetic_pool

from keras_committee import aggregation, cli, metrics
from keras_committee.errors import DataError, RecipeError, RunError
from keras_committee.evaluation import PromiseGoal, calibrate, load_pool, make_promise, promise
from keras_committee.evaluation.pool import load_whole_pool
from keras_committee.evaluation.select import to_selection_members
from keras_committee.files import read_record
from keras_committee.selection import Selection, SetRule, Stage
from keras_committee.split_sizes import divide_for_promise

POOL = synthetic_pool(examples=1600)


@pytest.fixture
def run(copy_of_trained, tmp_path):
    return copy_of_trained(tmp_path / "tiny")


def cascade(pool=POOL, thresholds=(0.8, 0.6)):
    stages = (Stage(members=1, threshold=thresholds[0]), Stage(members=3, threshold=thresholds[1]))
    return Selection(
        members=to_selection_members(pool, range(len(pool.members)), Path("selection.json")),
        head="geometric_mean",
        classes=pool.classes,
        stages=(*stages, Stage(members=len(pool.members), threshold=None)),
        confidence="margin",
    )


def test_a_division_depends_on_the_fingerprint_and_the_number_of_images_only():
    choose, promised = divide_for_promise("abc", 101)
    assert (len(choose), len(promised)) == (50, 51)
    assert sorted([*choose, *promised]) == list(range(101))
    assert (choose, promised) == divide_for_promise("abc", 101)
    assert choose[:8] == [0, 4, 6, 8, 9, 12, 13, 14]  # the rule is file format: selections and promises rest on it
    assert choose != divide_for_promise("abd", 101)[0]


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_sets_of_a_cascade_are_fitted_to_the_second_part_and_cover_as_promised(method):
    choose, promised = POOL.divided()
    selection = cascade()
    goal = PromiseGoal(coverage=0.9, method=method)
    rule = promise.fit_sets(selection, choose, promised, goal)
    outputs = aggregation.run_cascade(
        "geometric_mean", promised.predictions["validation"], (1, 3, 5), (0.8, 0.6), "margin"
    )
    labels = promised.labels["validation"]
    sets = aggregation.prediction_sets(probabilities=outputs["probabilities"], **rule.rule())
    excluded = int((~sets[np.arange(800), labels]).sum())
    assert excluded == 79  # floor(801 * 0.1) - 1 scores lie below the 80th lowest
    assert promise.fit_sets(selection, promised, promised, dataclasses.replace(goal, method="lac")) == (
        promise.fit_sets(selection, choose, promised, dataclasses.replace(goal, method="lac"))
    )


def test_a_promise_per_class_has_a_threshold_for_each_class():
    choose, promised = POOL.divided()
    goal = PromiseGoal(coverage=0.9, per_class=True)
    rule = promise.fit_sets(cascade(), choose, promised, goal)
    outputs = aggregation.selected_outputs(cascade(), promised.predictions["validation"])
    for label, threshold in enumerate(rule.thresholds):
        of_class = promised.labels["validation"] == label
        scores = outputs["probabilities"][of_class, label]
        assert threshold == metrics.conformal_threshold(scores, 0.9)


def test_the_outputs_of_a_selection_are_those_of_its_rules():
    rule = SetRule(coverage=0.9, method="aps", thresholds=(0.2,))
    promised = dataclasses.replace(cascade(), promise=None)
    log_probs = POOL.predictions["test"]
    assert "prediction_set" not in aggregation.selected_outputs(promised, log_probs)
    outputs = aggregation.selected_outputs(
        dataclasses.replace(promised, promise=promise.Promise(split="validation", examples=9, chosen_on=9, sets=rule)),
        log_probs,
    )
    assert "accepted" not in outputs
    np.testing.assert_array_equal(outputs["set_size"], outputs["prediction_set"].sum(axis=1))
    np.testing.assert_array_equal(
        outputs["prediction_set"], aggregation.conformity("aps", outputs["probabilities"]) >= np.float32(0.2)
    )


def test_a_promise_divides_the_run_and_later_choices_read_the_first_part_only(run, capsys):
    whole = load_whole_pool([run])
    assert cli.main(["calibrate", str(run.path), "--coverage", "0.9", "--per-class", "--max-risk", "0.6"]) == 3
    assert "a coverage of 0.9 requires at least 9 images of class" in capsys.readouterr().err
    assert not run.is_divided()
    assert cli.main(["calibrate", str(run.path), "--coverage", "0.9", "--max-risk", "0.6"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    document = read_record(run.path / "calibration.json")
    selection = Selection.read(run.path / "selection.json")
    result = document["promise"]
    assert document["fitted_on"]["examples"] == len(load_pool([run]).labels["validation"]) == 90
    assert (result["examples"], result["chosen_on"], result["split"]) == (90, 90, "validation")
    assert dataclasses.asdict(selection.promise)["sets"] == result["sets"] | {
        "thresholds": tuple(result["sets"]["thresholds"])
    }
    assert selection.report["promise"] == result
    assert "Promise for the committee of 3 members" in text
    assert f"{result['test']['mean_set_size']:.3f} classes per set" in text
    choose, promised = whole.divided()
    outputs = aggregation.stage_outputs("geometric_mean", promised.predictions["validation"], 3)
    scores = outputs["probabilities"][np.arange(90), promised.labels["validation"]]
    assert selection.promise.sets.thresholds == (metrics.conformal_threshold(scores, 0.9),)
    answers = aggregation.stage_outputs("geometric_mean", whole.predictions["test"], 3)
    covered = (
        answers["probabilities"][np.arange(360), whole.labels["test"]] >= scores[scores >= np.sort(scores)[8]].min()
    )
    assert result["test"]["coverage"] == pytest.approx(covered.mean())
    np.testing.assert_array_equal(load_pool([run]).labels["validation"], choose.labels["validation"])
    assert calibrate(run, run.recipe())["promise"] is None
    assert cli.main(["select", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"]["division"] == {"choose": 90, "promise": 90}
    assert cli.main(["calibrate", str(run.path), "--coverage", "0.8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["promise"]["acceptance"] is None


def test_a_selection_made_with_all_validation_images_is_refused_and_the_run_is_divided(run, capsys):
    assert cli.main(["select", str(run.path)]) == 0
    before = (run.path / "selection.json").read_bytes()
    assert cli.main(["calibrate", str(run.path), "--max-risk", "0.6"]) == 4
    error = " ".join(capsys.readouterr().err.split())
    assert "selection.json was chosen with all 180 validation images" in error
    assert f"then this command: keras-committee select {run.path}" in error
    assert (run.path / "selection.json").read_bytes() == before
    assert run.is_divided()


def test_what_cannot_be_promised_is_refused_with_the_number_of_images(run, tmp_path):
    file = tmp_path / "selection.json"
    with pytest.raises(
        DataError, match=r"a coverage of 0\.995 requires at least 199 images to promise on; one half.*90"
    ) as caught:
        make_promise([run], PromiseGoal(coverage=0.995), file, None)
    assert "at least 398, in a new run" in str(caught.value)
    assert "with 2,500 between 0.992 and 0.998" in str(caught.value)
    with pytest.raises(DataError, match=r"an error rate of at most 0\.05 requires at least \d+ images to promise on"):
        make_promise([run], PromiseGoal(max_risk=0.05), file, None)
    assert not file.exists()
    other = dataclasses.replace(cascade(), report={"division": {"choose": 90, "promise": 90}})
    with pytest.raises(RunError, match=r"whose weights \(sha256 000000000000\) belong to no member of the run"):
        make_promise([run], PromiseGoal(coverage=0.9), file, other)


def test_answers_that_are_often_wrong_allow_no_promise_of_a_risk():
    _, promised = POOL.divided()
    fitted = promise._fit_acceptance(cascade(), promised, PromiseGoal(max_risk=0.45))
    outputs = aggregation.selected_outputs(cascade(), promised.predictions["validation"])
    correct = outputs["probabilities"].argmax(axis=1) == promised.labels["validation"]
    assert fitted == metrics.selective_threshold(outputs["confidence"], correct, 0.45)
    wrong = dataclasses.replace(promised, labels={"validation": (promised.labels["validation"] + 1) % 4})
    with pytest.raises(
        RecipeError, match=r"error rate of at most 0\.45 on the 800 images[^\n]*upper bound of any.* 0\.[5-9]"
    ):
        promise._fit_acceptance(cascade(), wrong, PromiseGoal(max_risk=0.45))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "aps"], "--method requires --coverage"),
        (["--per-class", "--max-risk", "0.1"], "--per-class requires --coverage"),
        (["--selection", "a.json"], "--selection requires --coverage or --max-risk"),
    ],
)
def test_options_without_their_promise_are_an_error(trained, options, message, capsys):
    assert cli.main(["calibrate", str(trained[0].path), *options]) == 2
    assert message in capsys.readouterr().err
