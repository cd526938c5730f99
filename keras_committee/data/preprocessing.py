"""Image preprocessing: decoding, cropping and resizing, the same in training, evaluation and serving.

Everything here runs eagerly and in TensorFlow graphs: the exported committee decodes and resizes with these functions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

from keras_committee.data.lazy_tensorflow import tf
from keras_committee.errors import RecipeError
from keras_committee.image_header import JPEG_MAGIC, PNG_MAGIC

RESIZE_METHODS = ("bilinear", "bicubic")
_JPEG_CROP_MARGIN = 2  # columns


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """Maps an image of any size to `size`, in evaluation, in serving and, without a random crop, in training.

    Args:
        size: Height and width of the output, in pixels.
        padding: None resizes the whole image; its aspect ratio is not kept. An integer of 0 or more takes a center
            crop: the largest centered window that, resized to `size + padding`, has the proportions of `size`, without
            the outer `padding` pixels. For a square `size` this is the square of side
            `min(height, width) * size / (size + padding)`.
        method: One of `RESIZE_METHODS`; antialiased where the image shrinks.

    Raises:
        RecipeError: If a value is out of range.
    """

    size: tuple[int, int]
    padding: int | None = None
    method: str = "bilinear"

    def __post_init__(self):
        object.__setattr__(self, "size", tuple(self.size))
        if len(self.size) != 2 or min(self.size) < 1:
            raise RecipeError(f"size must be height and width, 1 or more pixels each. Received: size={self.size}")
        if self.padding is not None and self.padding < 0:
            raise RecipeError(f"center_crop: padding must be 0 or more pixels. Received: padding={self.padding}")
        if self.method not in RESIZE_METHODS:
            raise RecipeError(f"method must be {' or '.join(RESIZE_METHODS)}. Received: method={self.method!r}")

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Restore a transform from `dataclasses.asdict`, also after a JSON round trip."""
        height, width = config["size"]
        return cls((height, width), config["padding"], config["method"])

    @property
    def is_plain_resize(self) -> bool:
        """Whether the transform equals `resize(size)`: the whole image, bilinear."""
        return self.padding is None and self.method == "bilinear"

    def apply(self, pixels):
        """Transform uint8 `(height, width, channels)` of any size to uint8 `(*size, channels)`."""
        if self.padding is not None:
            top, left, height, width = self.window(tf.shape(pixels))
            pixels = pixels[top : top + height, left : left + width]
        return resize_image(pixels, self.size, self.method)

    def window(self, shape) -> tuple:
        """Return top, left, height and width of the center crop, int32 scalars; at least one pixel.

        Computed as Model Garden does, in float32 and truncated to integers, so that square crops are the same pixels.

        Args:
            shape: int32 `(2 or more,)`: height and width of the image, then anything.
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
    """Resize the whole image.

    Args:
        size: Side of a square, or height and width, in pixels.
        method: One of `RESIZE_METHODS`.
    """
    return ImageTransform(_height_and_width(size), None, method)


def center_crop(size: int | tuple[int, int], *, padding: int = 32, method: str = "bilinear") -> ImageTransform:
    """Take the center of the image and resize it; the evaluation transform of EfficientNet.

    The crop depends on the resolution: with a padding of 32 it takes 0.875 of the short side at 224 pixels and 0.75 at
    96 pixels.

    Args:
        size: Side of a square, or height and width, in pixels.
        padding: Pixels around the crop, at the scale of `size`; see `ImageTransform`.
        method: One of `RESIZE_METHODS`.

    Source: Tan & Le 2019, arXiv:1905.11946, their preprocessing.py. Equals Model Garden's `center_crop_image` where
    padding / (size + padding) is 1/8.
    """
    return ImageTransform(_height_and_width(size), padding, method)


def resolve_transform(name: str, size: tuple[int, int] | None, transform: ImageTransform | None) -> ImageTransform:
    """Return `transform`, or a plain resize to `size`.

    Args:
        name: The data function, for the error message.
        size: Height and width, or None.
        transform: An image transform, or None.

    Raises:
        RecipeError: Unless exactly one of `size` and `transform` is given.
    """
    if size is not None and transform is None:
        return resize(size)
    if size is None and transform is not None:
        return transform
    raise RecipeError(
        f"{name} requires either size or a transform such as center_crop(224). Received: {size=}, {transform=}"
    )


def transform_for_member(
    recorded: Mapping[str, Any] | None, shape: Sequence[int | None], size: tuple[int, int] | None = None
) -> ImageTransform | None:
    """Return the transform for a member's input; None if the size is unknown.

    Args:
        recorded: The transform that the member's run recorded, as a dict. None resizes the whole image.
        shape: Shape of the member's input, `(batch, height, width, channels)`; None where any size is accepted.
        size: Height and width for members that accept any size.
    """
    transform = None if recorded is None else ImageTransform.from_dict(recorded)
    height, width = shape[1:3]
    if height is not None and width is not None:
        size = (height, width)
    if size is None:
        return transform
    return resize(size) if transform is None else dataclasses.replace(transform, size=tuple(size))


def decode_image(contents, ratio: int = 1):
    """Decode one JPEG or PNG to uint8 `(height, width, 3)`.

    Grayscale is repeated over the three channels, CMYK is converted to RGB, alpha is dropped, 16-bit PNGs keep their
    high byte. An EXIF rotation is not applied.

    Uses `tf.io.decode_jpeg`, which reads PNGs too and, unlike `tf.io.decode_image`, takes the method of the inverse
    DCT: `INTEGER_ACCURATE` gives the pixels of Pillow's libjpeg bit for bit; TensorFlow's default is a faster, coarser
    one that no other library uses.

    Args:
        contents: Scalar string tensor or bytes, the content of the file.
        ratio: 1, 2, 4 or 8: a JPEG is decoded at 1 / `ratio` of its size; a PNG always at its own.

    Raises:
        tf.errors.InvalidArgumentError: If the content is damaged or in another format.
    """
    return tf.io.decode_jpeg(contents, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def resize_image(pixels, size, method: str = "bilinear"):
    """Resize uint8 `(height, width, channels)` to uint8 `(*size, channels)`.

    Antialiased where the image shrinks and rounded to the nearest integer. The aspect ratio is not kept.

    Args:
        pixels: uint8 `(height, width, channels)`.
        size: Height and width.
        method: `"bilinear"` or `"bicubic"`.
    """
    resized = tf.image.resize(pixels, size, method=method, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


def decode_window(contents, window):
    """Decode one window of a JPEG or PNG to uint8 `(height, width, 3)`.

    The pixels equal those of `decode_image`; only the blocks of the window are decoded from a JPEG.

    Args:
        contents: Scalar string tensor.
        window: int32 `(4,)`: top, left, height and width, inside the image.

    Raises:
        tf.errors.InvalidArgumentError: As `decode_image`; a JPEG that is damaged below the window is decoded.
    """
    top, left, height, width = tf.unstack(window)

    def decode_cropped():
        # Colors are stored at half the width and interpolated from their neighbors, which libjpeg lacks at the edge
        # of what it decodes. With two more columns on each side the edge lies outside of the window.
        columns = tf.image.extract_jpeg_shape(contents)[1]
        first, last = tf.maximum(left - _JPEG_CROP_MARGIN, 0), tf.minimum(left + width + _JPEG_CROP_MARGIN, columns)
        padded_window = tf.stack([top, first, height, last - first])
        pixels = tf.image.decode_and_crop_jpeg(contents, padded_window, channels=3, dct_method="INTEGER_ACCURATE")
        return pixels[:, left - first : left - first + width]

    def decode_full():
        return decode_image(contents)[top : top + height, left : left + width]

    return tf.cond(has_magic(contents, JPEG_MAGIC), decode_cropped, decode_full)


def image_size_from_header(contents):
    """Return height and width, int64 scalars, from the header of a JPEG or PNG, without decoding it.

    Runs in graphs, where Pillow cannot; TensorFlow has an op for the shape of a JPEG, none for that of a PNG.
    """
    height, width = tf.cond(has_magic(contents, PNG_MAGIC), lambda: _png_size(contents), lambda: _jpeg_size(contents))
    return height, width


def has_magic(contents, magic: bytes):
    """Return whether a scalar string tensor starts with these bytes, as a scalar bool tensor."""
    return tf.equal(tf.strings.substr(contents, 0, len(magic)), magic)


def _png_size(contents):
    """Width and height are the first two big-endian integers of the first chunk."""
    header = tf.io.decode_raw(tf.strings.substr(contents, 16, 8), tf.uint8)
    byte_weights = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
    width, height = tf.unstack(tf.reduce_sum(tf.reshape(tf.cast(header, tf.int64), (2, 4)) * byte_weights, -1))
    return height, width


def _jpeg_size(contents):
    height, width, _ = tf.unstack(tf.cast(tf.image.extract_jpeg_shape(contents), tf.int64), num=3)
    return height, width


def _height_and_width(size):
    return (size, size) if isinstance(size, int) else (size[0], size[1])
