"""How does a folder with one folder for each class become examples?"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_committee.class_folders import MEND, list_images
from keras_committee.data.dataset import Data, Found
from keras_committee.data.images import Files
from keras_committee.data.preprocessing import Framing, chosen_framing
from keras_committee.data.splits import Split


def image_folder(
    directory: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    framing: Framing | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    augment=None,
    skip_bad: int = 0,
) -> Data:
    """JPEG and PNG images in one folder for each class; the sorted folder names are the classes.

    Two forms are read: `directory/<class>/...`, from which a test split is held out, and `directory/train/<class>/...`
    beside `directory/test/<class>/...`. A folder `val` (or `validation`) beside both is the validation split; without
    `test` it is the test split. Held-out examples are the same for every seed, and every class has its share.

    Args:
        directory: The folder.
        batch_size: Examples of one training step over all devices.
        size: Height and width, in pixels, that every image is resized to; or
        framing: which part of every image is seen and at which size, such as `centre_crop(224)`. It holds for
            evaluation, for serving and, unless `augment` begins with a `random_resized_crop`, for training.
        validation: Examples held out from training, a count or a fraction of what is not test.
        test: Examples held out for the test, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: So many unreadable images are left out and named in a warning; one more is an error that names all.
    """
    reader = ClassFolders(directory=Path(directory), framing=chosen_framing("image_folder", size, framing))
    return Data(
        name=f"image_folder({os.fspath(directory)!r})",
        batch_size=batch_size,
        reader=reader,
        validation=validation,
        test=test,
        augment=augment,
        skip_bad=skip_bad,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassFolders:
    """Reads class folders.

    Args:
        directory: The folder.
        framing: How the files become images of one size.
        exact: Whether the files must have that size already.
        classes: Number of classes there must be, or None. Where it is given, so must `train` and `test` be.
    """

    directory: Path
    framing: Framing
    exact: bool = False
    classes: int | None = None
    mend: str = MEND

    def find(self) -> Found:
        listing = list_images(self.directory, self.classes)
        splits = {part: self._split(images, listing.classes) for part, images in listing.splits.items()}
        return Found(classes=listing.classes, problems=listing.problems, **splits)

    def _split(self, images, classes):
        """The images of one split, by class and name."""
        names = [name for each in classes for name in images.get(each, ())]
        labels = [label for label, each in enumerate(classes) for _ in images.get(each, ())]
        files = Files(root=self.directory, names=tuple(names), framing=self.framing, exact=self.exact)
        return Split(images=files, labels=np.array(labels, np.int32))
