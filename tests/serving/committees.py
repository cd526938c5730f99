"""Small committees to export, and what they should say, by slow loops over the written definition."""

import keras
import numpy as np

from keras_committee.selection import SelectedMember, Selection, Stage

SHAPE = (8, 6, 3)
CLASSES = ("ant", "bee", "cicada")


def small_member(seed, shape=SHAPE):
    """A convolution with batch normalisation, every number of which matters, from pixels to three logits."""
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
    """Normalisations and biases as after training: no mean is 0, no variance 1."""
    draw = np.random.default_rng(seed)
    ranges = {"moving_variance": (0.5, 2.0), "gamma": (0.5, 1.5), "moving_mean": (-0.5, 0.5)}
    ranges |= {"beta": (-0.5, 0.5), "bias": (-0.5, 0.5)}
    for variable in model.variables:
        if variable.name in ranges:
            variable.assign(draw.uniform(*ranges[variable.name], variable.shape))


def choose(count, *, head="geometric_mean", temperatures=None, thresholds=None, **fields):
    """A selection of members 0, 1, ...; with `thresholds` a cascade that asks one more at each stage."""
    temperatures = temperatures or [1.0] * count
    stages = None
    if thresholds is not None:
        stages = tuple(Stage(members=i + 1, threshold=t) for i, t in enumerate([*thresholds, None]))
    members = tuple(
        SelectedMember(run="run", index=i, weights="", name=f"m{i}", parameters=0, mflops=0.0, temperature=t)
        for i, t in enumerate(temperatures)
    )
    return Selection(members=members, head=head, classes=CLASSES, stages=stages, **fields)


def dense(logits, selection):
    """The oracle: for one image after another, what the cascade says, and how many members it asked."""
    rows = [_one(each, selection) for each in logits.astype(np.float64)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _one(logits, selection):
    votes = [_softmax(z / member.temperature) for z, member in zip(logits, selection.members, strict=True)]
    stages = selection.stages or (Stage(members=len(votes), threshold=None),)
    for stage in stages:
        asked = votes[: stage.members]
        said = _combined(asked, selection)
        sure = _confidence(selection.confidence, said, asked)
        if stage.threshold is None or sure >= stage.threshold:
            break
    return {"probabilities": said, "confidence": sure, "members_used": len(asked), "class_id": int(np.argmax(said))}


def _combined(votes, selection):
    if selection.head == "arithmetic_mean":
        return sum(votes) / len(votes)
    if selection.head == "majority_vote":
        return np.bincount([np.argmax(vote) for vote in votes], minlength=len(votes[0])) / len(votes)
    weights = (selection.weights or [1.0] * len(votes))[: len(votes)]
    product = np.prod([vote ** (w / sum(weights)) for vote, w in zip(votes, weights, strict=True)], axis=0)
    return product / product.sum()


def _confidence(kind, said, votes):
    if kind == "max_probability":
        return said.max()
    if kind == "margin":
        return np.sort(said)[-1] - np.sort(said)[-2]
    if kind == "entropy":
        return 1 + sum(p * np.log(p) for p in said) / np.log(len(said))
    return sum(np.argmax(vote) == np.argmax(said) for vote in votes) / len(votes)


def _softmax(logits):
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
