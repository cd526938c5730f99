"""The trained committee that ships with the project is small, and answers as README shows."""

import json
import re
from pathlib import Path

import pytest

from keras_committee.export.predict import ExportedCommittee
from keras_committee.files import read_record

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "saved_models/cifar10_small"
IMAGES = sorted((ROOT / "docs/examples").glob("*.jpg"))
RESULTS = ROOT / "docs/results/cifar10_small"


@pytest.fixture(scope="module")
def answers():
    committee, contents = ExportedCommittee.from_folder(FOLDER), [file.read_bytes() for file in IMAGES]
    outputs = committee.predict(contents)
    return committee.class_names(contents[0], outputs["probabilities"].shape[1]), outputs


def test_a_clone_gets_at_most_three_megabytes():
    files = [file for file in FOLDER.rglob("*") if file.is_file() and "assets.extra" not in file.parts]
    assert sum(file.stat().st_size for file in files) <= 3_000_000


def test_the_first_test_image_of_each_class_is_classified(answers):
    classes, outputs = answers
    predicted = [classes[index] for index in outputs["probabilities"].argmax(axis=1)]
    assert len(IMAGES) == 10
    assert [name for name, file in zip(predicted, IMAGES, strict=True) if name == file.stem] == predicted


def test_the_answers_are_those_of_readme(answers):
    classes, outputs = answers
    shown = re.findall(r"^(\w+)\.jpg +(\w+) ([\d.]+)%", (ROOT / "README.md").read_text(), re.M)
    assert len(shown) >= 3
    for name, first, percent in shown:
        row = outputs["probabilities"][[file.stem for file in IMAGES].index(name)]
        assert (first, percent) == (classes[row.argmax()], f"{100 * row.max():.1f}")


def test_the_members_are_those_of_the_recorded_results():
    manifest = read_record(FOLDER / "1/committee.json")
    selection = json.loads((RESULTS / "selection.json").read_text())
    assert [member["weights"] for member in manifest["members"]] == [
        member["weights"] for member in selection["members"]
    ]
