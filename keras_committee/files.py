"""How is a file written, so that it is there whole or not at all?"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_committee.errors import ResourceError


def write_json(path: Path, document: Any) -> None:
    """Writes `document` as JSON; a reader sees the old file or the new one, never a part. NaN is a ValueError."""
    write_file(path, (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically and durably, making its folder where needed. Raises ResourceError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Makes the names in folder `path` survive a power loss: what was renamed in it just now."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f": {error.filename}" if error.filename and str(error.filename) != str(path) else ""
        raise ResourceError(
            f"cannot write {path}: {error.strerror}{where}.\n  Make room, mend the permissions, or name another folder."
        ) from error
