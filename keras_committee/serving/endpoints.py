"""Which signatures does an exported committee have, and what goes in and comes out?

- `serving_default`: `image` float32 `(batch, height, width, channels)`, raw pixels 0..255, to `probabilities`,
  `class_id`, `label`, `confidence`, `mutual_information` and `members_used`.
- `predict_bytes`: `image_bytes` string `(batch,)`, JPEG or PNG of any size, to the same and `valid`.
- `predict_members`: `image` to those of `serving_default` and `member_probabilities`. It asks all members, also of a
  cascade: its other outputs are those of the committee of all.
- `classify`: `inputs` string `(batch,)`, `tf.train.Example`s with `image/encoded`, to `classes` and `scores`.

An image that cannot be decoded has `valid` False, `class_id` -1, an empty `label`, equal probabilities and 0 in all
else; `classify`, which has no word for it, gives it the score 0 for every class.
"""

from typing import Any

import tensorflow as tf

from keras_committee.serving.asking import Committee
from keras_committee.serving.decoding import decode_examples, decode_images


def make_endpoints(committee: Committee, classes: tuple[str, ...]) -> dict[str, Any]:
    """The functions to save, by signature. Bytes are decoded to three channels: others have no signature for them."""
    height, width, channels = committee.image_shape
    image = tf.TensorSpec((None, *committee.image_shape), tf.float32, name="image")

    def ask(image):
        answers = committee.answer(tf.ensure_shape(image, (None, *committee.image_shape)))
        return {name: answers[name] for name in answers if name != "member_probabilities"}

    def ask_all(image):
        return dict(committee.answer_of_all(tf.ensure_shape(image, (None, *committee.image_shape))))

    def ask_bytes(image_bytes):
        pixels, valid = decode_images(tf.ensure_shape(image_bytes, (None,)), (height, width))
        return _marked(ask(pixels), valid)

    def classify(inputs):
        pixels, valid = decode_examples(tf.ensure_shape(inputs, (None,)), (height, width))
        scores = tf.where(valid[:, None], ask(pixels)["probabilities"], 0.0)
        return {"classes": tf.broadcast_to(tf.constant([classes]), tf.shape(scores)), "scores": scores}

    functions = {"serving_default": _traced(ask, image), "predict_members": _traced(ask_all, image)}
    if channels == 3:
        functions["predict_bytes"] = _traced(ask_bytes, tf.TensorSpec((None,), tf.string, name="image_bytes"))
        functions["classify"] = _traced(classify, tf.TensorSpec((None,), tf.string, name="inputs"))
    return functions


def _traced(function, spec):
    return tf.function(function, input_signature=[spec], autograph=False)


def _marked(answers, valid):
    """The answers, and what stands for them where the image is not valid."""
    classes = answers["probabilities"].shape[1]
    instead = {"probabilities": tf.fill([1, classes], 1.0 / classes), "class_id": -1, "label": ""}
    marked = {}
    for name, value in answers.items():
        holds = valid[:, None] if value.shape.rank == 2 else valid
        marked[name] = tf.where(holds, value, tf.cast(instead.get(name, 0), value.dtype))
    return {**marked, "valid": valid}
