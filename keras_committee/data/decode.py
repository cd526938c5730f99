"""How does the content of an image file become pixels?

Training, evaluation and the exported model share these two functions, so a served image has the pixels of a training
image. They run eagerly and inside a graph alike.
"""

import tensorflow as tf


def decode_image(contents):
    """The pixels of one encoded JPEG or PNG: uint8 `(height, width, 3)`.

    Greyscale is repeated over the three channels, CMYK is converted to RGB, alpha is dropped, 16-bit PNGs keep their
    high byte. An EXIF rotation is not applied: the pixels come as they are stored.

    The op is `decode_jpeg` because it reads PNGs too and, unlike `decode_image`, lets the inverse DCT be named:
    `INTEGER_ACCURATE` gives the pixels of Pillow's libjpeg bit for bit, TensorFlow's default is a faster,
    coarser one that no other library follows.

    Args:
        contents: Scalar string tensor or bytes, the file's content.

    Raises:
        tf.errors.InvalidArgumentError: If the content is damaged or in another format.
    """
    return tf.io.decode_jpeg(contents, channels=3, dct_method="INTEGER_ACCURATE")


def resize_image(pixels, size):
    """`pixels`, uint8 `(height, width, channels)`, resized to `size`, `(height, width)`, as uint8.

    Bilinear with antialiasing, rounded to the nearest value; the aspect ratio is not kept.
    """
    resized = tf.image.resize(pixels, size, method="bilinear", antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)
