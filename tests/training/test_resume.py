"""Stopped anywhere and resumed, a member ends bit for bit as one that was never stopped: with every training option."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as determinism

from keras_committee import Recipe, data, layers, schedules
from keras_committee.member_dir import MemberDir
from keras_committee.training import TrainingOptions
from keras_committee.training.devices import make_strategy
from keras_committee.training.signals import GracefulShutdown, TrainingStopped
from keras_committee.training.trainer import train_member

pytestmark = pytest.mark.slow

STEPS = 5  # of an epoch of BATCH images
BATCH = 32
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def branch():
    return keras.Sequential(
        [
            keras.layers.Conv2D(4, 3, padding="same", use_bias=False),
            layers.BatchNormalization(synchronized=False, momentum=0.7),
            keras.layers.ReLU(),
        ]
    )


def network(mode="batch", survival=0.6):
    """All that has a state of its own: batch statistics, dropout, gates."""
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 128)(image))
    x = keras.layers.Conv2D(4, 3, padding="same", kernel_regularizer=keras.regularizers.L2(1e-3), name="stem")(x)
    x = layers.BatchNormalization(momentum=0.7, name="stem_norm")(x)
    x = layers.StochasticDepth(branch(), survival=survival, mode=mode, name="block")(x)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, keras.layers.Dense(10, dtype="float32", name="logits")(x))


def recipe(**options):
    plain = {
        "data": data.digits(BATCH, augment=data.pad_crop_flip(2, flip=False)),
        "member": lambda index: network(),
        "members": 1,
        "optimizer": lambda steps: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        "epochs": 3,
        "loss": CROSSENTROPY,
        "seed": 5,
    }
    return Recipe(**{**plain, **options})


# Each training option, by the field of `Recipe` that it is given in.
MATRIX = {
    "data": {"data": data.digits(BATCH)},
    "data, AutoAugment": {"data": data.digits(BATCH, augment=data.autoaugment("simple"))},
    "data, RandAugment of Keras": {"data": data.digits(BATCH, augment=data.randaugment(1, source="keras"))},
    "member": {"member": lambda index: network("sample", 0.7)},
    "member, subset": {"member": lambda index: network("subset", 0.7)},
    "member, constant depth": {"member": lambda index: network(survival=1.0)},
    "optimizer": {"optimizer": lambda steps: keras.optimizers.Adam(schedules.cosine(steps, 0.01, warmup_steps=4))},
    "optimizer, RMSProp": {"optimizer": lambda steps: keras.optimizers.RMSprop(0.003, momentum=0.9, centered=True)},
    "optimizer, warm-up": {
        "optimizer": lambda steps: keras.optimizers.SGD(
            schedules.WarmUp(4, schedules.step_decay(steps, 0.1, (0.5,), 0.1))
        )
    },
    "loss": {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")},
    "survival": {"survival": layers.linear_schedule(1.0, 0.2, 3)},
    "precision, bfloat16": {"precision": "mixed_bfloat16"},
    "precision": {"precision": "mixed_float16"},
    "ema": {"ema_momentum": 0.9},
    "global_clipnorm": {"global_clipnorm": 0.3},
    "label_smoothing": {"label_smoothing": 0.1},
    "batch_augment": {"batch_augment": data.mixup(0.4)},
    "batch_augment, cutmix": {"batch_augment": data.cutmix(1.0)},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 4},
    "restore_best": {"restore_best": "accuracy", "ema_momentum": 0.7},
    "patience": {"restore_best": "nll", "patience": 1, "optimizer": lambda steps: keras.optimizers.SGD(2.0)},
    "initial_weights": {"initial_weights": "members"},  # replaced by a folder that holds one
    "trainable_layers": {
        "trainable_layers": lambda epoch: [["logits"], ["*"], ["block", "logits"]][epoch],
        "ema_momentum": 0.9,
        "global_clipnorm": 0.3,
    },
}
NO_OPTIONS = {"members", "epochs", "head", "seed"}


class Silent:
    def __init__(self):
        self.events = []

    def on_resume(self, index, step): ...
    def on_steps_end(self, index, steps=1): ...
    def on_epoch_end(self, index, row): ...
    def note(self, text): ...

    def event(self, index, name, text, **fields):
        self.events.append((name, fields))


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    tf.config.experimental.enable_op_determinism()
    yield
    determinism.disable_op_determinism()


@pytest.fixture(scope="module")
def digits():
    """A piece of the digits."""
    whole = recipe().data.load()
    return dataclasses.replace(whole, train=whole.train.subset(np.arange(STEPS * BATCH + 3)))


def train(made, digits, folder, stop, strategy=None):
    """Trains, or goes on, until `stop` says so; whether it ended, and what it reported."""
    splits, report = dataclasses.replace(digits, augment=made.data.augment), Silent()
    devices = strategy or make_strategy("single", BATCH)
    try:
        train_member(made, 0, splits, folder, devices, report, stop, TrainingOptions())
    except TrainingStopped:
        return False, report.events
    return True, report.events


def outcome(folder):
    """All that must not depend on having been stopped: weights and history, without its times."""
    weights = keras.saving.load_model(folder.model, compile=False).get_weights()
    rows = [json.loads(line) for line in folder.history.read_text().splitlines()]
    return weights, [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def assert_same(one, other):
    (weights, rows), (other_weights, other_rows) = one, other
    assert rows == other_rows
    for mine, theirs in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def options_of(row, digits, tmp_path):
    options = dict(MATRIX[row])
    if "initial" in options:
        folder = MemberDir(tmp_path / "initial", 0)
        train(recipe(epochs=1, seed=77), digits, folder, GracefulShutdown())
        options["initial"] = str(tmp_path / "initial")
    return options


def test_every_training_option_is_in_the_matrix():
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert {row.partition(",")[0] for row in MATRIX} == fields - NO_OPTIONS


@pytest.mark.parametrize("row", MATRIX)
def test_A01_a_member_stopped_three_times_ends_as_one_that_never_was(row, digits, stop_at, tmp_path):
    made = recipe(**options_of(row, digits, tmp_path))
    whole, broken = MemberDir(tmp_path / "whole", 0), MemberDir(tmp_path / "broken", 0)
    assert train(made, digits, whole, GracefulShutdown())[0]
    # Within an epoch of 5 steps, within a validation of 6 batches, and after the first step of the next epoch.
    stopped = [train(made, digits, broken, stop_at(moment))[0] for moment in (3, 4, 8)]
    ended, events = train(made, digits, broken, GracefulShutdown())
    assert (stopped, ended) == ([False, False, False], True)
    assert events[0][0] == "member_resumed"
    assert_same(outcome(broken), outcome(whole))
    assert not broken.state.exists()


@pytest.mark.parametrize("moment", [5, 12, 13])
def test_A01_a_member_goes_on_before_at_and_after_the_step_where_other_layers_train(moment, digits, stop_at, tmp_path):
    made = recipe(**MATRIX["trains"])
    whole, broken = MemberDir(tmp_path / "whole", 0), MemberDir(tmp_path / "broken", 0)
    train(made, digits, whole, GracefulShutdown())
    assert not train(made, digits, broken, stop_at(moment))[0]
    ended, events = train(made, digits, broken, GracefulShutdown())
    # After the last step of the frozen epoch, after the checkpoint at its end, and after the first step of the next.
    assert (ended, events[0][1]["step"]) == (True, {5: 5, 12: 5, 13: 6}[moment])
    assert_same(outcome(broken), outcome(whole))


@pytest.mark.parametrize("row", ["member", "keep_best", "trains"])
def test_A01_two_replicas_stopped_end_as_two_that_never_were(row, digits, mirrored, stop_at, tmp_path):
    made = recipe(**options_of(row, digits, tmp_path))
    whole, broken = MemberDir(tmp_path / "whole", 0), MemberDir(tmp_path / "broken", 0)
    train(made, digits, whole, GracefulShutdown(), strategy=mirrored)
    assert not train(made, digits, broken, stop_at(8), strategy=mirrored)[0]
    assert train(made, digits, broken, GracefulShutdown(), strategy=mirrored)[0]
    assert_same(outcome(broken), outcome(whole))
