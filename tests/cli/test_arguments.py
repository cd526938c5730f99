"""Options that commands combine or convert before they reach the library."""

import json
import pathlib
import zipfile

import pytest

from keras_committee.cli import main
from keras_committee.cli.serve import _prometheus_path
from keras_committee.evaluation import import_models as importing
from keras_committee.input_scaling import parse_input_scaling
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.tfserving.server.rest import METRICS_PATH

NAMES_FILE = "names.txt"


@pytest.fixture
def imported(folder, monkeypatch):
    """List of the `(sources, options)` of `import`, which imports nothing; two models are in the current folder."""
    calls = []
    for name in ("a.keras", "b.keras"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("config.json", "{}")
    (folder / NAMES_FILE).write_text("cat\n\ndog\n")
    monkeypatch.setattr(
        importing, "import_models", lambda run, recipe, sources, options: calls.append((sources, options)) or []
    )
    return calls


def test_a_value_for_one_model_precedes_one_for_all_and_the_last_wins(imported):
    scalings = ["--input-scaling", "b.keras=-1..1", "--input-scaling", "torch", "--input-scaling", "0..1"]
    names = ["--class-names-file", f"a.keras={NAMES_FILE}"]
    assert main(["import", "tiny.py", "a.keras", "b.keras", *scalings, *names, "--signature", "logits"]) == 0
    [(sources, _)] = imported
    assert [source.path.name for source in sources] == ["a.keras", "b.keras"]
    assert sources[0].input_scaling == parse_input_scaling("0..1")
    assert sources[1].input_scaling == parse_input_scaling("-1..1")
    assert [source.classes for source in sources] == [("cat", "dog"), None]
    assert {source.signature for source in sources} == {"logits"}


@pytest.mark.parametrize(("planned", "members"), [([], 2), (["members=5"], 5)])
def test_import_makes_room_for_the_models_and_keeps_the_planned_members(imported, planned, members):
    file = RecipeFile.read("tiny.py")
    if planned:
        Run.create("runs/tiny", file, file.resolve(planned), command="train")
    assert main(["import", "tiny.py", "a.keras", "b.keras"]) == 0
    assert Run.open("runs/tiny").parameters()["members"] == members


def test_members_of_the_command_line_are_not_changed_by_import(imported):
    assert main(["import", "tiny.py", "a.keras", "b.keras", "--set", "members=7"]) == 0
    assert Run.open("runs/tiny").parameters()["members"] == 7


def test_the_budget_of_a_search_is_passed_on(folder, monkeypatch):
    driver = pytest.importorskip("keras_committee.search.driver")
    calls = []
    result = {"runs": [], "members": [], "gflops": 0.0, "minutes": 0.0}
    monkeypatch.setattr(driver, "search", lambda *given, **_: calls.append(given) or result)
    budget = ["--budget-minutes", "1.5", "--budget-gflops", "3", "--trials", "7"]
    assert main(["search", "tiny.py", "--search-space", "epochs=1:3", *budget]) == 0
    [(_, _, ranges, passed, out)] = calls
    assert (passed.minutes, passed.gflops, passed.trials) == (1.5, 3.0, 7)
    assert [(item.parameter, item.values) for item in ranges] == [("epochs", (1, 3))]
    assert out == pathlib.Path("runs/tiny-search")


def test_serving_config_serves_every_labeled_version(folder, capsys):
    for version in (1, 2, 3):
        (folder / "digits" / str(version)).mkdir(parents=True)
    labels = ["--version-label", "stable=1", "--version-label", "canary=3"]
    assert main(["serving-config", "digits", "--out", "out", *labels, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    text = pathlib.Path("out/models.config").read_text()
    assert [number for number in "123" if f"versions: {number}" in text] == ["1", "3"]


def test_the_path_of_the_metrics_is_that_of_the_monitoring_file(tmp_path):
    file = tmp_path / "monitoring.config"
    file.write_text('prometheus_config { enable: true, path: "/own/metrics" }')
    assert _prometheus_path(str(file)) == "/own/metrics"
    file.write_text("prometheus_config { enable: true }")
    assert _prometheus_path(str(file)) == _prometheus_path(None) == METRICS_PATH


def test_the_report_of_several_runs_is_next_to_them(folder, monkeypatch, capsys):
    from keras_committee.evaluation import report

    file = RecipeFile.read("tiny.py")
    for name in ("a", "b"):
        Run.create(f"runs/{name}", file, file.resolve([]), command="train")
    folders = []

    def write_report(runs, folder, *_, **__):
        folders.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write_report", write_report)
    monkeypatch.setattr(Run, "require_members", lambda *_: None)
    assert main(["report", "runs/a", "runs/b"]) == 130
    assert main(["report", "runs/a"]) == 130
    assert folders == [folder / "runs" / "report", pathlib.Path("runs/a/report")]
