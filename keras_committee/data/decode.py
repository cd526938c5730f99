"""How does the content of an image file become pixels?

Training, evaluation and the exported model share these functions, so a served image has the pixels of a training
image. They run eagerly and inside a graph alike.
"""

import tensorflow as tf

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # what their files begin with
RIM = 2  # columns


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


def resize_image(pixels, size, method: str = "bilinear"):
    """`pixels`, uint8 `(height, width, channels)`, resized to `size`, `(height, width)`, as uint8.

    "bilinear" or "bicubic", with antialiasing, rounded to the nearest value; the aspect ratio is not kept.
    """
    resized = tf.image.resize(pixels, size, method=method, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


def decode_window(contents, window):
    """The pixels of one window of an encoded JPEG or PNG: uint8 `(height, width, 3)`.

    The very pixels that `decode_image` gives there; of a JPEG only the window's blocks are decoded.

    Args:
        contents: Scalar string tensor.
        window: int32 `(4,)`: top, left, height and width, inside the image.

    Raises:
        tf.errors.InvalidArgumentError: As `decode_image`, of a JPEG if it is damaged before the window's end.
    """
    top, left, height, width = tf.unstack(window)

    def blocks():
        # Colours are stored at half the width, and a pixel's depend on its neighbours': at the rim of what it decodes
        # libjpeg makes them up. Two columns more on each side, and the rim is none of ours.
        columns = tf.image.extract_jpeg_shape(contents)[1]
        first, last = tf.maximum(left - RIM, 0), tf.minimum(left + width + RIM, columns)
        wider = tf.stack([top, first, height, last - first])
        pixels = tf.image.decode_and_crop_jpeg(contents, wider, channels=3, dct_method="INTEGER_ACCURATE")
        return pixels[:, left - first : left - first + width]

    def whole():
        return decode_image(contents)[top : top + height, left : left + width]

    return tf.cond(begins_with(contents, JPEG), blocks, whole)


def encoded_size(contents):
    """Height and width, int64 scalars, that the header of a JPEG or PNG tells; nothing is decoded."""
    height, width = tf.cond(begins_with(contents, PNG), lambda: _png_size(contents), lambda: _jpeg_size(contents))
    return height, width


def begins_with(contents, magic: bytes):
    """Whether a scalar string tensor begins with these bytes."""
    return tf.equal(tf.strings.substr(contents, 0, len(magic)), magic)


def _png_size(content):
    """Width and height are the first two big-endian integers of the first chunk."""
    header = tf.io.decode_raw(tf.strings.substr(content, 16, 8), tf.uint8)
    places = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    width, height = tf.unstack(tf.reduce_sum(tf.reshape(tf.cast(header, tf.int64), (2, 4)) * places, -1))
    return height, width


def _jpeg_size(content):
    height, width, _ = tf.unstack(tf.cast(tf.image.extract_jpeg_shape(content), tf.int64), num=3)
    return height, width
