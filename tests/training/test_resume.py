"""Stopped anywhere and resumed, a member ends bit for bit as one that was never stopped."""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config as determinism

from keras_committee import Recipe, data, layers, metrics, models, schedules
from keras_committee.checkpoints import Checkpoints
from keras_committee.member_dir import MemberDir
from keras_committee.run import Run
from keras_committee.signals import GracefulShutdown, TrainingStopped
from keras_committee.training import TrainingOptions
from keras_committee.training.devices import make_strategy
from keras_committee.training.trainer import train_member
from keras_committee.training_run import with_sampling

KILLED_TRAINING = pathlib.Path(__file__).with_name("killed_training.py")
FAULTY = pathlib.Path(__file__).parents[1] / "recipes" / "faulty.py"
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
    """A network with every kind of state: batch statistics, dropout, stochastic depth."""
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 128)(image))
    x = keras.layers.Conv2D(4, 3, padding="same", kernel_regularizer=keras.regularizers.L2(1e-3), name="stem")(x)
    x = layers.BatchNormalization(momentum=0.7, name="stem_norm")(x)
    x = layers.StochasticDepth(branch(), survival=survival, mode=mode, name="block")(x)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, keras.layers.Dense(10, dtype="float32", name="logits")(x))


def recipe(**options):
    defaults = {
        "data": data.digits(BATCH, augment=data.pad_crop_flip(2, flip=False)),
        "member": lambda index: network(),
        "members": 1,
        "optimizer": lambda steps: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        "epochs": 3,
        "loss": CROSSENTROPY,
        "seed": 5,
    }
    return Recipe(**{**defaults, **options})


# Each training option, by the field of `Recipe` that it is given in.
MATRIX = {
    "data": {"data": data.digits(BATCH)},
    "data, AutoAugment": {"data": data.digits(BATCH, augment=data.autoaugment("simple"))},
    "data, RandAugment of Keras": {"data": data.digits(BATCH, augment=data.randaugment(1, source="keras"))},
    "member": {"member": lambda index: network("sample", 0.7)},
    "member, subset": {"member": lambda index: network("subset", 0.7)},
    "member, constant depth": {"member": lambda index: network(survival=1.0)},
    "member, a network of keras.applications that is frozen at first": {
        "member": lambda index: models.pretrained(
            "MobileNet", weights=None, classes=10, image_size=(32, 32), dropout=0.2, alpha=0.25
        ),
        "trainable_layers": lambda epoch: ["logits"] if epoch == 0 else ["*"],
    },
    "optimizer": {"optimizer": lambda steps: keras.optimizers.Adam(schedules.cosine(steps, 0.01, warmup_steps=4))},
    "optimizer, RMSProp": {"optimizer": lambda steps: keras.optimizers.RMSprop(0.003, momentum=0.9, centered=True)},
    "optimizer, warm-up": {
        "optimizer": lambda steps: keras.optimizers.SGD(
            schedules.WarmUp(4, schedules.step_decay(steps, 0.1, (0.5,), 0.1))
        )
    },
    "loss": {"loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")},
    "snapshots": {"snapshots": 2, "members": 2, "initial_weights": "members"},
    "survival": {"survival": layers.linear_schedule(1.0, 0.2, 3)},
    "precision, bfloat16": {"precision": "mixed_bfloat16"},
    "precision": {"precision": "mixed_float16"},
    "ema_momentum": {"ema_momentum": 0.9},
    "swa_epoch_start": {
        "swa_epoch_start": 2,
        "restore_best": "nll",
        "optimizer": lambda steps: keras.optimizers.SGD(0.3),
    },
    "swa_epoch_start, float16 in parts with frozen layers": {
        "swa_epoch_start": 0.5,
        "precision": "mixed_float16",
        "batch_augment": data.mixup(0.4),
        "gradient_accumulation_steps": 2,
        "lookahead": schedules.Lookahead(period=3, start=0.2, end=0.8),
        "trainable_layers": lambda epoch: [["logits"], ["*"], ["block", "logits"]][epoch],
    },
    "global_clipnorm": {"global_clipnorm": 0.3},
    "label_smoothing": {"label_smoothing": 0.1},
    "batch_augment": {"batch_augment": data.mixup(0.4)},
    "batch_augment, cutmix": {"batch_augment": data.cutmix(1.0)},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 4},
    "restore_best": {"restore_best": "accuracy", "ema_momentum": 0.7},
    "patience": {"restore_best": "nll", "patience": 1, "optimizer": lambda steps: keras.optimizers.SGD(2.0)},
    "initial_weights": {"initial_weights": "members"},  # replaced by a folder of members
    "trainable_layers": {
        "trainable_layers": lambda epoch: [["logits"], ["*"], ["block", "logits"]][epoch],
        "ema_momentum": 0.9,
        "global_clipnorm": 0.3,
    },
    "learning_rate_multipliers": {"learning_rate_multipliers": {"*/beta": 8.0, "logits/*": 0.5}},
    "lookahead": {"lookahead": schedules.Lookahead(period=3, start=0.2, end=0.8), "ema_momentum": 0.9},
    "class_weight": {"class_weight": {"3": 4.0, 1: 0.25}, "label_smoothing": 0.1},
    "class_weight, balanced": {"class_weight": "balanced", "batch_augment": data.mixup(0.4)},
    "sampling": {"sampling": "balanced"},
    "resample": {"resample": "bootstrap"},
    "resample, kfold": {"resample": "kfold", "members": 3, "sampling": "balanced"},
    "learning_rate_scale": {"learning_rate_scale": lambda index: 0.5 ** (index + 1)},
    "teacher": {"teacher": "network"},  # replaced by a file
    "teacher, bfloat16 with mixup": {
        "teacher": "network",
        "precision": "mixed_bfloat16",
        "batch_augment": data.mixup(0.4),
        "gradient_accumulation_steps": 2,
    },
}
NO_OPTIONS = {"members", "epochs", "head", "seed"}


class EventLog:
    """A reporter that keeps the events."""

    def __init__(self, on_step=lambda: None):
        self.events, self._on_step = [], on_step

    def on_resume(self, index, step):
        pass

    def on_phase(self, index, epoch, phase):
        pass

    def on_steps_end(self, index, steps=1):
        self._on_step()

    def on_epoch_end(self, index, row):
        pass

    def note(self, text):
        pass

    def event(self, index, name, text, **fields):
        self.events.append((name, fields))


@pytest.fixture(autouse=True, scope="module")
def deterministic():
    tf.config.experimental.enable_op_determinism()
    yield
    determinism.disable_op_determinism()


@pytest.fixture(scope="module")
def digits():
    """A part of the digits."""
    splits = recipe().data.load()
    return dataclasses.replace(splits, train=splits.train.subset(np.arange(STEPS * BATCH + 3)))


def train(made, digits, member_dir, shutdown, strategy=None, on_step=lambda: None):
    """Train or resume until `shutdown` stops it; return whether it finished, and its events."""
    splits, reporter = with_sampling(made, dataclasses.replace(digits, augment=made.data.augment)), EventLog(on_step)
    strategy = strategy or make_strategy("single", BATCH)
    try:
        train_member(made, member_dir.index, splits, member_dir, strategy, reporter, shutdown, TrainingOptions())
    except TrainingStopped:
        return False, reporter.events
    return True, reporter.events


def outcome(member_dir):
    """All that must not depend on an interruption: weights and history, without its times."""
    weights = keras.saving.load_model(member_dir.model, compile=False).get_weights()
    rows = member_dir.read_history()
    return weights, [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def assert_same(one, other):
    (weights, rows), (other_weights, other_rows) = one, other
    assert rows == other_rows
    for value, other_value in zip(weights, other_weights, strict=True):
        np.testing.assert_array_equal(value, other_value)


# Everything at once that a checkpoint must hold: averages, the best epoch, frozen layers, dropout, stochastic depth.
COMBINED = {
    "precision": "mixed_bfloat16",  # elsewhere float32
    "ema_momentum": 0.9,
    "restore_best": "nll",
    "resample": "bootstrap",
    "sampling": "balanced",
    "class_weight": {"3": 2.0},
    "trainable_layers": lambda epoch: [["logits"], ["*"], ["block", "logits"]][epoch],
    "optimizer": lambda steps: keras.optimizers.Adam(schedules.cosine(steps, 0.01, warmup_steps=4)),
}


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """The outcome of the combined recipe without an interruption."""
    member_dir = MemberDir(tmp_path_factory.mktemp("undisturbed"), 0)
    assert train(recipe(**COMBINED), digits, member_dir, GracefulShutdown())[0]
    return outcome(member_dir)


class Killed(BaseException):
    """The process ends here."""


def stop_at_moment(moment):
    def stop(digits, member_dir, stop_at, monkeypatch):
        assert not train(recipe(**COMBINED), digits, member_dir, stop_at(moment))[0]

    return stop


def stop_by_signal(digits, member_dir, stop_at, monkeypatch):
    """SIGTERM arrives within the third step."""
    steps = iter(range(100))

    def send():
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with GracefulShutdown() as shutdown:
        assert not train(recipe(**COMBINED), digits, member_dir, shutdown, on_step=send)[0]
        assert shutdown.requested == signal.SIGTERM


def stop_in_save(digits, member_dir, stop_at, monkeypatch):
    """The process is killed before the second checkpoint, that of the first epoch, is renamed into place."""
    rename, calls = Checkpoints._rename_into_place, []

    def kill(checkpoints, temp_dir, target_dir):
        calls.append(target_dir.name)
        if target_dir.name == f"step-{STEPS:09d}":
            raise Killed
        rename(checkpoints, temp_dir, target_dir)

    monkeypatch.setattr(Checkpoints, "_rename_into_place", kill)
    with pytest.raises(Killed):
        train(recipe(**COMBINED), digits, member_dir, GracefulShutdown())
    monkeypatch.undo()
    assert calls == ["step-000000000", "best-000001", f"step-{STEPS:09d}"]


# What stops training, and the step at which it resumes.
STOPS = {
    "start": (stop_at_moment(1), 1),
    "mid-epoch": (stop_at_moment(3), 3),
    "validation": (stop_at_moment(STEPS + 3), STEPS),
    "checkpoint write": (stop_in_save, 0),
    "signal": (stop_by_signal, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STOPS)
def test_A01_A04_a_member_stopped_anywhere_ends_as_one_that_never_was(
    kind, digits, undisturbed, stop_at, tmp_path, monkeypatch
):
    stop, step = STOPS[kind]
    member_dir = MemberDir(tmp_path, 0)
    stop(digits, member_dir, stop_at, monkeypatch)
    finished, events = train(recipe(**COMBINED), digits, member_dir, GracefulShutdown())
    assert finished
    assert events[0] == ("member_resumed", {"step": step})
    assert_same(outcome(member_dir), undisturbed)
    assert not member_dir.state.exists()


def test_every_training_option_is_in_the_matrix():
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert {row.partition(",")[0] for row in MATRIX} == fields - NO_OPTIONS


def options_of(row, digits, tmp_path):
    options = dict(MATRIX[row])
    if "initial_weights" in options:
        train(recipe(epochs=1, seed=77), digits, MemberDir(tmp_path / "initial", 0), GracefulShutdown())
        options["initial_weights"] = str(tmp_path / "initial")
    if "teacher" in options:
        keras.utils.set_random_seed(78)
        network().save(tmp_path / "teacher.keras")
        options["teacher"] = str(tmp_path / "teacher.keras")
    return options


def two_folders(made, digits, tmp_path):
    """Two folders of a member; of a chain the last member, with the finished ones before it."""
    index = made.snapshots - 1
    for before in range(index):
        train(made, digits, MemberDir(tmp_path / "undisturbed", before), GracefulShutdown())
        shutil.copytree(tmp_path / "undisturbed", tmp_path / "stopped", dirs_exist_ok=True)
    return MemberDir(tmp_path / "undisturbed", index), MemberDir(tmp_path / "stopped", index)


@pytest.mark.slow
@pytest.mark.full_matrix
@pytest.mark.parametrize("row", MATRIX)
def test_a_member_stopped_three_times_ends_as_one_that_never_was_with_every_option(row, digits, stop_at, tmp_path):
    made = recipe(**options_of(row, digits, tmp_path))
    undisturbed, stopped = two_folders(made, digits, tmp_path)
    assert train(made, digits, undisturbed, GracefulShutdown())[0]
    # Within an epoch of 5 steps, within a validation of 6 batches, and after the first step of the next epoch.
    assert [train(made, digits, stopped, stop_at(moment))[0] for moment in (3, 4, 8)] == [False, False, False]
    assert train(made, digits, stopped, GracefulShutdown())[0]
    assert_same(outcome(stopped), outcome(undisturbed))


@pytest.mark.slow
@pytest.mark.full_matrix
@pytest.mark.parametrize("moment", [5, 12, 13])
def test_a_member_resumes_before_at_and_after_the_step_where_other_layers_train(moment, digits, stop_at, tmp_path):
    made = recipe(**MATRIX["trainable_layers"])
    undisturbed, stopped = MemberDir(tmp_path / "undisturbed", 0), MemberDir(tmp_path / "stopped", 0)
    train(made, digits, undisturbed, GracefulShutdown())
    assert not train(made, digits, stopped, stop_at(moment))[0]
    finished, events = train(made, digits, stopped, GracefulShutdown())
    # After the last step of the frozen epoch, after the checkpoint at its end, and after the first step of the next.
    assert (finished, events[0][1]["step"]) == (True, {5: 5, 12: 5, 13: 6}[moment])
    assert_same(outcome(stopped), outcome(undisturbed))


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [
        "restore_best",
        "swa_epoch_start",
        *(pytest.param(row, marks=pytest.mark.full_matrix) for row in ("member", "trainable_layers")),
    ],
)
def test_A01_two_stopped_replicas_end_as_two_that_never_were(row, digits, mirrored, stop_at, tmp_path):
    made = recipe(**options_of(row, digits, tmp_path))
    undisturbed, stopped = MemberDir(tmp_path / "undisturbed", 0), MemberDir(tmp_path / "stopped", 0)
    train(made, digits, undisturbed, GracefulShutdown(), strategy=mirrored)
    assert not train(made, digits, stopped, stop_at(8), strategy=mirrored)[0]
    assert train(made, digits, stopped, GracefulShutdown(), strategy=mirrored)[0]
    assert_same(outcome(stopped), outcome(undisturbed))


@pytest.mark.slow
def test_a_member_with_averaged_weights_is_the_mean_of_its_epochs_and_its_scores_are_of_these_weights(
    digits, stop_at, tmp_path
):
    """The oracle is trained for one, two and three epochs: what the weights are at the ends of these epochs."""
    ends = []
    for epochs in (1, 2, 3):
        member_dir = MemberDir(tmp_path / f"{epochs}", 0)
        train(recipe(epochs=epochs), digits, member_dir, GracefulShutdown())
        model = keras.saving.load_model(member_dir.model, compile=False)
        ends.append([np.array(weight, "float64") for weight in model.trainable_variables])
    swa = MemberDir(tmp_path / "swa", 0)
    # In the statistics of the first average, between them and the validation, and in those of the second average.
    for moment in (2 * STEPS + 6 + 3, 1 + STEPS + 3, 1 + 2 * STEPS + 6 - 2):
        assert not train(recipe(swa_epoch_start=2), digits, swa, stop_at(moment))[0]
    assert train(recipe(swa_epoch_start=2), digits, swa, GracefulShutdown())[0]
    model = keras.saving.load_model(swa.model, compile=False)
    for weight, second, third in zip(model.trainable_variables, *ends[1:], strict=True):
        np.testing.assert_allclose(np.array(weight), (second + third) / 2, rtol=1e-5, atol=1e-6)
    rows = swa.read_history()
    assert [row.get("averaged_epochs") for row in rows] == [None, 1, 2]
    images = digits.validation.images.numpy().astype("float32")
    log_probs = keras.ops.log_softmax(model.predict(images, verbose=0))
    scores = metrics.classification_metrics(np.exp(log_probs), digits.validation.labels)
    assert rows[-1]["validation_nll"] == pytest.approx(scores["nll"], rel=1e-4)
    assert rows[-1]["validation_accuracy"] == scores["accuracy"]


# A committee killed at random moments, by real signals


def train_killed(fork_server, path, kills, seed=3):
    command = [sys.executable, KILLED_TRAINING, FAULTY, path, kills, seed]
    with fork_server.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        output, errors = process.communicate(timeout=800)
    assert process.returncode == 0, errors[-3000:]
    return Run.open(path), int(output.split()[0])


@pytest.mark.slow
@pytest.mark.timeout(900)  # twenty starts: about a minute on idle cores
def test_A01_A02_A03_A05_a_run_killed_twenty_times_ends_as_one_that_never_was(fork_server, tmp_path):
    undisturbed, _ = train_killed(fork_server, tmp_path / "undisturbed", kills=0)
    run, kills = train_killed(fork_server, tmp_path / "killed", kills=20)
    assert kills == 20
    for index in range(2):
        assert_same(outcome(run.member(index)), outcome(undisturbed.member(index)))
    resumed = [event["step"] for event in run.events() if event["event"] == "member_resumed" and event["member"] == 0]
    assert resumed == sorted(resumed)  # no completed epoch was ever lost
