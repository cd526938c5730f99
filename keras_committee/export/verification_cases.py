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
from scipy.special import softmax

from keras_committee import aggregation
from keras_committee.data.preprocessing import ImageTransform
from keras_committee.export.committee_graph import resize_pixels
from keras_committee.models import log_probabilities
from keras_committee.selection import Selection

_NUM_IMAGES = 48
_MIN_MARGIN = 1e-4  # nearer to a threshold or a tie than this, rounding decides
INVALID_IMAGE = b"this is no image"


def verification_images(shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 `(48, height, width, channels)`: noise from coarse to fine, alone and blended with plain colours."""
    height, width, channels = shape
    rng = np.random.default_rng(20)
    images = []
    for index in range(_NUM_IMAGES):
        cells = min(2 ** (index % 5), height, width)
        noise = rng.uniform(0, 255, (cells, cells, channels))
        rows, columns = (np.arange(size) * cells // size for size in (height, width))
        solid_color = rng.uniform(0, 255, channels)
        images.append(noise[rows][:, columns] * (index % 7) / 6 + solid_color * (1 - (index % 7) / 6))
    return np.stack(images).round().astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class VerificationCases:
    """Golden images and what the members say of them.

    Attributes:
        images: uint8 `(examples, height, width, channels)`.
        predictions: float32 `(examples, members, classes)`: of the images as pixels, which a smaller member sees resized.
        preprocessed_predictions: The same of the images encoded, of which each member sees what its framing leaves.
    """

    images: np.ndarray
    predictions: np.ndarray
    preprocessed_predictions: np.ndarray

    def unambiguous(self, selection: Selection) -> Self:
        """Those that lie on no edge either way."""
        rows = np.intersect1d(
            unambiguous_rows(self.predictions, selection), unambiguous_rows(self.preprocessed_predictions, selection)
        )
        return type(self)(self.images[rows], self.predictions[rows], self.preprocessed_predictions[rows])


def compute_verification_cases(
    models: Sequence[keras.Model],
    selection: Selection,
    transforms: Sequence[ImageTransform],
    shape: tuple[int, int, int],
) -> VerificationCases:
    """The golden images of `shape`, and what Keras' members say of them, each under its framing."""
    images = verification_images(shape)
    resized = resize_pixels(images.astype(np.float32), transforms)
    preprocessed = {transform: np.stack([transform.apply(image) for image in images]) for transform in transforms}
    predictions = member_predictions(models, selection, [np.asarray(resized[each]) for each in transforms])
    if all(np.array_equal(preprocessed[each], resized[each]) for each in transforms):
        return VerificationCases(images, predictions, predictions)
    return VerificationCases(
        images, predictions, member_predictions(models, selection, [preprocessed[each] for each in transforms])
    )


def member_predictions(models: Sequence[keras.Model], selection: Selection, images: Sequence[np.ndarray]) -> np.ndarray:
    """float32 `(examples, members, classes)`: what Keras' members say, divided by their temperatures.

    Log probabilities stand for logits here: they differ by a constant, which no temperature and no head sees.

    Args:
        models: The members; one object that stands twice is asked once.
        selection: Tells the temperatures.
        images: What each of them sees: raw pixels `(examples, height, width, channels)`.
    """
    inputs_by_model = {id(model): (model, model_images) for model, model_images in zip(models, images, strict=True)}
    log_probs = {
        key: log_probabilities(model, _split_into_batches(seen)) for key, (model, seen) in inputs_by_model.items()
    }
    predictions = [
        log_probs[id(model)] / member.temperature for model, member in zip(models, selection.members, strict=True)
    ]
    return np.stack(predictions, axis=1).astype(np.float32)


def _split_into_batches(images):
    return np.array_split(images.astype(np.float32), max(1, len(images) // 16))


def committee_outputs(predictions: np.ndarray, selection: Selection) -> dict[str, np.ndarray]:
    """What a committee of the members in `predictions` says, by the names of the exported outputs."""
    outputs = aggregation.stage_outputs(
        selection.head, predictions, predictions.shape[1], selection.confidence, selection.weights
    )
    return _exported_outputs(outputs)


def cascade_outputs(predictions: np.ndarray, selection: Selection) -> dict[str, np.ndarray]:
    """What the cascade says; the committee of all where there are no stages."""
    if selection.stages is None:
        return committee_outputs(predictions, selection)
    sizes = [stage.members for stage in selection.stages]
    thresholds = [stage.threshold for stage in selection.stages[:-1] if stage.threshold is not None]
    outputs = aggregation.run_cascade(
        selection.head, predictions, sizes, thresholds, selection.confidence, selection.weights
    )
    return _exported_outputs(outputs)


def _exported_outputs(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = ("probabilities", "confidence", "mutual_information", "members_used")
    return {name: np.asarray(outputs[name], np.int32 if name == "members_used" else np.float32) for name in names}


def unambiguous_rows(predictions: np.ndarray, selection: Selection) -> np.ndarray:
    """Indices of the examples that lie on no edge: no tie of classes, no confidence at a threshold."""
    unambiguous = (_margin(predictions) > _MIN_MARGIN).all(axis=1)
    for stage in selection.stages or ():
        outputs = committee_outputs(predictions[:, : stage.members], selection)
        # Votes are counted exactly, so that their ties are the same everywhere.
        is_majority_vote = selection.head == "majority_vote"
        unambiguous &= is_majority_vote | (_margin(outputs["probabilities"]) > _MIN_MARGIN)
        if stage.threshold is not None and selection.confidence != "agreement" and not is_majority_vote:
            unambiguous &= np.abs(outputs["confidence"] - stage.threshold) > _MIN_MARGIN
    if selection.stages is None and selection.head != "majority_vote":
        unambiguous &= _margin(committee_outputs(predictions, selection)["probabilities"]) > _MIN_MARGIN
    return np.flatnonzero(unambiguous)


def expected_outputs(cases: VerificationCases, selection: Selection, signatures: Sequence[str]) -> dict[str, dict]:
    """The golden outputs of each signature; bytes have one more row, for `INVALID_IMAGE`."""
    predictions = cases.predictions
    default_outputs = _add_class_and_label(cascade_outputs(predictions, selection), selection)
    bytes_outputs = _add_class_and_label(cascade_outputs(cases.preprocessed_predictions, selection), selection)
    all_member_outputs = _add_class_and_label(committee_outputs(predictions, selection), selection)
    member_probabilities = softmax(predictions, axis=-1)
    num_classes = len(selection.classes)
    invalid_outputs = {"probabilities": np.float32(1 / num_classes), "class_id": -1, "label": b"", "valid": False}
    valid_outputs = {**bytes_outputs, "valid": np.ones(len(predictions), bool)}
    labels = np.array([name.encode() for name in selection.classes], object)
    scores = np.concatenate([bytes_outputs["probabilities"], np.zeros((1, num_classes), np.float32)])
    outputs = {
        "serving_default": default_outputs,
        "predict_members": {**all_member_outputs, "member_probabilities": member_probabilities},
        "predict_bytes": {
            name: _append_row(value, invalid_outputs.get(name, 0)) for name, value in valid_outputs.items()
        },
        "classify": {"classes": np.tile(labels, (len(scores), 1)), "scores": scores},
    }
    return {signature: outputs[signature] for signature in signatures}


def _add_class_and_label(outputs, selection):
    class_id = outputs["probabilities"].argmax(-1).astype(np.int32)
    labels = np.array([name.encode() for name in selection.classes], object)
    return {**outputs, "class_id": class_id, "label": labels[class_id]}


def _append_row(value, fill_value):
    row = np.empty((1, *value.shape[1:]), value.dtype)
    row[:] = fill_value
    return np.concatenate([value, row])


def _margin(values):
    sorted_values = np.sort(values, axis=-1)
    return sorted_values[..., -1] - sorted_values[..., -2]


BATCH_SIZES = (1, 8, 32)
WARMUP_FILE = Path("assets.extra") / "tf_serving_warmup_requests"

WarmupRequest = tuple[str, dict[str, np.ndarray]]  # signature, and arrays by input; strings are object arrays of bytes


def build_requests(
    inputs: Mapping[str, Mapping[str, np.ndarray]], batches: Sequence[np.ndarray]
) -> list[WarmupRequest]:
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


def write_warmup(folder: Path, requests: Sequence[WarmupRequest]) -> None:
    """Writes the requests into the version in `folder`, as TFRecords of `PredictionLog`s."""
    import tensorflow as tf

    (folder / WARMUP_FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as file:
        for signature, arrays in requests:
            file.write(_prediction_log(signature, arrays).SerializeToString())


def _prediction_log(signature, arrays):
    """As a server logs it: `classify` takes examples, every other signature tensors."""
    import tensorflow as tf
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    spec: Any = model_pb2.ModelSpec(signature_name=signature)
    if signature == "classify":
        request: Any = classification_pb2.ClassificationRequest(model_spec=spec)
        request.input.example_list.examples.extend(
            tf.train.Example.FromString(serialized) for serialized in arrays["inputs"]
        )
        log = prediction_log_pb2.ClassifyLog(request=request)
        return prediction_log_pb2.PredictionLog(classify_log=log)
    tensors = {name: tf.make_tensor_proto(array) for name, array in arrays.items()}
    request = predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
