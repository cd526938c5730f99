"""How is one member trained?

1. The member is built under its own seed, `recipe.seed + index`.
2. Step `s` takes the batch at position `s` of the member's stream: a pure function of (seed, position).
3. After each epoch the member predicts the validation split once; that is all that is logged from it.
4. `model.keras` is renamed into place as the very last act: where it stands, the member is finished.
"""

import json
import math
import os
import shutil
import time

import keras
import numpy as np
import tensorflow as tf

from keras_committee import metrics
from keras_committee.data import Splits
from keras_committee.errors import DivergedError, RecipeError
from keras_committee.layers import set_survival
from keras_committee.models.predict import log_probabilities
from keras_committee.recipe import Recipe
from keras_committee.run import MemberFolder, writing
from keras_committee.training.gauges import BlockGauges
from keras_committee.training.monitoring import Monitor
from keras_committee.training.strategy import uses_xla


def train_member(
    recipe: Recipe,
    index: int,
    splits: Splits,
    folder: MemberFolder,
    strategy: tf.distribute.Strategy,
    monitor: Monitor,
) -> None:
    """Train member `index` and leave `model.keras`, its history and its validation votes in `folder`.

    Raises:
        RecipeError: If the model does not fit the data.
        DivergedError: If the training loss of an epoch is not finite.
    """
    seed = recipe.seed + index
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = recipe.member(index)
        check_fit(model, splits, index)
        optimizer = recipe.optimizer(recipe.epochs * splits.steps_per_epoch)
        optimizer.build(model.trainable_variables)
    gauges = BlockGauges(model)
    step = training_step(model, optimizer, recipe.loss, strategy, gauges)

    shutil.rmtree(folder.path, ignore_errors=True)  # what an unfinished attempt left
    folder.path.mkdir(parents=True)
    for epoch in range(recipe.epochs):
        if recipe.survival is not None:
            set_survival(model, recipe.survival(epoch))
        trained, blocks = _train_epoch(step, splits, strategy, seed, epoch, monitor, gauges)
        votes = log_probabilities(model, splits.validation.batches(splits.batch_size))
        if not (math.isfinite(trained["loss"]) and np.isfinite(votes).all()):
            raise DivergedError(
                f"member {index} diverged in epoch {epoch + 1} of {recipe.epochs}: loss={trained['loss']}.\n"
                f"  Its history up to then is in {folder.history}; finished members are untouched.\n"
                "  Try a smaller learning rate or a longer warm-up, in a new run folder."
            )
        validation = metrics.summary(np.exp(votes), splits.validation.labels)
        row = {
            "epoch": epoch + 1,
            "step": (epoch + 1) * splits.steps_per_epoch,
            "learning_rate": float(keras.ops.convert_to_numpy(optimizer.learning_rate)),
            **trained,
            **{f"validation_{name}": value for name, value in validation.items()},
        }
        _append(folder.history, row)
        monitor.epoch_ended(row, votes, blocks)
    _save(model, folder)


def check_fit(model: keras.Model, splits: Splits, index: int) -> None:
    """Raise a RecipeError unless `model` takes the images of `splits` and has one logit for each of its classes."""
    takes, gives = tuple(model.input_shape[1:]), tuple(model.output_shape[1:])
    has, wants = tuple(splits.train.image_shape), (len(splits.classes),)
    if takes != has:
        raise RecipeError(f"member {index} ({model.name}) takes images of shape {takes}; the data has {has}.")
    if gives != wants:
        raise RecipeError(
            f"member {index} ({model.name}) has outputs of shape {gives}; the data has {wants[0]} classes.\n"
            "  A member returns one logit for each class: give its builder `classes` to match the data."
        )


def training_step(
    model: keras.Model,
    optimizer,
    loss: keras.losses.Loss,
    strategy: tf.distribute.Strategy,
    gauges: BlockGauges | None = None,
):
    """A function of one global batch (images, labels) that updates the weights.

    It returns, over the whole global batch: the mean loss with its penalties, the number of examples whose top class
    was right, and the gradients `(blocks,)` that `gauges` reads.
    """
    replicas = strategy.num_replicas_in_sync

    def replica_step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            # Keras divides `loss` by the replicas already; the penalties are the same on each and must be, too.
            objective = loss(labels, logits) + sum(model.losses) / replicas
            scaled = optimizer.scale_loss(objective)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)  # sums the gradients over the replicas
        hits = tf.math.count_nonzero(tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels)
        return objective, hits, gauges.gradients(gradients) if gauges else tf.zeros((0,))

    xla = uses_xla(strategy) and all(layer.supports_jit for layer in model._flatten_layers())

    @tf.function(jit_compile=xla, reduce_retracing=True)
    def step(images, labels):
        objective, hits, gradients = strategy.run(replica_step, args=(images, labels))
        return (
            strategy.reduce("SUM", objective, axis=None),
            strategy.reduce("SUM", hits, axis=None),
            strategy.reduce("MEAN", gradients, axis=None),  # equal on all replicas
        )

    return step


def _train_epoch(step, splits, strategy, seed, epoch, monitor, gauges) -> tuple[dict, dict]:
    """What one epoch gave: figures for the history, and figures `(blocks,)` of each residual block."""
    stream = splits.stream(seed, epoch * splits.steps_per_epoch, splits.steps_per_epoch)
    if strategy.num_replicas_in_sync > 1:
        stream = strategy.experimental_distribute_dataset(stream)
    results, ended, runs = [], [], gauges.runs()
    for images, labels in stream:
        results.append(step(images, labels))
        ended.append(time.monotonic())
        monitor.step_ended()
    losses, hits, gradients = (np.array(values, dtype=np.float64) for values in zip(*results, strict=True))
    trained = {
        "loss": float(losses.mean()),
        "accuracy": float(hits.sum() / (len(hits) * splits.batch_size)),
        # From the end of the first step on: that of a member's first epoch traces its graph.
        "images_per_second": (len(ended) - 1) * splits.batch_size / max(ended[-1] - ended[0], 1e-9),
    }
    blocks = {"gradient": gradients.mean(axis=0), "open": (gauges.runs() - runs) / len(hits)}
    if len(blocks["open"]):
        trained["realised_depth"] = float(blocks["open"].sum())
    return trained, blocks


def _append(path, row: dict) -> None:
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _save(model: keras.Model, folder: MemberFolder) -> None:
    part = folder.model.with_name(".part-" + folder.model.name)
    with writing(folder.model):
        model.save(part)
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, folder.model)
