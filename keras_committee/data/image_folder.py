"""How does a folder with one folder for each class become examples?"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_committee.class_folders import HINT, list_images
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.images import ImageFiles
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.splits import Split


def image_folder(
    directory: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    augment=None,
    skip_bad: int = 0,
) -> DataConfig:
    """JPEG and PNG images in one folder for each class; the sorted folder names are the classes.

    Two forms are read: `directory/<class>/...`, from which a test split is held out, and `directory/train/<class>/...`
    beside `directory/test/<class>/...`. A folder `val` (or `validation`) beside both is the validation split; without
    `test` it is the test split. Held-out examples are the same for every seed, and every class has its share.

    Args:
        directory: The folder.
        batch_size: Examples of one training step over all devices.
        size: Height and width, in pixels, that every image is resized to; or
        transform: which part of every image is seen and at which size, such as `center_crop(224)`. It holds for
            evaluation, for serving and, unless `augment` begins with a `random_resized_crop`, for training.
        validation: Examples held out from training, a count or a fraction of what is not test.
        test: Examples held out for the test, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: So many unreadable images are left out and named in a warning; one more is an error that names all.
    """
    reader = ClassFolders(directory=Path(directory), transform=resolve_transform("image_folder", size, transform))
    return DataConfig(
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
        transform: How the files become images of one size.
        require_exact_size: Whether the files must have that size already.
        classes: Number of classes there must be, or None. Where it is given, so must `train` and `test` be.
    """

    directory: Path
    transform: ImageTransform
    require_exact_size: bool = False
    classes: int | None = None
    hint: str = HINT

    def find(self) -> ReadResult:
        listing = list_images(self.directory, self.classes)
        splits = {
            split_name: self._make_split(images, listing.classes) for split_name, images in listing.splits.items()
        }
        return ReadResult(classes=listing.classes, problems=listing.problems, **splits)

    def _make_split(self, images, classes):
        """The images of one split, by class and name."""
        names = [name for class_name in classes for name in images.get(class_name, ())]
        labels = [label for label, each in enumerate(classes) for _ in images.get(each, ())]
        files = ImageFiles(
            root=self.directory,
            names=tuple(names),
            transform=self.transform,
            require_exact_size=self.require_exact_size,
        )
        return Split(images=files, labels=np.array(labels, np.int32))
