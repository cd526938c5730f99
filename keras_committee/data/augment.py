"""Augmentation of training images: the protocol, pad-crop-flip, and composition."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from keras_committee.data.images import EncodedImages, InMemoryImages
from keras_committee.data.lazy_tensorflow import tf
from keras_committee.data.random_crop import RandomResizedCrop
from keras_committee.errors import RecipeError


class Augmentation(Protocol):
    """Random variation of training images, in two methods, so that a resumed run can repeat any draw."""

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw the random numbers of every training example for one epoch.

        Args:
            rng: The only source of randomness.
            examples: Number of rows, 0 or more.

        Returns:
            int32 `(examples, k)`, where `k` does not depend on `examples`.
        """
        ...

    def apply(self, images, draws):
        """Augment a batch; runs in a TensorFlow graph and draws nothing.

        Args:
            images: uint8 `(batch, height, width, channels)`.
            draws: int32 `(batch, k)`, rows of `draw`.

        Returns:
            uint8 images of the same shape.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PadCropFlip:
    """Reflect padding, a random crop of the original size, and a random horizontal flip.

    Args:
        pad: Pixels added on each side before the crop, 0 or more.
        flip: Whether each image is mirrored left to right with probability 1/2. `"alternate"` decides at random for
            the first epoch only and mirrors an image in every other epoch from then on, so that each epoch pair shows
            both views. Turn it off where the mirror image belongs to another class, as with digits.

    Raises:
        RecipeError: If `pad` is negative, or `flip` is something else.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2 (there with zeros); reflect padding as in
    Zagoruyko & Komodakis 2016, arXiv:1605.07146; alternating flips: Jordan 2024, arXiv:2404.00498.
    """

    pad: int = 4
    flip: bool | str = True

    def __post_init__(self):
        if self.pad < 0:
            raise RecipeError(f"pad_crop_flip: pad must be 0 or more pixels. Received: pad={self.pad!r}")
        if self.flip not in (True, False, "alternate"):
            raise RecipeError(f"pad_crop_flip: flip must be True, False or 'alternate'. Received: flip={self.flip!r}")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw top and left edge of the crop in the padded image, and 1 where flipped: int32 `(examples, 3)`."""
        values = [2 * self.pad + 1, 2 * self.pad + 1, 2 if self.flip else 1]
        return rng.integers(0, values, size=(examples, 3), dtype=np.int32)

    @property
    def alternating_columns(self) -> tuple[int, ...]:
        """Columns of the draws that `draw_epoch` derives from the first epoch."""
        return (2,) if self.flip == "alternate" else ()

    def apply(self, images, draws):
        """Crop and flip the images. Makes no padded copy: gathers the reflected rows and columns."""
        height, width = images.shape[1:3]
        rows = self._source_indices(height, draws[:, 0])
        columns = self._source_indices(width, draws[:, 1])
        columns = tf.where(draws[:, 2:] == 1, columns[:, ::-1], columns)
        return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)

    def _source_indices(self, length, starts):
        """Return the source row (or column) of each row of the crops: int32 `(batch, length)`."""
        reflected = tf.constant(np.pad(np.arange(length, dtype=np.int32), self.pad, mode="reflect"))
        return tf.gather(reflected, starts[:, None] + tf.range(length)[None, :])


def pad_crop_flip(pad: int = 4, *, flip: bool | str = True) -> PadCropFlip:
    """Pad by reflection, crop to the original size and flip at random; see `PadCropFlip`."""
    return PadCropFlip(pad=pad, flip=flip)


@dataclasses.dataclass(frozen=True)
class Compose:
    """Several augmentations, applied in order.

    Args:
        parts: One or more augmentations. A `random_resized_crop` must be the first: it reads the image file.

    Raises:
        RecipeError: If there are no parts, or a `random_resized_crop` is not the first.
    """

    parts: tuple[Augmentation, ...]

    def __post_init__(self):
        if not self.parts:
            raise RecipeError("compose requires at least one augmentation. Received: none")
        if any(isinstance(part, RandomResizedCrop) for part in self.parts[1:]):
            raise RecipeError("compose: random_resized_crop reads the image file; put it first.")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Draw for all parts, side by side: int32 `(examples, k)`."""
        return np.concatenate([part.draw(rng, examples) for part in self.parts], axis=1)

    def apply(self, images, draws):
        """Apply all parts to uint8 images."""
        for part, columns in zip(self.parts, self.columns(), strict=True):
            images = part.apply(images, draws[:, columns])
        return images

    @property
    def alternating_columns(self) -> tuple[int, ...]:
        """Columns of the draws that `draw_epoch` derives from the first epoch."""
        return tuple(
            columns.start + column
            for part, columns in zip(self.parts, self.columns(), strict=True)
            for column in getattr(part, "alternating_columns", ())
        )

    def columns(self) -> list[slice]:
        """Return the columns of the draws that belong to each part."""
        widths = [part.draw(np.random.default_rng(0), 0).shape[1] for part in self.parts]
        ends = np.cumsum(widths).tolist()
        return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def compose(*parts: Augmentation) -> Compose:
    """Apply several augmentations in order.

    Example:
        compose(random_resized_crop(), pad_crop_flip(4, flip=False))
    """
    return Compose(parts)


def draw_epoch(augment: Augmentation | None, seed: int, epoch: int, examples: int) -> np.ndarray:
    """Return the draws of every training example for one epoch, a pure function of the arguments.

    Args:
        augment: An augmentation, or None.
        seed: Integer of 0 or more.
        epoch: The epoch, counted from 0.
        examples: Number of rows.

    Returns:
        int32 `(examples, k)`. In its alternating columns 0 and 1 take turns from epoch to epoch.
    """
    if augment is None:
        return np.zeros((examples, 0), np.int32)
    draws = augment.draw(np.random.default_rng((seed, epoch, 1)), examples)
    for column in getattr(augment, "alternating_columns", ()):
        first_draws = np.random.default_rng((seed, column, 3)).integers(0, 2, examples, dtype=np.int32)
        draws[:, column] = (first_draws + epoch) % 2
    return draws


def leading_crop(augment: Augmentation | None) -> RandomResizedCrop | None:
    """Return the random resized crop that an augmentation starts with, or None."""
    first = augment.parts[0] if isinstance(augment, Compose) else augment
    return first if isinstance(first, RandomResizedCrop) else None


def make_augment_fn(images: InMemoryImages | EncodedImages, augment: Augmentation | None) -> Callable:
    """Return a graph function from indices `(batch,)` and draws `(batch, k)` to augmented uint8 images.

    Args:
        images: The images of a split.
        augment: An augmentation, or None.
    """
    crop = leading_crop(augment)
    if crop is None:
        gather = images.make_gather_fn()
        return lambda indices, draws: gather(indices) if augment is None else augment.apply(gather(indices), draws)
    read_crops = images.make_crop_fn(crop)
    if not isinstance(augment, Compose) or len(augment.parts) == 1:
        return read_crops
    width, remaining = augment.columns()[0].stop, Compose(augment.parts[1:])
    return lambda indices, draws: remaining.apply(read_crops(indices, draws[:, :width]), draws[:, width:])
