"""Files of the report: a self-contained page, PNG figures and TensorBoard events."""

import contextlib
import io
import json
import re
import shutil
import struct

import pytest
from synthetic_runs import run_data
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from keras_committee import cli
from keras_committee.evaluation.report import report as writing
from keras_committee.evaluation.report.run_data import load_report_data
from keras_committee.figures.style import NARROW_INCHES, WIDE_INCHES
from keras_committee.files import read_record
from keras_committee.run import Run


@pytest.fixture(scope="module")
def page():
    """The page of two synthetic runs with markup in their names."""
    runs = [run_data("<b>first</b>", ["small"] * 3, [10.0] * 3), run_data("second", ["large"], [25.0], depth=6.5)]
    report_data = load_report_data(runs, "test", [])
    return writing.render_page(report_data, *writing.build_sections(report_data))


def test_names_from_data_are_escaped(page):
    assert "<script" not in page
    assert "<b>first" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "$x_{1}$" in page


def test_the_page_loads_nothing(page):
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert {address[:5] for address in addresses if not address.startswith("#")} <= {"data:"}
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page
    assert len(page.encode()) < 5_000_000


def test_colors_and_clip_paths_are_defined_in_the_page(page):
    assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= set(re.findall(r"--([\w-]+):", page))
    ids = re.findall(r" id=\"([^\"]*)\"", page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|xlink:href=\")#([\w-]+)", page)) <= set(ids)


@pytest.mark.parametrize("width", [WIDE_INCHES, NARROW_INCHES])
def test_every_figure_has_both_widths(page, width):
    names = re.findall(r"data-picture=\"([^\"]*)\"", page)
    assert {"accuracy-against-mflops", "gain-by-size", "reliability", "disagreement", "confusion"} <= set(names)
    assert {"training-b-first--b", "training-second", "depth-second"} <= set(names)
    assert page.count(f'<div class="{"wide" if width == WIDE_INCHES else "narrow"}"><svg') == len(names)


@pytest.fixture(scope="module")
def command(copy_of_trained, tmp_path_factory):
    """The report of a copy of the tiny run without an evaluation, and the command's output."""
    folder = copy_of_trained(tmp_path_factory.mktemp("report") / "tiny").path
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert cli.main(["report", str(folder)]) == 0
    return Run.open(folder), output.getvalue()


@pytest.fixture
def written(command):
    return command[0]


def test_the_command_prints_the_page_and_the_next_command(command):
    run, output = command
    page = run.path / "report" / "index.html"
    assert output.endswith(f"images.\n\nReport: {page}\nNext: keras-committee select {run.path}\n")


def test_the_table_shows_the_evaluation_that_was_computed_first(written):
    page = (written.path / "report" / "index.html").read_text()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    evaluation = read_record(written.path / "evaluation.json")
    for member in evaluation["members"]:
        assert f"{member['nll']:.4f}" in cells
    for committee in evaluation["committees"]:
        row = cells.index(f"{committee['size']} x linear")
        assert cells[row + 2] == f"{committee['mflops']:.2f}"
        assert cells[row + 3].split(" ± ")[0] == f"{committee['accuracy']['mean']:.4f}"
        assert cells[row + 7].split(" ± ")[0] == f"{committee['brier']['mean']:.4f}"


def test_the_figures_are_png_files_beside_the_page(written):
    for name in ("accuracy-against-mflops", "gain-by-size", "reliability", "disagreement", "confusion", "training"):
        content = (written.path / "report" / f"{name}.png").read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", content[16:24])) >= 300


def test_tensorboard_reads_figures_parameters_and_scores(written):
    folder = written.path / "report" / "tensorboard"
    root, run = EventAccumulator(str(folder)).Reload(), EventAccumulator(str(folder / "tiny")).Reload()
    assert {"report/confusion", "report/reliability", "report/accuracy-against-mflops"} <= set(root.Tags()["images"])
    hparams = run.PluginTagToContent(metadata.PLUGIN_NAME)
    hparams = metadata.parse_session_start_info_plugin_data(hparams[metadata.SESSION_START_INFO_TAG]).hparams
    assert hparams["learning_rate"].number_value == 0.05
    evaluation = read_record(written.path / "evaluation.json")
    [accuracy] = run.Scalars("committee/accuracy")
    assert accuracy.value == pytest.approx(evaluation["committees"][-1]["accuracy"]["mean"])
    [aurc] = run.Scalars("committee/aurc")
    assert aurc.value == pytest.approx(evaluation["committees"][-1]["aurc"]["mean"])


def test_a_second_report_replaces_the_first_without_predicting_again(written, monkeypatch, capsys):
    # Drawing takes most of the time, and no figure is checked here.
    monkeypatch.setattr(writing, "collect_pictures", lambda _: [])
    monkeypatch.setattr(writing, "render_page", lambda *_: "page")
    monkeypatch.setattr("keras_committee.evaluation.predictions.log_probabilities", lambda *_: 1 / 0)
    before = (written.path / "evaluation.json").stat().st_mtime_ns
    assert cli.main(["report", str(written.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["report", "runs", "figures", "tensorboard", "sentences"]
    assert document["report"] == str(written.path / "report" / "index.html")
    assert "linear reach" in document["sentences"]["cost"]
    assert (written.path / "evaluation.json").stat().st_mtime_ns == before
    assert len(list((written.path / "report" / "tensorboard").rglob("*.report"))) == 2


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path / "none")]) == 4
    assert "is not a run folder" in capsys.readouterr().err
    assert cli.main(["report"]) == 2


def test_a_damaged_history_is_an_error(written, tmp_path, capsys):
    shutil.copytree(written.path, tmp_path / "run")
    (tmp_path / "run" / "members" / "01" / "history.jsonl").write_text('{"epoch": 1, "lo')
    assert cli.main(["report", str(tmp_path / "run")]) == 4
    assert "members/01/history.jsonl is damaged" in capsys.readouterr().err
