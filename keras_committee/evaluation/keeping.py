"""Where are arrays kept that are dear to compute, and are they still those of their source?

An array lies in one file, `<name>-<key>.npy`: the key in its name is the hash of what it was computed from, and the
last 32 bytes, which NumPy does not read, are the SHA-256 of all before them. It is mapped into memory.
"""

import hashlib
import io
import logging
from pathlib import Path

import numpy as np

from keras_committee.files import write_file, writing

_DIGEST_BYTES = hashlib.sha256().digest_size


def current(folder: Path, name: str, source: str) -> np.ndarray | None:
    """The array `name` that was computed from `source`, read-only and mapped into memory; None where it is not there.

    A damaged file is told on stderr and taken as not there.
    """
    file = _file(folder, name, source)
    if not file.exists():
        return None
    try:
        _verify(file)
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).warning("%s is damaged: %s. It is made anew.", file, error)
        return None


def keep(folder: Path, name: str, source: str, array: np.ndarray) -> None:
    """Writes the array for `current`, and deletes those of other sources under the same name. Raises ResourceError."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    file = _file(folder, name, source)
    write_file(file, content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    with writing(folder):
        for old in [*folder.glob(f"{name}-*.npy"), *folder.glob(f"{name}.npz")]:
            if old != file:
                old.unlink(missing_ok=True)


def _file(folder: Path, name: str, source: str) -> Path:
    return folder / f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:16]}.npy"


def _verify(file: Path) -> None:
    with open(file, "rb") as opened:
        content = opened.read()
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("its content does not have its checksum")
