"""Folders in the layout of the Hugging Face hub."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import keras_committee as kc
from keras_committee.cli import main
from keras_committee.errors import ExportError, RecipeError, RunError
from keras_committee.export import hub
from keras_committee.files import read_record, write_record

SHIPPED = Path(__file__).parents[2] / "saved_models" / "cifar10_small"


@pytest.fixture
def folder(tmp_path):
    kc.push(SHIPPED, tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def run(copy_of_trained, tmp_path):
    """A copy of the trained run, which exported the shipped model."""
    copy = copy_of_trained(tmp_path / "run")
    copy.append_event("exported", version=str(tmp_path / "deleted" / "2"), members=2)
    copy.append_event("exported", version=str(SHIPPED / "1"), members=2)
    copy.append_event("exported", version=str(tmp_path / "deleted" / "3"), members=2)
    return copy


def metadata(card):
    return yaml.safe_load(card.read_text().split("---\n")[1])


def test_the_folder_has_every_file_of_the_version_unchanged(folder):
    for file in (SHIPPED / "1").rglob("*"):
        if file.is_file():
            assert (folder / file.relative_to(SHIPPED / "1")).read_bytes() == file.read_bytes()
    assert [path.name for path in folder.parent.iterdir()] == ["hub"]


def test_no_folder_of_the_machine_is_published(tmp_path):
    version = Path(shutil.copytree(SHIPPED / "1", tmp_path / "model" / "1"))
    manifest = read_record(version / "committee.json")
    manifest["members"][0]["run"] = manifest["report"]["members"][0]["run"] = "/home/anna/runs/cifar"
    manifest["recipes"][0]["parameters"] |= {"data_dir": "/home/anna/cifar.npz", "widths": "32/64"}
    manifest["labels"][0] = "/m/0pg52"
    write_record(version / "committee.json", manifest)
    kc.push(version, tmp_path / "hub")
    published = read_record(tmp_path / "hub" / "committee.json")
    assert published["members"][0]["run"] == published["report"]["members"][0]["run"] == "cifar"
    assert published["recipes"][0]["parameters"]["data_dir"] == "cifar.npz"
    assert published["recipes"][0]["parameters"]["widths"] == "32/64"
    assert published["labels"][0] == "/m/0pg52"
    assert "anna" not in (tmp_path / "hub" / "README.md").read_text()


def test_the_card_has_the_scores_of_the_export(folder):
    report = read_record(SHIPPED / "1" / "committee.json")["report"]["test"]
    fields = metadata(folder / "README.md")
    assert (fields["library_name"], fields["pipeline_tag"]) == ("keras", "image-classification")
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"]["split"] == "test"
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        name: report[name]["value"] for name in ("accuracy", "nll", "ece", "brier")
    }


def test_large_files_are_left_to_lfs(folder):
    lines = (folder / ".gitattributes").read_text().splitlines()
    assert "*.pb filter=lfs diff=lfs merge=lfs -text" in lines
    assert "variables/variables.data-* filter=lfs diff=lfs merge=lfs -text" in lines


@pytest.mark.slow
def test_the_folder_loads_and_answers_like_the_export(folder):
    image = str(next((Path(__file__).parents[2] / "docs").rglob("*.png")))
    expected = kc.load_export(SHIPPED).predict(image).probabilities
    assert kc.load_export(folder).predict(image).probabilities.tolist() == expected.tolist()


def test_a_run_gives_its_newest_export_that_exists_and_its_own_card(run, tmp_path):
    assert hub.find_version(run.path) == (SHIPPED / "1", None)
    (run.path / "report").mkdir()
    (run.path / "report" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    result = kc.push(kc.Run(run.path), tmp_path / "hub")
    assert result["version"] == str(SHIPPED / "1")
    assert metadata(tmp_path / "hub" / "README.md") == {"license": "mit"}
    assert 'signatures["serving_default"](image=pixels)' in (tmp_path / "hub" / "README.md").read_text()


def test_another_push_replaces_the_folder_and_keeps_an_edited_card(folder):
    (folder / "old.txt").touch()
    assert not kc.push(SHIPPED / "1", folder)["card_kept"]
    assert not (folder / "old.txt").exists()
    card = folder / "README.md"
    card.write_text(card.read_text() + "Mine.\n")
    for _ in range(2):
        result = kc.push(SHIPPED, folder)
        assert result["card_kept"]
        assert "README.md was edited and is kept." in repr(result)
        assert card.read_text().endswith("Mine.\n")


def test_nothing_else_is_overwritten(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(RecipeError, match=r"exists and was not written by `keras-committee push`. No file was changed"):
        kc.push(SHIPPED, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_failed_push_leaves_the_earlier_one(folder, monkeypatch):
    monkeypatch.setattr(hub, "_LFS_PATTERNS", None)
    with pytest.raises(TypeError):
        kc.push(SHIPPED, folder)
    assert [path.name for path in folder.parent.iterdir()] == ["hub"]
    assert (folder / "saved_model.pb").is_file()


def test_what_is_no_export_is_explained(copy_of_trained, tmp_path):
    with pytest.raises(ExportError, match=r"has no export. To export it, run: keras-committee export"):
        hub.find_version(copy_of_trained(tmp_path / "run").path)
    with pytest.raises(RunError, match=r"nowhere is no run and no exported model: there is no such folder"):
        hub.find_version(tmp_path / "nowhere")
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ExportError, match=r"has no committee.json: keras-committee did not export it"):
        hub.find_version(tmp_path)


def test_the_command_prints_what_it_wrote(tmp_path, capsys):
    assert main(["push", str(SHIPPED), str(tmp_path / "hub"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(tmp_path / "hub"),
        "version": str(SHIPPED / "1"),
        "card": str(tmp_path / "hub" / "README.md"),
        "card_kept": False,
    }
