"""Whom does an exported committee ask about an image, and what does it answer?

A cascade is lazy: the members of a stage see only the images that no earlier stage answered. For every image the
answer is that of the definition: after each stage the committee of the members asked so far answers if its confidence
reaches the threshold.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_committee.data.preprocessing import Framing, resized
from keras_committee.layers import confidence, head_of
from keras_committee.selection import Selection, Stage
from keras_committee.serving.decoding import decode_images
from keras_committee.serving.inference import Network
from keras_committee.serving.views import Views, views_of_pixels


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
