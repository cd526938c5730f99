"""Tables of image files and their labels: CSV and Parquet."""

import csv
import dataclasses
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_committee.class_folders import SPLIT_SPELLINGS, Listing, assign_splits, lookalikes, split_named
from keras_committee.errors import DataError, RecipeError, raise_if_problems

_IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "filepath", "image_path", "image_file")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
_DELIMITERS = ",;\t|"
_HINT = "Fix the table, or name its columns with image_column, label_column and split_column, then run it again."
_CLASSES_HINT = "Name a table with an image and its label in each row."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableColumns:
    """The columns of a table, and where its files are.

    Args:
        image: Name of the column of paths. None recognizes `image`, `path`, `file`, `filename` and the like.
        label: Name of the column of labels. None recognizes `label`, `class`, `category` and the like.
        split: Name of the column of splits. None: there is none. A missing `"split"`, the default, counts as none.
        suffix: Text appended to each path, such as `".jpg"`.
    """

    image: str | None = None
    label: str | None = None
    split: str | None = "split"
    suffix: str = ""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of a table: where it is, such as `"line 7"`, and its values without spaces at the ends."""

    place: str
    image: str
    label: str
    split: str


def list_table(path: Path, root: Path, columns: TableColumns) -> Listing:
    """List the images of a table, by split and class, each sorted by name: the order of the rows has no effect.

    Labels that are all integers are ordered by their value, others as text. In the column of splits, `val`, `valid`,
    `dev` and so on are recognized as in the names of folders. A row that repeats another one is left out.

    Args:
        path: A `.parquet` file, or a text file with a header and columns separated by commas, semicolons, tabs or bars.
        root: The folder that paths are relative to.
        columns: The columns.

    Raises:
        DataError: If the table cannot be read, or has none of the columns.
        RecipeError: If a package that reads Parquet is missing.
    """
    header, rows = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    names = _find_columns(path, header, columns)
    rows, problems = _clean_rows(rows, names, _root_relative(root, columns.suffix))
    rows, repeated, contradictions = _merge_rows(rows)
    problems += contradictions
    splits, split_problems, notes = _assign_rows(rows, "split" in names)
    classes = _sorted_labels({row.label for row in rows})
    problems += split_problems + [
        f"{form}: {len(alike)} labels look like this, in different Unicode forms: {', '.join(map(ascii, alike))}"
        for form, alike in lookalikes(classes).items()
    ]
    listed = {
        split: {name: sorted(images) for name, images in _group(split_rows, classes).items()}
        for split, split_rows in splits.items()
    }
    problems += [
        f"class {name!r} has no row in the split train"
        for name, images in listed.get("train", {}).items()
        if not images
    ]
    if repeated:
        rows_repeat = "1 row repeats another one" if repeated == 1 else f"{repeated:,} rows repeat others"
        notes.append(f"{rows_repeat} and {'is' if repeated == 1 else 'are'} left out")
    return Listing(
        classes=classes,
        splits=listed or {"train": {}},
        problems=problems or ([] if rows else ["the table has no rows"]),
        split_folders={},
        notes=notes,
        skipped=[],
        classes_hint=_CLASSES_HINT,
        problems_hint=_HINT,
    )


def _read_csv(path: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the header, and the rows with the names of their lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: the table cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the table is not UTF-8 text ({error}). Save it as UTF-8, or as Parquet.") from error
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(f"line {reader.line_num}", row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Fix the table, then run it again.") from error
    if not rows:
        raise DataError(f"{path}: the table is empty. {_CLASSES_HINT}")
    (_, header), *body = rows
    wrong = [f"{place}: {len(row)} values, expected {len(header)}" for place, row in body if len(row) != len(header)]
    raise_if_problems(str(path), wrong, "Fix the table, then run it again.")
    return [name.strip() for name in header], body


def _read_parquet(path: Path) -> tuple[list[str], list[tuple[str, list[Any]]]]:
    """Return the names of the columns, and the rows with their numbers, counted from 1."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise RecipeError(f'{path} requires pip install "keras-committee[parquet]": {error}') from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path}: the table cannot be read ({reason}).") from error
    columns = [column.to_pylist() for column in table.columns]
    rows = enumerate(zip(*columns, strict=True), start=1)
    return table.column_names, [(f"row {number}", list(row)) for number, row in rows]


def _find_columns(path: Path, header: Sequence[str], columns: TableColumns) -> dict[str, int]:
    """Return the position of the columns `"image"` and `"label"`, and of `"split"` if there is one."""
    problems, found = [], {}
    for role, name, usual in (("image", columns.image, _IMAGE_COLUMNS), ("label", columns.label, _LABEL_COLUMNS)):
        candidates = [name] if name else [column for column in header if column.lower() in usual]
        present = [candidate for candidate in candidates if candidate in header]
        if len(present) == 1:
            found[role] = header.index(present[0])
        elif present:
            problems.append(f"the columns {' and '.join(present)} may both be the {role}; set {role}_column")
        else:
            what = f"no column {name!r}" if name else f"none of the columns {', '.join(usual)}"
            problems.append(f"there is {what} for the {role}; the columns are {', '.join(header)}")
    if columns.split in header:
        found["split"] = header.index(columns.split)
    elif columns.split not in (None, "split"):
        problems.append(f"there is no column {columns.split!r} for the split; the columns are {', '.join(header)}")
    raise_if_problems(str(path), problems, _HINT)
    return found


def _clean_rows(
    rows: Sequence[tuple[str, Sequence[Any]]], names: Mapping[str, int], relative: Callable[[str], str]
) -> tuple[list[_Row], list[str]]:
    """Return the rows with an image and a label, and a problem for each of the others."""
    clean, problems = [], []
    for place, values in rows:
        texts = {role: "" if values[column] is None else str(values[column]).strip() for role, column in names.items()}
        if not isinstance(values[names["image"]], str | int | None):
            problems.append(f"{place}: the image is {type(values[names['image']]).__name__}, expected a path")
        elif not (texts["image"] and texts["label"]):
            problems.append(f"{place}: there is no {'label' if texts['image'] else 'image'}")
        else:
            clean.append(_Row(place, relative(texts["image"]), texts["label"], texts.get("split", "")))
    return clean, problems


def _root_relative(root: Path, suffix: str) -> Callable[[str], str]:
    """Return a function from a path in the table to the name of a file relative to `root`, with forward slashes."""
    top = os.path.abspath(root)

    def relative(text: str) -> str:
        name = os.path.normpath((text if "/" in text else text.replace("\\", "/")) + suffix)
        if os.path.isabs(name) and os.path.commonpath([top, name]) == top:
            name = os.path.relpath(name, top)  # the digest of the data must not depend on where they are
        return name

    return relative


def _merge_rows(rows: Sequence[_Row]) -> tuple[list[_Row], int, list[str]]:
    """Return the rows without repetitions, the number of these, and a problem for each contradiction."""
    by_image: dict[str, _Row] = {}
    repeated, problems = 0, []
    for row in rows:
        first = by_image.setdefault(row.image, row)
        if first is row:
            continue
        if (first.label, first.split) == (row.label, row.split):
            repeated += 1
            continue
        what, one, other = ("label", first.label, row.label)
        if one == other:
            what, one, other = "split", first.split, row.split
        problems.append(f"{row.image}: the {what} is {one!r} in {first.place} and {other!r} in {row.place}")
    return list(by_image.values()), repeated, problems


def _assign_rows(rows: Sequence[_Row], has_splits: bool) -> tuple[dict[str, list[_Row]], list[str], list[str]]:
    """Return the rows of each split, a problem for each name that is none, and one sentence per decision."""
    if not has_splits:
        return {"train": list(rows)}, [], []
    by_name: dict[str, list[_Row]] = {}
    problems = []
    for row in rows:
        if name := split_named(row.split):
            by_name.setdefault(name, []).append(row)
        else:
            spellings = ", ".join(name for names in SPLIT_SPELLINGS.values() for name in names)
            problems.append(f"{row.place}: the split is {row.split!r}, expected one of {spellings}")
    names, _, notes = assign_splits(by_name)
    if rows and not problems and "train" not in names:
        problems.append("no row is in the split train")
    return {split: by_name[name] for split, name in names.items()}, problems, notes


def _group(rows: Sequence[_Row], classes: Sequence[str]) -> dict[str, list[str]]:
    images: dict[str, list[str]] = {name: [] for name in classes}
    for row in rows:
        images[row.label].append(row.image)
    return images


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    """Return the labels, ordered by value if all of them are integers."""
    are_integers = all(label.removeprefix("-").isdecimal() and label.isascii() for label in labels)
    return tuple(sorted(labels, key=(lambda label: (int(label), label)) if are_integers else None))
