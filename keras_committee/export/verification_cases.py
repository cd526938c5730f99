"""What should the exported committee say? Golden images, and the answers of the Keras members to them.

The answers are those of the definition, computed densely and with nothing of the exported graph: every member is asked
about every image, and after each stage the committee so far answers if its confidence reaches the threshold.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_committee.data.preprocessing import Framing
from keras_committee.export.committee_graph import resized_pixels, shares
from keras_committee.layers import confidence, head_of
from keras_committee.models import log_probabilities
from keras_committee.selection import Selection

_IMAGES = 48
_EDGE = 1e-4  # nearer to a threshold or a tie than this, rounding decides
NO_IMAGE = b"this is no image"


def golden_images(shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 `(48, height, width, channels)`: noise from coarse to fine, alone and blended with plain colours."""
    height, width, channels = shape
    draw = np.random.default_rng(20)
    images = []
    for index in range(_IMAGES):
        cells = min(2 ** (index % 5), height, width)
        coarse = draw.uniform(0, 255, (cells, cells, channels))
        rows, columns = (np.arange(size) * cells // size for size in (height, width))
        plain = draw.uniform(0, 255, channels)
        images.append(coarse[rows][:, columns] * (index % 7) / 6 + plain * (1 - (index % 7) / 6))
    return np.stack(images).round().astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Golden:
    """Golden images and what the members say of them.

    Attributes:
        images: uint8 `(examples, height, width, channels)`.
        votes: float32 `(examples, members, classes)`: of the images as pixels, which a smaller member sees resized.
        framed: The same of the images encoded, of which each member sees what its framing leaves.
    """

    images: np.ndarray
    votes: np.ndarray
    framed: np.ndarray

    def clear(self, selection: Selection) -> Self:
        """Those that lie on no edge either way."""
        rows = np.intersect1d(clear_rows(self.votes, selection), clear_rows(self.framed, selection))
        return type(self)(self.images[rows], self.votes[rows], self.framed[rows])


def golden(
    models: Sequence[keras.Model], selection: Selection, framings: Sequence[Framing], shape: tuple[int, int, int]
) -> Golden:
    """The golden images of `shape`, and what Keras' members say of them, each under its framing."""
    images = golden_images(shape)
    resized = resized_pixels(images.astype(np.float32), framings)
    framed = {each: np.stack([each.apply(image) for image in images]) for each in framings}
    votes = member_votes(models, selection, [np.asarray(resized[each]) for each in framings])
    if all(np.array_equal(framed[each], resized[each]) for each in framings):
        return Golden(images, votes, votes)
    return Golden(images, votes, member_votes(models, selection, [framed[each] for each in framings]))


def member_votes(models: Sequence[keras.Model], selection: Selection, images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 `(examples, members, classes)`: what Keras' members say, divided by their temperatures.

    Log probabilities stand for logits here: they differ by a constant, which no temperature and no head sees.

    Args:
        models: The members; one object that stands twice is asked once.
        selection: Tells the temperatures.
        images: What each of them sees: raw pixels `(examples, height, width, channels)`.
    """
    pairs = {id(model): (model, seen) for model, seen in zip(models, images, strict=True)}
    known = {key: log_probabilities(model, _batches(seen)) for key, (model, seen) in pairs.items()}
    votes = [known[id(model)] / m.temperature for model, m in zip(models, selection.members, strict=True)]
    return np.stack(votes, axis=1).astype(np.float32)


def _batches(images):
    return np.array_split(images.astype(np.float32), max(1, len(images) // 16))


def answers_of(votes: np.ndarray, selection: Selection) -> dict[str, np.ndarray]:
    """What a committee of the members in `votes` says, by the names of the exported outputs."""
    members = votes.shape[1]
    probabilities = head_of(selection.head_layer(), range(members))(votes)
    said = np.exp(votes - np.log(np.exp(votes).sum(-1, keepdims=True)))
    weights = shares(selection, members)
    mean = np.einsum("emc,m->ec", said, weights)
    return {
        "probabilities": ops.convert_to_numpy(probabilities),
        "confidence": ops.convert_to_numpy(confidence(selection.confidence, probabilities, votes)),
        "mutual_information": np.maximum(_entropy(mean) - _entropy(said) @ weights, 0).astype(np.float32),
        "members_used": np.full(len(votes), members, np.int32),
    }


def cascade_answers(votes: np.ndarray, selection: Selection) -> dict[str, np.ndarray]:
    """What the cascade says; the committee of all where there are no stages."""
    answers = answers_of(votes, selection)
    for stage in reversed((selection.stages or ())[:-1]):
        early = answers_of(votes[:, : stage.members], selection)
        sure = early["confidence"] >= np.float32(stage.threshold)
        for name, value in answers.items():
            answers[name] = np.where(sure.reshape((-1,) + (1,) * (value.ndim - 1)), early[name], value)
    return answers


def clear_rows(votes: np.ndarray, selection: Selection) -> np.ndarray:
    """Indices of the examples that lie on no edge: no tie of classes, no confidence at a threshold."""
    clear = (_margin(votes) > _EDGE).all(axis=1)
    for stage in selection.stages or ():
        answers = answers_of(votes[:, : stage.members], selection)
        # Votes are counted exactly, so that their ties are the same everywhere.
        counted = selection.head == "majority_vote"
        clear &= counted | (_margin(answers["probabilities"]) > _EDGE)
        if stage.threshold is not None and selection.confidence != "agreement" and not counted:
            clear &= np.abs(answers["confidence"] - stage.threshold) > _EDGE
    if selection.stages is None and selection.head != "majority_vote":
        clear &= _margin(answers_of(votes, selection)["probabilities"]) > _EDGE
    return np.flatnonzero(clear)


def expected_outputs(examples: Golden, selection: Selection, signatures: Sequence[str]) -> dict[str, dict]:
    """The golden outputs of each signature; bytes have one more row, for `NO_IMAGE`."""
    votes = examples.votes
    answers = _named(cascade_answers(votes, selection), selection)
    of_bytes = _named(cascade_answers(examples.framed, selection), selection)
    of_all = _named(answers_of(votes, selection), selection)
    said = np.exp(votes - np.log(np.exp(votes).sum(-1, keepdims=True)))
    classes = len(selection.classes)
    nothing = {"probabilities": np.float32(1 / classes), "class_id": -1, "label": b"", "valid": False}
    valid = {**of_bytes, "valid": np.ones(len(votes), bool)}
    labels = np.array([name.encode() for name in selection.classes], object)
    scores = np.concatenate([of_bytes["probabilities"], np.zeros((1, classes), np.float32)])
    outputs = {
        "serving_default": answers,
        "predict_members": {**of_all, "member_probabilities": said},
        "predict_bytes": {name: _with_row(value, nothing.get(name, 0)) for name, value in valid.items()},
        "classify": {"classes": np.tile(labels, (len(scores), 1)), "scores": scores},
    }
    return {signature: outputs[signature] for signature in signatures}


def _named(answers, selection):
    class_id = answers["probabilities"].argmax(-1).astype(np.int32)
    labels = np.array([name.encode() for name in selection.classes], object)
    return {**answers, "class_id": class_id, "label": labels[class_id]}


def _with_row(value, last):
    row = np.empty((1, *value.shape[1:]), value.dtype)
    row[:] = last
    return np.concatenate([value, row])


def _margin(values):
    ordered = np.sort(values, axis=-1)
    return ordered[..., -1] - ordered[..., -2]


def _entropy(probabilities):
    return -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(-1)


BATCH_SIZES = (1, 8, 32)
FILE = Path("assets.extra") / "tf_serving_warmup_requests"

Request = tuple[str, dict[str, np.ndarray]]  # signature, and arrays by input; strings are object arrays of bytes


def requests_for(inputs: Mapping[str, Mapping[str, np.ndarray]], batches: Sequence[np.ndarray]) -> list[Request]:
    """One request for each signature and each of `batches`, which holds the indices of examples.

    Args:
        inputs: For each signature its inputs, by name, for all examples.
        batches: int arrays.
    """
    return [
        (signature, {name: array[batch] for name, array in arrays.items()})
        for signature, arrays in inputs.items()
        for batch in batches
    ]


def write_warmup(folder: Path, requests: Sequence[Request]) -> None:
    """Writes the requests into the version in `folder`, as TFRecords of `PredictionLog`s."""
    import tensorflow as tf

    (folder / FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / FILE)) as file:
        for signature, arrays in requests:
            file.write(_log(signature, arrays).SerializeToString())


def _log(signature, arrays):
    """As a server logs it: `classify` takes examples, every other signature tensors."""
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    spec: Any = model_pb2.ModelSpec(signature_name=signature)
    if signature == "classify":
        request: Any = classification_pb2.ClassificationRequest(model_spec=spec)
        request.input.example_list.examples.extend(tf.train.Example.FromString(each) for each in arrays["inputs"])
        log = prediction_log_pb2.ClassifyLog(request=request)
        return prediction_log_pb2.PredictionLog(classify_log=log)
    tensors = {name: tf.make_tensor_proto(array) for name, array in arrays.items()}
    request = predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
