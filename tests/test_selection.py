"""Does a selection survive its file, and does it refuse what makes no sense?"""

import json

import pytest

from keras_committee.errors import RunError
from keras_committee.selection import ChosenMember, Selection, Stage

MEMBERS = tuple(
    ChosenMember(run="runs/a", index=i, weights=f"{i}" * 64, name=f"a/{i}", parameters=7, mflops=2.5, temperature=1.25)
    for i in range(3)
)
CASCADE = Selection(
    members=MEMBERS,
    head="geometric_mean",
    classes=("cat", "dog"),
    stages=(Stage(members=1, threshold=0.7), Stage(members=3, threshold=None)),
    confidence="margin",
    report={"test": {"accuracy": 0.75}},
)


def test_what_is_written_is_read(tmp_path):
    CASCADE.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == CASCADE
    assert json.loads((tmp_path / "selection.json").read_text())["kind"] == "cascade"


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (((1, 0.7), (2, None)), r"at last all 3. Received: \[1, 2\]"),
        (((2, 0.7), (1, 0.7), (3, None)), "ever more members"),
        (((0, 0.7), (3, None)), "ever more members"),
        ((), "at last all 3"),
        (((1, None), (3, None)), "every stage but the last has a threshold"),
        (((1, 0.7), (3, 0.2)), "the last has none"),
    ],
)
def test_stages_that_make_no_cascade_are_refused(stages, words):
    with pytest.raises(ValueError, match=words):
        Selection(
            members=MEMBERS,
            head="geometric_mean",
            classes=("cat", "dog"),
            stages=tuple(Stage(members=members, threshold=threshold) for members, threshold in stages),
        )


def test_nobody_is_no_selection():
    with pytest.raises(ValueError, match="at least one member"):
        Selection(members=(), head="geometric_mean", classes=("cat", "dog"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no selection: .*select RUN"),
        ('{"format": 9}', "its format is 9; this version reads 1"),
        ("[]", "no selection"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    file = tmp_path / "selection.json"
    file.write_text(content)
    with pytest.raises(RunError, match=rf"(?s){words}"):
        Selection.read(file)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RunError, match=r"selection.json is no selection: .*No such file"):
        Selection.read(tmp_path / "selection.json")
