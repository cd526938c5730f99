"""TensorFlow graph of an exported committee, with lazy cascades.

The members of a cascade stage run only for the images at which no earlier stage has stopped. The outputs are those of
the definition in `models.cascade`: each image gets the outputs of the first stage whose confidence reaches its
threshold, or is below its lower threshold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_committee import aggregation
from keras_committee.data.preprocessing import (
    JPEG_MAGIC,
    PNG_MAGIC,
    ImageTransform,
    decode_image,
    has_magic,
    image_size_from_header,
    resize,
)
from keras_committee.export.inference_model import InferenceModel, InferenceView
from keras_committee.image_header import MAX_PIXELS
from keras_committee.layers import Resize
from keras_committee.layers.heads import log_softmax
from keras_committee.layers.prediction_sets import promised_outputs
from keras_committee.models.cascade import is_confident, stage_outputs
from keras_committee.selection import Selection, Stage

ImagesByTransform = Mapping[ImageTransform, Any]  # float32 tensors (batch, *size, channels)


class ServingCommittee:
    """The traced committee. Each network is traced once and called by every signature.

    Args:
        models: One for each member of the selection. A repeated member has the same one each time, and views of a
            network share its variables.
        selection: Temperatures, head (the layer that combines the members' predictions), weights, stages, confidence
            and classes.
        image_shape: `(height, width, channels)` of the images.
        transforms: For each member, how an encoded image becomes its input. None resizes the whole image to
            `image_shape`. Raw pixels are resized for members of another size.

    Attributes:
        image_shape: As above.
        classes: Names of the classes.
        predict: Function of float32 raw pixels `(batch, height, width, channels)`. Returns a dictionary of
            `probabilities` float32 `(batch, classes)` and, each `(batch,)`, `class_id` int32, `label` string,
            `confidence` float32, `mutual_information` float32 in nats, and `members_used` int32. A selection with a
            promise adds `prediction_set` bool `(batch, classes)` and `set_size` int32 `(batch,)`, or `accepted` bool
            `(batch,)`, or all. An empty batch has empty outputs.
        predict_all: Like `predict`, but all members run. Also returns `member_probabilities` float32
            `(batch, members, classes)`. The promise of a cascade does not hold for all its members, so they have no
            such outputs.
        predict_encoded: Like `predict`, for the contents of JPEG or PNG files, string `(batch,)`. Also returns `valid`
            bool `(batch,)`, False if a file cannot be decoded; its other outputs are then meaningless. Later stages
            of a cascade decode only the images that reach them.
        predict_members_encoded: Like `predict_encoded`. Also returns `member_probabilities` of all members, for the
            same pixels.
        variables: For each network, the variables that the graph reads, by name.
    """

    def __init__(
        self,
        models: Sequence[InferenceModel | InferenceView],
        selection: Selection,
        image_shape: tuple[int, int, int],
        transforms: Sequence[ImageTransform] | None = None,
    ):
        self.image_shape, self.classes = image_shape, selection.classes
        self._selection, self._head = selection, selection.head_layer()
        self._stages = selection.stages or (Stage(members=len(models), threshold=None),)
        self._models = list(models)
        self._transforms = list(transforms or [resize(image_shape[:2])] * len(models))
        self._traced_models = {
            id(model): _trace(model.__call__, self._image_spec(transform.size))
            for model, transform in zip(models, self._transforms, strict=True)
        }
        self.variables = [
            model.variables(self._traced_models[key].get_concrete_function().graph.variables)
            for key, model in {id(model): model for model in models}.items()
        ]
        image_spec = self._image_spec(image_shape[:2])
        self.predict_all = _trace(self._predict_all, image_spec)
        self.predict = self.predict_all if selection.stages is None else _trace(self._predict, image_spec)
        bytes_spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
        self.predict_encoded = _trace(self._predict_encoded, bytes_spec)
        self.predict_members_encoded = _trace(self._predict_members_encoded, bytes_spec)

    @property
    def num_stages(self) -> int:
        """Number of stages of the cascade; 1 for a committee."""
        return len(self._stages)

    def run_stage(self, index: int, image, logits=None) -> dict[str, Any]:
        """Run one stage alone, for a converter that does not carry over the condition between the stages.

        Args:
            index: Index of the stage.
            image: float32 raw pixels `(batch, height, width, channels)`.
            logits: float32 `(batch, members, classes)`, `all_logits` of the stage before; None for the first.

        Returns:
            `probabilities`, `confidence`, `mutual_information` and `members_used` as from `predict`, of the committee
            of the members that have run; `all_logits`, their logits; and, but for the last stage, `stops` bool
            `(batch,)`.
        """
        stage = self._stages[index]
        images = _images_from_pixels(tf.clip_by_value(image, 0.0, 255.0))
        logits = self._member_logits(images, logits, stage.members)
        outputs = self._aggregate(logits)
        if stage.threshold is None:
            return {**outputs, "all_logits": logits}
        stops = is_confident(outputs, stage.threshold, stage.lower_threshold)
        return {**outputs, "all_logits": logits, "stops": stops}

    def logits_shape(self, index: int) -> tuple[int | None, int, int]:
        """Return the shape of the argument `logits` of `run_stage`."""
        return None, self._stages[index - 1].members, len(self.classes)

    def finish(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of `predict` from those of the stage at which each image stops."""
        return self._format_outputs(outputs, tf.shape(outputs["probabilities"])[0])

    def _image_spec(self, size):
        return tf.TensorSpec((None, *size, self.image_shape[2]), tf.float32, name="image")

    def _predict_all(self, image):
        images = _images_from_pixels(_validate_pixels(image, self.image_shape))
        logits = self._member_logits(images, None, len(self._models))
        probabilities = tf.exp(log_softmax(self._apply_temperature(logits)))
        outputs = {**self._aggregate(logits), "member_probabilities": probabilities}
        return self._format_outputs(outputs, tf.shape(image)[0], has_promise=self._selection.stages is None)

    def _predict_members_encoded(self, image_bytes):
        batch_size = tf.shape(image_bytes)[0]
        padded = tf.concat([image_bytes, tf.fill(_num_padding_rows(batch_size), "")], 0)
        pixels, _ = _decode_images(padded, list(dict.fromkeys(self._transforms)))
        images = _TransformedImages(padded, lambda *_: {}, pixels)
        logits = self._apply_temperature(self._member_logits(images, None, len(self._models)))
        member_probabilities = tf.exp(log_softmax(logits))[:batch_size]
        return {**self.predict_encoded(image_bytes), "member_probabilities": member_probabilities}

    def _predict(self, image):
        images = _images_from_pixels(_validate_pixels(image, self.image_shape))
        return self._format_outputs(self._run_cascade(self._stages, images, None), tf.shape(image)[0])

    def _predict_encoded(self, image_bytes):
        batch_size = tf.shape(image_bytes)[0]
        image_bytes = tf.concat([image_bytes, tf.fill(_num_padding_rows(batch_size), "")], 0)
        first_transforms = list(dict.fromkeys(self._transforms[: self._stages[0].members]))
        pixels, valid = _decode_images(image_bytes, first_transforms)
        if len(set(self._transforms)) == 1:
            outputs = dict(self.predict(pixels[first_transforms[0]]))
            outputs.pop("member_probabilities", None)
            return {name: value[:batch_size] for name, value in {**outputs, "valid": valid}.items()}
        images = _TransformedImages(
            image_bytes, lambda contents, transforms: _decode_images(contents, transforms)[0], pixels
        )
        return self._format_outputs({**self._run_cascade(self._stages, images, None), "valid": valid}, batch_size)

    def _run_cascade(self, stages, images, logits):
        """Return the outputs for images at which no stage before `stages` has stopped.

        Args:
            stages: The remaining stages.
            images: `_TransformedImages`.
            logits: Logits `(batch, members, classes)` of the members that have run; None if none has.
        """
        stage, *later_stages = stages
        logits = self._member_logits(images, logits, stage.members)
        outputs = self._aggregate(logits)
        if stage.threshold is None:
            return outputs
        uncertain = tf.where(~is_confident(outputs, stage.threshold, stage.lower_threshold))

        def run_later_stages():
            later_outputs = self._run_cascade(
                later_stages, images.gather_rows(uncertain), tf.gather_nd(logits, uncertain)
            )
            return {
                name: tf.tensor_scatter_nd_update(outputs[name], uncertain, later_outputs[name]) for name in outputs
            }

        # oneDNN's convolution returns a wrong shape for an empty batch, so a stage without images must not run.
        final_outputs = tf.cond(tf.size(uncertain) > 0, run_later_stages, lambda: outputs)
        return {name: tf.ensure_shape(final_outputs[name], outputs[name].shape) for name in outputs}

    def _member_logits(self, images, logits, num_members):
        """Return logits `(batch, num_members, classes)` before temperatures; `logits` are those already computed."""
        # Slices: TensorFlow Lite does not run `tf.unstack` in the branch of a condition.
        logits_per_member = [] if logits is None else [logits[:, index] for index in range(logits.shape[1])]
        new_members = slice(len(logits_per_member), num_members)
        inputs = images.inputs_for(self._transforms[new_members])
        for model, transform in zip(self._models[new_members], self._transforms[new_members], strict=True):
            first_index = self._models.index(model)
            is_first_use = first_index >= len(logits_per_member)
            logits_per_member.append(
                self._traced_models[id(model)](inputs[transform]) if is_first_use else logits_per_member[first_index]
            )
        return tf.stack(logits_per_member, axis=1)

    def _aggregate(self, logits):
        """Return the outputs of the committee of the members in `logits`."""
        num_members = logits.shape[1]
        logits = self._apply_temperature(logits)
        if num_members == 1 and self._selection.head != "majority_vote":  # any mean of one member is its softmax
            outputs = stage_outputs(logits, 1, self._selection.confidence, _softmax_of_one)
            return {**outputs, "mutual_information": tf.zeros_like(outputs["confidence"])}
        return {
            **stage_outputs(logits, num_members, self._selection.confidence, self._head),
            "mutual_information": mutual_information(logits, _member_weights(self._selection, num_members)),
        }

    def _apply_temperature(self, logits):
        members = self._selection.members[: logits.shape[1]]
        temperatures = aggregation.temperatures_of(members)
        return logits if (temperatures == 1).all() else logits / temperatures

    def _format_outputs(self, outputs, batch_size, has_promise=True):
        """Add `class_id`, `label` and the outputs of the promise, and remove the row that pads an empty batch."""
        class_id = tf.argmax(outputs["probabilities"], axis=-1, output_type=tf.int32)
        label = tf.gather(tf.constant(self.classes), class_id)
        promised = promised_outputs(self._selection.promise, outputs) if has_promise else {}
        outputs = {**outputs, "class_id": class_id, "label": label, **promised}
        return {name: value[:batch_size] for name, value in outputs.items()}


def build_signatures(committee: ServingCommittee) -> dict[str, Any]:
    """Return the functions to save, by signature.

    `predict_uint8` is `serving_default` for pixels of a quarter of the bytes, with the same answers to the last bit.
    `predict_bytes`, `predict_members_bytes` and `classify` exist for three channels only, because encoded images are
    decoded to RGB.
    """
    image_spec = tf.TensorSpec((None, *committee.image_shape), tf.float32, name="image")

    def predict(image):
        outputs = committee.predict(tf.ensure_shape(image, (None, *committee.image_shape)))
        return {name: outputs[name] for name in outputs if name != "member_probabilities"}

    def predict_uint8(image):
        return predict(tf.cast(image, tf.float32))

    def predict_members(image):
        return dict(committee.predict_all(tf.ensure_shape(image, (None, *committee.image_shape))))

    def predict_bytes(image_bytes):
        return _mask_invalid(committee.predict_encoded(tf.ensure_shape(image_bytes, (None,))))

    def predict_members_bytes(image_bytes):
        return _mask_invalid(committee.predict_members_encoded(tf.ensure_shape(image_bytes, (None,))))

    def classify(inputs):
        outputs = committee.predict_encoded(_encoded_images(tf.ensure_shape(inputs, (None,))))
        scores = tf.where(outputs["valid"][:, None], outputs["probabilities"], 0.0)
        return {"classes": tf.broadcast_to(tf.constant([committee.classes]), tf.shape(scores)), "scores": scores}

    functions = {
        "serving_default": _trace(predict, image_spec),
        "predict_uint8": _trace(predict_uint8, tf.TensorSpec(image_spec.shape, tf.uint8, name="image")),
        "predict_members": _trace(predict_members, image_spec),
    }
    if committee.image_shape[2] == 3:
        bytes_spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
        functions["predict_bytes"] = _trace(predict_bytes, bytes_spec)
        functions["predict_members_bytes"] = _trace(predict_members_bytes, bytes_spec)
        functions["classify"] = _trace(classify, tf.TensorSpec((None,), tf.string, name="inputs"))
    return functions


def mutual_information(logits, weights: np.ndarray):
    """Return the disagreement of the members: the entropy of their mean minus the mean of their entropies, in nats.

    It is 0 if all members predict the same probabilities, and at most the logarithm of the number of members. The NumPy
    form is `metrics.uncertainty_decomposition`.

    Args:
        logits: float32 tensor `(batch, members, classes)`.
        weights: float32 `(members,)`, weight of each member in the mean; their sum is 1.

    Returns:
        float32 tensor `(batch,)`.

    Source: Houlsby et al. 2011, arXiv:1112.5745, equation 2.
    """
    log_probs = log_softmax(logits)  # the head computes the same, so TensorFlow evaluates it once
    probabilities = tf.exp(log_probs)
    mean_probabilities = tf.reduce_sum(probabilities * weights[:, None], 1)
    # One sum over both axes: of two nested ones, OpenVINO 2026.4 returns the wrong value for more than one image.
    negative_mean_entropy = tf.reduce_sum(probabilities * log_probs * weights[:, None], [1, 2])
    # 0 log 0 is 0. `tf.math.xlogy` has no equivalent in ONNX.
    log_mean = tf.math.log(tf.maximum(mean_probabilities, np.finfo(np.float32).tiny))
    entropy_of_mean = -tf.reduce_sum(mean_probabilities * log_mean, -1)
    return tf.maximum(entropy_of_mean + negative_mean_entropy, 0.0)


def _softmax_of_one(logits):
    return tf.exp(log_softmax(logits[:, 0]))


def resize_pixels(image, transforms: Iterable[ImageTransform]) -> ImagesByTransform:
    """Resize raw pixels to the size of each transform. Its crop is not applied: pixels are taken as already cropped.

    Args:
        image: float32 `(batch, height, width, channels)`.
        transforms: The transforms of the members.

    Returns:
        Dictionary of transform to float32 `(batch, *size, channels)`.
    """
    image_size = tuple(image.shape[1:3])
    return {
        transform: image if transform.size == image_size else Resize(*transform.size)(image) for transform in transforms
    }


def _trace(function, spec):
    return tf.function(function, input_signature=[spec], autograph=False)


def _member_weights(selection: Selection, num_members: int) -> np.ndarray:
    """Return the weights of the first members, float32 `(num_members,)` of sum 1."""
    raw_weights = [1.0] * num_members if selection.weights is None else selection.weights[:num_members]
    weights = np.array(raw_weights, np.float32) if sum(raw_weights) else np.ones(num_members, np.float32)
    return weights / weights.sum()


def _validate_pixels(image, shape):
    """Check shape and finiteness, clip to 0..255, and pad an empty batch with one row."""
    image = tf.ensure_shape(image, (None, *shape))
    image = tf.clip_by_value(tf.debugging.check_numerics(image, "image must be finite"), 0.0, 255.0)
    blank = tf.zeros([*_num_padding_rows(tf.shape(image)[0]), *shape])
    return tf.concat([image, blank], 0)


def _num_padding_rows(batch_size):
    """Return the shape `[1]` for an empty batch, else `[0]`."""
    return [tf.cast(tf.equal(batch_size, 0), tf.int32)]


def _mask_invalid(outputs):
    """Replace the outputs of invalid images by uniform probabilities, class -1, an empty label and zeros."""
    valid = outputs["valid"]
    num_classes = outputs["probabilities"].shape[1]
    fill_values = {"probabilities": tf.fill([1, num_classes], 1.0 / num_classes), "class_id": -1, "label": ""}
    masked = {}
    for name, value in outputs.items():
        is_valid = tf.reshape(valid, [-1, *[1] * (value.shape.rank - 1)])
        masked[name] = tf.where(is_valid, value, tf.cast(fill_values.get(name, 0), value.dtype))
    return masked | {"valid": valid}


class _TransformedImages:
    """The images of a request under each transform, computed on first use.

    Args:
        source: Tensor `(batch, ...)` from which they are computed.
        transform_fn: Function of `source` and a list of transforms that returns `ImagesByTransform`.
        computed: Images that are already computed.
    """

    def __init__(
        self,
        source,
        transform_fn: Callable[[Any, list[ImageTransform]], ImagesByTransform],
        computed: ImagesByTransform | None = None,
    ):
        self._source, self._transform_fn, self._computed = source, transform_fn, dict(computed or {})

    def inputs_for(self, transforms: Iterable[ImageTransform]) -> ImagesByTransform:
        """Return the images under at least these transforms."""
        missing = [transform for transform in dict.fromkeys(transforms) if transform not in self._computed]
        if missing:
            self._computed |= self._transform_fn(self._source, missing)
        return self._computed

    def gather_rows(self, indices) -> Self:
        """Return the images at `indices`, int64 `(rows, 1)`. Further transforms are computed for these only."""
        computed = {transform: tf.gather_nd(images, indices) for transform, images in self._computed.items()}
        return type(self)(tf.gather_nd(self._source, indices), self._transform_fn, computed)


def _images_from_pixels(image):
    """Return the `_TransformedImages` of raw pixels, resized for each member as in `Ensemble`."""
    return _TransformedImages(image, resize_pixels)


def _decode_images(image_bytes, transforms):
    """Decode each image once, and apply all transforms.

    Args:
        image_bytes: String tensor `(batch,)`, the contents of JPEG or PNG files.
        transforms: At least one transform, without duplicates.

    Returns:
        Dictionary of transform to float32 `(batch, *size, 3)`, and validity, bool `(batch,)`.
    """
    specs = [tf.TensorSpec((*transform.size, 3), tf.uint8) for transform in transforms]
    pixels, valid = _map_skipping_errors(lambda content: _decode(content, transforms), image_bytes, specs)
    return {transform: tf.cast(images, tf.float32) for transform, images in zip(transforms, pixels, strict=True)}, valid


def _decode(image_bytes, transforms):
    with tf.control_dependencies([_check_header(image_bytes)]):
        pixels = decode_image(tf.identity(image_bytes))
    return [tf.ensure_shape(transform.apply(pixels), (*transform.size, 3)) for transform in transforms]


def _check_header(image_bytes):
    """Limit the number of pixels before memory for them is allocated."""
    is_known = has_magic(image_bytes, PNG_MAGIC) | has_magic(image_bytes, JPEG_MAGIC)
    with tf.control_dependencies([tf.debugging.Assert(is_known, ["neither JPEG nor PNG"])]):
        height, width = image_size_from_header(image_bytes)
    return tf.debugging.Assert(height * width <= MAX_PIXELS, ["too many pixels"])


def _encoded_images(examples):
    """Return the feature `image/encoded` of serialized `tf.train.Example`s, string `(batch,)`; empty if missing."""
    feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}

    def parse(example):
        return [tf.io.parse_single_example(example, feature)["image/encoded"]]

    [contents], _ = _map_skipping_errors(parse, examples, [tf.TensorSpec((), tf.string)])
    return contents


def _map_skipping_errors(function, inputs, specs):
    """Map `function` over a batch and skip failing elements.

    A graph cannot catch an error, but a dataset can ignore one.

    Args:
        function: Function of one element that returns one tensor for each of `specs`.
        inputs: Tensor `(batch, ...)`.
        specs: TensorSpecs of the outputs of one element.

    Returns:
        The outputs of the batch, zeros or empty strings where `function` failed, and where it succeeded, bool
        `(batch,)`.
    """
    batch_size = tf.size(inputs, out_type=tf.int64)
    dataset = tf.data.Dataset.from_tensor_slices((tf.range(batch_size), inputs))
    dataset = dataset.map(
        lambda row, value: (row, *function(value)), num_parallel_calls=tf.data.AUTOTUNE
    ).ignore_errors()
    # A last, empty element at index batch_size: the dataset is never empty, and failed elements gather from it.
    sentinel = tf.data.Dataset.from_tensors((batch_size, *(tf.zeros(spec.shape, spec.dtype) for spec in specs)))
    options = tf.data.Options()
    options.autotune.enabled = False  # a request is too short for tuning
    indices, *values = dataset.concatenate(sentinel).batch(batch_size + 1).with_options(options).get_single_element()
    count = tf.size(indices, out_type=tf.int64)
    gather_indices = tf.tensor_scatter_nd_update(
        tf.fill([batch_size + 1], count - 1), indices[:, None], tf.range(count)
    )[:-1]
    outputs = [
        tf.ensure_shape(tf.gather(value, gather_indices), (None, *spec.shape))
        for value, spec in zip(values, specs, strict=True)
    ]
    return outputs, gather_indices < count - 1
