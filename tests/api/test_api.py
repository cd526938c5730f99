"""The steps in Python: the results are those of the commands, and read back from the run folder."""

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import PIL.Image
import pytest

import keras_committee as kc
from keras_committee import cli
from keras_committee.errors import DataError, IncompleteError, RecipeError, RunError
from keras_committee.evaluation.predictions import load_or_compute_predictions
from keras_committee.export import publish
from keras_committee.files import read_record

TINY = Path(__file__).parents[1] / "recipes" / "tiny.py"
SHIPPED = Path(__file__).parents[2] / "saved_models" / "cifar10_small" / "1"


@pytest.fixture(scope="module")
def run(copy_of_trained, tmp_path_factory):
    """A copy of the trained tiny run, to write results into."""
    return kc.Run(copy_of_trained(tmp_path_factory.mktemp("api") / "tiny").path)


@pytest.fixture(scope="module")
def evaluation(run):
    return run.evaluate()


@pytest.fixture(scope="module")
def cascade(run, evaluation):
    return kc.select(run, cascade=True, min_accuracy=0.5)


@pytest.fixture(scope="module")
def exported(run, cascade, tmp_path_factory):
    return kc.export(run, selection=cascade, out=tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def images(trained):
    """The test images, uint8 `(360, 32, 32, 3)`."""
    return trained[1].data.load().test.images.numpy()


def cells(text):
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in text.splitlines() if "│" in line]


def test_train_returns_the_run_and_resumes_it(tmp_path):
    arguments = {"members": 1, "epochs": 1, "run": tmp_path / "run", "workers": 1}
    run = kc.train(TINY, **arguments)
    assert (run.path, run.members, run.recipe_name) == (tmp_path / "run", [0], "tiny")
    assert run.parameters["epochs"] == 1
    command = f"keras-committee train {TINY} --run {run.path} --set members=1 --set epochs=1"
    assert read_record(run.path / "environment.json")["command"] == command
    model = run.path / "members/00/model.keras"
    before = model.stat().st_mtime_ns
    assert kc.train(str(TINY), parameters=["epochs=1", "members=2"], run=run, workers=1).members == [0, 1]
    assert model.stat().st_mtime_ns == before
    with pytest.raises(RunError, match="was trained with a different configuration:\n  epochs 1 -> 3"):
        kc.train(TINY, members=2, epochs=3, run=run)
    assert cli.main([*command.split()[1:-3], "members=2", "--set", "epochs=1"]) == 0  # the command resumes, too


def small_digits(members=1, rate=0.05):
    recipe = kc.Recipe(
        data=dataclasses.replace(kc.data.digits(64), limit=128),
        member=lambda index: kc.models.wide_resnet(10, 1, classes=10),
        members=members,
        optimizer=lambda steps: __import__("keras").optimizers.SGD(rate),
        epochs=1,
        loss=lambda labels, logits: 0.0,
    )
    return dataclasses.replace(recipe, loss=__import__("keras").losses.SparseCategoricalCrossentropy(from_logits=True))


def test_the_run_of_a_function_is_rebuilt_by_commands_from_its_source(tmp_path, capsys):
    run = kc.train(small_digits, run=tmp_path / "run", workers=1, rate=0.1)
    assert (run.recipe_name, run.parameters, run.members) == ("small_digits", {"members": 1, "rate": 0.1}, [0])
    assert cli.main(["evaluate", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"] == "small_digits"
    command = read_record(run.path / "environment.json")["command"]
    assert command == f"keras-committee train {run.path}/recipe.py --run {run.path} --set rate=0.1"
    assert cli.main(command.split()[1:]) == 0
    assert "has 1 member." in capsys.readouterr().out


def test_a_recipe_object_is_refused_with_what_to_write_instead(trained):
    with pytest.raises(RecipeError, match=r"Received: a Recipe.\n  Put it into a function: def recipe\(members=4\)"):
        kc.train(trained[1])


def test_a_run_prints_as_the_table_of_its_members(run, trained):
    rows = [[str(row["index"]), "2 of 2"] for row in run.training]
    assert [row[:2] for row in cells(repr(run))] == rows
    assert repr(run).splitlines()[0] == f"{run.path}: 3 members of tiny()"
    html = run._repr_html_()
    assert html.count("<tr>") == 4
    assert f"<td>{run.training[1]['validation_nll']:.4f}</td>" in html
    histories = [trained[0].member(index).read_history()[-1] for index in range(3)]
    frame = run.to_frame()
    assert frame.loc[2, "validation_accuracy"] == histories[2]["validation_accuracy"]
    assert frame.loc[0, "accuracy_interval_low"] < frame.loc[0, "validation_accuracy"]
    assert run == kc.Run(run.path)


def test_evaluate_returns_the_document_that_it_writes(run, evaluation, trained):
    assert evaluation.document == read_record(run.path / "evaluation.json")
    predictions = load_or_compute_predictions(trained[0], trained[1], "test")
    accuracy = (predictions.log_probabilities.argmax(axis=2) == predictions.labels[:, None]).mean(axis=0)
    assert [member["accuracy"] for member in evaluation["members"]] == pytest.approx(accuracy.tolist())
    frame = evaluation.to_frame()
    assert frame["accuracy"].tolist() == pytest.approx(accuracy.tolist())
    assert evaluation.to_frame("committees").loc[1, "accuracy"] == pytest.approx(accuracy.mean())
    assert evaluation.to_frame("committees").loc[1, "accuracy_std"] == pytest.approx(accuracy.std())
    assert evaluation.to_frame("classes")["examples"].sum() == 360
    with pytest.raises(RecipeError, match=r"there is no table 'stages'. Choose one of: classes, committees, members"):
        evaluation.to_frame("stages")


def test_a_frame_without_pandas_is_an_error_that_names_it(evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="to_frame needs the package pandas: pip install pandas"):
        evaluation.to_frame()


def test_figures_are_matplotlib_figures_of_the_documents(run, evaluation, cascade):
    confusion = evaluation.figure()
    assert isinstance(confusion, matplotlib.figure.Figure)
    matrix = np.array(evaluation["confusion_matrix"])
    recall = 100 * matrix[3, 3] / matrix[3].sum()
    assert f"{recall:.0f}" in {text.get_text() for text in confusion.axes[0].texts}
    [line, *_] = evaluation.figure("risk-coverage").axes[0].lines
    assert line.get_ydata().tolist() == pytest.approx([100 * risk for risk in evaluation["risk_coverage"]["risk"]])
    front, star = cascade.figure().axes[0].lines
    assert len(front.get_xdata()) == len(cascade["report"]["front"])
    assert star.get_xdata()[0] == pytest.approx(cascade["report"]["mflops"])
    losses = run.figure(4.0).axes[0].lines[2].get_ydata()
    assert losses.tolist() == [row["loss"] for row in read_rows(run.path / "members/02/history.jsonl")]
    with pytest.raises(RecipeError, match=r"there is no figure 'roc'. Choose one of: confusion, risk-coverage"):
        evaluation.figure("roc")


def read_rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_select_writes_the_selection_and_prints_as_the_command_does(run, cascade, capsys):
    assert cascade.kind == "cascade"
    assert cascade.path == run.path / "selection.json"
    assert read_record(cascade.path)["report"] == cascade["report"]
    assert cli.main(["select", str(run.path), "--cascade", "--min-accuracy", "0.5"]) == 0
    assert repr(cascade).strip() in capsys.readouterr().out
    assert cascade.to_frame().loc["selected cascade", "mflops"] == cascade["report"]["mflops"]
    assert len(cascade.to_frame("front")) == len(cascade["report"]["front"])


def test_calibrate_fits_temperatures_and_its_table_has_them(run, capsys):
    calibration = run.calibrate()
    assert calibration.document == read_record(run.path / "calibration.json")
    temperatures = [row[1] for row in cells(repr(calibration)) if row[0] == "" and row[1] != "1, weighted"]
    expected = [f"{member['temperature']:.3f}" for member in calibration["members"]]
    assert temperatures == [*expected, "one per member", f"{calibration['committee']['temperature']:.3f}"]
    frame = calibration.to_frame()
    assert frame.loc[("member 1", "temperature"), "nll"] == calibration["members"][1]["after"]["nll"]
    _, line = calibration.figure().axes[1].lines
    assert len(line.get_xdata()) == np.count_nonzero(calibration["reliability"]["after"]["count"])


def test_robustness_returns_the_document_that_it_writes(run, capsys):
    options = ["--corruptions", "contrast,fog", "--severities", "1,5", "--max-examples", "50"]
    result = run.robustness(corruptions=("contrast", "fog"), severities=(1, 5), max_examples=50)
    assert result.document == read_record(run.path / "robustness.json")
    frame = result.to_frame()
    assert frame.index.tolist() == [("contrast", 1), ("contrast", 5), ("fog", 1), ("fog", 5)]
    strongest = result["corruptions"][3]
    assert frame.loc[("fog", 5), "committee_accuracy"] == strongest["committee"]["accuracy"]
    accuracies = [member["accuracy"] for member in strongest["members"]]
    assert frame.loc[("fog", 5), "mean_member_accuracy"] == pytest.approx(np.mean(accuracies))
    assert result.to_frame("ood")["confidence_auroc"].tolist() == [
        source["confidence"]["auroc"] for source in result["foreign"]
    ]
    committee = 100 * np.mean([row["committee"]["accuracy"] for row in result["corruptions"] if row["severity"] == 5])
    lines = result.figure().axes[0].lines
    assert [line.get_xdata().tolist() for line in lines] == [[0, 1, 5]] * 2
    assert lines[1].get_ydata()[-1] == pytest.approx(committee)
    assert cli.main(["robustness", str(run.path), *options]) == 0
    assert repr(result).strip() in capsys.readouterr().out


def test_a_description_is_that_of_the_command(capsys):
    description = kc.describe(TINY, classes=12)
    assert cli.main(["describe", str(TINY), "--set", "classes=12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(description.document))
    frame = description.to_frame()
    assert frame["parameters"].tolist() == [(8 * 8 * 3 + 1) * 12] * 3
    assert (frame["memory_training"] > frame["memory_inference"]).all()
    assert "--set classes=12" in repr(description)


@pytest.mark.slow
def test_a_search_continues_with_a_larger_budget_also_as_a_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = kc.search(TINY, {"learning_rate": "0.01:0.3:log"}, trials=1, epochs=1)
    assert first.path == Path("runs/tiny-search")
    assert [Path(run).name for run in first["runs"]] == ["member-000"]
    environment = read_record(tmp_path / "runs/tiny-search/member-000/environment.json")
    command = [*environment["command"].replace("--trials 1", "--trials 2").split()[1:], "--json"]
    assert cli.main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["members"][0] == first["members"][0]
    second = kc.search(TINY, ["learning_rate=0.01:0.3:log"], trials=2, parameters=["epochs=1"])
    assert second.document == document
    assert second.to_frame()["parameters_learning_rate"].between(0.01, 0.3).all()
    assert "Trained 2 members for" in repr(second)
    assert len(kc.select(second["runs"], out=tmp_path / "s.json")["members"]) in (1, 2)


def test_predictions_of_a_run_are_those_of_its_members(run, trained, images, tmp_path):
    predictions = run.predict(images)
    log_probs = load_or_compute_predictions(trained[0], trained[1], "test").log_probabilities
    mean = log_probs.mean(axis=1)
    expected = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)
    assert predictions.labels.tolist() == expected.argmax(axis=1).tolist()
    PIL.Image.fromarray(images[7]).save(tmp_path / "seven.png")
    [seven] = run.predict(tmp_path)
    assert seven["top"][0]["probability"] == pytest.approx(expected[7].max(), abs=1e-5)
    assert seven["image"] == str(tmp_path / "seven.png")
    frame = predictions.to_frame()
    assert frame["class"].tolist() == predictions.class_names
    np.testing.assert_allclose(frame.filter(like="probability of").to_numpy(), expected, atol=1e-5)
    assert cells(repr(predictions[:2] and run.predict(images[:1])))[0][0] == "0"


def test_the_best_member_alone_is_exported_to_a_folder_of_its_own(run, monkeypatch, tmp_path):
    exported = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        importlib.import_module("keras_committee.export.export"),
        "export",
        lambda *arguments, **options: exported.update(options, out=arguments[1]) or SHIPPED,
    )
    accuracies = {row["index"]: (row["validation_accuracy"], -row["validation_nll"]) for row in run.training}
    assert kc.export(run, member="best").path == SHIPPED
    assert exported["member"] == max(accuracies, key=accuracies.__getitem__)
    assert cli.main(["export", str(run.path), "--member", "1", "--json"]) == 0
    assert exported["member"] == 1
    assert str(publish.default_model_dir(run.path, "onnx", 1)) == f"onnx_models/{run.path.name}_member_1"


@pytest.mark.slow
def test_the_export_predicts_as_the_selection_does(run, cascade, exported, images):
    model = kc.load_export(exported.path.parent)
    served, kept = model.predict(images[:40]), run.predict(images[:40], selection=cascade)
    np.testing.assert_allclose(served.probabilities, kept.probabilities, atol=1e-4)
    assert served.outputs["members_used"].tolist() == kept.outputs["members_used"].tolist()
    assert served.class_names == kept.class_names
    assert repr(exported).startswith(f"Exported a cascade of {len(exported['members'])} member")


def test_gray_pixels_are_those_of_three_equal_channels(run, images):
    gray = images[:3, :, :, 0]
    np.testing.assert_array_equal(
        run.predict(gray).probabilities, run.predict(np.stack([gray] * 3, axis=-1)).probabilities
    )


def test_unreadable_images_are_an_error_or_listed(run, images, tmp_path):
    PIL.Image.fromarray(images[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read; .* skip_unreadable=True:\n  .*b.png: "):
        run.predict(tmp_path)
    predictions = run.predict(tmp_path, skip_unreadable=True)
    assert predictions.images == (str(tmp_path / "a.png"),)
    assert list(predictions.unreadable) == [str(tmp_path / "b.png")]
    with pytest.raises(DataError, match=r"pixels must be uint8 .* Received: float64 \(3, 8, 8, 3\)"):
        run.predict(np.zeros((3, 8, 8, 3)))


def test_the_report_is_written_beside_the_run_and_its_figures_can_be_drawn(run, cascade):
    report = kc.report([run, str(run.path)], selection=cascade)
    assert report.path == run.path / "report/index.html"
    assert [Path(file).stem for file in report["figures"]] == report.figure_names
    assert isinstance(report.figure("training"), matplotlib.figure.Figure)
    assert str(report.path) in repr(report)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda run: run.evaluate(split="tset"),
            "--split must be one of 'test', 'validation', 'train'. Received: 'tset'",
        ),
        (lambda run: run.calibrate(method="aps"), "--method requires --coverage"),
        (lambda run: run.calibrate(coverage=1.5), "--coverage must be a number above 0 and below 1. Received: 1.5"),
        (lambda run: kc.select(run, max_accuracy_drop=1.0), "--max-accuracy-drop requires --cascade"),
        (lambda run: kc.select(run, objective="speed"), "--objective must be one of 'accuracy', 'nll'"),
        (lambda run: run.robustness(corruptions=["rain"]), "--corruptions must be one of 'gaussian_noise'"),
        (lambda run: run.robustness(severities=[0]), "--severities must be one of 1, 2, 3, 4, 5. Received: 0"),
        (lambda run: run.robustness(severities=[]), "--severities must be at least one"),
        (lambda run: run.robustness(max_examples=0), "--max-examples must be a positive integer. Received: 0"),
        (lambda run: kc.describe(TINY, epoch=3), "has no parameter 'epoch'. Did you mean 'epochs'"),
        (lambda run: kc.search(TINY, {"epochs": "1:2"}), "a search requires --trials N, --budget-gflops X or"),
        (lambda run: kc.search(TINY, {"epochs": "1:2"}, trials=0), "--trials must be a positive integer. Received: 0"),
        (lambda run: kc.search(TINY, {"epochs": "2"}, budget_minutes=0), "--budget-minutes must be a number above 0"),
        (lambda run: kc.select([]), "--runs must be at least one run"),
        (lambda run: kc.export(run, precision="float16"), "--precision must be one of"),
        (lambda run: kc.export(run, member="first"), "--member must be the index of a member, or best. Received: 'fir"),
        (lambda run: kc.export(run, member=True), "--member must be the index of a member, or best. Received: True"),
        (lambda run: kc.export(run, member=0, selection="a.json"), "--member cannot be combined with --selection"),
        (lambda run: kc.export([run, "b"], member=0), "--member takes one run"),
        (lambda run: kc.export(run, input_dtype="int8"), "--input-dtype must be one of 'float32', 'uint8'"),
        (lambda run: kc.export(run, input_dtype="uint8"), "its signature predict_uint8 takes uint8 pixels"),
        (lambda run: kc.train(TINY, workers=0), "--workers must be 'auto' or a positive integer. Received: 0"),
        (lambda run: kc.train(TINY, epoch=3), "has no parameter 'epoch'. Did you mean 'epochs'"),
        (
            lambda run: kc.load_export(run.path),
            "is not an exported model: it is a run folder. To export it, run",
        ),
    ],
)
def test_wrong_arguments_are_errors_with_the_names_of_the_options(run, call, message):
    with pytest.raises(kc.CommitteeError) as caught:
        call(run)
    assert message in str(caught.value)


def test_a_run_that_is_not_complete_is_an_error_or_allowed(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run/members/01/model.keras").unlink()
    with pytest.raises(IncompleteError, match="add: --allow-incomplete 2"):
        kc.Run(tmp_path / "run").evaluate()
    assert kc.Run(tmp_path / "run").evaluate(allow_incomplete=2)["missing"] == [1]


def test_the_functions_export_and_search_are_found_after_their_subpackages_were_imported():
    program = "import keras_committee as kc, keras_committee.export.publish, keras_committee.search.budget, sys"
    program += "; print(kc.export.__name__, kc.search.__name__, len(kc.__all__))"
    program += "; print({'keras', 'tensorflow', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"export search {len(kc.__all__)}", "set()"]
