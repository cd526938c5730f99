"""Which part of an image does a member see, and at which size?"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import tensorflow as tf

from keras_committee.errors import RecipeError

RESIZE_METHODS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """How an image of any size becomes one of `size`, in evaluation, in serving and, without a crop, in training.

    Args:
        size: Height and width, in pixels, of what comes out.
        padding: None takes the whole image; its aspect ratio is not kept. A number of 0 or more takes the largest
            window in the middle that has the proportions of `size` when it is resized to `size + padding`, and leaves
            out that padding at its rim: of a square `size` the square of side `min(h, w) * size / (size + padding)`.
        method: One of `RESIZE_METHODS`; antialiased where the image shrinks.

    Raises:
        RecipeError: If a value makes no sense.
    """

    size: tuple[int, int]
    padding: int | None = None
    method: str = "bilinear"

    def __post_init__(self):
        if len(self.size) != 2 or min(self.size) < 1:
            raise RecipeError(f"an image's size is height and width, 1 or more each. Received: size={self.size}")
        if self.padding is not None and self.padding < 0:
            raise RecipeError(f"centre_crop needs a padding of 0 or more pixels. Received: padding={self.padding}")
        if self.method not in RESIZE_METHODS:
            raise RecipeError(f"images are resized by {' or '.join(RESIZE_METHODS)}. Received: method={self.method!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` wrote, also after it was JSON."""
        height, width = config["size"]
        return cls((height, width), config["padding"], config["method"])

    @property
    def is_plain_resize(self) -> bool:
        """Whether it is what `resize(size)` gives: the whole image, bilinear."""
        return self.padding is None and self.method == "bilinear"

    def apply(self, pixels):
        """uint8 `(height, width, channels)` of any size to uint8 `(*size, channels)`; eagerly and in graphs."""
        if self.padding is not None:
            top, left, height, width = self.window(tf.shape(pixels))
            pixels = pixels[top : top + height, left : left + width]
        return resize_image(pixels, self.size, self.method)

    def window(self, shape) -> tuple:
        """Top, left, height and width of the part that a centre crop sees, int32 scalars; at least one pixel.

        Computed as Model Garden does, in float32 and cut to integers, so that square crops are the same pixels.

        Args:
            shape: int32 `(2 or more,)`: height and width of the image.
        """
        height, width = tf.unstack(tf.cast(shape[:2], tf.float32))
        padded_height, padded_width = (side + (self.padding or 0) for side in self.size)
        window_height = self.size[0] / padded_height * tf.minimum(height, width * (padded_height / padded_width))
        window_width = self.size[1] / padded_width * tf.minimum(width, height * (padded_width / padded_height))
        top, left = tf.cast((height - window_height) / 2.0, tf.int32), tf.cast((width - window_width) / 2.0, tf.int32)
        return (
            top,
            left,
            tf.maximum(tf.cast(window_height, tf.int32), 1),
            tf.maximum(tf.cast(window_width, tf.int32), 1),
        )


def resize(size: int | tuple[int, int], *, method: str = "bilinear") -> ImageTransform:
    """The whole image, stretched to `size`: a side of a square, or height and width."""
    return ImageTransform(_height_and_width(size), None, method)


def center_crop(size: int | tuple[int, int], *, padding: int = 32, method: str = "bilinear") -> ImageTransform:
    """The middle of the image at `size`, a side of a square or height and width; see `ImageTransform`.

    What EfficientNet is evaluated with. It is drawn for each resolution anew: at 224 pixels and a padding of 32 the
    window has 0.875 of the short side, at 96 pixels 0.75.

    Source: Tan & Le 2019, arXiv:1905.11946, their preprocessing.py; Model Garden's `center_crop_image`, whose window
    this is where padding / (size + padding) is 1/8.
    """
    return ImageTransform(_height_and_width(size), padding, method)


def resolve_transform(name: str, size: tuple[int, int] | None, transform: ImageTransform | None) -> ImageTransform:
    """`transform`, or the plain one of `size`; raises RecipeError unless just one is given. `name` is the function's."""
    if size is not None and transform is None:
        return resize(size)
    if size is None and transform is not None:
        return transform
    raise RecipeError(
        f"{name} needs the images' size, or a framing such as centre_crop(224): one of them. "
        f"Received: {size=}, {transform=}"
    )


def transform_for_member(
    recorded: Mapping[str, Any] | None, shape: Sequence[int | None], size: tuple[int, int] | None = None
) -> ImageTransform | None:
    """What a member sees; None where nothing tells the size.

    Args:
        recorded: What its run recorded of its data; None, of an older run, stands for the whole image.
        shape: Of the member's input, `(batch, height, width, channels)`, None where it takes any.
        size: Height and width of members that take any.
    """
    transform = None if recorded is None else ImageTransform.from_dict(recorded)
    height, width = shape[1:3]
    if height is not None and width is not None:
        size = (height, width)
    if size is None:
        return transform
    return resize(size) if transform is None else dataclasses.replace(transform, size=tuple(size))


def _height_and_width(size):
    return (size, size) if isinstance(size, int) else (size[0], size[1])


PNG_MAGIC, JPEG_MAGIC = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # what their files begin with
JPEG_CROP_MARGIN = 2  # columns


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

    def decode_cropped():
        # Colours are stored at half the width, and a pixel's depend on its neighbours': at the rim of what it decodes
        # libjpeg makes them up. Two columns more on each side, and the rim is none of ours.
        columns = tf.image.extract_jpeg_shape(contents)[1]
        first, last = tf.maximum(left - JPEG_CROP_MARGIN, 0), tf.minimum(left + width + JPEG_CROP_MARGIN, columns)
        padded_window = tf.stack([top, first, height, last - first])
        pixels = tf.image.decode_and_crop_jpeg(contents, padded_window, channels=3, dct_method="INTEGER_ACCURATE")
        return pixels[:, left - first : left - first + width]

    def decode_full():
        return decode_image(contents)[top : top + height, left : left + width]

    return tf.cond(has_magic(contents, JPEG_MAGIC), decode_cropped, decode_full)


def image_size_from_header(contents):
    """Height and width, int64 scalars, that the header of a JPEG or PNG tells; nothing is decoded."""
    height, width = tf.cond(has_magic(contents, PNG_MAGIC), lambda: _png_size(contents), lambda: _jpeg_size(contents))
    return height, width


def has_magic(contents, magic: bytes):
    """Whether a scalar string tensor begins with these bytes."""
    return tf.equal(tf.strings.substr(contents, 0, len(magic)), magic)


def _png_size(content):
    """Width and height are the first two big-endian integers of the first chunk."""
    header = tf.io.decode_raw(tf.strings.substr(content, 16, 8), tf.uint8)
    byte_weights = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    width, height = tf.unstack(tf.reduce_sum(tf.reshape(tf.cast(header, tf.int64), (2, 4)) * byte_weights, -1))
    return height, width


def _jpeg_size(content):
    height, width, _ = tf.unstack(tf.cast(tf.image.extract_jpeg_shape(content), tf.int64), num=3)
    return height, width
