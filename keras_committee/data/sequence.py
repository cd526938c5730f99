"""How do several augmentations become one?"""

import dataclasses

import numpy as np

from keras_committee.data.augment import Augmentation
from keras_committee.data.random_crop import RandomResizedCrop
from keras_committee.errors import RecipeError


@dataclasses.dataclass(frozen=True)
class Sequence:
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


def sequence(*parts: Augmentation) -> Sequence:
    """One augmentation after another, such as `sequence(random_resized_crop(), pad_crop_flip(4, flip=False))`."""
    return Sequence(parts)


def leading_crop(augment: Augmentation | None) -> RandomResizedCrop | None:
    """The crop with which an augmentation begins, or None: a split in files reads its windows."""
    first = augment.parts[0] if isinstance(augment, Sequence) else augment
    return first if isinstance(first, RandomResizedCrop) else None


def augmented(images, augment: Augmentation | None):
    """A graph function from indices `(batch,)` and draws `(batch, k)` to augmented uint8 images of a split.

    Args:
        images: `Pixels` or `Encoded`.
        augment: An augmentation; None shows the images as they are.
    """
    crop = leading_crop(augment)
    if crop is None:
        gather = images.gatherer()
        return lambda indices, draws: gather(indices) if augment is None else augment.apply(gather(indices), draws)
    read = images.cropper(crop)
    if not isinstance(augment, Sequence) or len(augment.parts) == 1:
        return read
    width, later = augment.columns()[0].stop, Sequence(augment.parts[1:])
    return lambda indices, draws: later.apply(read(indices, draws[:, :width]), draws[:, width:])
