"""Out-of-fold predictions are those of the members that were not trained on an image."""

import pathlib

import numpy as np
import pytest

from keras_committee import data, evaluation
from keras_committee.data.images import InMemoryImages
from keras_committee.data.resampling import Resampling
from keras_committee.evaluation import out_of_fold
from keras_committee.evaluation.out_of_fold import predict_out_of_fold
from keras_committee.layers import GeometricMean
from keras_committee.models.loading import load_member
from keras_committee.models.predict import log_probabilities
from keras_committee.recipe_file import RecipeFile
from keras_committee.run import Run
from keras_committee.training import train_committee

RESAMPLED = pathlib.Path(__file__).parents[1] / "recipes" / "resampled.py"


@pytest.fixture(scope="module")
def resampled(tmp_path_factory):
    """A run of three members, trained on folds: `(run, recipe)`."""
    file = RecipeFile.read(RESAMPLED)
    run = Run.create(tmp_path_factory.mktemp("resampled") / "run", file, file.resolve([]), command="test")
    recipe = run.recipe()
    train_committee(run, recipe)
    return run, recipe


@pytest.mark.slow
def test_the_accuracy_is_that_of_each_member_on_the_fold_that_it_never_saw(resampled):
    run, recipe = resampled
    train = recipe.data.load().train
    resampling, num_correct = Resampling(method="kfold", members=3, seed=7), 0
    expected = np.zeros((len(train), 10), np.float32)
    for index in range(3):
        rows = resampling.held_out(train.labels, index)
        expected[rows] = log_probabilities(load_member(run.member(index).model), [train.images.numpy()[rows]])
        num_correct += int((expected[rows].argmax(axis=1) == train.labels[rows]).sum())
    unseen = predict_out_of_fold(run, [0, 1, 2], recipe.data.load(), GeometricMean())
    np.testing.assert_array_equal(unseen.rows, np.arange(len(train)))
    np.testing.assert_allclose(unseen.probabilities, np.exp(expected), atol=1e-5)
    result = evaluation.evaluate(run, recipe, "train", label_errors=True)
    assert result["out_of_fold"]["accuracy"] == pytest.approx(num_correct / len(train))
    assert result["out_of_fold"]["members_per_image"] == 1
    assert result["label_errors"]["out_of_sample"]
    assert result["label_errors"]["checked"] == len(train) == result["out_of_fold"]["training_images"]
    assert [event["resampling"] for event in run.events() if event["event"] == "training_started"] == [
        {"method": "kfold", "members": 3, "seed": 7}
    ]


@pytest.mark.slow
def test_no_member_saw_a_validation_image_and_the_test_split_has_the_accuracy_too(resampled):
    run, recipe = resampled
    assert "out_of_fold" in evaluation.evaluate(run, recipe)
    splits = recipe.data.load()
    seen = {image.tobytes() for image in splits.train.images.numpy()}
    assert not any(image.tobytes() in seen for image in splits.validation.images.numpy())


class Journal:
    """A run of which only the journal is read."""

    def __init__(self, *events):
        self._events = events

    def events(self):
        return [{"event": "training_started", **event} for event in self._events]


@pytest.fixture
def splits(monkeypatch):
    """Splits of 40 images; each member predicts its own random probabilities for an image."""
    images = np.broadcast_to(np.arange(40)[:, None, None, None], (40, 2, 2, 3)).astype(np.uint8)
    train = data.Split(images=InMemoryImages(images), labels=np.arange(40, dtype=np.int32) % 3)

    def predict(run, index, name, examples, num_classes):
        numbers = examples.images.numpy()[:, 0, 0, 0]
        return np.stack([answer(index, number) for number in numbers])

    monkeypatch.setattr(out_of_fold, "predict_examples", predict)
    return data.Splits(classes=tuple("abc"), train=train, validation=train, test=train, batch_size=4)


def answer(index, number):
    return np.log(np.random.default_rng((index, number)).dirichlet(np.ones(3))).astype(np.float32)


def test_bagged_members_vote_on_the_images_that_they_did_not_draw(splits):
    config = {"method": "bootstrap", "members": 3, "seed": 7}
    run = Journal({"members": [0, 1, 2], "data": splits.train.fingerprint(), "resampling": config})
    unseen = predict_out_of_fold(run, [0, 1, 2], splits, GeometricMean())
    drawn = [set(Resampling.from_dict(config).rows(splits.train.labels, index).tolist()) for index in range(3)]
    voters = {row: [index for index in range(3) if row not in drawn[index]] for row in range(40)}
    assert unseen.rows.tolist() == [row for row in range(40) if voters[row]]
    assert 0 < len(unseen.rows) < 40
    for row, probabilities in zip(unseen.rows.tolist(), unseen.probabilities, strict=True):
        votes = np.stack([answer(index, row) for index in voters[row]])
        expected = np.exp(votes.astype("float64").mean(axis=0))
        np.testing.assert_allclose(probabilities, expected / expected.sum(), atol=1e-5)
    assert unseen.members_per_image == pytest.approx(np.mean([len(votes) for votes in voters.values() if votes]))


def test_a_member_counts_only_with_what_it_was_trained_with(splits):
    kfold = {"resampling": {"method": "kfold", "members": 2, "seed": 7}, "data": splits.train.fingerprint()}
    more = {"resampling": {"method": "kfold", "members": 3, "seed": 7}, "data": splits.train.fingerprint()}
    run = Journal({"members": [0, 1], **kfold}, {"members": [2], **more})  # a third member was added later
    unseen = predict_out_of_fold(run, [0, 1, 2], splits, GeometricMean())
    assert unseen.members_per_image == pytest.approx((40 + 13) / 40, abs=0.03)
    assert predict_out_of_fold(Journal({"members": [0, 1]}), [0, 1], splits, GeometricMean()) is None
    moved = Journal({"members": [0, 1], **kfold, "data": "other images"})
    assert predict_out_of_fold(moved, [0, 1], splits, GeometricMean()) is None
    again = Journal({"members": [0, 1], **kfold}, {"members": [0, 1], "data": splits.train.fingerprint()})
    assert predict_out_of_fold(again, [0, 1], splits, GeometricMean()) is None
