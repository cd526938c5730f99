"""Does a selection survive its file, and does it refuse what makes no sense?"""

import dataclasses
import functools
import json
import operator

import pytest

from keras_committee.errors import RunError
from keras_committee.selection import SelectedMember, Selection, Stage

MEMBERS = tuple(
    SelectedMember(
        run="runs/a", index=i, weights=f"{i}" * 64, name=f"a/{i}", parameters=7, mflops=2.5, temperature=1.25
    )
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
        ("[]", r"it must be an object. Received: \[\]"),
        ("[" * 100_000, "is no selection: .*recursion"),
    ],
)
def test_another_file_is_refused(tmp_path, content, words):
    file = tmp_path / "selection.json"
    file.write_text(content)
    with pytest.raises(RunError, match=rf"(?s){words}"):
        Selection.read(file)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("members",), None, "members must be a list. Received: null"),
        (("members",), [], "at least one member. Received: none"),
        (("members", 1), "a/1", r'members\[1\] must be an object. Received: "a/1"'),
        (("members", 1, "run"), 7, r"members\[1\].run must be a text. Received: 7"),
        (("members", 1, "index"), -1, r"members\[1\].index must be a whole number from 0. Received: -1"),
        (("members", 1, "index"), True, r"members\[1\].index must be a whole number from 0. Received: true"),
        (("members", 1, "weights"), None, r"members\[1\].weights must be a text. Received: null"),
        (("members", 1, "mflops"), float("nan"), r"members\[1\].mflops must be a finite number. Received: NaN"),
        pytest.param(
            *(
                ("members", 1, "mflops"),
                10**400,
                r"members\[1\].mflops must be a finite number. Received: 10{59}\.\.\.",
            ),
            id="more than a float holds",
        ),
        (("members", 1, "temperature"), 0, r"members\[1\].temperature must be a finite number above 0. Received: 0"),
        (("head",), ["geometric_mean"], r'head must be a text. Received: \["geometric_mean"\]'),
        (("head",), "weighted_geometric_mean", "weighted_geometric_mean has weights, and no other head"),
        (("weights",), [0.2, 0.1, 0.7], "has weights, and no other head. Received: geometric_mean"),
        (("weights",), [0.2, "much", 0.7], "weights must be null or a list of finite numbers"),
        (("classes",), "cat", 'classes must be a list of texts. Received: "cat"'),
        (("classes",), ["cat", 7], r'classes must be a list of texts. Received: \["cat", 7\]'),
        (("stages",), {}, "stages must be null or a list. Received: {}"),
        (("stages", 0), None, r"stages\[0\] must be an object. Received: null"),
        (("stages", 0, "members"), 1.5, r"stages\[0\].members must be a whole number from 0. Received: 1.5"),
        (("stages", 0, "threshold"), "0.7", r'stages\[0\].threshold must be null or a finite number. Received: "0.7"'),
        (("stages", 1, "members"), 2, r"at last all 3. Received: \[1, 2\]"),
        (("confidence",), None, "confidence must be a text. Received: null"),
        (("report",), [], r"report must be an object. Received: \[\]"),
    ],
)
def test_a_damaged_value_is_told_with_its_place_and_what_was_wanted(tmp_path, place, value, words):
    CASCADE.write(file := tmp_path / "selection.json")
    document = json.loads(file.read_text())
    *way, key = place
    functools.reduce(operator.getitem, way, document)[key] = value
    file.write_text(json.dumps(document))
    with pytest.raises(RunError, match=rf"(?s)selection.json is no selection: .*{words}.*\n.*select RUN"):
        Selection.read(file)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"head": "geometric_meen"}, "There is no head 'geometric_meen'. Did you mean 'geometric_mean'"),
        ({"confidence": "margins"}, "confidence must be one of max_probability, .*Received: 'margins'"),
        ({"head": "weighted_geometric_mean", "weights": (0.2, 0.1, 0.6)}, "weights must be floats .* that sum to 1"),
    ],
)
def test_a_name_or_weights_that_no_head_takes_are_told(tmp_path, fields, words):
    dataclasses.replace(CASCADE, **fields).write(tmp_path / "selection.json")
    with pytest.raises(RunError, match=f"selection.json is no selection: {words}"):
        Selection.read(tmp_path / "selection.json")


@pytest.mark.parametrize("place", [("members", 1), ("stages", 0), ()])
def test_a_missing_key_is_told_with_its_place(tmp_path, place):
    CASCADE.write(file := tmp_path / "selection.json")
    document = json.loads(file.read_text())
    del functools.reduce(operator.getitem, place, document)["members" if "members" not in place else "index"]
    file.write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"(it|members\[1\]|stages\[0\]) has no '(members|index)'"):
        Selection.read(file)


def test_weights_are_as_many_as_the_members():
    with pytest.raises(ValueError, match=r"3 members have as many weights\. Received: 2"):
        dataclasses.replace(CASCADE, head="weighted_geometric_mean", weights=(0.2, 0.8))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(RunError, match=r"selection.json is no selection: .*No such file"):
        Selection.read(tmp_path / "selection.json")
