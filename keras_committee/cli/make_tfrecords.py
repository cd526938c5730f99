"""`keras-committee make-tfrecords`: convert class folders to TFRecord files."""

import contextlib
import contextvars
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from keras_committee.class_folders import list_images
from keras_committee.cli.options import HomePath, json_option, split_folders_option, standard_options
from keras_committee.cli.output import print_json, reserve_stdout_for_json
from keras_committee.errors import raise_if_problems
from keras_committee.files import require_free
from keras_committee.folder_kinds import FolderKind, folder_kind
from keras_committee.keras_config import loading_backend
from keras_committee.progress import step
from keras_committee.tables import print_text


@click.command()
@click.argument("source", type=HomePath(path_type=Path))
@click.argument("destination", metavar="DEST", type=HomePath(path_type=Path))
@click.option("--shards", type=click.IntRange(1, 99999), metavar="N", required=True, help="Number of training shards.")
@click.option(
    "--validation-shards",
    type=click.IntRange(1, 99999),
    metavar="N",
    help="Number of shards of each other split.",
    show_default="an eighth of --shards",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Number of threads.", show_default="one per core, at most 8"
)
@click.option(
    "--keep-encoding",
    is_flag=True,
    help="Keep PNG and CMYK images instead of converting them to RGB JPEG, the only format that Model Garden reads.",
)
@click.option(
    "--skip-bad",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Largest number of unreadable images to skip with a warning.",
)
@split_folders_option
@json_option
@standard_options
def make_tfrecords(
    source: Path,
    destination: Path,
    shards: int,
    validation_shards: int | None,
    workers: int | None,
    keep_encoding: bool,
    skip_bad: int,
    split_folders: dict[str, str] | None,
    as_json: bool,
) -> None:
    """Convert class folders to TFRecord files.

    SOURCE holds one folder per class, optionally below `train`, `val` and `test` folders. The records are shuffled and
    have Model Garden's format, with the class names in labels.txt; read them with data.imagenet_records. DEST must not
    exist; it appears once all records are written. To resume an interrupted conversion, run the same command again.
    """
    start = time.monotonic()
    _check_folders(source, destination, split_folders)
    with reserve_stdout_for_json(as_json), _displayed() as report:
        with loading_backend():
            from keras_committee.data.record_writer import write_tfrecords

        written = write_tfrecords(
            source,
            destination,
            shards=shards,
            validation_shards=validation_shards,
            workers=workers,
            keep_encoding=keep_encoding,
            skip_bad=skip_bad,
            split_folders=split_folders,
            on_progress=report,
        )
    if as_json:
        print_json({"destination": str(destination), "seconds": round(time.monotonic() - start, 3), **written})
        return
    parts = [f"{split['examples']} {name} in {split['shards']} shards" for name, split in written["splits"].items()]
    print_text(f"{', '.join(parts)}; {written['classes']} classes")
    if written["reencoded"]:
        print_text(f"{written['reencoded']} PNG or CMYK images were encoded as JPEG, quality 100 (--keep-encoding)")
    print_text(f"Read them with data.imagenet_records({shlex.quote(str(destination))}, ...)")


def _check_folders(source: Path, destination: Path, split_folders: dict[str, str] | None) -> None:
    """Raise DataError or RecipeError for wrong folders, before TensorFlow is imported."""
    require_free(destination)
    if folder_kind(source) is not FolderKind.IMAGES:  # a listing takes long for folders of many images
        listing = list_images(source, None, split_folders)
        raise_if_problems(str(source), listing.problems, listing.hint)


@contextmanager
def _displayed() -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that displays the number of images written and their total."""
    with contextlib.ExitStack() as steps:
        updates: list[Callable[[int], None]] = []
        context = contextvars.copy_context()  # with the display: the callback is called in threads

        def report(done: int, total: int) -> None:
            if not updates:
                updates.append(context.run(steps.enter_context, step(f"writing {total:,} images", total)))
            updates[0](done)

        yield report
