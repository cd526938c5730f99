"""Atomic file writes, checksums and lock files.

What later commands rely on is stored with a checksum, so that one flipped bit is an error and never a wrong answer:
JSON objects have their SHA-256 as one more key (`write_record`, and `checked_line` for files of one object per line),
other contents have it as their last 32 bytes (`write_checked`).
"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_committee.errors import InUseError, RecipeError, ResourceError

_CHECKSUM_KEY = "checksum"  # of a JSON object: the `json_checksum` of the others

_DIGEST_BYTES = hashlib.sha256().digest_size
_LOCK_POLL_SECONDS = 0.02


def write_json(path: Path, document: Any) -> None:
    """Write `document` as JSON, atomically and durably.

    Raises:
        ValueError: If `document` contains a NaN or an infinity.
        ResourceError: If the file cannot be written. An old file stays unchanged.
    """
    write_file(path, json_content(document))


def json_content(document: Any) -> bytes:
    """Return the content of the file that `write_json` writes."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode(errors="backslashreplace")  # bytes of a path that are not UTF-8, as escapes of JSON


def write_record(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object with its checksum, for `read_record`. Raises as `write_json`."""
    write_json(path, _with_checksum(document))


def read_record(path: Path, *, may_be_edited: bool = False) -> dict[str, Any]:
    """Return the JSON object that `write_record` wrote.

    Args:
        path: The file.
        may_be_edited: Whether to accept an object without a checksum, as written by hand.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If its content is not what was written.
    """
    return parse_record(path.read_bytes(), may_be_edited=may_be_edited)


def parse_record(content: bytes, *, may_be_edited: bool = False) -> dict[str, Any]:
    """Return the JSON object of `write_record` or `checked_line` in `content`. Raises ValueError as `read_record`."""
    try:
        document = json.loads(content)
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not isinstance(document, dict):
        raise ValueError(f"its content must be an object. Received: {json.dumps(document)[:60]}")
    checksum = document.pop(_CHECKSUM_KEY, None)
    if checksum is None and not may_be_edited:
        raise ValueError("it has no checksum; an earlier version wrote none")
    if checksum is not None and checksum != json_checksum(document):
        hint = ". If you edited it, remove its key checksum" if may_be_edited else ""
        raise ValueError(f"its checksum does not match{hint}")
    return document


def checked_line(document: Mapping[str, Any]) -> bytes:
    """Return a JSON object with its checksum as one line, for `read_checked_lines`. Raises ValueError for a NaN."""
    return (json.dumps(_with_checksum(document), allow_nan=False) + "\n").encode()


def read_checked_lines(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return the JSON objects of lines that `checked_line` wrote. Raises ValueError, with the number of a bad line."""
    documents = []
    for number, line in enumerate(lines, 1):
        try:
            documents.append(parse_record(line))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return documents


def json_checksum(document: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal digits, of the content of a JSON object, whatever its layout.

    Raises:
        ValueError: If `document` contains a NaN or an infinity.
    """
    as_read = json.loads(json.dumps(document, allow_nan=False))  # keys are strings, and are sorted as such
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _with_checksum(document: Mapping[str, Any]) -> dict[str, Any]:
    return {**document, _CHECKSUM_KEY: json_checksum(document)}


def read_problem(error: Exception) -> str:
    """Return why a file cannot be read, without its path, which an `OSError` repeats."""
    return getattr(error, "strerror", None) or str(error)


def write_checked(path: Path, content: bytes) -> None:
    """Write `content` and its checksum, for `read_checked`. Raises as `write_file`."""
    write_file(path, content + hashlib.sha256(content).digest())


def read_checked(path: Path) -> bytes:
    """Return the content that `write_checked` wrote.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If its content is not what was written.
    """
    content = path.read_bytes()
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("the checksum does not match")
    return content[:-_DIGEST_BYTES]


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically and durably; missing parent folders are created.

    Raises:
        ResourceError: If the file cannot be written. An old file stays unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_dir(path.parent)


def expand_home(path: str | os.PathLike) -> Path:
    """Return `path` with a leading `~` or `~user` replaced by the home folder; unchanged if there is no such folder."""
    return Path(os.path.expanduser(path))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Flush a folder to disk, so that files renamed in it survive a power loss."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Raise each `OSError` of the block as a `ResourceError` about writing `path`."""
    try:
        yield
    except OSError as error:
        location = f": {error.filename}" if error.filename and str(error.filename) != str(path) else ""
        hint = "Free disk space, fix the permissions, or choose another folder."
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            hint = "A file has the name of the folder. Choose another folder, or move the file away."
        raise ResourceError(f"cannot write {path}: {error.strerror or error}{location}.\n  {hint}") from error


def require_free(folder: Path) -> None:
    """Raise RecipeError if a folder that a command is about to create exists and is not empty, or is a file."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder} exists. No file was changed. Name another folder, or remove it.")


@contextlib.contextmanager
def file_lock(path: Path, description: str, *, shared: bool = False, timeout: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`. The kernel releases it when the process ends, even if it is killed.

    Args:
        path: The lock file. It is created if missing; its content identifies the holder.
        description: Name of the locked thing in error messages.
        shared: Whether other processes may hold a shared lock at the same time.
        timeout: Seconds to wait for the lock.

    Raises:
        InUseError: If another process still holds the lock after `timeout`.
        ResourceError: If the file cannot be written, or its file system does not support locks.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115 - closed below
    with file:
        try:
            _acquire_lock(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + timeout)
        except BlockingIOError as error:
            raise InUseError(
                f"{description} is in use by {_lock_holder(file.read())}. No file was changed. "
                "Wait for that process to end, or stop it."
            ) from error
        except OSError as error:
            raise ResourceError(
                f"the file system of {path} does not support locks: {error.strerror}. Choose a folder on another one."
            ) from error
        with translate_os_errors(path):
            os.pwrite(file.fileno(), _holder_record(shared), 0)
        yield


def utc_timestamp() -> str:
    """Return the current time in UTC, as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _acquire_lock(fd: int, operation: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_LOCK_POLL_SECONDS)


def _holder_record(shared: bool) -> bytes:
    """Return the identity of this process, padded to 256 bytes: one write replaces that of another shared holder."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_timestamp(), "shared": shared}
    return json.dumps(holder).ljust(255).encode() + b"\n"


def _lock_holder(record: bytes) -> str:
    try:
        holder = json.loads(record)
    except ValueError:  # the holder has the lock, but has not written its record yet
        return "another process"
    others = ", or by other processes that share it" if holder["shared"] else ""
    return f"pid {holder['pid']} on host {holder['host']} since {holder['since']}{others}"
