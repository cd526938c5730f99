"""Small committees to export, and their outputs by slow loops over the written definition."""

import keras
import numpy as np

from keras_committee.selection import SelectedMember, Selection, Stage

SHAPE = (8, 6, 3)
CLASSES = ("ant", "bee", "cicada")


def small_member(seed, shape=SHAPE):
    """Return a model with a convolution and batch normalization, from pixels to three logits; every weight matters."""
    keras.utils.set_random_seed(seed)
    image = keras.Input(shape, name="image")
    x = keras.layers.Rescaling(1 / 64, offset=-2.0)(image)
    x = keras.layers.Conv2D(4, 3, use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(len(CLASSES), kernel_initializer="random_normal")(x))
    stir(model, seed)
    return model


def stir(model, seed):
    """Assign random values to normalizations and biases: no mean is 0 and no variance 1, as after training."""
    rng = np.random.default_rng(seed)
    ranges = {"moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "moving_mean": (-0.5, 0.5)}
    ranges |= {"beta": (-0.5, 0.5), "bias": (-0.5, 0.5)}
    for variable in model.variables:
        if variable.name in ranges:
            variable.assign(rng.uniform(*ranges[variable.name], variable.shape))


def choose(count, *, head="geometric_mean", temperatures=None, thresholds=None, lower_thresholds=None, **fields):
    """Return a selection of members 0, 1, ...; with `thresholds` a cascade of one more member at each stage."""
    temperatures = temperatures or [1.0] * count
    stages = None
    if thresholds is not None:
        lowers = [*(lower_thresholds or [None] * len(thresholds)), None]
        rows = enumerate(zip([*thresholds, None], lowers, strict=True))
        stages = tuple(Stage(members=i + 1, threshold=t, lower_threshold=low) for i, (t, low) in rows)
    members = tuple(
        SelectedMember(run="run", index=i, weights="", name=f"m{i}", parameters=0, mflops=0.0, temperature=t)
        for i, t in enumerate(temperatures)
    )
    return Selection(members=members, head=head, classes=CLASSES, stages=stages, **fields)


def dense(logits, selection):
    """Return the expected outputs of the cascade, computed for one image after another."""
    rows = [_one(row, selection) for row in logits.astype(np.float64)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _one(logits, selection):
    members = [_softmax(z / member.temperature) for z, member in zip(logits, selection.members, strict=True)]
    stages = selection.stages or (Stage(members=len(members), threshold=None),)
    for stage in stages:
        used = members[: stage.members]
        combined = _combine(used, selection)
        confidence = _confidence(selection.confidence, combined, used)
        if stage.threshold is None or confidence >= stage.threshold:
            break
        if stage.lower_threshold is not None and confidence < stage.lower_threshold:
            break
    return {
        "probabilities": combined,
        "confidence": confidence,
        "members_used": len(used),
        "class_id": int(np.argmax(combined)),
    }


def _combine(members, selection):
    if selection.head == "arithmetic_mean":
        return sum(members) / len(members)
    if selection.head == "majority_vote":
        return np.bincount([np.argmax(row) for row in members], minlength=len(members[0])) / len(members)
    weights = (selection.weights or [1.0] * len(members))[: len(members)]
    product = np.prod([row ** (w / sum(weights)) for row, w in zip(members, weights, strict=True)], axis=0)
    return product / product.sum()


def _confidence(measure, combined, members):
    if measure == "max_probability":
        return combined.max()
    if measure == "margin":
        return np.sort(combined)[-1] - np.sort(combined)[-2]
    if measure == "entropy":
        return 1 + sum(p * np.log(p) for p in combined) / np.log(len(combined))
    return sum(np.argmax(row) == np.argmax(combined) for row in members) / len(members)


def _softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
