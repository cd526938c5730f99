"""How is the state of training kept, so that neither a kill nor a full disk nor a flipped bit loses more than minutes?

A checkpoint is a folder `step-000004120` with `arrays.npz` and `manifest.json`, which holds the digest of every file
and its own. It is written under a name that no reader looks at, flushed to the disk and renamed into place: it is there
whole, or not at all. The two newest are kept, so that a damaged one costs one interval.

1. `newest` reads the newest whose every byte is right, and says which newer ones were not.
2. Where there are checkpoints and none is right, nothing starts over by itself: that is a `RunError`.
3. What a checkpoint needs besides itself (the weights of the best epoch so far) lies in a folder of its own, written
   before it, checked with it, and removed only when no checkpoint that is kept names it.
"""

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.errors import ResourceError, RunError
from keras_committee.files import file_hash, flush_folder, write_file, writing

FORMAT = 1
KEPT = 2

# What keeps a whole file from being read: it is no reason to fall back, and to remove what cannot be read just now.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was saved: arrays by name, and a JSON document beside them."""

    step: int
    arrays: dict[str, np.ndarray]
    document: dict[str, Any]


class Damaged(Exception):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The checkpoints of one unfinished member.

    Args:
        folder: Where they lie. It need not exist yet.
        read_only: Whether another process writes here: then nothing is ever removed or renamed.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self._folder, self._read_only = folder, read_only

    def save(
        self, step: int, arrays: dict[str, np.ndarray], document: dict[str, Any], needs: str | None = None
    ) -> Path:
        """Writes a checkpoint; it is on the disk when this returns. Then older ones than the newest two are removed.

        Args:
            step: Steps trained; the name and the order of the checkpoint.
            arrays: Of any dtype but object.
            document: JSON with finite numbers.
            needs: The name of the folder from `save_aside` that this checkpoint is nothing without.

        Raises:
            ResourceError: If it cannot be written; the ones before it are untouched.
        """
        path = self._write(_name(step), arrays, {"needs": needs, "document": document})
        with writing(self._folder):
            self._prune()
        return path

    def save_aside(self, name: str, arrays: dict[str, np.ndarray]) -> str:
        """Writes arrays that the next checkpoints will name in `needs`, and returns `name`. Raises ResourceError."""
        self._write(name, arrays, {})
        return name

    def load_aside(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of `save_aside`. Raises RunError."""
        try:
            _verify(self._folder / name)
            return _arrays(self._folder / name)
        except Damaged as error:
            raise RunError(f"{error}. Train this member again: --from-scratch.") from error

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, None where none was ever finished, and a sentence for all that was in the way.

        Torn and damaged ones are removed: a damaged one would stand before those that are to come. Read-only, nothing
        is removed, and what the writer is at is no damage.

        Raises:
            RunError: If there are checkpoints and none can be used, or they are of another format.
            ResourceError: If permissions, memory or open files do not suffice to read them.
        """
        with writing(self._folder):
            damages = self._sweep()
        steps = sorted(self.steps(), reverse=True)
        for step in steps:
            try:
                checkpoint = self._read(step)
            except Damaged as error:
                damages.append(str(error))
                continue
            with writing(self._folder):
                for newer in [other for other in steps if other > step]:
                    self._remove(_name(newer))
            return checkpoint, damages
        if steps:
            listing = "\n  ".join(damages)
            raise RunError(
                f"no usable checkpoint in {self._folder}:\n  {listing}\n"
                "Nothing was touched. Bring back a copy of the folder, or discard it: --from-scratch."
            )
        return None, damages

    def discard(self) -> None:
        """Removes everything."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, step: int) -> Checkpoint:
        path = self._folder / _name(step)
        manifest = _verify(path)
        if manifest["needs"]:
            _verify(self._folder / manifest["needs"])
        return Checkpoint(step, _arrays(path), manifest["document"])

    def _write(self, name: str, arrays: dict[str, np.ndarray], entries: dict[str, Any]) -> Path:
        path, part = self._folder / name, self._folder / f".part-{name}-{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.mkdir()
            _write_arrays(part / "arrays.npz", arrays)
            files = {"arrays.npz": file_hash(part / "arrays.npz")}
            manifest = _signed({"format": FORMAT, "name": name, **entries, "files": files})
            write_file(part / "manifest.json", json.dumps(manifest, allow_nan=False).encode())
            self._put(part, path)
        except (OSError, ResourceError) as error:
            raise self._cannot_write(path, arrays, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return path

    def _put(self, part: Path, path: Path) -> None:
        """Renames `part` to `path`. The same step is there where a stop came at the end of an epoch."""
        old = self._folder / f".old-{path.name}"
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)  # `_bring_back` undoes it after a kill
        try:
            os.rename(part, path)
            flush_folder(self._folder)
        finally:
            self._bring_back()

    def _bring_back(self) -> None:
        """What was to be replaced and was not, takes its name again; what was replaced is removed."""
        for old in self._folder.glob(".old-*"):
            path = self._folder / old.name.removeprefix(".old-")
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.rename(old, path)

    def _cannot_write(self, path: Path, arrays: dict[str, np.ndarray], error: Exception) -> ResourceError:
        needed = sum(array.nbytes for array in arrays.values()) / 1e9
        there = next(folder for folder in [self._folder, *self._folder.absolute().parents] if folder.exists())
        free = shutil.disk_usage(there).free / 1e9
        steps = self.steps()
        safe = f"training state up to step {max(steps)} is safe" if steps else "no step was saved before"
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        return ResourceError(
            f"cannot write the checkpoint {path}: {reason} (needs {needed:.3f} GB, {free:.3f} GB free); {safe}.\n"
            "  Make room or mend the permissions, then give the same command again."
        )

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, damaged ones too."""
        names = [path.name for path in self._folder.glob("step-*")]
        return [int(name[5:]) for name in names if re.fullmatch(r"step-\d{9,}", name)]

    def _sweep(self) -> list[str]:
        """Removes what a killed process was writing, and says so."""
        if self._read_only:
            return []
        self._bring_back()
        torn = sorted(path.name for path in self._folder.glob(".part-*"))
        for name in [*torn, *(path.name for path in self._folder.glob(".gone-*"))]:
            self._remove(name)
        return [f"{self._folder / name} was never finished; removed" for name in torn]

    def _prune(self) -> None:
        kept = {_name(step) for step in sorted(self.steps())[-KEPT:]}
        needed = {self._needs(name) for name in kept}
        for path in list(self._folder.iterdir()):
            if path.name not in kept | needed:
                self._remove(path.name)

    def _needs(self, name: str) -> str | None:
        try:
            return json.loads((self._folder / name / "manifest.json").read_bytes())["needs"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged meanwhile, which `newest` will tell

    def _remove(self, name: str) -> None:
        path = self._folder / name
        if self._read_only or not path.exists():
            return
        doomed = path if name.startswith(".") else self._folder / f".gone-{name}-{os.getpid()}"
        if doomed != path:
            os.rename(path, doomed)  # at once, so that a kill in between leaves no half of a checkpoint
        shutil.rmtree(doomed, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path / "arrays.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _verify(path: Path) -> dict[str, Any]:
    """The manifest of the folder `path`, whose files are those that it was written for."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest != _signed({key: value for key, value in manifest.items() if key != "sha256"}):
            raise Damaged(f"{path} fails its checksum: manifest.json")
        _check_kind(path, manifest)
        wrong = [name for name, digest in manifest["files"].items() if file_hash(path / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in _UNREADABLE:
            raise ResourceError(f"cannot read the checkpoint {path}: {error.strerror}. Nothing was touched.") from error
        raise Damaged(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if wrong:
        raise Damaged(f"{path} fails its checksum: {', '.join(wrong)}")
    return manifest


def _check_kind(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{path} has format {manifest['format']}; this version of keras-committee reads format {FORMAT}. "
            "Go on with the version that wrote it, or train again: --from-scratch."
        )
    if manifest["name"] != path.name:
        raise Damaged(f"{path} was written as {manifest['name']}")


def _signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the digest of itself, so that not even a digit of a step can change unseen."""
    text = json.dumps(manifest, sort_keys=True, allow_nan=False)
    return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}
