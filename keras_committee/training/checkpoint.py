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

import keras
import numpy as np
import tensorflow as tf

from keras_committee.errors import ResourceError, RunError
from keras_committee.files import file_hash, flush_folder, write_file, writing
from keras_committee.training.ema import Averages

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


@dataclasses.dataclass(frozen=True)
class Best:
    """The epoch with the best score on the validation split, and the name under which its weights are kept."""

    epoch: int
    score: float
    weights: str


@dataclasses.dataclass
class MemberState:
    """All that decides how a member goes on; what is not here follows from the recipe, the seed and the step.

    The variables of the model hold the weights, the batch statistics, the states of the seed generators, the survival
    and the counted runs of each block; those of the optimizer its moments, its iterations and its loss scale.

    Args:
        model, optimizer: The member and its optimizer, built.
        averages: The moving averages, or None.
        step: Steps trained.
        history: A row for each finished epoch.
        losses, hits, gradients: Of each step of the unfinished epoch: floats, integers, float32 `(blocks,)`.
        runs: How often each block had run when the epoch began, `(blocks,)`.
        timed: Steps of the unfinished epoch that were timed, and their seconds.
        best: The best epoch so far, or None.
        rollbacks: How often training went back to a checkpoint; the order of the data follows from it.
        stopped: Whether training ended before its last epoch, for want of progress.
    """

    model: keras.Model
    optimizer: Any
    averages: Averages | None = None
    step: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    hits: list[int] = dataclasses.field(default_factory=list)
    gradients: list[np.ndarray] = dataclasses.field(default_factory=list)
    runs: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    timed: tuple[int, float] = (0, 0.0)
    best: Best | None = None
    rollbacks: int = 0
    stopped: bool = False

    def begin_epoch(self, runs: np.ndarray) -> None:
        """Forget the figures of the epoch before."""
        self.losses, self.hits, self.gradients, self.runs, self.timed = [], [], [], runs, (0, 0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that is an array, by its role and place."""
        values = {
            f"{role}/{place:05d}": _read(variable)
            for role, variables in self._variables().items()
            for place, variable in enumerate(variables)
        }
        gradients = np.stack(self.gradients) if self.gradients else np.zeros((0, 0))
        return values | {"epoch/gradients": gradients, "epoch/runs": self.runs, "epoch/losses": np.array(self.losses)}

    def document(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        return {
            "history": self.history,
            "hits": self.hits,
            "timed": self.timed,
            "best": dataclasses.asdict(self.best) if self.best else None,
            "rollbacks": self.rollbacks,
            "stopped": self.stopped,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what `arrays` and `document` told.

        Raises:
            RunError: If the checkpoint is that of another network or another optimizer.
        """
        arrays, document = checkpoint.arrays, checkpoint.document
        for role, variables in self._variables().items():
            _check_fit(role, variables, arrays)
            for place, variable in enumerate(variables):
                _write(variable, arrays[f"{role}/{place:05d}"])
        self.step, self.history, self.hits = checkpoint.step, document["history"], document["hits"]
        self.losses, self.gradients = arrays["epoch/losses"].tolist(), list(arrays["epoch/gradients"])
        self.runs, self.timed = arrays["epoch/runs"], tuple(document["timed"])
        self.best = Best(**document["best"]) if document["best"] else None
        self.rollbacks, self.stopped = document["rollbacks"], document["stopped"]

    def weights(self) -> dict[str, np.ndarray]:
        """The values of the model's variables as they are now, for `set_weights`."""
        return {f"model/{place:05d}": _read(variable) for place, variable in enumerate(self.model.variables)}

    def set_weights(self, arrays: dict[str, np.ndarray]) -> None:
        for place, variable in enumerate(self.model.variables):
            _write(variable, arrays[f"model/{place:05d}"])

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in self.model.trainable_variables)

    def _variables(self) -> dict[str, list]:
        averages = self.averages.variables if self.averages else []
        return {"model": self.model.variables, "optimizer": self.optimizer.variables, "averages": averages}


def _read(variable) -> np.ndarray:
    """The value; of a variable that each replica has for itself, the values `(replicas, ...)`."""
    value = variable.value
    if _is_own(value):
        return np.stack([part.numpy() for part in value.values])
    return np.asarray(value.numpy())


def _write(variable, array: np.ndarray) -> None:
    value = variable.value
    dtype = value.dtype.as_numpy_dtype
    array = array.view(dtype) if array.dtype.kind == "V" else array  # NumPy's files do not know bfloat16 by name
    owners = value.values if _is_own(value) else []
    if len(array.shape) == len(value.shape):
        variable.assign(array)
    elif len(array) == len(owners):
        for part, own in zip(owners, array, strict=True):
            part.assign(own)
    else:  # written by another number of replicas
        variable.assign(array.mean(axis=0, dtype=np.float64).astype(dtype))


def _is_own(value) -> bool:
    return len(getattr(value, "values", ())) > 1 and value.synchronization == tf.VariableSynchronization.ON_READ


def _check_fit(role: str, variables: list, arrays: dict[str, np.ndarray]) -> None:
    saved = [arrays[name] for name in sorted(arrays) if name.startswith(f"{role}/")]
    wants = [tuple(variable.shape) for variable in variables]
    has = [array.shape for array in saved]
    if len(wants) != len(has) or any(a not in (b, b[1:]) for a, b in zip(wants, has, strict=True)):
        raise RunError(
            f"the saved state is that of another {role}: {_unlike(has, wants)}. "
            "Go on with the recipe that wrote it, or train this member again: --from-scratch."
        )


def _unlike(has: list, wants: list) -> str:
    if len(has) != len(wants):
        return f"it has {len(has)} variables, the recipe's {len(wants)}"
    place = next(i for i, (a, b) in enumerate(zip(wants, has, strict=True)) if a not in (b, b[1:]))
    return f"variable {place} has shape {has[place]}, the recipe's {wants[place]}"
