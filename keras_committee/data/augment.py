"""How is a training image varied?"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_committee.data.random_crop import RandomResizedCrop
from keras_committee.errors import RecipeError


class Augmentation(Protocol):
    """Two methods, kept apart so that a resumed run can repeat any draw."""

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """One row of draws for each training example of a pass, int32 `(examples, k)`; `rng` decides alone."""
        ...

    def apply(self, images, draws):
        """Uint8 `(batch, height, width, channels)` and int32 `(batch, k)` to uint8 images of the same shape.

        Runs in a TensorFlow graph and has no randomness of its own.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PadCropFlip:
    """Reflect padding, a random crop of the original size, a random horizontal flip.

    Args:
        pad: Pixels added on each side before the crop, 0 or more.
        flip: Whether half of the images are mirrored left to right; switch it off where the mirror image is
            another class, as with digits.

    Source: He et al. 2015, arXiv:1512.03385, section 4.2 (there with zeros); reflect padding as in
    Zagoruyko & Komodakis 2016, arXiv:1605.07146.
    """

    pad: int = 4
    flip: bool = True

    def __post_init__(self):
        if self.pad < 0:
            raise RecipeError(f"pad_crop_flip needs a pad of 0 or more pixels. Received: pad={self.pad!r}")

    def draw(self, rng: np.random.Generator, examples: int) -> np.ndarray:
        """Top and left edge of the crop in the padded image, and 1 where flipped: int32 `(examples, 3)`."""
        values = [2 * self.pad + 1, 2 * self.pad + 1, 2 if self.flip else 1]
        return rng.integers(0, values, size=(examples, 3), dtype=np.int32)

    def apply(self, images, draws):
        """The cropped and flipped images. No padded copy is made: rows and columns are looked up, reflected."""
        height, width = images.shape[1:3]
        rows = self._source_indices(height, draws[:, 0])
        columns = self._source_indices(width, draws[:, 1])
        columns = tf.where(draws[:, 2:] == 1, columns[:, ::-1], columns)
        return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)

    def _source_indices(self, length, starts):
        """Which source row (or column) stands at each place of the crop: int32 `(batch, length)`."""
        reflected = tf.constant(np.pad(np.arange(length, dtype=np.int32), self.pad, mode="reflect"))
        return tf.gather(reflected, starts[:, None] + tf.range(length)[None, :])


def pad_crop_flip(pad: int = 4, *, flip: bool = True) -> PadCropFlip:
    """Reflect padding by `pad` pixels, a random crop of the original size and, unless `flip=False`, a random flip."""
    return PadCropFlip(pad=pad, flip=flip)


@dataclasses.dataclass(frozen=True)
class Compose:
    """One augmentation after another; their draws stand side by side in one table.

    Args:
        parts: At least one, of which a `random_resized_crop` is the first.

    Raises:
        RecipeError: If there is none, or a crop that reads files stands later.
    """

    parts: tuple[Augmentation, ...]

    def __post_init__(self):
        if not self.parts:
            raise RecipeError("sequence needs at least one augmentation. Received: none")
        if any(isinstance(part, RandomResizedCrop) for part in self.parts[1:]):
            raise RecipeError("a random_resized_crop reads the image file: put it first in the sequence.")

    def draw(self, generator: np.random.Generator, examples: int) -> np.ndarray:
        """The draws of all parts, int32 `(examples, k)`."""
        return np.concatenate([part.draw(generator, examples) for part in self.parts], axis=1)

    def apply(self, images, draws):
        """Uint8 images after all parts."""
        for part, columns in zip(self.parts, self.columns(), strict=True):
            images = part.apply(images, draws[:, columns])
        return images

    def columns(self) -> list[slice]:
        """Where the draws of each part stand."""
        widths = [part.draw(np.random.default_rng(0), 0).shape[1] for part in self.parts]
        ends = np.cumsum(widths).tolist()
        return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def compose(*parts: Augmentation) -> Compose:
    """One augmentation after another, such as `sequence(random_resized_crop(), pad_crop_flip(4, flip=False))`."""
    return Compose(parts)


def leading_crop(augment: Augmentation | None) -> RandomResizedCrop | None:
    """The crop with which an augmentation begins, or None: a split in files reads its windows."""
    first = augment.parts[0] if isinstance(augment, Compose) else augment
    return first if isinstance(first, RandomResizedCrop) else None


def make_augment_fn(images, augment: Augmentation | None):
    """A graph function from indices `(batch,)` and draws `(batch, k)` to augmented uint8 images of a split.

    Args:
        images: `InMemoryImages` or `EncodedImages`.
        augment: An augmentation; None shows the images as they are.
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


MAX_BRANCHES = 8  # of one choice


def for_each_image(augment_image: Callable, images, draws):
    """`vary(image, row)` of each image, uint8 `(height, width, channels)`, and its draws: uint8, of the same shape."""

    def augment_one(example):
        return tf.ensure_shape(augment_image(*example), images.shape[1:])

    return tf.map_fn(augment_one, (images, draws), fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8))


def branch_switch(functions: Sequence[Callable]) -> Callable:
    """A graph function `(number, ...)` that is the one of `functions` with that number; all give tensors of one kind.

    TensorFlow visits each node of every branch that is not taken, 2.4 ms for an image and the 46 branches of policy v0.
    A call that may not be inlined is one node, and a tree of calls has few branches to visit.
    """
    calls = [
        tf.function(function, autograph=False, experimental_attributes={"_noinline": True}) for function in functions
    ]
    if len(calls) > MAX_BRANCHES:
        groups = [
            branch_switch(functions[start : start + MAX_BRANCHES]) for start in range(0, len(functions), MAX_BRANCHES)
        ]
        inner = branch_switch([lambda number, *rest, group=group: group(number, *rest) for group in groups])
        return lambda number, *rest: inner(number // MAX_BRANCHES, number % MAX_BRANCHES, *rest)
    return lambda number, *rest: tf.switch_case(number, [lambda call=call: call(*rest) for call in calls])


def check_rgb(images, name: str) -> None:
    """Raise a `RecipeError` where images, `(batch, height, width, channels)`, have not three channels."""
    if images.shape[-1] != 3:
        raise RecipeError(
            f"{name} varies images of three channels, red, green and blue. "
            f"Received: images of shape {tuple(images.shape[1:])}. "
            "Repeat a grey channel three times, or leave the augmentation out."
        )
