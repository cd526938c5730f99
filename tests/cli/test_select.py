"""`keras-committee select`: the table, the JSON document and the exit codes."""

import json
import shutil

import pytest

from keras_committee.cli import main
from keras_committee.run import Run
from keras_committee.selection import Selection


@pytest.fixture(scope="module")
def predictions(trained, tmp_path_factory):
    """The predictions that `select` stores in the trained run: those of every test but the first."""
    run = tmp_path_factory.mktemp("selected") / "tiny"
    shutil.copytree(trained[0].path, run)
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
    assert main(["select", "runs/tiny", "--cascade", "--max-accuracy-drop", "1", "--json", "--out", str(file)]) == 0
    document = json.loads(capfd.readouterr().out)
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
