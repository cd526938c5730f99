"""`keras-committee select`: the table, the JSON document and the exit codes."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from keras_committee import aggregation
from keras_committee.cli import main
from keras_committee.evaluation import load_pool
from keras_committee.evaluation.select import to_selection_members
from keras_committee.models import log_probabilities
from keras_committee.models.loading import load_member
from keras_committee.run import Run
from keras_committee.selection import Selection, Stage, View
from keras_committee.tfserving.session import Session


@pytest.fixture(scope="module")
def predictions(copy_of_trained, tmp_path_factory):
    """The predictions that `select` stores in the trained run: those of every test but the first."""
    run = copy_of_trained(tmp_path_factory.mktemp("selected") / "tiny").path
    assert main(["select", str(run)]) == 0
    return run / "predictions"


@pytest.fixture
def predicted(copied, predictions):
    """The copied run, whose members need not predict again."""
    shutil.copytree(predictions, copied / "predictions", dirs_exist_ok=True)
    return copied


def test_select_writes_the_selection_and_prints_the_next_command(copied, capfd):
    assert main(["select", "runs/tiny", "--objective", "nll", "--max-mflops", "0.08"]) == 0
    printed = capfd.readouterr().out
    selection = Selection.read(copied / "selection.json")
    assert printed.endswith("\nNext: keras-committee export runs/tiny --selection runs/tiny/selection.json\n")
    assert "Test accuracy compared with the best member: " in printed
    assert "Diversity: " in printed
    assert "Searched 7 committees (exhaustive), Pareto optimal: " in printed
    assert len(selection.members) == 2
    assert {member.run for member in selection.members} == {"."}
    assert selection.report["candidates"] == 7
    assert Run.open(copied).events()[-1]["event"] == "selected"


def test_select_a_cascade_as_one_json_document_elsewhere(predicted, tmp_path, capfd):
    file = tmp_path / "elsewhere" / "cascade.json"
    options = ["--cascade", "--max-accuracy-drop", "1", "--temperatures", "--json", "--out", str(file)]
    assert main(["select", "runs/tiny", *options]) == 0
    document = json.loads(capfd.readouterr().out)
    assert all(member["temperature"] not in (1, None) for member in document["members"])
    assert (document["file"], document["kind"]) == (str(file), "cascade")
    assert document["report"] == Selection.read(file).report
    assert {member["run"] for member in document["members"]} == {"../runs/tiny"}


def test_select_a_cascade_prints_its_cost_against_the_best_committee(predicted, capfd):
    assert main(["select", "runs/tiny", "--cascade"]) == 0
    printed = capfd.readouterr().out
    report = Selection.read(predicted / "selection.json").report["cascade"]
    difference = f"{100 * report['difference']['accuracy']['value']:+.2f} percentage points"
    assert f"Test accuracy compared with the best committee: {difference}" in printed
    assert f"with {report['times_cheaper']['value']:.2f} times fewer multiply-adds" in printed


def test_views_compete_as_members_of_the_same_weights(predicted, capfd):
    assert main(["select", "runs/tiny", "--views", "mirror", "--objective", "nll"]) == 0
    assert "Searched 63 committees (exhaustive)" in capfd.readouterr().out
    run, mirrored = Run.open(predicted), View(mirror=True)
    pool = load_pool([run], views=[mirrored])
    assert [(member.index, member.view) for member in pool.members] == [
        (0, None), (0, mirrored), (1, None), (1, mirrored), (2, None), (2, mirrored),
    ]  # fmt: skip
    assert pool.members[1].name == f"{pool.members[0].name} (mirrored)"
    assert pool.members[1].mflops == pool.members[0].mflops
    assert pool.positions(Selection.read(predicted / "selection.json").members)
    images = np.concatenate([images for images, _ in run.recipe().data.load().test.batches(64).as_numpy_iterator()])
    expected = log_probabilities(load_member(run.member(0).model), [images[:, :, ::-1]])
    np.testing.assert_allclose(pool.predictions["test"][:, 1], expected, atol=1e-5)
    assert len(list((predicted / "predictions" / "test").glob("*.npy"))) == 6  # stored


@pytest.mark.parametrize("others", [[], ["--cascade", "--min-accuracy", "0.5"], ["--cascade", "--objective", "nll"]])
def test_a_risk_needs_a_cascade_without_another_goal(predicted, capfd, others):
    assert main(["select", "runs/tiny", "--max-risk", "0.1", *others]) == 2
    assert "--max-risk requires --cascade, without --min-accuracy" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["flip", "mirror,shifts=0", "mirror=2", "shifts=-1", ""])
def test_unknown_views_are_a_usage_error(predicted, capfd, text):
    assert main(["select", "runs/tiny", "--views", text]) == 2
    assert (
        f"must be mirror, shifts or shifts=PIXELS, or both with a comma. Received: '{text}'." in capfd.readouterr().err
    )


def test_a_shift_as_large_as_the_image_is_an_error(predicted, capfd):
    assert main(["select", "runs/tiny", "--views", "shifts=32"]) == 2
    assert "images of 32x32, as runs/tiny member 0 takes, cannot be shifted by 32 pixels" in capfd.readouterr().err


@pytest.mark.parametrize("head", ["arithmetic_mean", "majority_vote"])
def test_select_uses_the_named_head(predicted, capfd, head):
    assert main(["select", "runs/tiny", "--head", head, "--search-method", "greedy", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["head"], document["report"]["method"]) == (head, "greedy")


def test_a_budget_below_every_member_ends_with_2_and_an_incomplete_run_with_6(predicted, capfd):
    assert main(["select", "runs/tiny", "--max-mflops", "0.001"]) == 2
    assert "linear_0" in capfd.readouterr().err
    Run.open(predicted).member(1).model.unlink()
    assert main(["select", "runs/tiny"]) == 6
    assert "--allow-incomplete 2" in capfd.readouterr().err
    assert main(["select", "runs/tiny", "--allow-incomplete", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["report"]["missing"] == {"runs/tiny": [1]}


def test_a_run_given_twice_is_rejected(predicted, capfd):
    assert main(["select", "runs/tiny", f"{predicted}/../tiny"]) == 2
    assert str(predicted) in capfd.readouterr().err


@pytest.mark.slow
def test_a_cascade_by_measured_time_is_measured_beside_its_committee(predicted, capfd):
    options = ["--objective", "latency", "--batch-size", "4", "--precision", "bfloat16"]
    assert main(["select", "runs/tiny", "--cascade", *options]) == 0
    latency = Selection.read(predicted / "selection.json").report["cascade"]["latency"]
    assert (latency["batch_size"], latency["precision"]) == (4, "bfloat16")
    assert all(latency[name] > 0 for name in ("measured_ms", "committee_measured_ms", "committee_predicted_ms"))
    assert latency["machine"]["cores"] >= 1
    assert {len(graph["rows"]) for graph in latency["graphs"]} == {3}
    assert f"{latency['measured_ms']:.3g} ms per image (predicted " in " ".join(capfd.readouterr().out.split())


def test_a_budget_of_measured_time(predicted, capfd):
    assert main(["select", "runs/tiny", "--max-latency", "60000", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["report"]["budget"]["max_latency_ms"] == 60000
    assert 0 < document["report"]["latency_ms"] < 60000


@pytest.mark.slow
def test_a_cascade_of_views_is_promised_evaluated_reported_and_served(predicted, capfd):
    run, view, file = Run.open(predicted), View(mirror=True, shift=1), predicted / "selection.json"
    assert main(["calibrate", "runs/tiny", "--coverage", "0.8"]) == 0  # divides the validation split
    pool = load_pool([run], views=[view])
    first = np.exp(pool.predictions["validation"][:, 0]).max(axis=1)
    lower, upper = (float(bound) for bound in np.quantile(first, [0.2, 0.7]))
    stages = (
        Stage(members=1, threshold=upper, lower_threshold=lower),
        Stage(members=2, threshold=lower),
        Stage(members=4, threshold=None),
    )
    selection = Selection(
        members=to_selection_members(pool, [0, 1, 2, 5], file),
        head="geometric_mean",
        classes=pool.classes,
        stages=stages,
        report={"division": dict(pool.division)},
    )
    selection.write(file)
    assert main(["calibrate", "runs/tiny", "--coverage", "0.8", "--max-risk", "0.6"]) == 0
    assert main(["evaluate", "runs/tiny"]) == 0
    assert main(["report", "runs/tiny", "--selection", str(file)]) == 0
    assert main(["export", "runs/tiny", "--selection", str(file), "--out", "served"]) == 0
    log_probs = load_pool([run], views=[view]).predictions["test"][:, [0, 1, 2, 5]]
    promised = Selection.read(file)
    assert [member.view for member in promised.members] == [None, view, None, view]
    expected = aggregation.selected_outputs(promised, log_probs)
    assert len(set(expected["members_used"])) == 3
    assert ((expected["members_used"] == 1) & (expected["confidence"] < lower)).any()
    assert expected["accepted"].any()
    test = run.recipe().data.load().test
    accuracy = (expected["probabilities"].argmax(axis=1) == test.labels).mean()
    assert json.loads((predicted / "evaluation.json").read_text())["selected"]["accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.4f}" in (predicted / "report" / "index.html").read_text()
    images = np.concatenate([images for images, _ in test.batches(64).as_numpy_iterator()])
    with Session.load("served/1") as session:
        served = session.run("serving_default", {"image": images.astype(np.float32)})
    for name in ("prediction_set", "set_size", "members_used", "accepted"):
        np.testing.assert_array_equal(served[name], expected[name])
    np.testing.assert_allclose(served["probabilities"], expected["probabilities"], atol=1e-5)
    manifest = json.loads(pathlib.Path("served/1/committee.json").read_text())
    assert [member["view"] for member in manifest["members"]] == 2 * [None, {"mirror": True, "shift": 1}]
