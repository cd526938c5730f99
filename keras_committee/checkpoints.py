"""Checkpoints of a training state that survive kills, full disks and flipped bits.

A checkpoint is a folder `step-000004120` with `arrays.npz` and `manifest.json`, which holds the SHA-256 of every file
and of itself. It is written under a name that no reader uses, flushed to disk and renamed into place: it exists
completely or not at all. The two newest are kept, so a damaged one costs one interval.

1. `load_newest` returns the newest checkpoint whose every byte is verified, and reports the newer ones that are not.
2. If checkpoints exist and none is valid, training never starts over on its own: that is a `RunError`.
3. Files that a checkpoint requires besides itself (the weights of the best epoch so far) have a folder of their own. It
   is written before the checkpoint, verified with it, and removed only once no kept checkpoint refers to it.
"""

import dataclasses
import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from keras_committee.errors import ResourceError, RunError
from keras_committee.files import file_hash, fsync_dir, json_checksum, translate_os_errors, write_file

FORMAT = 1
KEEP_LAST = 2

# Errors that make a valid file unreadable for the moment: no reason to fall back and remove it.
_TRANSIENT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A saved state: arrays by name, and a JSON document."""

    step: int
    arrays: dict[str, np.ndarray]
    document: dict[str, Any]


class CorruptCheckpointError(Exception):
    """The content of a checkpoint differs from what was written."""


class Checkpoints:
    """The checkpoints of an unfinished member, or of several that train together.

    Args:
        folder: Folder of the checkpoints. It need not exist yet.
        read_only: Whether another process writes here. Nothing is then removed or renamed.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        self._folder, self._read_only = folder, read_only

    def save(
        self, step: int, arrays: dict[str, np.ndarray], document: dict[str, Any], requires: str | None = None
    ) -> Path:
        """Write a checkpoint durably, then remove all but the newest two.

        Args:
            step: Number of trained steps; it names and orders the checkpoints.
            arrays: Arrays of any dtype but object.
            document: JSON with finite numbers.
            requires: Name of the `save_named` folder without which this checkpoint is incomplete, or None.

        Raises:
            ResourceError: If it cannot be written; earlier checkpoints are unchanged.
        """
        path = self._write(_step_dir_name(step), arrays, {"needs": requires, "document": document})
        with translate_os_errors(self._folder):
            self._prune()
        return path

    def save_named(self, name: str, arrays: dict[str, np.ndarray]) -> str:
        """Write arrays that the next checkpoints refer to by `requires`, and return `name`. Raises ResourceError."""
        self._write(name, arrays, {})
        return name

    def load_named(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of `save_named`. Raises RunError if they are damaged."""
        try:
            _read_verified_manifest(self._folder / name)
            return _load_arrays(self._folder / name)
        except CorruptCheckpointError as error:
            raise RunError(f"{error}. Train this member again: --restart.") from error

    def load_newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest valid checkpoint, or None if none was ever completed, and a message for each problem found.

        Incomplete and damaged checkpoints are removed: a damaged one would precede the ones still to be written. With
        `read_only` nothing is removed, and what another process is writing is no problem.

        Raises:
            RunError: If checkpoints exist and none can be used, or they have another format.
            ResourceError: If they cannot be read for lack of permissions, memory or open files.
        """
        with translate_os_errors(self._folder):
            problems = self._delete_stale()
        steps = sorted(self.steps(), reverse=True)
        for step in steps:
            try:
                checkpoint = self._read(step)
            except CorruptCheckpointError as error:
                problems.append(str(error))
                continue
            with translate_os_errors(self._folder):
                for newer_step in [other for other in steps if other > step]:
                    self._remove(_step_dir_name(newer_step))
            return checkpoint, problems
        if steps:
            listing = "\n  ".join(problems)
            raise RunError(
                f"no usable checkpoint in {self._folder}:\n  {listing}\n"
                "No file was changed. Restore the folder from a backup, or discard it: --restart."
            )
        return None, problems

    def steps(self) -> list[int]:
        """Return the steps of all checkpoints, including damaged ones, in no order."""
        names = [path.name for path in self._folder.glob("step-*")]
        return [int(name[5:]) for name in names if re.fullmatch(r"step-\d{9,}", name)]

    def discard(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, step: int) -> Checkpoint:
        path = self._folder / _step_dir_name(step)
        manifest = _read_verified_manifest(path)
        if manifest["needs"]:
            _read_verified_manifest(self._folder / manifest["needs"])
        return Checkpoint(step, _load_arrays(path), manifest["document"])

    def _write(self, name: str, arrays: dict[str, np.ndarray], entries: dict[str, Any]) -> Path:
        target_dir, temp_dir = self._folder / name, self._folder / f".part-{name}-{os.getpid()}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temp_dir.mkdir()
            _write_arrays(temp_dir / "arrays.npz", arrays)
            files = {"arrays.npz": file_hash(temp_dir / "arrays.npz")}
            manifest = {"format": FORMAT, "name": name, **entries, "files": files}
            manifest["sha256"] = json_checksum(manifest)
            write_file(temp_dir / "manifest.json", json.dumps(manifest, allow_nan=False).encode())
            self._rename_into_place(temp_dir, target_dir)
        except (OSError, ResourceError) as error:
            raise self._write_error(target_dir, arrays, error) from error
        finally:
            shutil.rmtree(temp_dir, ignore_errors=True)
        return target_dir

    def _rename_into_place(self, temp_dir: Path, target_dir: Path) -> None:
        """Rename `temp_dir` to `target_dir`, which exists if training was interrupted at the end of an epoch."""
        replaced_dir = self._folder / f".old-{target_dir.name}"
        if target_dir.exists():
            shutil.rmtree(replaced_dir, ignore_errors=True)
            os.rename(target_dir, replaced_dir)  # `_restore_renamed` undoes it after a kill
        try:
            os.rename(temp_dir, target_dir)
            fsync_dir(self._folder)
        finally:
            self._restore_renamed()

    def _restore_renamed(self) -> None:
        """Give folders that were not replaced their name back, and remove those that were."""
        for replaced_dir in self._folder.glob(".old-*"):
            path = self._folder / replaced_dir.name.removeprefix(".old-")
            if path.exists():
                shutil.rmtree(replaced_dir, ignore_errors=True)
            else:
                os.rename(replaced_dir, path)

    def _write_error(self, path: Path, arrays: dict[str, np.ndarray], error: Exception) -> ResourceError:
        required_gb = sum(array.nbytes for array in arrays.values()) / 1e9
        existing_dir = next(folder for folder in [self._folder, *self._folder.absolute().parents] if folder.exists())
        free_gb = shutil.disk_usage(existing_dir).free / 1e9
        steps = self.steps()
        saved = f"training state up to step {max(steps)} is safe" if steps else "no step was saved before"
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        return ResourceError(
            f"cannot write the checkpoint {path}: {reason} "
            f"(needs {required_gb:.3f} GB, {free_gb:.3f} GB free); {saved}.\n"
            "  Free disk space or fix the permissions. To resume, run the same command again."
        )

    def _delete_stale(self) -> list[str]:
        """Remove what a killed process was writing, and return a message for each checkpoint among it."""
        if self._read_only:
            return []
        self._restore_renamed()
        incomplete = sorted(path.name for path in self._folder.glob(".part-*"))
        for name in [*incomplete, *(path.name for path in self._folder.glob(".gone-*"))]:
            self._remove(name)
        return [f"{self._folder / name} was never completed; removed" for name in incomplete]

    def _prune(self) -> None:
        kept = {_step_dir_name(step) for step in sorted(self.steps())[-KEEP_LAST:]}
        required = {self._required_dir_name(name) for name in kept}
        for path in list(self._folder.iterdir()):
            if path.name not in kept | required:
                self._remove(path.name)

    def _required_dir_name(self, name: str) -> str | None:
        try:
            return json.loads((self._folder / name / "manifest.json").read_bytes())["needs"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # damaged meanwhile; `load_newest` reports it

    def _remove(self, name: str) -> None:
        path = self._folder / name
        if self._read_only or not path.exists():
            return
        trash_path = path if name.startswith(".") else self._folder / f".gone-{name}-{os.getpid()}"
        if trash_path != path:
            os.rename(path, trash_path)  # at once, so that a kill during the removal leaves no half checkpoint
        shutil.rmtree(trash_path, ignore_errors=True)


def with_saved_dtype(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Return an array of a checkpoint as `dtype`, in which it was saved: NumPy's files have no name for bfloat16."""
    return array.view(dtype) if array.dtype.kind == "V" else array


def _step_dir_name(step: int) -> str:
    return f"step-{step:09d}"


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        file.flush()
        os.fsync(file.fileno())


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path / "arrays.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_verified_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the folder `path` after verifying it and all files that it lists."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest.pop("sha256", None) != json_checksum(manifest):
            raise CorruptCheckpointError(f"{path} fails its checksum: manifest.json")
        _check_format(path, manifest)
        mismatched = [name for name, digest in manifest["files"].items() if file_hash(path / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
            raise ResourceError(f"cannot read the checkpoint {path}: {error.strerror}. No file was changed.") from error
        raise CorruptCheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if mismatched:
        raise CorruptCheckpointError(f"{path} fails its checksum: {', '.join(mismatched)}")
    return manifest


def _check_format(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{path} has format {manifest['format']}; this version of keras-committee reads format {FORMAT}. "
            "Resume with the version that wrote it, or train this member again: --restart."
        )
    if manifest["name"] != path.name:
        raise CorruptCheckpointError(f"{path} was written as {manifest['name']}")
