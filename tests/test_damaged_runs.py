"""One flipped bit in any file of a finished run: every answer stays right, or is refused with a message."""

import dataclasses
import fnmatch
import random
import shutil

import numpy as np
import pytest

from keras_committee.data import Splits
from keras_committee.errors import CommitteeError, RunError
from keras_committee.evaluation import Objective, calibrate, evaluate, load_pool, select
from keras_committee.evaluation.member_info import load_member_info
from keras_committee.evaluation.predictions import predict_split
from keras_committee.export.export_members import all_members, selected_models
from keras_committee.files import read_record
from keras_committee.models.loading import load_member
from keras_committee.run import Run
from keras_committee.selection import Selection
from keras_committee.tracking.committee_history import CommitteeHistory

MEMBERS = range(3)
SPLITS: list[Splits] = []  # loaded once
CACHED = ("evaluation.json", "calibration.json")  # commands turn the ValueError of `read_record` into a message


def record_of(run):
    return run.recipe_file().content, run.parameters(), run.environment()


def data_of(run):
    return [run.data_info(index) for index in MEMBERS]


def weights_of(run):
    models = [load_member(run.member(index).model) for index in MEMBERS]
    return [(model.to_json(), [weight.tobytes() for weight in model.get_weights()]) for model in models]


def histories_of(run):
    return [run.member(index).read_history() for index in MEMBERS]


def epoch_predictions_of(run):
    return [run.member(index).read_epoch_predictions(epoch).tobytes() for index in MEMBERS for epoch in (1, 2)]


def descriptions_of(run):
    return [load_member_info(run, index) for index in MEMBERS]


def predictions_of(run):
    return {
        split: predict_split(run, MEMBERS, SPLITS[0], split).log_probabilities.tobytes()
        for split in ("validation", "test")
    }


# For each file of a finished run what is read from it.
ANSWERS = {
    "recipe.py": record_of,
    "parameters.json": record_of,
    "environment.json": record_of,
    "journal.jsonl": Run.events,
    "committee_history.jsonl": lambda run: CommitteeHistory(run.path).read(),
    "members/*/model.keras": lambda run: (data_of(run), weights_of(run)),
    "members/*/history.jsonl": histories_of,
    "members/*/validation/*.npy": epoch_predictions_of,
    "predictions/members/*.json": descriptions_of,
    "predictions/*/*.npy": predictions_of,
    "evaluation.json": lambda run: read_record(run.path / "evaluation.json"),
    "calibration.json": lambda run: read_record(run.path / "calibration.json"),
    "selection.json": lambda run: Selection.read(run.path / "selection.json"),
}
# TensorBoard verifies its own files. Nothing reads the others.
UNREAD = ("*tensorboard/*", "*lock", "logs/*", "misclassified.csv")


@pytest.fixture(scope="module")
def finished(trained, copy_of_trained, tmp_path_factory):
    """A copy of the trained run, evaluated, calibrated and selected from."""
    _, recipe = trained
    run = copy_of_trained(tmp_path_factory.mktemp("finished") / "run")
    evaluate(run, recipe)
    calibrate(run, recipe)
    select(load_pool([run]), Objective(), run.path / "selection.json").write(run.path / "selection.json")
    SPLITS[:] = [recipe.data.load()]
    return run


def relative_files(run):
    return sorted(str(file.relative_to(run.path)) for file in run.path.rglob("*") if file.is_file())


def answers_from(name):
    return [answer for pattern, answer in ANSWERS.items() if fnmatch.fnmatch(name, pattern)]


def test_every_file_of_a_finished_run_is_listed_here(finished):
    names = relative_files(finished)
    unlisted = [name for name in names if not answers_from(name)]
    assert [name for name in unlisted if not any(fnmatch.fnmatch(name, pattern) for pattern in UNREAD)] == []
    assert [pattern for pattern in ANSWERS if not fnmatch.filter(names, pattern)] == []


def outcomes_of_flips(run, name, positions):
    """Flip one bit at each position of a file; return whether the answers are right, or None where one is refused."""
    answer, path, rng = answers_from(name)[0], run.path / name, random.Random(3)
    expected, content, outcomes = answer(run), path.read_bytes(), []
    for position in positions(content):
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            outcomes.append(answer(run) == expected)
        except (CommitteeError, ValueError) as error:
            outcomes.append(None if isinstance(error, CommitteeError) or path.name in CACHED else error)
        finally:
            path.write_bytes(content)
    return outcomes


def one_per_field(content):
    """Positions in each line: one in each of up to eight fields, such as the keys and values of JSON."""
    positions, start = [], 0
    for line in content.split(b"\n")[:12]:
        steps = max(1, len(line) // 8)
        positions += range(start + steps // 2, start + len(line), steps)
        start += len(line) + 1
    return positions


def nine_of(content):
    return np.linspace(0, len(content) - 1, 9).astype(int).tolist()


TEXTS = ["recipe.py", "parameters.json", "environment.json", "journal.jsonl", "members/01/history.jsonl"]
TEXTS += ["evaluation.json", "calibration.json", "selection.json"]
BINARIES = ["members/01/model.keras", "members/02/validation/0002.npy"]


@pytest.mark.parametrize("name", TEXTS)
def test_A21_a_flipped_bit_of_a_text_changes_no_answer(finished, name):
    outcomes = outcomes_of_flips(finished, name, one_per_field)
    assert [outcome for outcome in outcomes if outcome not in (True, None)] == []
    assert None in outcomes


@pytest.mark.parametrize("name", BINARIES)
def test_A21_a_flipped_bit_of_a_model_or_of_an_array_changes_no_answer(finished, name):
    outcomes = outcomes_of_flips(finished, name, nine_of)
    assert [outcome for outcome in outcomes if outcome not in (True, None)] == []
    assert None in outcomes


@pytest.mark.parametrize("pattern", ["predictions/members/00.json", "predictions/test/02-*.npy"])
def test_A21_a_flipped_bit_of_a_cached_result_is_computed_again(finished, pattern, caplog):
    [name] = fnmatch.filter(relative_files(finished), pattern)
    assert outcomes_of_flips(finished, name, lambda content: [len(content) // 2]) == [True]
    assert "is damaged" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_A21_no_flipped_bit_of_a_text_changes_an_answer(finished, name):
    outcomes = outcomes_of_flips(finished, name, lambda content: range(0, len(content), 1 + len(content) // 4000))
    assert [outcome for outcome in outcomes if outcome not in (True, None)] == []


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-60] + b"\n", lambda content: b'{"classes": ["7"]}\n']
)
def test_A22_an_export_does_not_depend_on_the_journal(finished, tmp_path, damage):
    """Once a flipped bit there exported a committee with a wrong class name."""
    run = Run(shutil.copytree(finished.path, tmp_path / "run"))
    path = run.path / "journal.jsonl"
    path.write_bytes(damage(path.read_bytes()))
    committee, _, transforms = all_members([run])
    assert committee.classes == tuple("0123456789")
    assert transforms == [data.transform for data in data_of(finished)]
    selection = Selection.read(run.path / "selection.json")
    assert selected_models(selection, run.path)[1] == transforms[: len(selection.members)]


def test_a_selection_of_other_classes_than_its_members_is_refused(finished):
    selection = Selection.read(finished.path / "selection.json")
    other = dataclasses.replace(selection, classes=("7", *selection.classes[1:]))
    with pytest.raises(RunError, match=r"other classes than its member \d of .*: class 0 0 -> 7\.\n  Select again"):
        selected_models(other, finished.path)
