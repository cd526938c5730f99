"""Whom does an exported committee ask about an image, and what does it answer?

A cascade is lazy: the members of a stage see only the images that no earlier stage answered. For every image the
answer is that of the definition: after each stage the committee of the members asked so far answers if its confidence
reaches the threshold.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import JPEG, PNG, Framing, begins_with, decode_image, encoded_size, resized
from keras_committee.export.inference_model import Network
from keras_committee.layers import Resize, confidence, head_of
from keras_committee.selection import Selection, Stage


class Committee:
    """The traced committee: each network once, called by every signature.

    Args:
        networks: One for each member of the selection; a member that stands there twice has the same network twice.
        selection: Temperatures, head, weights, stages, confidence and classes.
        image_shape: (height, width, channels) of the images.
        framings: What each member sees of an encoded image; a member of another size than `image_shape` sees pixels
            resized. None where all see the whole image at that size.

    Attributes:
        answer: Function of float32 raw pixels `(batch, height, width, channels)` to the dict of `probabilities`
            float32 `(batch, classes)`, `class_id` int32, `label` string, `confidence` float32, `mutual_information`
            float32 in nats and `members_used` int32, each `(batch,)`. A batch of 0 has 0 answers.
        answer_of_all: The same without a cascade, and `member_probabilities` float32 `(batch, members, classes)`.
        answer_encoded: The same as `answer` from the contents of JPEG or PNG files, string `(batch,)`, and `valid`,
            bool `(batch,)`: False where it could not be decoded, and all else there means nothing. Each member sees
            the pixels of its framing; in a cascade those of a later stage are decoded for the images that go on.
        variables: For each network, dict of name -> variable: all that the graph reads, each once.
    """

    def __init__(
        self,
        networks: Sequence[Network],
        selection: Selection,
        image_shape: tuple[int, int, int],
        framings: Sequence[Framing] | None = None,
    ):
        self.image_shape = image_shape
        self._framings = list(framings or [resized(image_shape[:2])] * len(networks))
        self._selection = selection
        self._networks = list(networks)
        self._head = selection.head_layer()
        self._functions = {
            id(each): self._traced(each.__call__, framing.size)
            for each, framing in zip(networks, self._framings, strict=True)
        }
        self.variables = [
            each.variables(self._functions[key].get_concrete_function().graph.variables)
            for key, each in {id(each): each for each in networks}.items()
        ]
        self._stages = selection.stages or (Stage(members=len(networks), threshold=None),)
        self.answer_of_all = self._traced(self._answer_of_all, image_shape[:2])
        self.answer = self.answer_of_all if selection.stages is None else self._traced(self._answer, image_shape[:2])
        contents = tf.TensorSpec((None,), tf.string, name="image_bytes")
        self.answer_encoded = tf.function(self._answer_encoded, input_signature=[contents], autograph=False)

    def _traced(self, function, size):
        spec = tf.TensorSpec((None, *size, self.image_shape[2]), tf.float32, name="image")
        return tf.function(function, input_signature=[spec], autograph=False)

    def _answer_of_all(self, image):
        logits = self._ask(views_of_pixels(_checked(image, self.image_shape)), None, len(self._networks))
        votes = tf.exp(tf.nn.log_softmax(tempered(logits, self._selection)))
        return self._finished({**self._answers(logits), "member_probabilities": votes}, tf.shape(image)[0])

    def _answer(self, image):
        views = views_of_pixels(_checked(image, self.image_shape))
        return self._finished(self._through(self._stages, views, None), tf.shape(image)[0])

    def _answer_encoded(self, contents):
        rows = tf.shape(contents)[0]
        contents = tf.concat([contents, tf.fill(_missing_rows(rows), "")], 0)
        first = list(dict.fromkeys(self._framings[: self._stages[0].members]))
        pixels, valid = decode_images(contents, first)
        if len(set(self._framings)) == 1:
            answers = dict(self.answer(pixels[first[0]]))
            answers.pop("member_probabilities", None)
            return {name: value[:rows] for name, value in {**answers, "valid": valid}.items()}
        views = Views(contents, lambda rest, framings: decode_images(rest, framings)[0], pixels)
        return self._finished({**self._through(self._stages, views, None), "valid": valid}, rows)

    def _through(self, stages, views, logits):
        """The answers to images that no stage before `stages` has answered."""
        stage, *later_stages = stages
        logits = self._ask(views, logits, stage.members)
        answers = self._answers(logits)
        if stage.threshold is None:
            return answers
        unsure = tf.where(~(answers["confidence"] >= stage.threshold))

        def go_on():
            later = self._through(later_stages, views.of(unsure), tf.gather_nd(logits, unsure))
            return {name: tf.tensor_scatter_nd_update(answers[name], unsure, later[name]) for name in answers}

        # oneDNN's convolution of an empty batch has a wrong shape: nobody is asked about nothing.
        chosen = tf.cond(tf.size(unsure) > 0, go_on, lambda: answers)
        return {name: tf.ensure_shape(chosen[name], answers[name].shape) for name in answers}

    def _ask(self, views, logits, members):
        """Logits `(batch, members, classes)` before temperatures, of which the first columns may be known."""
        columns = [] if logits is None else tf.unstack(logits, axis=1)
        images = views.at(self._framings[len(columns) : members])
        for network, framing in list(zip(self._networks, self._framings, strict=True))[len(columns) : members]:
            first = self._networks.index(network)
            new = first >= len(columns)
            columns.append(self._functions[id(network)](images[framing]) if new else columns[first])
        return tf.stack(columns, axis=1)

    def _answers(self, logits):
        """What the committee of the members asked so far says."""
        members = logits.shape[1]
        votes = tempered(logits, self._selection)
        probabilities = head_of(self._head, range(members))(votes)
        return {
            "probabilities": probabilities,
            "confidence": confidence(self._selection.confidence, probabilities, votes),
            "mutual_information": mutual_information(votes, shares(self._selection, members)),
            "members_used": tf.fill(tf.shape(logits)[:1], members),
        }

    def _finished(self, answers, rows):
        """With classes and labels, and without the row that stands in for an empty batch."""
        class_id = tf.argmax(answers["probabilities"], axis=-1, output_type=tf.int32)
        label = tf.gather(tf.constant(self._selection.classes), class_id)
        answers = {**answers, "class_id": class_id, "label": label}
        return {name: value[:rows] for name, value in answers.items()}


def tempered(logits, selection: Selection):
    """Logits `(batch, members, classes)` of the first members, each divided by its temperature."""
    temperatures = np.array([member.temperature for member in selection.members], np.float32)[: logits.shape[1]]
    return logits if (temperatures == 1).all() else logits / temperatures[:, None]


def shares(selection: Selection, members: int) -> np.ndarray:
    """float32 `(members,)`: how much each of the first members counts."""
    given = [1.0] * members if selection.weights is None else selection.weights[:members]
    weights = np.array(given, np.float32) if sum(given) else np.ones(members, np.float32)
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
    logarithms = tf.nn.log_softmax(logits)
    votes = tf.exp(logarithms)
    mean = tf.reduce_sum(votes * weights[:, None], 1)
    unsure = tf.reduce_sum(tf.reduce_sum(votes * logarithms, -1) * weights, 1)  # less the mean of the entropies
    return tf.maximum(unsure - tf.reduce_sum(tf.math.xlogy(mean, mean), -1), 0.0)


def _checked(image, shape):
    """Raw pixels: of the right shape, numbers, within 0..255, and at least one row."""
    image = tf.ensure_shape(image, (None, *shape))
    image = tf.clip_by_value(tf.debugging.check_numerics(image, "image holds what is no number"), 0.0, 255.0)
    blank = tf.zeros([*_missing_rows(tf.shape(image)[0]), *shape])
    return tf.concat([image, blank], 0)


def _missing_rows(rows):
    """How many rows a batch lacks to have one."""
    return [tf.cast(tf.equal(rows, 0), tf.int32)]


def make_endpoints(committee: Committee, classes: tuple[str, ...]) -> dict[str, Any]:
    """The functions to save, by signature. Bytes are decoded to three channels: others have no signature for them."""
    image = tf.TensorSpec((None, *committee.image_shape), tf.float32, name="image")

    def ask(image):
        answers = committee.answer(tf.ensure_shape(image, (None, *committee.image_shape)))
        return {name: answers[name] for name in answers if name != "member_probabilities"}

    def ask_all(image):
        return dict(committee.answer_of_all(tf.ensure_shape(image, (None, *committee.image_shape))))

    def ask_bytes(image_bytes):
        return _marked(committee.answer_encoded(tf.ensure_shape(image_bytes, (None,))))

    def classify(inputs):
        answers = committee.answer_encoded(contents_of(tf.ensure_shape(inputs, (None,))))
        scores = tf.where(answers["valid"][:, None], answers["probabilities"], 0.0)
        return {"classes": tf.broadcast_to(tf.constant([classes]), tf.shape(scores)), "scores": scores}

    functions = {"serving_default": _traced(ask, image), "predict_members": _traced(ask_all, image)}
    if committee.image_shape[2] == 3:
        functions["predict_bytes"] = _traced(ask_bytes, tf.TensorSpec((None,), tf.string, name="image_bytes"))
        functions["classify"] = _traced(classify, tf.TensorSpec((None,), tf.string, name="inputs"))
    return functions


def _traced(function, spec):
    return tf.function(function, input_signature=[spec], autograph=False)


def _marked(answers):
    """The answers, and what stands for them where the image is not valid."""
    valid = answers["valid"]
    classes = answers["probabilities"].shape[1]
    instead = {"probabilities": tf.fill([1, classes], 1.0 / classes), "class_id": -1, "label": ""}
    marked = {}
    for name, value in answers.items():
        holds = valid[:, None] if value.shape.rank == 2 else valid
        marked[name] = tf.where(holds, value, tf.cast(instead.get(name, 0), value.dtype))
    return marked | {"valid": valid}


Made = Mapping[Framing, Any]


class Views:
    """The images of a request, as each framing shows them, made when they are first asked for.

    Args:
        source: What they are made from, a tensor `(batch, ...)`.
        make: Function of `source` and a list of framings to a dict of framing -> float32 `(batch, *size, channels)`.
        made: Those that there are already.
    """

    def __init__(self, source, make: Callable[[Any, list[Framing]], Made], made: Made | None = None):
        self.source, self._make, self._made = source, make, dict(made or {})

    def at(self, framings: Iterable[Framing]) -> Made:
        """The images under these framings, and perhaps more."""
        missing = [each for each in dict.fromkeys(framings) if each not in self._made]
        if missing:
            self._made |= self._make(self.source, missing)
        return self._made

    def of(self, rows) -> Self:
        """The images at `rows`, int64 `(rows, 1)`. What is not made yet will be made of these only."""
        made = {framing: tf.gather_nd(images, rows) for framing, images in self._made.items()}
        return type(self)(tf.gather_nd(self.source, rows), self._make, made)


def views_of_pixels(image) -> Views:
    """Of float32 `(batch, height, width, channels)`: a member of another size sees them resized, as in `Ensemble`."""
    return Views(image, resized_pixels)


def resized_pixels(image, framings: Iterable[Framing]) -> Made:
    """float32 images at the size of each framing; what a framing would crop stays, since it is gone already."""
    given = tuple(image.shape[1:3])
    return {each: image if each.size == given else Resize(*each.size)(image) for each in framings}


MOST_PIXELS = 25_000_000  # 25 Mpx by its header, before anything is allocated for the pixels


def decode_images(contents, framings: Sequence[Framing]):
    """Pixels and validity of encoded images; each is decoded once, whatever the number of framings.

    Args:
        contents: String tensor `(batch,)`, the content of JPEG or PNG files.
        framings: At least one, each once.

    Returns:
        dict of framing -> float32 `(batch, *size, 3)`, and bool `(batch,)`.
    """
    specs = [tf.TensorSpec((*framing.size, 3), tf.uint8) for framing in framings]
    pixels, valid = _guarded(lambda content: _decoded(content, framings), contents, specs)
    return {each: tf.cast(images, tf.float32) for each, images in zip(framings, pixels, strict=True)}, valid


def contents_of(examples):
    """The feature `image/encoded` of serialized `tf.train.Example`s, string `(batch,)`; empty where there is none."""
    feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}

    def parse(example):
        return [tf.io.parse_single_example(example, feature)["image/encoded"]]

    [contents], _ = _guarded(parse, examples, [tf.TensorSpec((), tf.string)])
    return contents


def _guarded(function, inputs, specs):
    """TensorFlow has no try and except in a graph, but a dataset can leave out what fails.

    `function` gives one tensor for each of `specs`. Returns them for the batch, with zeros, or empty strings, where it
    failed, and where it did not: bool `(batch,)`.
    """
    rows = tf.size(inputs, out_type=tf.int64)
    good = tf.data.Dataset.from_tensor_slices((tf.range(rows), inputs))
    good = good.map(lambda row, each: (row, *function(each)), num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    # One more element, since there may be no good one: it belongs to a row that is cut off again.
    last = tf.data.Dataset.from_tensors((rows, *(tf.zeros(spec.shape, spec.dtype) for spec in specs)))
    options = tf.data.Options()
    options.autotune.enabled = False  # a request is too short to tune anything
    places, *found = good.concatenate(last).batch(rows + 1).with_options(options).get_single_element()
    # Row of `found` for each of `inputs`; the last row of `found`, which is empty, for those that failed.
    count = tf.size(places, out_type=tf.int64)
    source = tf.tensor_scatter_nd_update(tf.fill([rows + 1], count - 1), places[:, None], tf.range(count))[:-1]
    outputs = [tf.ensure_shape(tf.gather(each, source), (None, *s.shape)) for each, s in zip(found, specs, strict=True)]
    return outputs, source < count - 1


def _decoded(content, framings):
    with tf.control_dependencies([_check_header(content)]):
        pixels = decode_image(tf.identity(content))
    return [tf.ensure_shape(framing.apply(pixels), (*framing.size, 3)) for framing in framings]


def _check_header(content):
    is_known = begins_with(content, PNG) | begins_with(content, JPEG)
    with tf.control_dependencies([tf.debugging.Assert(is_known, ["neither JPEG nor PNG"])]):
        height, width = encoded_size(content)
    return tf.debugging.Assert(height * width <= MOST_PIXELS, ["too many pixels"])
