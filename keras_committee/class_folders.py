"""Lists of the images in class folders: one folder per class, with or without split folders above them."""

import dataclasses
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from keras_committee.errors import DataError, RecipeError, raise_if_problems
from keras_committee.folder_kinds import IMAGE_SUFFIXES, SPLIT_SPELLINGS, FolderKind, explain_wrong_folder

UNREADABLE_HINT = (
    "Fix or remove what is listed above (in the recipe, skip_bad=N skips up to N unreadable images), then run the "
    "command again."
)

_PROBLEMS_HINT = "Fix or remove what is listed above, then run the command again."
_CLASSES_HINT = "Name the folder that contains one folder of images per class."

_LAYOUT_HINT = (
    'State the layout in the recipe: split_folders={"train": "FOLDER", "test": "FOLDER"}, or split_folders={} if every '
    "folder is a class; on the command line: --split-folders train=FOLDER,test=FOLDER, or --split-folders none."
)
# Written by file managers, archives and network drives, like hidden files; in lower case.
_SYSTEM_NAMES = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "@eadir",
    "lost+found",
    "$recycle.bin",
)
# Images in formats that are not supported: they were meant to be used, so skipping them would lose examples.
_OTHER_IMAGE_SUFFIXES = (".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jxl", ".ppm", ".tif", ".tiff")
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8")
_MAX_LISTED_FILES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of class folders.

    Args:
        classes: Sorted names of the classes of all splits.
        splits: For `"train"`, and for `"validation"` and `"test"` if they have folders, the images of each class:
            paths relative to the root folder, sorted by name.
        problems: One sentence for each missing folder, empty class or unsupported file.
        split_folders: The folder of each split, relative to the root folder; empty if every folder is a class.
        notes: One sentence for each decision between two plausible layouts.
        skipped: The other files in the class folders, such as `cat/notes.txt`, sorted; without hidden files.
        problems_hint: What to do about the problems.
        classes_hint: The same, if there are fewer than two classes.
    """

    classes: tuple[str, ...]
    splits: dict[str, dict[str, list[str]]]
    problems: list[str]
    split_folders: dict[str, str]
    notes: list[str]
    skipped: list[str]
    problems_hint: str = _PROBLEMS_HINT
    classes_hint: str = _CLASSES_HINT

    @property
    def hint(self) -> str:
        """What to do about the problems."""
        return self.problems_hint if len(self.classes) > 1 else self.classes_hint

    @property
    def warnings(self) -> list[str]:
        """One sentence about the skipped files, if there are any."""
        if not self.skipped:
            return []
        listed = ", ".join(self.skipped[:_MAX_LISTED_FILES])
        count, more = len(self.skipped), len(self.skipped) - _MAX_LISTED_FILES
        files = "1 file that is not an image" if count == 1 else f"{count:,} files that are not images"
        return [f"skipped {files}: {listed}{f' and {more:,} more' if more > 0 else ''}"]


def list_images(directory: Path, classes: int | None = None, split_folders: Mapping[str, str] | None = None) -> Listing:
    """List the images in `directory/<class>/`, or in `directory/<split>/<class>/`.

    Split folders are recognized by their names, the `SPLIT_SPELLINGS` in any case, if they contain class folders and no
    images; a folder of that name with images and no class folders is a class. Without a test folder the validation
    folder is the test split, as ImageNet is distributed.

    Args:
        directory: The root folder.
        classes: Expected number of classes, or None. If given, a training and a test split must exist.
        split_folders: Folder of each split, relative to `directory`; empty if every folder is a class. None recognizes
            them.

    Raises:
        DataError: If `directory` is not a folder, its name is not UTF-8, its layout is ambiguous, or a folder in it
            cannot be read.
    """
    if not directory.is_dir():
        reason = "is not a folder" if directory.exists() else "there is no such folder"
        raise_if_problems(str(directory), [reason], "Name the folder that holds the images.")
    if not is_utf8(str(directory)):
        raise_if_problems(show_bytes(str(directory)), ["the name is not UTF-8"], "Rename the folder.")
    notes: list[str] = []
    if split_folders is None:
        split_folders, notes = _detect_split_folders(directory, classes)
    split_dirs = dict(split_folders) or {"train": ""}
    class_dirs = {split: _class_dir_names(directory / split_dir) for split, split_dir in split_dirs.items()}
    class_names = tuple(sorted({name for names in class_dirs.values() for name in names if is_utf8(name)}))
    problems = _folder_problems(directory, split_dirs, class_dirs, class_names, classes)
    if not split_folders:
        _check_level(directory, class_names)
    splits, skipped = {}, []
    for split, split_dir in split_dirs.items():
        splits[split] = {}
        for name in (name for name in class_names if name in class_dirs[split]):
            class_dir = f"{split_dir}/{name}" if split_dir else name
            splits[split][name], class_problems, others = _list_class_images(directory, class_dir)
            problems += class_problems
            skipped += others
    return Listing(
        classes=class_names,
        splits=splits,
        problems=problems,
        split_folders=dict(split_folders),
        notes=notes,
        skipped=skipped,
    )


def split_named(name: str) -> str | None:
    """Return the split that a folder, or the shards of TFRecords, of this name hold; None if it names no split."""
    lowercase = name.lower()
    return next((split for split, spellings in SPLIT_SPELLINGS.items() if lowercase in spellings), None)


def assign_splits(names: Iterable[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Assign the names of folders, or of the shards of TFRecords, to splits.

    Args:
        names: Names, each of which `split_named` recognizes.

    Returns:
        The name of each split; one sentence per problem; one sentence per decision. Without a test split the
        validation split is the test split, as ImageNet is distributed.
    """
    by_split: dict[str, list[str]] = {}
    for name in names:
        by_split.setdefault(split_named(name) or name, []).append(name)
    problems = [
        f"{', '.join(spellings)}: {len(spellings)} names of the {split} split; keep one"
        for split, spellings in by_split.items()
        if len(spellings) > 1
    ]
    splits = {split: spellings[0] for split, spellings in by_split.items()}
    if "test" in splits or "validation" not in splits:
        return splits, problems, []
    splits["test"] = splits.pop("validation")
    return splits, problems, [f"{splits['test']!r} is used as the test split, since there is none named test"]


def check_split_folders(split_folders: Mapping[str, str] | None, name: str) -> None:
    """Raise RecipeError unless the argument `split_folders` of `name` is None, empty, or has a folder for `"train"`."""
    unknown = sorted(set(split_folders or ()) - set(SPLIT_SPELLINGS))
    if unknown or (split_folders and "train" not in split_folders):
        raise RecipeError(
            f'{name}: split_folders must name the folder of "train", and may name those of "validation" and "test"; '
            f"{{}} if every folder is a class. Received: split_folders={dict(split_folders or {})}"
        )


def is_utf8(name: str) -> bool:
    """Return whether the name of a file, as Python returns it, is UTF-8 on disk."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python maps other bytes to lone surrogates
        return False
    return True


def show_bytes(name: str) -> str:
    """Return a name of a file that is not UTF-8 as it is on disk, with escapes."""
    return repr(os.fsencode(name))


def show_difference(name: str, others: Iterable[str]) -> str:
    r"""Return what a missing name differs from, if another one looks alike: `" (there is 'cafe\u0301')"`, or `""`.

    Names look alike if they differ only in Unicode normalization, case or spaces at the ends: macOS decomposes accents.
    """
    alike = [ascii(other) for other in others if other != name and _appearance(other) == _appearance(name)]
    return f" ({name!a} is missing; there is {', '.join(alike)})" if alike else ""


def lookalikes(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the classes that no reader of a report could tell apart, by what they look like.

    They have the same letters in two Unicode forms.
    """
    by_form: dict[str, list[str]] = {}
    for name in names:
        by_form.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return {form: alike for form, alike in by_form.items() if len(alike) > 1}


def distinguish(name: str, other: str) -> tuple[str, str]:
    """Return two different names as they are; with quotes and escapes if they look alike as in `show_difference`."""
    return (ascii(name), ascii(other)) if _appearance(name) == _appearance(other) else (name, other)


def class_count_problems(classes: Sequence[str]) -> list[str]:
    """Return a problem if there are fewer than two classes."""
    return [] if len(classes) > 1 else ["only one class; a classifier needs at least two"]


def _appearance(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().casefold()


def _detect_split_folders(directory: Path, classes: int | None) -> tuple[dict[str, str], list[str]]:
    """Return the folder of each split, empty if every folder is a class, and one sentence per decision."""
    folders = _class_dir_names(directory)
    named = [name for name in folders if split_named(name)]
    if classes is None:
        others = [name for name in folders if not split_named(name)]
        with_classes = [name for name in named if _holds_classes(directory / name)]
        if not with_classes and others and len(named) == 1:
            return {}, [f"{named[0]}/ is a class, not a split: it holds images and no class folders"]
        if not named:
            return {}, []
        problems = [f"{name}/: {_why_not_a_split(directory / name)}" for name in named if name not in with_classes]
        problems += [
            f"{name}/: has images, but is not named like a split ({_spellings()})"
            for name in others
            if with_classes and _holds_images(directory / name)
        ]
        raise_if_problems(str(directory), problems, _LAYOUT_HINT)
    split_folders, problems, notes = assign_splits(named)
    raise_if_problems(str(directory), problems, _LAYOUT_HINT)
    notes = [f"{note}; to choose, set split_folders" for note in notes]
    return {"train": "train", **({} if "test" in split_folders else {"test": "test"}), **split_folders}, notes


def _spellings() -> str:
    return "; ".join(", ".join(spellings) for spellings in SPLIT_SPELLINGS.values())


def _holds_classes(folder: Path) -> bool:
    """Return whether a folder has subfolders, and no images beside them."""
    entries = _visible_entries(folder)
    return any(entry.is_dir() for entry in entries) and not any(map(_is_image, entries))


def _holds_images(folder: Path) -> bool:
    """Return whether a folder, or one of its subfolders, has images."""
    entries = _visible_entries(folder)
    return any(map(_is_image, entries)) or any(
        _is_image(inner) for entry in entries if entry.is_dir() for inner in _visible_entries(Path(entry.path))
    )


def _why_not_a_split(folder: Path) -> str:
    if not _holds_images(folder):
        return "named like a split, but has no class folders"
    has_folders = any(entry.is_dir() for entry in _visible_entries(folder))
    return f"named like a split, but has images {'beside its class folders' if has_folders else 'and no class folders'}"


def _is_image(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir()


def _folder_problems(
    directory: Path,
    split_dirs: dict[str, str],
    class_dirs: dict[str, list[str]],
    class_names: Sequence[str],
    classes: int | None,
) -> list[str]:
    missing = [split_dir for split_dir in split_dirs.values() if not (directory / split_dir).is_dir()]
    problems = [f"{split_dir}/: there is no such folder in {directory}" for split_dir in missing]
    if missing == ["test"] and classes is None:
        problems[0] += f"; to hold out test images from {split_dirs['train']}/, use that folder alone"
    for split, split_dir in split_dirs.items():
        prefix = f"{split_dir}/" if split_dir else ""
        problems += [
            f"{prefix}{show_bytes(name)}: the name is not UTF-8; rename the folder"
            for name in class_dirs[split]
            if not is_utf8(name)
        ]
        problems += _lookalike_problems(prefix, class_dirs[split])
        if split_dir not in missing:
            problems += [
                f"{prefix}{name}: there is no such folder, but another split has the class"
                f"{show_difference(name, class_dirs[split])}"
                for name in class_names
                if name not in class_dirs[split]
            ]
    if classes not in (None, len(class_names)) and not missing:
        problems.append(f"{len(class_names)} class folders, expected {classes}")
    if not class_names and not missing and not problems:
        explanation = explain_wrong_folder(directory, FolderKind.IMAGES)
        problems.append(f"there are no class folders in {directory}{explanation and f': {explanation}'}")
    return problems


def _check_level(directory: Path, class_names: Sequence[str]) -> None:
    """Raise DataError if the folder above the class folders was given, or a folder of something else."""
    if class_names and not any(_holds_images(directory / name) for name in class_names):
        explanation = explain_wrong_folder(directory, FolderKind.IMAGES)
        raise_if_problems(str(directory), [explanation] if explanation else [], _CLASSES_HINT)
    elif len(class_names) == 1 and _holds_classes(directory / class_names[0]):
        problem = f"its only folder, {class_names[0]}, contains the class folders"
        raise_if_problems(str(directory), [problem], f"Did you mean {str(directory / class_names[0])!r}?")


def _lookalike_problems(prefix: str, names: Sequence[str]) -> list[str]:
    return [
        f"{prefix}{form}: {len(alike)} folders have this name, in different Unicode forms: "
        f"{', '.join(map(ascii, alike))}; rename or merge them"
        for form, alike in lookalikes(names).items()
    ]


def _visible_entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not _is_system_file(entry.name)]
    except OSError as error:
        reason = f"the folder cannot be read ({error.strerror})"
        raise DataError(f"{folder}: {reason}. Change its permissions, or move it away.") from error
    return sorted(visible, key=lambda entry: entry.name)


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _class_dir_names(folder: Path) -> list[str]:
    return [entry.name for entry in _visible_entries(folder) if entry.is_dir()] if folder.is_dir() else []


def _list_class_images(root: Path, class_dir: str) -> tuple[list[str], list[str], list[str]]:
    """Return the images of one class folder, the problems found there, and the other files, relative to `root`."""
    images, problems, skipped = [], [], []
    for entry in _visible_entries(root / class_dir):
        name = f"{class_dir}/{entry.name}"
        if not is_utf8(entry.name):
            problems.append(f"{class_dir}/{show_bytes(entry.name)}: the name is not UTF-8; rename it")
        elif entry.is_dir():
            problems.append(f"{name}/: folders inside a class folder are not supported")
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(name)
        elif _is_unsupported_image(entry):
            problems.append(f"{name}: not supported, images end in {', '.join(IMAGE_SUFFIXES)}; convert or rename it")
        else:
            skipped.append(name)
    if not images:
        problems.append(f"{class_dir}/: the class has no images")
    return images, problems, skipped


def _is_unsupported_image(entry: os.DirEntry) -> bool:
    """Return whether a file has another image format, or the content of an image under another name."""
    if entry.name.lower().endswith(_OTHER_IMAGE_SUFFIXES):
        return True
    try:
        with open(entry.path, "rb") as file:
            return file.read(4).startswith(_IMAGE_SIGNATURES)
    except OSError:  # a broken link, or a file without permission
        return False
