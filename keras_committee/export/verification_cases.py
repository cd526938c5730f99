"""Verification images for an export, the outputs expected of each signature, and its warm-up requests.

The expected outputs follow the definition in `aggregation` and share no code with the exported graph: every Keras
member runs for every image, and a cascade stops at the first stage whose confidence reaches its threshold.

In bfloat16 the members of Keras compute in bfloat16 as well. They and the export round at different places, so the
tolerance of an output is `_ROUNDING_FACTOR` times the largest rounding error of Keras itself, its difference between
bfloat16 and float32. Two independent rounding errors of one distribution differ by sqrt(2) times its deviation, and the
largest of a thousand such differences exceeds the largest of a thousand errors by a factor of about 1.4 to 1.9.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from scipy.special import softmax

from keras_committee import aggregation
from keras_committee.data.preprocessing import ImageTransform
from keras_committee.export import verify
from keras_committee.export.committee_graph import resize_pixels
from keras_committee.export.layer_precision import computing_in_bfloat16
from keras_committee.export.predict import serialize_example
from keras_committee.models import log_probabilities
from keras_committee.selection import Selection, Stage
from keras_committee.tfserving.tf_protocol import WARMUP_FILE

BATCH_SIZES = (1, 8, 32)  # of the warm-up requests

_NUM_IMAGES = 48
_MIN_MARGIN = 1e-4  # closer to a tie or to a threshold than this, rounding in float32 may decide
_ROUNDING_FACTOR = 4.0
_ENCODED_SIGNATURES = ("predict_bytes", "classify")  # the signatures for encoded images that have warm-up requests
_INVALID_IMAGE = b"not an image"
_OUTPUT_DTYPES = {
    **dict.fromkeys(("probabilities", "confidence", "mutual_information"), np.float32),
    **dict.fromkeys(("members_used", "set_size"), np.int32),
    **dict.fromkeys(("prediction_set", "accepted"), bool),
}
_NUM_JITTERS = 8
_MAX_REQUEST_BYTES = 4 * 1024**2  # of a warm-up request: at 224x224 only encoded images fit in the larger batches


@dataclasses.dataclass(frozen=True)
class VerificationCases:
    """Verification images and the members' predictions for them.

    Attributes:
        images: uint8 `(examples, height, width, channels)`.
        predictions: float32 `(examples, members, classes)`, log-probabilities divided by the temperatures, for the
            images as pixels. Smaller members see them resized.
        preprocessed_predictions: The same for the encoded images, after the image transform of each member.
        in_float32: The cases in float32, if these predictions were computed in bfloat16; else None.
    """

    images: np.ndarray
    predictions: np.ndarray
    preprocessed_predictions: np.ndarray
    in_float32: "VerificationCases | None" = None

    def unambiguous(self, selection: Selection) -> Self:
        """Return the cases whose outputs rounding cannot change, as pixels and as encoded images."""
        exact = self.in_float32 or self
        rows = np.flatnonzero(
            _is_unambiguous(self.predictions, exact.predictions, selection)
            & _is_unambiguous(self.preprocessed_predictions, exact.preprocessed_predictions, selection)
        )
        return type(self)(self.images[rows], self.predictions[rows], self.preprocessed_predictions[rows])


def compute_verification_cases(
    models: Sequence[keras.Model],
    selection: Selection,
    transforms: Sequence[ImageTransform],
    shape: tuple[int, int, int],
    precision: str = "float32",
) -> VerificationCases:
    """Return 48 verification images with the predictions of the Keras members.

    Args:
        models: The members. A repeated object runs once.
        selection: Selection with the temperatures.
        transforms: The image transform of each member.
        shape: `(height, width, channels)` of the images.
        precision: `"float32"` or `"bfloat16"`, in which the members compute.
    """
    if precision == "bfloat16":
        in_float32 = compute_verification_cases(models, selection, transforms, shape)
        with computing_in_bfloat16(models):
            cases = compute_verification_cases(models, selection, transforms, shape)
        return dataclasses.replace(cases, in_float32=in_float32)
    images = _verification_images(shape)
    resized = resize_pixels(images.astype(np.float32), transforms)
    preprocessed = {transform: np.stack([transform.apply(image) for image in images]) for transform in transforms}
    predictions = _member_predictions(models, selection, [np.asarray(resized[transform]) for transform in transforms])
    if all(np.array_equal(preprocessed[transform], resized[transform]) for transform in transforms):
        return VerificationCases(images, predictions, predictions)
    return VerificationCases(
        images,
        predictions,
        _member_predictions(models, selection, [preprocessed[transform] for transform in transforms]),
    )


def verification_inputs(images: np.ndarray, signatures: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Return the images as inputs by signature and name. Encoded images are lossless; a last one is not an image."""
    contents = [*_encode(images, signatures, ["png"]), _INVALID_IMAGE]
    return _signature_inputs(images, contents, signatures)


def expected_outputs(
    cases: VerificationCases, selection: Selection, signatures: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the expected outputs by signature and name, for the inputs of `verification_inputs`."""
    predictions = cases.predictions
    default_outputs = _add_class_and_label(_cascade_outputs(predictions, selection), selection)
    bytes_outputs = _add_class_and_label(_cascade_outputs(cases.preprocessed_predictions, selection), selection)
    all_member_outputs = default_outputs  # the promise of a cascade does not hold for all its members
    if selection.stages is not None:
        all_member_outputs = _add_class_and_label(_committee_outputs(predictions, selection), selection)
    num_classes = len(selection.classes)
    invalid_outputs = {"probabilities": np.float32(1 / num_classes), "class_id": -1, "label": b"", "valid": False}
    valid_outputs = {**bytes_outputs, "valid": np.ones(len(predictions), bool)}
    members_bytes_outputs = {**valid_outputs, "member_probabilities": softmax(cases.preprocessed_predictions, axis=-1)}
    labels = np.array([name.encode() for name in selection.classes], object)
    scores = np.concatenate([bytes_outputs["probabilities"], np.zeros((1, num_classes), np.float32)])
    outputs = {
        "serving_default": default_outputs,
        "predict_uint8": default_outputs,
        "predict_members": {**all_member_outputs, "member_probabilities": softmax(predictions, axis=-1)},
        **{
            signature: {name: _append_row(value, invalid_outputs.get(name, 0)) for name, value in outputs.items()}
            for signature, outputs in (
                ("predict_bytes", valid_outputs),
                ("predict_members_bytes", members_bytes_outputs),
            )
        },
        "classify": {"classes": np.tile(labels, (len(scores), 1)), "scores": scores},
    }
    return {signature: outputs[signature] for signature in signatures}


def output_tolerances(cases: VerificationCases, selection: Selection) -> dict[str, float]:
    """Return the absolute tolerance of each output by name, from all images and all stages of a cascade."""
    exact_cases = cases.in_float32 or cases
    errors: dict[str, float] = {}
    for predictions, exact_predictions in (
        (cases.predictions, exact_cases.predictions),
        (cases.preprocessed_predictions, exact_cases.preprocessed_predictions),
    ):
        for stage in _stages(selection, predictions):
            outputs, exact_outputs = (
                {**_committee_outputs(array, selection), "member_probabilities": softmax(array, axis=-1)}
                for array in (predictions[:, : stage.members], exact_predictions[:, : stage.members])
            )
            for name, value in outputs.items():
                errors[name] = max(errors.get(name, 0.0), _rounding_bound(value, exact_outputs[name]))
    if selection.head == "majority_vote":  # counts exactly
        errors |= {"probabilities": 0.0, "confidence": 0.0}
    elif selection.confidence == "agreement":
        errors["confidence"] = 0.0
    errors["scores"] = errors["probabilities"]
    return {name: max(verify.TOLERANCE, error) for name, error in errors.items()}


def write_warmup(folder: Path, cases: VerificationCases, selection: Selection, signatures: Sequence[str]) -> None:
    """Write the warm-up requests of a version as TFRecords of `PredictionLog`s.

    Each signature gets one request per batch size with images at which the cascade stops earliest, and one with images
    that run the most members. Every other encoded image is a JPEG. `predict_members_bytes`, which the local server's
    page uses, gets none.

    Args:
        folder: Folder of the version.
        cases: At least one case.
        selection: The selection.
        signatures: Names of the exported signatures.
    """
    signatures = [name for name in signatures if name != "predict_members_bytes"]
    contents = _encode(cases.images, signatures, ["jpeg", "png"])
    (folder / WARMUP_FILE).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(folder / WARMUP_FILE)) as file:
        for signature, arrays in _signature_inputs(cases.images, contents, signatures).items():
            is_encoded = signature in _ENCODED_SIGNATURES
            predictions = cases.preprocessed_predictions if is_encoded else cases.predictions
            for batch in _warmup_batches(_cascade_outputs(predictions, selection)["members_used"]):
                inputs = {name: array[batch] for name, array in arrays.items()}
                if sum(array.nbytes for array in inputs.values()) <= _MAX_REQUEST_BYTES:
                    file.write(_prediction_log(signature, inputs).SerializeToString())


def _verification_images(shape):
    """Return images of coarse to fine noise, blended with solid colors, uint8 `(48, height, width, channels)`."""
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


def _member_predictions(models, selection, images):
    """Return the members' log-probabilities divided by their temperatures, float32 `(examples, members, classes)`.

    They differ from logits by a constant per row, which changes no output.

    Args:
        models: The members.
        selection: Selection with the temperatures.
        images: The inputs of each member, raw pixels `(examples, height, width, channels)`.
    """
    inputs_by_model = {id(model): (model, model_images) for model, model_images in zip(models, images, strict=True)}
    log_probs = {
        key: log_probabilities(model, _split_into_batches(model_images))
        for key, (model, model_images) in inputs_by_model.items()
    }
    predictions = [
        log_probs[id(model)] / member.temperature for model, member in zip(models, selection.members, strict=True)
    ]
    return np.stack(predictions, axis=1).astype(np.float32)


def _split_into_batches(images):
    return np.array_split(images.astype(np.float32), max(1, len(images) // 16))


def _is_unambiguous(predictions, exact_predictions, selection):
    """Return which examples are close to no tie between classes and to no confidence threshold, bool `(examples,)`.

    Args:
        predictions: Predictions of the members `(examples, members, classes)`.
        exact_predictions: The same without the rounding of bfloat16.
        selection: The selection.
    """
    unambiguous = _exceeds_rounding(_margin(predictions), _margin(exact_predictions)).all(axis=1)
    unambiguous &= _keeps_promised_outputs(predictions, exact_predictions, selection)
    if selection.head == "majority_vote":  # counts exactly: its ties and confidences do not depend on rounding
        return unambiguous
    for stage in _stages(selection, predictions):
        outputs, exact_outputs = (
            _committee_outputs(array[:, : stage.members], selection) for array in (predictions, exact_predictions)
        )
        unambiguous &= _exceeds_rounding(*(_margin(each["probabilities"]) for each in (outputs, exact_outputs)))
        for threshold in (stage.threshold, stage.lower_threshold):
            if threshold is not None and selection.confidence != "agreement":
                distances = (np.abs(each["confidence"] - threshold) for each in (outputs, exact_outputs))
                unambiguous &= _exceeds_rounding(*distances)
    return unambiguous


def _keeps_promised_outputs(predictions, exact_predictions, selection):
    """Return on which examples random errors of the size of rounding change no output of the promise, bool."""
    if selection.promise is None:
        return np.ones(len(predictions), bool)
    names = ("prediction_set", "accepted")
    outputs = _cascade_outputs(predictions, selection)
    size, rng = max(_MIN_MARGIN, _rounding_bound(predictions, exact_predictions)), np.random.default_rng(21)
    keeps = np.ones(len(predictions), bool)
    for _ in range(_NUM_JITTERS):
        errors = rng.uniform(-size, size, predictions.shape).astype(np.float32)
        others = _cascade_outputs(predictions + errors, selection)
        for name in [name for name in names if name in outputs]:
            keeps &= (others[name] == outputs[name]).reshape(len(predictions), -1).all(axis=1)
    return keeps


def _stages(selection, predictions):
    return selection.stages or (Stage(members=predictions.shape[1], threshold=None),)


def _exceeds_rounding(distances, exact_distances):
    return distances > max(_MIN_MARGIN, _rounding_bound(distances, exact_distances))


def _rounding_bound(values, exact_values):
    """Return how far rounding may move the values at most."""
    return _ROUNDING_FACTOR * float(np.abs(values - exact_values).max(initial=0.0))


def _margin(values):
    sorted_values = np.sort(values, axis=-1)
    return sorted_values[..., -1] - sorted_values[..., -2]


def _cascade_outputs(predictions, selection):
    """Return the outputs of the cascade, or of all members if there are no stages, with those of the promise."""
    return _exported_outputs(aggregation.selected_outputs(selection, predictions))


def _committee_outputs(predictions, selection):
    """Return the outputs of the committee of the members in `predictions`."""
    outputs = aggregation.stage_outputs(
        selection.head, predictions, predictions.shape[1], selection.confidence, selection.weights
    )
    return _exported_outputs(outputs)


def _exported_outputs(outputs):
    return {name: outputs[name].astype(dtype) for name, dtype in _OUTPUT_DTYPES.items() if name in outputs}


def _add_class_and_label(outputs, selection):
    class_id = outputs["probabilities"].argmax(-1).astype(np.int32)
    labels = np.array([name.encode() for name in selection.classes], object)
    return {**outputs, "class_id": class_id, "label": labels[class_id]}


def _append_row(value, fill_value):
    row = np.empty((1, *value.shape[1:]), value.dtype)
    row[:] = fill_value
    return np.concatenate([value, row])


def _encode(images, signatures, formats):
    """Return the images as files whose formats alternate between `formats`; none if no signature needs them."""
    if "predict_bytes" not in signatures:
        return []
    encoders = {"jpeg": tf.io.encode_jpeg, "png": tf.io.encode_png}
    return [encoders[file_format](image).numpy() for image, file_format in zip(images, itertools.cycle(formats))]


def _signature_inputs(images, contents, signatures):
    """Return the inputs of each signature: the uint8 `images` as float32 or uint8 pixels, or the encoded `contents`."""
    inputs = {
        **{name: {"image": images.astype(np.float32)} for name in ("serving_default", "predict_members")},
        "predict_uint8": {"image": images},
        **{name: {"image_bytes": np.array(contents, object)} for name in ("predict_bytes", "predict_members_bytes")},
        "classify": {"inputs": np.array([serialize_example(content) for content in contents], object)},
    }
    return {name: inputs[name] for name in signatures}


def _warmup_batches(members_used):
    """Return indices of examples, per batch size those that run the fewest members and those that run the most."""
    groups = [np.flatnonzero(members_used == used) for used in sorted({members_used.min(), members_used.max()})]
    return [np.resize(group, size) for size in BATCH_SIZES for group in groups]


def _prediction_log(signature, inputs):
    """Return the request as a server would log it: `classify` takes examples, every other signature tensors."""
    from tensorflow_serving.apis import classification_pb2, model_pb2, predict_pb2, prediction_log_pb2

    spec: Any = model_pb2.ModelSpec(signature_name=signature)
    if signature == "classify":
        request: Any = classification_pb2.ClassificationRequest(model_spec=spec)
        request.input.example_list.examples.extend(
            tf.train.Example.FromString(serialized) for serialized in inputs["inputs"]
        )
        return prediction_log_pb2.PredictionLog(classify_log=prediction_log_pb2.ClassifyLog(request=request))
    tensors = {name: tf.make_tensor_proto(array) for name, array in inputs.items()}
    request = predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)
    return prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
