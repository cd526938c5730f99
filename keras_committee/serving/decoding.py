"""How do the bytes of a request become pixels, and what of bytes that are no image?

The pixels are those of training: the same functions decode and resize. An image that is damaged, of another format or
too large becomes a black one that is marked as not valid; it never fails the others in its batch.
"""

import tensorflow as tf

from keras_committee.data.decode import JPEG, PNG, begins_with, decode_image, encoded_size, resize_image

MOST_PIXELS = 25_000_000  # 25 Mpx by its header, before anything is allocated for the pixels


def decode_images(contents, size: tuple[int, int]):
    """Pixels and validity of encoded images.

    Args:
        contents: String tensor `(batch,)`, the content of JPEG or PNG files.
        size: Height and width that every image is resized to.

    Returns:
        float32 `(batch, height, width, 3)` and bool `(batch,)`.
    """
    return _guarded(lambda content: _decoded(content, size), contents, (*size, 3))


def decode_examples(examples, size: tuple[int, int]):
    """The same for serialized `tf.train.Example`s with the feature `image/encoded`."""
    feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}

    def decode(example):
        return _decoded(tf.io.parse_single_example(example, feature)["image/encoded"], size)

    return _guarded(decode, examples, (*size, 3))


def _guarded(decode, contents, shape):
    """TensorFlow has no try and except in a graph, but a dataset can leave out what fails."""
    rows = tf.size(contents, out_type=tf.int64)
    good = tf.data.Dataset.from_tensor_slices((tf.range(rows), contents))
    good = good.map(lambda row, content: (row, decode(content)), num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
    # One more element, since there may be no good one: it belongs to a row that is cut off again.
    last = tf.data.Dataset.from_tensors((rows, tf.zeros(shape, tf.uint8)))
    options = tf.data.Options()
    options.autotune.enabled = False  # a request is too short to tune anything
    indices, pixels = good.concatenate(last).batch(rows + 1).with_options(options).get_single_element()
    indices, total = indices[:, None], rows + 1
    images = tf.scatter_nd(indices, tf.cast(pixels, tf.float32), tf.stack([total, *shape]))[:-1]
    valid = tf.scatter_nd(indices, tf.ones_like(indices[:, 0], tf.int32), total[None])[:-1]
    return tf.ensure_shape(images, (None, *shape)), valid > 0


def _decoded(content, size):
    with tf.control_dependencies([_check_header(content)]):
        return tf.ensure_shape(resize_image(decode_image(tf.identity(content)), size), (*size, 3))


def _check_header(content):
    is_known = begins_with(content, PNG) | begins_with(content, JPEG)
    with tf.control_dependencies([tf.debugging.Assert(is_known, ["neither JPEG nor PNG"])]):
        height, width = encoded_size(content)
    return tf.debugging.Assert(height * width <= MOST_PIXELS, ["too many pixels"])
