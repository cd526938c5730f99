"""Recipes: checks of the fields, and the reduced recipe of a smoke run."""

import dataclasses

import pytest

from keras_committee import schedules
from keras_committee.errors import RecipeError
from keras_committee.recipe import Recipe, Teacher


@dataclasses.dataclass(frozen=True)
class FakeData:
    batch_size: int = 32
    limit: int | None = None

    def load(self):
        return None


class KerasObject:
    def get_config(self):
        return {}

    def __call__(self, x):
        return x


def fields(**changed):
    return {
        "data": FakeData(),
        "member": lambda index: index,
        "members": 3,
        "optimizer": lambda steps: steps,
        "epochs": 5,
        "loss": max,
        **changed,
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", "digits", r"Recipe\(data=\.\.\.\) must be .*`data\.digits\(64\)`\. Received: 'digits'"),
        ("member", KerasObject(), r"Recipe\(member=\.\.\.\) must be a function of the member's index"),
        ("member", None, r"Recipe\(member=\.\.\.\)"),
        ("members", 0, r"Recipe\(members=\.\.\.\) must be an integer of 1 or more\. Received: 0"),
        ("members", True, r"Recipe\(members=\.\.\.\)"),
        ("members", 2.0, r"Recipe\(members=\.\.\.\)"),
        ("optimizer", KerasObject(), r"Recipe\(optimizer=\.\.\.\) must be a function of the steps"),
        ("epochs", -1, r"Recipe\(epochs=\.\.\.\) .* Received: -1"),
        ("loss", "mse", r"Recipe\(loss=\.\.\.\) must be a Keras loss .* Received: 'mse'"),
        ("head", "mean", r"Recipe\(head=\.\.\.\) must be a layer"),
        ("seed", -1, r"Recipe\(seed=\.\.\.\) must be an integer of 0 or more\. Received: -1"),
        ("survival", 0.7, r"Recipe\(survival=\.\.\.\) must be a function of the epoch, or None\. Received: 0\.7"),
        ("precision", "float16", r"must be one of auto, float32, mixed_bfloat16, mixed_float16\. Received: 'float16'"),
        (
            "ema_momentum",
            1.0,
            r"Recipe\(ema_momentum=\.\.\.\) must be a number between 0 and 1, or None\. Received: 1\.0",
        ),
        ("swa_epoch_start", 0, r"must be the number of an epoch, counted from 1, or a fraction of the epochs, or None"),
        ("swa_epoch_start", 1.0, r"Recipe\(swa_epoch_start=\.\.\.\) must be the number of an epoch.* Received: 1\.0"),
        ("swa_epoch_start", 6, r"Recipe\(swa_epoch_start=\.\.\.\) must be at most the 5 epochs\. Received: 6"),
        ("global_clipnorm", 0, r"Recipe\(global_clipnorm=\.\.\.\) must be a number above 0, or None\. Received: 0"),
        ("label_smoothing", 1.0, r"Recipe\(label_smoothing=\.\.\.\) must be .* below 1\. Received: 1\.0"),
        ("label_smoothing", -0.2, r"Recipe\(label_smoothing=\.\.\.\) must be a number of 0 or more"),
        ("batch_augment", "mixup", r"Recipe\(batch_augment=\.\.\.\) must be an augmentation such as .*, or None"),
        ("gradient_accumulation_steps", 5, r"must be an integer that divides the batch size of 32\. Received: 5"),
        ("gradient_accumulation_steps", 0, r"Recipe\(gradient_accumulation_steps=\.\.\.\) must be"),
        (
            "restore_best",
            "ece",
            r"Recipe\(restore_best=\.\.\.\) must be one of accuracy, nll, or None\. Received: 'ece'",
        ),
        ("patience", 3, r"Recipe\(patience=\.\.\.\) must be None without `restore_best`\. Received: 3"),
        ("initial_weights", 7, r"Recipe\(initial_weights=\.\.\.\) must be a path, .*, or None\. Received: 7"),
        ("teacher", 7, r"Recipe\(teacher=\.\.\.\) must be a path, .*, or None\. Received: 7"),
        ("teacher", "", r"Recipe\(teacher=\.\.\.\) must be a path, .*, or None\. Received: ''"),
        ("class_weight", "inverse", r"must be \"balanced\", a dict from classes to numbers above 0, or None"),
        ("class_weight", {"cat": 0}, r"Recipe\(class_weight=\.\.\.\) must be .* Received: \{'cat': 0\}"),
        ("class_weight", "balanced", r"Recipe\(loss=\.\.\.\) must be a Keras loss with `class_weight`"),
        ("sampling", "random", r"Recipe\(sampling=\.\.\.\) must be \"balanced\", or None\. Received: 'random'"),
        ("resample", "folds", r"Recipe\(resample=\.\.\.\) must be \"bootstrap\", \"kfold\", or None"),
        ("trainable_layers", ["logits"], r"Recipe\(trainable_layers=\.\.\.\) must be a function of the epoch, or None"),
    ],
)
def test_E02_an_invalid_field_is_an_error_with_its_name_and_value(field, value, message):
    with pytest.raises(RecipeError, match=message):
        Recipe(**fields(**{field: value}))


def test_a_recipe_is_frozen_and_keyword_only():
    recipe = Recipe(**fields(head=KerasObject(), seed=0))
    with pytest.raises(dataclasses.FrozenInstanceError, match="members"):
        recipe.members = 4
    with pytest.raises(TypeError, match="positional"):
        Recipe(*fields().values())


def test_a_smoke_recipe_has_two_members_one_epoch_and_four_batches():
    smoke = Recipe(**fields(seed=3)).for_smoke_run()
    assert (smoke.members, smoke.epochs, smoke.data.limit, smoke.data.batch_size, smoke.seed) == (2, 1, 128, 32, 3)
    assert Recipe(**fields(members=1)).for_smoke_run().members == 1


def test_valid_training_options_are_accepted():
    options = {
        "precision": "mixed_bfloat16",
        "ema_momentum": 0.99,
        "global_clipnorm": 2,
        "label_smoothing": 0.2,
        "gradient_accumulation_steps": 4,
        "restore_best": "nll",
        "patience": 7,
        "initial_weights": "runs/a",
        "trainable_layers": lambda epoch: ["*"],
        "learning_rate_multipliers": {"*/beta": 64},
        "lookahead": schedules.Lookahead(),
        "teacher": Teacher("runs/a", temperature=4, weight=1),
        "loss": KerasObject(),
        "class_weight": {"cat": 2, 1: 0.5},
        "sampling": "balanced",
        "resample": "kfold",
    }
    recipe = Recipe(**fields(**options))
    assert {name: getattr(recipe, name) for name in options} == options


@pytest.mark.parametrize(
    ("start", "epochs", "averaged"),
    [(None, 3, [0, 0, 0]), (2, 4, [0, 1, 2, 3]), (5, 5, [0, 0, 0, 0, 1]), (0.75, 4, [0, 0, 0, 1]), (0.7, 10, [0] * 7)],
)
def test_epochs_are_averaged_from_a_number_on_or_after_a_fraction(start, epochs, averaged):
    recipe = Recipe(**fields(epochs=epochs, swa_epoch_start=start))
    assert [recipe.averaged_epochs(epoch) for epoch in range(1, len(averaged) + 1)] == averaged
    assert recipe.for_smoke_run().averaged_epochs(1) == (start is not None)


def test_a_member_has_one_kind_of_averages():
    with pytest.raises(RecipeError, match=r"Recipe\(swa_epoch_start=\.\.\.\) must be None with `ema_momentum`: .*: 3"):
        Recipe(**fields(swa_epoch_start=3, ema_momentum=0.9))


def test_one_member_has_no_folds():
    with pytest.raises(RecipeError, match=r"Recipe\(members=\.\.\.\) must be at least 2 with `resample=.kfold.`"):
        Recipe(**fields(members=1, resample="kfold"))


def test_the_path_of_a_teacher_is_enough():
    assert Recipe(**fields(teacher="runs/a")).teacher == Teacher("runs/a", temperature=2.0, weight=0.9)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"path": None}, r"Teacher\(path=\.\.\.\) must be a path, as a string\. Received: None"),
        ({"temperature": 0}, r"Teacher\(temperature=\.\.\.\) must be a number above 0\. Received: 0"),
        ({"weight": 0.0}, r"Teacher\(weight=\.\.\.\) must be a number above 0 and at most 1\. Received: 0\.0"),
        ({"weight": 1.2}, r"Teacher\(weight=\.\.\.\) .* Received: 1\.2"),
    ],
)
def test_an_invalid_argument_of_a_teacher_is_an_error_with_its_name_and_value(argument, message):
    with pytest.raises(RecipeError, match=message):
        Teacher(**{"path": "runs/a", **argument})


def test_patience_must_be_positive():
    with pytest.raises(RecipeError, match=r"Recipe\(patience=\.\.\.\) must be an integer of 1 or more, or None"):
        Recipe(**fields(restore_best="nll", patience=0))


def test_a_smoke_recipe_with_frozen_layers_trains_those_of_the_first_and_the_last_epoch():
    smoke = Recipe(**fields(epochs=9, trainable_layers=lambda epoch: [f"layer_{epoch}"])).for_smoke_run()
    assert smoke.epochs == 2
    assert [smoke.trainable_layers(epoch) for epoch in range(2)] == [["layer_0"], ["layer_8"]]
