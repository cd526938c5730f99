"""Selections: round trip through the file, and errors of invalid ones."""

import dataclasses
import functools
import json
import math
import operator

import pytest

from keras_committee.errors import RunError
from keras_committee.selection import (
    AcceptanceRule,
    Promise,
    SelectedMember,
    Selection,
    SetRule,
    Stage,
    View,
    views_to_try,
)

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
    promise=Promise(
        split="validation",
        examples=40,
        chosen_on=39,
        sets=SetRule(coverage=0.9, method="raps", thresholds=(0.25, 0.75), penalty=0.1, free_ranks=1),
        acceptance=AcceptanceRule(max_risk=0.05, certainty=0.95, threshold=0.875),
    ),
)


def edit(file, path, change):
    """Change the object at `path` in the file, and remove the checksum, as a user would."""
    document = json.loads(file.read_text())
    del document["checksum"]
    change(functools.reduce(operator.getitem, path, document))
    file.write_text(json.dumps(document))


def test_a_written_selection_is_read_back(tmp_path):
    CASCADE.write(tmp_path / "selection.json")
    assert Selection.read(tmp_path / "selection.json") == CASCADE
    assert json.loads((tmp_path / "selection.json").read_text())["kind"] == "cascade"


def test_a_selection_of_a_version_without_promises_is_read(tmp_path):
    file = tmp_path / "selection.json"
    CASCADE.write(file)
    edit(file, [], lambda document: document.pop("promise"))
    assert Selection.read(file) == dataclasses.replace(CASCADE, promise=None)


def test_windows_are_read_back_and_a_selection_of_a_version_without_them_is_read(tmp_path):
    file = tmp_path / "selection.json"
    stages = (Stage(members=1, threshold=0.7, lower_threshold=0.25), Stage(members=3, threshold=None))
    windowed = dataclasses.replace(CASCADE, stages=stages)
    windowed.write(file)
    assert Selection.read(file) == windowed
    assert (windowed.lower_thresholds(), CASCADE.lower_thresholds()) == ((0.25,), None)
    edit(file, ["stages", 0], lambda stage: stage.pop("lower_threshold"))
    assert Selection.read(file) == CASCADE


def test_a_window_that_ends_before_it_begins_is_an_error():
    stages = (Stage(members=1, threshold=0.2, lower_threshold=0.3), Stage(members=3, threshold=None))
    with pytest.raises(ValueError, match=r"up to the threshold, for each .* Received: \[0\.3\], with .* \[0\.2\]"):
        dataclasses.replace(CASCADE, stages=stages)
    with pytest.raises(ValueError, match=r"the last stage must have no threshold\. Received: 0\.1"):
        dataclasses.replace(CASCADE, stages=(stages[0], Stage(members=3, threshold=None, lower_threshold=0.1))[1:])


def test_views_are_read_back_and_a_selection_of_a_version_without_them_is_read(tmp_path):
    file = tmp_path / "selection.json"
    viewed = dataclasses.replace(MEMBERS[1], view=View(mirror=True, shift=-2))
    dataclasses.replace(CASCADE, members=(MEMBERS[0], viewed, MEMBERS[2])).write(file)
    assert Selection.read(file).members[1] == viewed
    edit(file, ["members", 0], lambda member: member.pop("view"))
    assert Selection.read(file).members == (MEMBERS[0], viewed, MEMBERS[2])
    edit_message = r"members\[1\]\.view\.shift must be an integer\. Received: 0\.5"
    file.write_text(file.read_text().replace('"shift": -2', '"shift": 0.5'))
    with pytest.raises(RunError, match=edit_message):
        Selection.read(file)


def test_the_views_to_try():
    assert views_to_try(mirror=True, shifts=0) == (View(mirror=True),)
    assert [str(view) for view in views_to_try(mirror=True, shifts=2)] == [
        "shift -2", "shift +2", "mirrored", "mirrored, shift -2", "mirrored, shift +2",
    ]  # fmt: skip
    assert [view.file_name for view in views_to_try(mirror=False, shifts=1)] == ["shift-1", "shift+1"]


def test_thresholds_of_sets_for_other_classes_are_an_error():
    sets = SetRule(coverage=0.9, method="lac", thresholds=(0.5, 0.5, 0.5))
    promise = Promise(split="validation", examples=40, chosen_on=39, sets=sets)
    with pytest.raises(
        ValueError, match=r"thresholds must hold one number, or one for each of 2 classes\. Received: 3"
    ):
        dataclasses.replace(CASCADE, promise=promise)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (((1, 0.7), (2, None)), r"to all 3 members\. Received: \[1, 2\]"),
        (((2, 0.7), (1, 0.7), (3, None)), "stages must increase from 1"),
        (((0, 0.7), (3, None)), "stages must increase from 1"),
        ((), r"to all 3 members\. Received: \[\]"),
        (((1, None), (3, None)), r"for each of the 2 stages except the last\. Received: \[None\]"),
        (((1, 0.7), (3, 0.2)), r"the last stage must have no threshold\. Received: 0\.2"),
        (((1, math.nan), (3, None)), r"except the last\. Received: \[nan\]"),
    ],
)
def test_invalid_stages_are_an_error(stages, message):
    with pytest.raises(ValueError, match=message):
        Selection(
            members=MEMBERS,
            head="geometric_mean",
            classes=("cat", "dog"),
            stages=tuple(Stage(members=members, threshold=threshold) for members, threshold in stages),
        )


def test_a_selection_without_members_is_an_error():
    with pytest.raises(ValueError, match="at least one member"):
        Selection(members=(), head="geometric_mean", classes=("cat", "dog"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a valid selection file: .*select RUN"),
        ('{"format": 9}', r"its format must be 1\. Received: 9"),
        ("[]", r"its content must be an object. Received: \[\]"),
        ("[" * 100_000, "is not a valid selection file: .*recursion"),
    ],
)
def test_another_file_is_an_error(tmp_path, content, message):
    file = tmp_path / "selection.json"
    file.write_text(content)
    with pytest.raises(RunError, match=rf"(?s){message}"):
        Selection.read(file)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("members",), None, "members must be a list. Received: null"),
        (("members",), [], "at least one member. Received: none"),
        (("members", 1), "a/1", r'members\[1\] must be an object. Received: "a/1"'),
        (("members", 1, "run"), 7, r"members\[1\].run must be a string. Received: 7"),
        (("members", 1, "index"), -1, r"members\[1\].index must be an integer of 0 or more. Received: -1"),
        (("members", 1, "index"), True, r"members\[1\].index must be an integer of 0 or more. Received: true"),
        (("members", 1, "weights"), None, r"members\[1\].weights must be a string. Received: null"),
        (("members", 1, "mflops"), float("nan"), r"members\[1\].mflops must be null or a finite number. Received: NaN"),
        pytest.param(
            *(
                ("members", 1, "mflops"),
                10**400,
                r"members\[1\].mflops must be null or a finite number. Received: 10{59}\.\.\.",
            ),
            id="more than a float holds",
        ),
        (("members", 1, "temperature"), 0, r"members\[1\].temperature must be a finite number above 0. Received: 0"),
        (("head",), ["geometric_mean"], r'head must be a string. Received: \["geometric_mean"\]'),
        (
            ("head",),
            "weighted_geometric_mean",
            "weights must be given for the head weighted_geometric_mean, and for no other",
        ),
        (("weights",), [0.2, 0.1, 0.7], "and for no other. Received: head=geometric_mean"),
        (("weights",), [0.2, "much", 0.7], "weights must be null or a list of finite numbers"),
        (("classes",), "cat", 'classes must be a list of strings. Received: "cat"'),
        (("classes",), ["cat", 7], r'classes must be a list of strings. Received: \["cat", 7\]'),
        (("stages",), {}, "stages must be null or a list. Received: {}"),
        (("stages", 0), None, r"stages\[0\] must be an object. Received: null"),
        (("stages", 0, "members"), 1.5, r"stages\[0\].members must be an integer of 0 or more. Received: 1.5"),
        (("stages", 0, "threshold"), "0.7", r'stages\[0\].threshold must be null or a finite number. Received: "0.7"'),
        (("stages", 1, "members"), 2, r"to all 3 members\. Received: \[1, 2\]"),
        (("confidence",), None, "confidence must be a string. Received: null"),
        (("report",), [], r"report must be an object. Received: \[\]"),
    ],
)
def test_an_invalid_value_is_an_error_with_its_location(tmp_path, path, value, message):
    CASCADE.write(file := tmp_path / "selection.json")
    *parents, key = path
    edit(file, parents, lambda parent: operator.setitem(parent, key, value))
    with pytest.raises(
        RunError, match=rf"(?s)selection.json is not a valid selection file: .*{message}.*\n.*select RUN"
    ):
        Selection.read(file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "geometric_meen"}, "There is no head 'geometric_meen'. Did you mean 'geometric_mean'"),
        ({"confidence": "margins"}, "confidence must be one of max_probability, .*Received: 'margins'"),
        ({"head": "weighted_geometric_mean", "weights": (0.2, 0.1, 0.6)}, "weights must be floats .* that sum to 1"),
    ],
)
def test_unknown_names_and_invalid_weights_are_an_error(tmp_path, fields, message):
    dataclasses.replace(CASCADE, **fields).write(tmp_path / "selection.json")
    with pytest.raises(RunError, match=f"selection.json is not a valid selection file: {message}"):
        Selection.read(tmp_path / "selection.json")


@pytest.mark.parametrize("path", [("members", 1), ("stages", 0), ()])
def test_a_missing_key_is_an_error_with_its_location(tmp_path, path):
    CASCADE.write(file := tmp_path / "selection.json")
    edit(file, path, lambda parent: parent.pop("members" if "members" not in path else "index"))
    with pytest.raises(RunError, match=r"(it|members\[1\]|stages\[0\]) has no '(members|index)'"):
        Selection.read(file)


def test_there_is_one_weight_per_member():
    with pytest.raises(ValueError, match=r"weights must be one per member \(3\)\. Received: 2"):
        dataclasses.replace(CASCADE, head="weighted_geometric_mean", weights=(0.2, 0.8))


def test_an_edited_selection_is_read_without_its_checksum_only(tmp_path):
    CASCADE.write(file := tmp_path / "selection.json")
    content = file.read_text()
    file.write_text(content.replace('"threshold": 0.7', '"threshold": 0.6'))
    with pytest.raises(RunError, match=r"its checksum does not match\. If you edited it, remove its key checksum\."):
        Selection.read(file)
    file.write_text(content)
    edit(file, ("stages", 0), lambda stage: stage.update(threshold=0.6))
    assert Selection.read(file).stages[0].threshold == 0.6


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"selection.json is not a valid selection file: No such file"):
        Selection.read(tmp_path / "selection.json")
