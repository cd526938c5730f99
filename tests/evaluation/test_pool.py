"""A pool holds members of several runs that can form one committee."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from keras_committee.errors import DataError, IncompleteError, RecipeError, VerificationError
from keras_committee.evaluation import (
    SplitPredictions,
    load_or_compute_predictions,
    load_pool,
    member_info,
    predictions,
)
from keras_committee.evaluation.pool import (
    check_no_duplicate_weights,
    require_equal_channels,
    require_equal_classes,
    require_equal_examples,
)
from keras_committee.member_dir import DataInfo
from keras_committee.models.loading import load_member, save_member
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import train_committee

TINY = Path(__file__).parents[1] / "recipes" / "tiny.py"


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    file = RecipeFile.read(TINY)
    parameters = file.resolve(["members=2", "epochs=1", "seed=31"])
    run = Run.create(tmp_path_factory.mktemp("second") / "run", file, parameters, command="test")
    train_committee(run, file.build(parameters))
    return run


def some_predictions(labels, data, source=""):
    zeros, labels = np.zeros((1, 1, 2)), np.array(labels)
    return SplitPredictions(
        members=(0,),
        log_probabilities=zeros,
        labels=labels,
        classes=("a",),
        data_fingerprint=data,
        source_fingerprint=source,
    )


def test_a_pool_holds_the_members_of_all_runs_in_order(trained, second):
    run, recipe = trained
    pool = load_pool([run, second])
    assert [(member.run, member.index) for member in pool.members] == [
        *((run.path, index) for index in range(3)),
        *((second.path, index) for index in range(2)),
    ]
    assert pool.predictions["test"].shape == (360, 5, 10)
    np.testing.assert_array_equal(
        pool.predictions["test"][:, :3], load_or_compute_predictions(run, recipe).log_probabilities
    )
    np.testing.assert_array_equal(pool.labels["validation"], recipe.data.load().validation.labels)
    assert pool.classes == tuple("0123456789")
    assert len({member.weights_hash for member in pool.members}) == 5
    assert len({member.architecture for member in pool.members}) == 1
    assert pool.mflops == pytest.approx([2 * 8 * 8 * 3 * 10 / 1e6] * 5)
    assert pool.missing == {str(run.path): [], str(second.path): []}


def test_a_pool_is_loaded_again_without_loading_a_model(trained, monkeypatch):
    run, _ = trained
    first = load_pool([run])

    def fail(*_):
        raise RuntimeError("loaded again")

    monkeypatch.setattr(predictions, "load_member", fail)
    monkeypatch.setattr(member_info, "load_member", fail)
    assert load_pool([run]).members == first.members


def test_a_damaged_description_is_computed_again(second, caplog):
    before = member_info.load_member_info(second, 1)
    file = second.path / "predictions" / "members" / "01.json"
    file.write_text(json.dumps({"source": "x"})[:-3])
    assert member_info.load_member_info(second, 1) == before
    assert "01.json is damaged" in caplog.text
    assert json.loads(file.read_text())["name"] == "linear_1"


def test_a_run_listed_twice_is_rejected(trained):
    run, _ = trained
    with pytest.raises(RecipeError, match=r"are the same run, so its members would count twice"):
        load_pool([run, dataclasses.replace(run, path=run.path / ".." / run.path.name)])


def test_C05_an_incomplete_run_is_accepted_on_request(second, trained, tmp_path):
    run = Run(shutil.copytree(second.path, tmp_path / "run"))
    run.member(0).model.unlink()
    with pytest.raises(IncompleteError, match=r"1 of 2 members; not trained: 0\.[\s\S]*--allow-incomplete 1"):
        load_pool([trained[0], run])
    assert load_pool([trained[0], run], min_members=1).missing == {str(trained[0].path): [], str(run.path): [0]}


def test_C06_a_member_of_two_runs_is_named(trained, tmp_path):
    run, _ = trained
    copy = Run(shutil.copytree(run.path, tmp_path / "copy"))
    with pytest.raises(
        VerificationError, match=r"members .*tiny member 0 and .*copy member 0 of the pool have identical"
    ):
        load_pool([run, copy])
    assert len(load_pool([run, copy], allow_duplicate_weights=True).members) == 6


def test_C06_duplicates_are_named_with_their_hash():
    with pytest.raises(VerificationError, match=r"members 1 and 3 of runs/a have identical weights \(sha256 beef\)"):
        check_no_duplicate_weights({"0": "cafe", "1": "beef", "3": "beef"}, "runs/a")


def test_C01_other_class_counts_are_listed_in_a_table():
    with pytest.raises(
        RecipeError,
        match=r"(?s)where one has nothing, another has frog\.\n  a member 0   2 classes: cat, "
        r"dog\n  b member 10  3 classes: cat, dog, frog\n",
    ) as caught:
        require_equal_classes({"a member 0": ("cat", "dog"), "b member 10": ("cat", "dog", "frog")})
    assert caught.value.exit_code == 2


def test_C02_another_class_order_is_rejected():
    with pytest.raises(
        RecipeError, match=r"where one has cat, another has dog\.\n  a  2 classes: cat, dog\n  b  2 classes: dog, cat"
    ):
        require_equal_classes({"a": ("cat", "dog"), "b": ("dog", "cat")})
    require_equal_classes({"a": ("cat", "dog"), "b": ("cat", "dog")})


def test_C02_a_run_of_other_classes_is_rejected(trained, second, tmp_path):
    other = Run(shutil.copytree(second.path, tmp_path / "other"))
    for index in range(2):
        classes = ("1", "0", *map(str, range(2, 10)))
        file = other.member(index).model
        save_member(load_member(file), file, DataInfo(classes=classes, transform=other.data_info(index).transform))
    with pytest.raises(RecipeError, match="where one has 0, another has 1"):
        load_pool([trained[0], other])


def test_C03_other_channels_are_rejected():
    with pytest.raises(
        RecipeError, match=r"different numbers of channels[\s\S]*  a  32 x 32 x 3\n  b  24 x 32 x 1\n"
    ) as caught:
        require_equal_channels({"a": (32, 32, 3), "b": (24, 32, 1)})
    require_equal_channels({"a": (32, 32, 3), "b": (24, 32, 3)})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0, 1, 1], "3 and 2 examples"), ([0, 0], "1 of 2 labels"), ([0, 1], "the labels are equal, the images are not")],
)
def test_other_examples_are_rejected(labels, message):
    with pytest.raises(DataError, match=f"the test examples of b and a differ: .*{message}"):
        require_equal_examples({"b": some_predictions(labels, "x"), "a": some_predictions([0, 1], "y")}, "test")


def test_a_pool_without_a_validation_split_is_rejected(trained, monkeypatch):
    run, recipe = trained
    splits = recipe.data.load()
    empty = dataclasses.replace(splits, validation=splits.validation.subset(np.arange(0)))
    monkeypatch.setattr(type(recipe.data), "load", lambda _: empty)
    with pytest.raises(RecipeError, match=r"have no validation split\.\n  Members are selected on it"):
        load_pool([run])


def test_the_same_files_at_two_sizes_are_the_same_examples():
    predictions_by_run = {
        "a": some_predictions([0, 1], "pixels", "files"),
        "b": some_predictions([0, 1], "other pixels", "files"),
    }
    require_equal_examples(predictions_by_run, "test")
    with pytest.raises(DataError, match="the labels are equal, the images are not"):
        require_equal_examples({**predictions_by_run, "c": some_predictions([0, 1], "other", "other files")}, "test")
