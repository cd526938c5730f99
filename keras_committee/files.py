"""How is a file written, so that it is there whole or not at all, and who may write it?"""

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_committee.errors import InUseError, ResourceError


def write_json(path: Path, document: Any) -> None:
    """Writes `document` as JSON; a reader sees the old file or the new one, never a part. NaN is a ValueError."""
    write_file(path, (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_file(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically and durably, making its folder where needed. Raises ResourceError."""
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


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_dir(path: Path) -> None:
    """Makes the names in folder `path` survive a power loss: what was renamed in it just now."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        location = f": {error.filename}" if error.filename and str(error.filename) != str(path) else ""
        raise ResourceError(
            f"cannot write {path}: {error.strerror or error}{location}.\n"
            "  Make room, mend the permissions, or name another folder."
        ) from error


@contextlib.contextmanager
def file_lock(path: Path, description: str, *, shared: bool = False, timeout: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path`. The kernel frees it when the process ends, in whatever way it ends.

    Args:
        path: The lock file; it is made, and says who holds it.
        description: What messages call the thing that is locked.
        shared: Whether others may hold it as well, if they share it too.
        timeout: Seconds to wait for another process to let go of it.

    Raises:
        InUseError: If another process holds it.
        ResourceError: If it cannot be written, or its file system has no locks.
    """
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)  # noqa: SIM115 - closed below
    with file:
        try:
            _acquire_lock(file.fileno(), fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic() + timeout)
        except BlockingIOError as error:
            raise InUseError(
                f"{description} is in use by {_lock_holder(file.read())}. Nothing was touched. Wait for it to end, or end it."
            ) from error
        except OSError as error:
            raise ResourceError(f"the file system of {path} has no locks: {error.strerror}.") from error
        with translate_os_errors(path):
            os.pwrite(file.fileno(), _holder_record(shared), 0)
        yield


def utc_timestamp() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _acquire_lock(fd: int, operation: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def _holder_record(shared: bool) -> bytes:
    """The name of this process, always as long: one write puts it whole over that of another who shares the lock."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": utc_timestamp(), "shared": shared}
    return json.dumps(holder).ljust(255).encode() + b"\n"


def _lock_holder(text: bytes) -> str:
    try:
        holder = json.loads(text)
    except ValueError:  # it has the lock, and is just writing its name
        return "another process"
    others = ", or by others that share it" if holder["shared"] else ""
    return f"pid {holder['pid']} on host {holder['host']} since {holder['since']}{others}"
