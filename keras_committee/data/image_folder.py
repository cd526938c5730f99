"""Images in one folder per class."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from keras_committee.class_folders import UNREADABLE_HINT, Listing, check_split_folders, list_images
from keras_committee.data.augment import Augmentation
from keras_committee.data.dataset import DataConfig, ReadResult
from keras_committee.data.images import ImageFiles
from keras_committee.data.preprocessing import ImageTransform, resolve_transform
from keras_committee.data.splits import Split
from keras_committee.files import expand_home


def image_folder(
    directory: str | os.PathLike,
    batch_size: int,
    *,
    size: tuple[int, int] | None = None,
    transform: ImageTransform | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    augment: Augmentation | None = None,
    skip_bad: int = 0,
    split_folders: Mapping[str, str] | None = None,
) -> DataConfig:
    """JPEG, PNG, WebP, BMP, GIF and AVIF images in one folder per class; the sorted folder names are the classes.

    Two layouts are supported: `directory/<class>/...`, from which a test split is held out, and
    `directory/train/<class>/...` next to `directory/test/<class>/...`. A folder `val` next to both is the validation
    split; without `test` it is the test split. Other spellings, in any case: `training`, `valid`, `validation`, `dev`,
    `testing`. A folder of such a name that contains images and no folders is a class. Two spellings of one split, or a
    further folder of images next to split folders, are an error, which `split_folders` resolves. Hidden files and those
    of file managers, such as `Thumbs.db`, are ignored; other files that are no images, such as `notes.txt`, are skipped
    with one warning.

    Held-out examples are the same for every seed. They keep the class proportions, but contain at least one example of
    every class. A class of two images has none left for validation if a test split is held out, too: a warning names
    such classes before training.

    Args:
        directory: The folder.
        batch_size: Examples per training step, over all devices.
        size: Height and width, in pixels, to resize every image to; or
        transform: Image transform, such as `center_crop(224)`, for evaluation, serving and, unless `augment` starts
            with a `random_resized_crop`, training.
        validation: Examples held out for validation: a count, or a fraction of the examples that are not test.
        test: Examples held out for test, a count or a fraction.
        augment: Augmentation of the training images, or None.
        skip_bad: Largest number of unreadable images to skip with a warning; with more, all are listed in an error.
        split_folders: Folder of each split, such as `{"train": "a", "validation": "b", "test": "c"}`; a split without
            a folder is held out. `{}` if every folder is a class. None recognizes split folders by their names.

    Raises:
        RecipeError: If `split_folders` has unknown splits, or no training split.
    """
    check_split_folders(split_folders, "image_folder")
    reader = ClassFolders(
        directory=expand_home(directory),
        transform=resolve_transform("image_folder", size, transform),
        split_folders=split_folders,
    )
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
    """Reader of class folders.

    Args:
        directory: The folder.
        transform: The transform from a file's image to one of the split's.
        require_exact_size: Whether the files must have the size of the transform; otherwise they are transformed.
        classes: Required number of classes, or None. If given, a training and a test folder are required too.
        split_folders: Folder of each split, as in `list_images`.
    """

    directory: Path
    transform: ImageTransform
    require_exact_size: bool = False
    classes: int | None = None
    split_folders: Mapping[str, str] | None = None
    hint: str = UNREADABLE_HINT

    def find(self) -> ReadResult:
        listing = list_images(self.directory, self.classes, self.split_folders)
        return read_listing(listing, self.directory, self.transform, require_exact_size=self.require_exact_size)


def read_listing(
    listing: Listing, root: Path, transform: ImageTransform, *, require_exact_size: bool = False
) -> ReadResult:
    """Return the examples of a listing, ordered by class and name.

    Args:
        listing: The images, relative to `root`.
        root: The folder of the images.
        transform: The transform from a file's image to one of the split's.
        require_exact_size: As in `ImageFiles`.
    """

    def make_split(images):
        names = [name for class_name in listing.classes for name in images.get(class_name, ())]
        labels = [label for label, class_name in enumerate(listing.classes) for _ in images.get(class_name, ())]
        files = ImageFiles(root=root, names=tuple(names), transform=transform, require_exact_size=require_exact_size)
        return Split(images=files, labels=np.array(labels, np.int32))

    return ReadResult(
        classes=listing.classes,
        problems=listing.problems,
        notes=listing.notes,
        warnings=listing.warnings,
        hint=listing.hint,
        **{split_name: make_split(images) for split_name, images in listing.splits.items()},
    )
