"""How do the bytes of a request become pixels, and what of bytes that are no image?

The pixels are those of evaluation: the same functions decode and frame. An image that is damaged, of another format or
too large becomes a black one that is marked as not valid; it never fails the others in its batch.
"""

from collections.abc import Sequence

import tensorflow as tf

from keras_committee.data.preprocessing import JPEG, PNG, Framing, begins_with, decode_image, encoded_size

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
