"""Which signatures does an exported committee have, and what goes in and comes out?

- `serving_default`: `image` float32 `(batch, height, width, channels)`, raw pixels 0..255, at the size of the largest
  member (the others see them resized), to `probabilities`, `class_id`, `label`, `confidence`, `mutual_information` and
  `members_used`.
- `predict_bytes`: `image_bytes` string `(batch,)`, JPEG or PNG of any size, to the same and `valid`. Each member sees
  the part of the image, and the size, that it was evaluated with.
- `predict_members`: `image` to those of `serving_default` and `member_probabilities`. It asks all members, also of a
  cascade: its other outputs are those of the committee of all.
- `classify`: `inputs` string `(batch,)`, `tf.train.Example`s with `image/encoded`, to `classes` and `scores`.

An image that cannot be decoded has `valid` False, `class_id` -1, an empty `label`, equal probabilities and 0 in all
else; `classify`, which has no word for it, gives it the score 0 for every class.
"""

from typing import Any

import tensorflow as tf

from keras_committee.serving.asking import Committee
from keras_committee.serving.decoding import contents_of


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
