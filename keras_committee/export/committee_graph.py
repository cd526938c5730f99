"""Whom does an exported committee ask about an image, and what does it answer?

A cascade is lazy: the members of a stage see only the images that no earlier stage answered. For every image the
answer is that of the definition: after each stage the committee of the members asked so far answers if its confidence
reaches the threshold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import (
    JPEG_MAGIC,
    PNG_MAGIC,
    ImageTransform,
    decode_image,
    has_magic,
    image_size_from_header,
    resize,
)
from keras_committee.export.inference_model import InferenceModel
from keras_committee.layers import Resize, confidence, subset_head
from keras_committee.selection import Selection, Stage


class ServingCommittee:
    """The traced committee: each network once, called by every signature.

    Args:
        models: One for each member of the selection; a member that stands there twice has the same network twice.
        selection: Temperatures, head, weights, stages, confidence and classes.
        image_shape: (height, width, channels) of the images.
        transforms: What each member sees of an encoded image; a member of another size than `image_shape` sees pixels
            resized. None where all see the whole image at that size.

    Attributes:
        predict: Function of float32 raw pixels `(batch, height, width, channels)` to the dict of `probabilities`
            float32 `(batch, classes)`, `class_id` int32, `label` string, `confidence` float32, `mutual_information`
            float32 in nats and `members_used` int32, each `(batch,)`. A batch of 0 has 0 answers.
        predict_all: The same without a cascade, and `member_probabilities` float32 `(batch, members, classes)`.
        predict_encoded: The same as `predict` from the contents of JPEG or PNG files, string `(batch,)`, and `valid`,
            bool `(batch,)`: False where it could not be decoded, and all else there means nothing. Each member sees
            the pixels of its framing; in a cascade those of a later stage are decoded for the images that go on.
        variables: For each network, dict of name -> variable: all that the graph reads, each once.
    """

    def __init__(
        self,
        models: Sequence[InferenceModel],
        selection: Selection,
        image_shape: tuple[int, int, int],
        transforms: Sequence[ImageTransform] | None = None,
    ):
        self.image_shape = image_shape
        self._transforms = list(transforms or [resize(image_shape[:2])] * len(models))
        self._selection = selection
        self._models = list(models)
        self._head = selection.head_layer()
        self._traced_models = {
            id(model): self._trace(model.__call__, transform.size)
            for model, transform in zip(models, self._transforms, strict=True)
        }
        self.variables = [
            each.variables(self._traced_models[key].get_concrete_function().graph.variables)
            for key, each in {id(each): each for each in models}.items()
        ]
        self._stages = selection.stages or (Stage(members=len(models), threshold=None),)
        self.predict_all = self._trace(self._predict_all, image_shape[:2])
        self.predict = self.predict_all if selection.stages is None else self._trace(self._predict, image_shape[:2])
        bytes_spec = tf.TensorSpec((None,), tf.string, name="image_bytes")
        self.predict_encoded = tf.function(self._predict_encoded, input_signature=[bytes_spec], autograph=False)

    def _trace(self, function, size):
        spec = tf.TensorSpec((None, *size, self.image_shape[2]), tf.float32, name="image")
        return tf.function(function, input_signature=[spec], autograph=False)

    def _predict_all(self, image):
        logits = self._member_logits(
            images_from_pixels(_validate_pixels(image, self.image_shape)), None, len(self._models)
        )
        probabilities = tf.exp(tf.nn.log_softmax(apply_temperature(logits, self._selection)))
        return self._format_outputs(
            {**self._aggregate(logits), "member_probabilities": probabilities}, tf.shape(image)[0]
        )

    def _predict(self, image):
        request_images = images_from_pixels(_validate_pixels(image, self.image_shape))
        return self._format_outputs(self._run_cascade(self._stages, request_images, None), tf.shape(image)[0])

    def _predict_encoded(self, image_bytes):
        rows = tf.shape(image_bytes)[0]
        image_bytes = tf.concat([image_bytes, tf.fill(_padding_rows(rows), "")], 0)
        first_transforms = list(dict.fromkeys(self._transforms[: self._stages[0].members]))
        pixels, valid = decode_images(image_bytes, first_transforms)
        if len(set(self._transforms)) == 1:
            outputs = dict(self.predict(pixels[first_transforms[0]]))
            outputs.pop("member_probabilities", None)
            return {name: value[:rows] for name, value in {**outputs, "valid": valid}.items()}
        request_images = TransformedImages(
            image_bytes, lambda remaining, transforms: decode_images(remaining, transforms)[0], pixels
        )
        return self._format_outputs({**self._run_cascade(self._stages, request_images, None), "valid": valid}, rows)

    def _run_cascade(self, stages, request_images, logits):
        """The answers to images that no stage before `stages` has answered."""
        stage, *later_stages = stages
        logits = self._member_logits(request_images, logits, stage.members)
        outputs = self._aggregate(logits)
        if stage.threshold is None:
            return outputs
        uncertain = tf.where(~(outputs["confidence"] >= stage.threshold))

        def run_later_stages():
            later_outputs = self._run_cascade(
                later_stages, request_images.gather_rows(uncertain), tf.gather_nd(logits, uncertain)
            )
            return {
                name: tf.tensor_scatter_nd_update(outputs[name], uncertain, later_outputs[name]) for name in outputs
            }

        # oneDNN's convolution of an empty batch has a wrong shape: nobody is asked about nothing.
        final_outputs = tf.cond(tf.size(uncertain) > 0, run_later_stages, lambda: outputs)
        return {name: tf.ensure_shape(final_outputs[name], outputs[name].shape) for name in outputs}

    def _member_logits(self, request_images, logits, members):
        """Logits `(batch, members, classes)` before temperatures, of which the first columns may be known."""
        logits_per_member = [] if logits is None else tf.unstack(logits, axis=1)
        images = request_images.inputs_for(self._transforms[len(logits_per_member) : members])
        for model, transform in list(zip(self._models, self._transforms, strict=True))[
            len(logits_per_member) : members
        ]:
            first_index = self._models.index(model)
            is_first_use = first_index >= len(logits_per_member)
            logits_per_member.append(
                self._traced_models[id(model)](images[transform]) if is_first_use else logits_per_member[first_index]
            )
        return tf.stack(logits_per_member, axis=1)

    def _aggregate(self, logits):
        """What the committee of the members asked so far says."""
        members = logits.shape[1]
        scaled_logits = apply_temperature(logits, self._selection)
        probabilities = subset_head(self._head, range(members))(scaled_logits)
        return {
            "probabilities": probabilities,
            "confidence": confidence(self._selection.confidence, probabilities, scaled_logits),
            "mutual_information": mutual_information(scaled_logits, member_weights(self._selection, members)),
            "members_used": tf.fill(tf.shape(logits)[:1], members),
        }

    def _format_outputs(self, outputs, batch_size):
        """With classes and labels, and without the row that stands in for an empty batch."""
        class_id = tf.argmax(outputs["probabilities"], axis=-1, output_type=tf.int32)
        label = tf.gather(tf.constant(self._selection.classes), class_id)
        outputs = {**outputs, "class_id": class_id, "label": label}
        return {name: value[:batch_size] for name, value in outputs.items()}


def apply_temperature(logits, selection: Selection):
    """Logits `(batch, members, classes)` of the first members, each divided by its temperature."""
    temperatures = np.array([member.temperature for member in selection.members], np.float32)[: logits.shape[1]]
    return logits if (temperatures == 1).all() else logits / temperatures[:, None]


def member_weights(selection: Selection, num_members: int) -> np.ndarray:
    """float32 `(members,)`: how much each of the first members counts."""
    raw_weights = [1.0] * num_members if selection.weights is None else selection.weights[:num_members]
    weights = np.array(raw_weights, np.float32) if sum(raw_weights) else np.ones(num_members, np.float32)
    return weights / weights.sum()


def mutual_information(logits, weights: np.ndarray):
    """How much the members disagree: the entropy of their mean less the mean of their entropies, in nats.

    It is 0 where all say the same, however unsure they are, and at most the logarithm of the number of members.

    Args:
        logits: float32 tensor `(batch, members, classes)`.
        weights: How much each member counts, of sum 1.

    Returns:
        float32 tensor `(batch,)`.

    Source: Houlsby et al. 2011, arXiv:1112.5745, equation 2.
    """
    # The head takes the same logarithms, which TensorFlow therefore computes once.
    log_probs = tf.nn.log_softmax(logits)
    probabilities = tf.exp(log_probs)
    mean_probabilities = tf.reduce_sum(probabilities * weights[:, None], 1)
    negative_mean_entropy = tf.reduce_sum(
        tf.reduce_sum(probabilities * log_probs, -1) * weights, 1
    )  # less the mean of the entropies
    return tf.maximum(
        negative_mean_entropy - tf.reduce_sum(tf.math.xlogy(mean_probabilities, mean_probabilities), -1), 0.0
    )


def _validate_pixels(image, shape):
    """Raw pixels: of the right shape, numbers, within 0..255, and at least one row."""
    image = tf.ensure_shape(image, (None, *shape))
    image = tf.clip_by_value(tf.debugging.check_numerics(image, "image holds what is no number"), 0.0, 255.0)
    blank = tf.zeros([*_padding_rows(tf.shape(image)[0]), *shape])
    return tf.concat([image, blank], 0)


def _padding_rows(batch_size):
    """How many rows a batch lacks to have one."""
    return [tf.cast(tf.equal(batch_size, 0), tf.int32)]


def build_signatures(committee: ServingCommittee, classes: tuple[str, ...]) -> dict[str, Any]:
    """The functions to save, by signature. Bytes are decoded to three channels: others have no signature for them."""
    image_spec = tf.TensorSpec((None, *committee.image_shape), tf.float32, name="image")

    def predict(image):
        outputs = committee.predict(tf.ensure_shape(image, (None, *committee.image_shape)))
        return {name: outputs[name] for name in outputs if name != "member_probabilities"}

    def predict_members(image):
        return dict(committee.predict_all(tf.ensure_shape(image, (None, *committee.image_shape))))

    def predict_bytes(image_bytes):
        return _mask_invalid(committee.predict_encoded(tf.ensure_shape(image_bytes, (None,))))

    def classify(inputs):
        outputs = committee.predict_encoded(encoded_bytes(tf.ensure_shape(inputs, (None,))))
        scores = tf.where(outputs["valid"][:, None], outputs["probabilities"], 0.0)
        return {"classes": tf.broadcast_to(tf.constant([classes]), tf.shape(scores)), "scores": scores}

    functions = {"serving_default": _trace(predict, image_spec), "predict_members": _trace(predict_members, image_spec)}
    if committee.image_shape[2] == 3:
        functions["predict_bytes"] = _trace(predict_bytes, tf.TensorSpec((None,), tf.string, name="image_bytes"))
        functions["classify"] = _trace(classify, tf.TensorSpec((None,), tf.string, name="inputs"))
    return functions


def _trace(function, spec):
    return tf.function(function, input_signature=[spec], autograph=False)


def _mask_invalid(outputs):
    """The answers, and what stands for them where the image is not valid."""
    valid = outputs["valid"]
    classes = outputs["probabilities"].shape[1]
    fill_values = {"probabilities": tf.fill([1, classes], 1.0 / classes), "class_id": -1, "label": ""}
    masked = {}
    for name, value in outputs.items():
        is_valid = valid[:, None] if value.shape.rank == 2 else valid
        masked[name] = tf.where(is_valid, value, tf.cast(fill_values.get(name, 0), value.dtype))
    return masked | {"valid": valid}


ImagesByTransform = Mapping[ImageTransform, Any]


class TransformedImages:
    """The images of a request, as each framing shows them, made when they are first asked for.

    Args:
        source: What they are made from, a tensor `(batch, ...)`.
        transform_fn: Function of `source` and a list of framings to a dict of framing -> float32 `(batch, *size, channels)`.
        computed: Those that there are already.
    """

    def __init__(
        self,
        source,
        transform_fn: Callable[[Any, list[ImageTransform]], ImagesByTransform],
        computed: ImagesByTransform | None = None,
    ):
        self.source, self._transform_fn, self._computed = source, transform_fn, dict(computed or {})

    def inputs_for(self, transforms: Iterable[ImageTransform]) -> ImagesByTransform:
        """The images under these framings, and perhaps more."""
        missing = [transform for transform in dict.fromkeys(transforms) if transform not in self._computed]
        if missing:
            self._computed |= self._transform_fn(self.source, missing)
        return self._computed

    def gather_rows(self, indices) -> Self:
        """The images at `indices`, int64 `(rows, 1)`. What is not made yet will be made of these only."""
        computed = {transform: tf.gather_nd(images, indices) for transform, images in self._computed.items()}
        return type(self)(tf.gather_nd(self.source, indices), self._transform_fn, computed)


def images_from_pixels(image) -> TransformedImages:
    """Of float32 `(batch, height, width, channels)`: a member of another size sees them resized, as in `Ensemble`."""
    return TransformedImages(image, resize_pixels)


def resize_pixels(image, transforms: Iterable[ImageTransform]) -> ImagesByTransform:
    """float32 images at the size of each framing; what a framing would crop stays, since it is gone already."""
    image_size = tuple(image.shape[1:3])
    return {
        transform: image if transform.size == image_size else Resize(*transform.size)(image) for transform in transforms
    }


MAX_PIXELS = 25_000_000  # 25 Mpx by its header, before anything is allocated for the pixels


def decode_images(image_bytes, transforms: Sequence[ImageTransform]):
    """Pixels and validity of encoded images; each is decoded once, whatever the number of framings.

    Args:
        image_bytes: String tensor `(batch,)`, the content of JPEG or PNG files.
        transforms: At least one, each once.

    Returns:
        dict of framing -> float32 `(batch, *size, 3)`, and bool `(batch,)`.
    """
    specs = [tf.TensorSpec((*transform.size, 3), tf.uint8) for transform in transforms]
    pixels, valid = _map_skipping_errors(lambda content: _decode(content, transforms), image_bytes, specs)
    return {transform: tf.cast(images, tf.float32) for transform, images in zip(transforms, pixels, strict=True)}, valid


def encoded_bytes(examples):
    """The feature `image/encoded` of serialized `tf.train.Example`s, string `(batch,)`; empty where there is none."""
    feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}

    def parse(example):
        return [tf.io.parse_single_example(example, feature)["image/encoded"]]

    [contents], _ = _map_skipping_errors(parse, examples, [tf.TensorSpec((), tf.string)])
    return contents


def _map_skipping_errors(function, inputs, specs):
    """TensorFlow has no try and except in a graph, but a dataset can leave out what fails.

    `function` gives one tensor for each of `specs`. Returns them for the batch, with zeros, or empty strings, where it
    failed, and where it did not: bool `(batch,)`.
    """
    batch_size = tf.size(inputs, out_type=tf.int64)
    dataset = tf.data.Dataset.from_tensor_slices((tf.range(batch_size), inputs))
    dataset = dataset.map(
        lambda row, value: (row, *function(value)), num_parallel_calls=tf.data.AUTOTUNE
    ).ignore_errors()
    # One more element, since there may be no good one: it belongs to a row that is cut off again.
    sentinel = tf.data.Dataset.from_tensors((batch_size, *(tf.zeros(spec.shape, spec.dtype) for spec in specs)))
    options = tf.data.Options()
    options.autotune.enabled = False  # a request is too short to tune anything
    indices, *values = dataset.concatenate(sentinel).batch(batch_size + 1).with_options(options).get_single_element()
    # Row of `found` for each of `inputs`; the last row of `found`, which is empty, for those that failed.
    count = tf.size(indices, out_type=tf.int64)
    gather_indices = tf.tensor_scatter_nd_update(
        tf.fill([batch_size + 1], count - 1), indices[:, None], tf.range(count)
    )[:-1]
    outputs = [
        tf.ensure_shape(tf.gather(each, gather_indices), (None, *s.shape))
        for each, s in zip(values, specs, strict=True)
    ]
    return outputs, gather_indices < count - 1


def _decode(image_bytes, transforms):
    with tf.control_dependencies([_check_header(image_bytes)]):
        pixels = decode_image(tf.identity(image_bytes))
    return [tf.ensure_shape(transform.apply(pixels), (*transform.size, 3)) for transform in transforms]


def _check_header(image_bytes):
    is_known = has_magic(image_bytes, PNG_MAGIC) | has_magic(image_bytes, JPEG_MAGIC)
    with tf.control_dependencies([tf.debugging.Assert(is_known, ["neither JPEG nor PNG"])]):
        height, width = image_size_from_header(image_bytes)
    return tf.debugging.Assert(height * width <= MAX_PIXELS, ["too many pixels"])
