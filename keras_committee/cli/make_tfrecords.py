"""`keras-committee make-tfrecords`: how do class folders become TFRecords?"""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from keras_committee.cli.options import json_option, standard_options
from keras_committee.cli.output import print_json, reserve_stdout_for_json

PROGRESS_INTERVAL_SECONDS = 10.0  # where there is no terminal to draw a bar on


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("destination", metavar="DEST", type=click.Path(path_type=Path))
@click.option(
    "--shards", type=click.IntRange(1, 99999), metavar="N", required=True, help="Files of the training split."
)
@click.option(
    "--validation-shards",
    type=click.IntRange(1, 99999),
    metavar="N",
    help="Files of every other split.  [default: an eighth of --shards]",
)
@click.option(
    "--workers", type=click.IntRange(1), metavar="N", help="Threads.  [default: one for each core, 8 at most]"
)
@click.option("--keep-encoding", is_flag=True, help="Leave PNG and CMYK as they are; Model Garden reads only RGB JPEG.")
@json_option
@standard_options
def make_tfrecords(
    source: Path,
    destination: Path,
    shards: int,
    validation_shards: int | None,
    workers: int | None,
    keep_encoding: bool,
    as_json: bool,
) -> None:
    """Write the images of SOURCE as TFRecords into folder DEST.

    SOURCE is a folder of class folders, or of train and val that hold such. The records have Model Garden's format,
    shuffled, with the class names in labels.txt; data.imagenet_records reads them. DEST is a new folder, which appears
    when all of it is written; where the command was killed, the same one goes on.
    """
    start = time.monotonic()
    with reserve_stdout_for_json(as_json), _progress_reporter() as report:
        from keras_committee.data.record_writer import write_tfrecords

        written = write_tfrecords(
            source,
            destination,
            shards=shards,
            validation_shards=validation_shards,
            workers=workers,
            keep_encoding=keep_encoding,
            on_progress=report,
        )
    if as_json:
        print_json({"destination": str(destination), "seconds": round(time.monotonic() - start, 3), **written})
        return
    parts = [f"{split['examples']} {name} in {split['shards']} shards" for name, split in written["splits"].items()]
    click.echo(f"{', '.join(parts)}; {written['classes']} classes")
    if written["encoded_anew"]:
        click.echo(f"{written['encoded_anew']} PNG or CMYK images were encoded as JPEG, quality 100 (--keep-encoding)")
    click.echo(f"Read them with data.imagenet_records({shlex.quote(str(destination))}, ...)")


@contextmanager
def _progress_reporter() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, else a line every ten seconds, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task, last_report = progress.add_task("images", total=None), None

        def report(done: int, total: int) -> None:
            nonlocal last_report
            progress.update(task, completed=done, total=total)
            now = time.monotonic()
            last_report = last_report or now
            if not console.is_terminal and (done == total or now - last_report > PROGRESS_INTERVAL_SECONDS):
                last_report = now
                console.print(f"{done} of {total} images")

        yield report
