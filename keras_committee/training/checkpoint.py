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
from keras_committee.files import file_hash, fsync_dir, translate_os_errors, write_file
from keras_committee.training.ema import WeightEMA

FORMAT = 1
KEEP_LAST = 2

# What keeps a whole file from being read: it is no reason to fall back, and to remove what cannot be read just now.
_TRANSIENT_ERRNOS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was saved: arrays by name, and a JSON document beside them."""

    step: int
    arrays: dict[str, np.ndarray]
    document: dict[str, Any]


class CorruptCheckpointError(Exception):
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
        self, step: int, arrays: dict[str, np.ndarray], document: dict[str, Any], requires: str | None = None
    ) -> Path:
        """Writes a checkpoint; it is on the disk when this returns. Then older ones than the newest two are removed.

        Args:
            step: Steps trained; the name and the order of the checkpoint.
            arrays: Of any dtype but object.
            document: JSON with finite numbers.
            requires: The name of the folder from `save_aside` that this checkpoint is nothing without.

        Raises:
            ResourceError: If it cannot be written; the ones before it are untouched.
        """
        path = self._write(_step_dir_name(step), arrays, {"needs": requires, "document": document})
        with translate_os_errors(self._folder):
            self._prune()
        return path

    def save_named(self, name: str, arrays: dict[str, np.ndarray]) -> str:
        """Writes arrays that the next checkpoints will name in `resources_per_member`, and returns `name`. Raises ResourceError."""
        self._write(name, arrays, {})
        return name

    def load_named(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of `save_aside`. Raises RunError."""
        try:
            _read_verified_manifest(self._folder / name)
            return _load_arrays(self._folder / name)
        except CorruptCheckpointError as error:
            raise RunError(f"{error}. Train this member again: --restart.") from error

    def load_newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, None where none was ever finished, and a sentence for all that was in the way.

        Torn and damaged ones are removed: a damaged one would stand before those that are to come. Read-only, nothing
        is removed, and what the writer is at is no damage.

        Raises:
            RunError: If there are checkpoints and none can be used, or they are of another format.
            ResourceError: If permissions, memory or open files do not suffice to read them.
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
                for newer in [other for other in steps if other > step]:
                    self._remove(_step_dir_name(newer))
            return checkpoint, problems
        if steps:
            listing = "\n  ".join(problems)
            raise RunError(
                f"no usable checkpoint in {self._folder}:\n  {listing}\n"
                "Nothing was touched. Bring back a copy of the folder, or discard it: --restart."
            )
        return None, problems

    def discard(self) -> None:
        """Removes everything."""
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
            manifest = _with_checksum({"format": FORMAT, "name": name, **entries, "files": files})
            write_file(temp_dir / "manifest.json", json.dumps(manifest, allow_nan=False).encode())
            self._rename_into_place(temp_dir, target_dir)
        except (OSError, ResourceError) as error:
            raise self._write_error(target_dir, arrays, error) from error
        finally:
            shutil.rmtree(temp_dir, ignore_errors=True)
        return target_dir

    def _rename_into_place(self, temp_dir: Path, target_dir: Path) -> None:
        """Renames `temp_dir` to `target_dir`. The same step is there where a stop came at the end of an epoch."""
        replaced_dir = self._folder / f".old-{target_dir.name}"
        if target_dir.exists():
            shutil.rmtree(replaced_dir, ignore_errors=True)
            os.rename(target_dir, replaced_dir)  # `_bring_back` undoes it after a kill
        try:
            os.rename(temp_dir, target_dir)
            fsync_dir(self._folder)
        finally:
            self._restore_renamed()

    def _restore_renamed(self) -> None:
        """What was to be replaced and was not, takes its name again; what was replaced is removed."""
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
        saved_text = f"training state up to step {max(steps)} is safe" if steps else "no step was saved before"
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        return ResourceError(
            f"cannot write the checkpoint {path}: {reason} (needs {required_gb:.3f} GB, {free_gb:.3f} GB free); {saved_text}.\n"
            "  Make room or mend the permissions, then give the same command again."
        )

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, damaged ones too."""
        names = [path.name for path in self._folder.glob("step-*")]
        return [int(name[5:]) for name in names if re.fullmatch(r"step-\d{9,}", name)]

    def _delete_stale(self) -> list[str]:
        """Removes what a killed process was writing, and says so."""
        if self._read_only:
            return []
        self._restore_renamed()
        incomplete = sorted(path.name for path in self._folder.glob(".part-*"))
        for name in [*incomplete, *(path.name for path in self._folder.glob(".gone-*"))]:
            self._remove(name)
        return [f"{self._folder / name} was never finished; removed" for name in incomplete]

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
            return None  # damaged meanwhile, which `newest` will tell

    def _remove(self, name: str) -> None:
        path = self._folder / name
        if self._read_only or not path.exists():
            return
        trash_path = path if name.startswith(".") else self._folder / f".gone-{name}-{os.getpid()}"
        if trash_path != path:
            os.rename(path, trash_path)  # at once, so that a kill in between leaves no half of a checkpoint
        shutil.rmtree(trash_path, ignore_errors=True)


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
    """The manifest of the folder `path`, whose files are those that it was written for."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest != _with_checksum({key: value for key, value in manifest.items() if key != "sha256"}):
            raise CorruptCheckpointError(f"{path} fails its checksum: manifest.json")
        _check_format(path, manifest)
        mismatched = [name for name, digest in manifest["files"].items() if file_hash(path / name) != digest]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
            raise ResourceError(f"cannot read the checkpoint {path}: {error.strerror}. Nothing was touched.") from error
        raise CorruptCheckpointError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if mismatched:
        raise CorruptCheckpointError(f"{path} fails its checksum: {', '.join(mismatched)}")
    return manifest


def _check_format(path: Path, manifest: dict[str, Any]) -> None:
    if manifest["format"] != FORMAT:
        raise RunError(
            f"{path} has format {manifest['format']}; this version of keras-committee reads format {FORMAT}. "
            "Go on with the version that wrote it, or train again: --restart."
        )
    if manifest["name"] != path.name:
        raise CorruptCheckpointError(f"{path} was written as {manifest['name']}")


def _with_checksum(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the digest of itself, so that not even a digit of a step can change unseen."""
    text = json.dumps(manifest, sort_keys=True, allow_nan=False)
    return {**manifest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


@dataclasses.dataclass(frozen=True)
class BestEpoch:
    """The epoch with the best score on the validation split, and the name under which its weights are kept."""

    epoch: int
    score: float
    weights_name: str


@dataclasses.dataclass
class MemberState:
    """All that decides how a member goes on; what is not here follows from the recipe, the seed and the step.

    The variables of the model hold the weights, the batch statistics, the states of the seed generators, the survival
    and the counted runs of each block; those of the optimizer its moments, its iterations and its loss scale.

    Args:
        model, optimizer: The member and its optimizer, built.
        ema: The moving averages, or None.
        step: Steps trained.
        history: A row for each finished epoch.
        losses, num_correct, gradients: Of each step of the unfinished epoch: floats, integers, float32 `(blocks,)`.
        block_run_counts: How often each block had run when the epoch began, `(blocks,)`.
        timed_steps: Steps of the unfinished epoch that were timed, and their seconds.
        best: The best epoch so far, or None.
        rollbacks: How often training went back to a checkpoint; the order of the data follows from it.
        stopped_early: Whether training ended before its last epoch, for want of progress.
    """

    model: keras.Model
    optimizer: Any
    ema: WeightEMA | None = None
    step: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    num_correct: list[int] = dataclasses.field(default_factory=list)
    gradients: list[np.ndarray] = dataclasses.field(default_factory=list)
    block_run_counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    timed_steps: tuple[int, float] = (0, 0.0)
    best: BestEpoch | None = None
    rollbacks: int = 0
    stopped_early: bool = False

    def begin_epoch(self, block_run_counts: np.ndarray) -> None:
        """Forget the figures of the epoch before."""
        self.losses, self.num_correct, self.gradients, self.block_run_counts, self.timed_steps = (
            [],
            [],
            [],
            block_run_counts,
            (0, 0.0),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that is an array, by its role and place."""
        values = {
            f"{role}/{index:05d}": _read_variable(variable)
            for role, variables in self._variables().items()
            for index, variable in enumerate(variables)
        }
        gradients = np.stack(self.gradients) if self.gradients else np.zeros((0, 0))
        return values | {
            "epoch/gradients": gradients,
            "epoch/runs": self.block_run_counts,
            "epoch/losses": np.array(self.losses),
        }

    def document(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        return {
            "history": self.history,
            "hits": self.num_correct,
            "timed": self.timed_steps,
            "best": dataclasses.asdict(self.best) if self.best else None,
            "rollbacks": self.rollbacks,
            "stopped": self.stopped_early,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what `arrays` and `document` told.

        Raises:
            RunError: If the checkpoint is that of another network or another optimizer.
        """
        arrays, document = checkpoint.arrays, checkpoint.document
        for role, variables in self._variables().items():
            _check_saved_shapes(role, variables, arrays)
            for index, variable in enumerate(variables):
                _write_variable(variable, arrays[f"{role}/{index:05d}"])
        self.step, self.history, self.num_correct = checkpoint.step, document["history"], document["hits"]
        self.losses, self.gradients = arrays["epoch/losses"].tolist(), list(arrays["epoch/gradients"])
        self.block_run_counts, self.timed_steps = arrays["epoch/runs"], tuple(document["timed"])
        self.best = BestEpoch(**document["best"]) if document["best"] else None
        self.rollbacks, self.stopped_early = document["rollbacks"], document["stopped"]

    def weights(self) -> dict[str, np.ndarray]:
        """The values of the model's variables as they are now, for `set_weights`."""
        return {f"model/{index:05d}": _read_variable(variable) for index, variable in enumerate(self.model.variables)}

    def set_weights(self, arrays: dict[str, np.ndarray]) -> None:
        for index, variable in enumerate(self.model.variables):
            _write_variable(variable, arrays[f"model/{index:05d}"])

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in self.model.trainable_variables)

    def _variables(self) -> dict[str, list]:
        ema_variables = self.ema.variables if self.ema else []
        return {"model": self.model.variables, "optimizer": self.optimizer.variables, "averages": ema_variables}


def _read_variable(variable) -> np.ndarray:
    """The value; of a variable that each replica has for itself, the values `(replicas, ...)`."""
    value = variable.value
    if _is_per_replica(value):
        return np.stack([part.numpy() for part in value.values])
    return np.asarray(value.numpy())


def _write_variable(variable, array: np.ndarray) -> None:
    value = variable.value
    dtype = value.dtype.as_numpy_dtype
    array = array.view(dtype) if array.dtype.kind == "V" else array  # NumPy's files do not know bfloat16 by name
    replica_variables = value.values if _is_per_replica(value) else []
    if len(array.shape) == len(value.shape):
        variable.assign(array)
    elif len(array) == len(replica_variables):
        for replica_variable, replica_value in zip(replica_variables, array, strict=True):
            replica_variable.assign(replica_value)
    else:  # written by another number of replicas
        variable.assign(array.mean(axis=0, dtype=np.float64).astype(dtype))


def _is_per_replica(value) -> bool:
    return len(getattr(value, "values", ())) > 1 and value.synchronization == tf.VariableSynchronization.ON_READ


def _check_saved_shapes(role: str, variables: list, arrays: dict[str, np.ndarray]) -> None:
    saved_arrays = [arrays[name] for name in sorted(arrays) if name.startswith(f"{role}/")]
    expected_shapes = [tuple(variable.shape) for variable in variables]
    saved_shapes = [array.shape for array in saved_arrays]
    if len(expected_shapes) != len(saved_shapes) or any(
        a not in (b, b[1:]) for a, b in zip(expected_shapes, saved_shapes, strict=True)
    ):
        raise RunError(
            f"the saved state is that of another {role}: {_describe_mismatch(saved_shapes, expected_shapes)}. "
            "Go on with the recipe that wrote it, or train this member again: --restart."
        )


def _describe_mismatch(saved_shapes: list, expected_shapes: list) -> str:
    if len(saved_shapes) != len(expected_shapes):
        return f"it has {len(saved_shapes)} variables, the recipe's {len(expected_shapes)}"
    index = next(i for i, (a, b) in enumerate(zip(expected_shapes, saved_shapes, strict=True)) if a not in (b, b[1:]))
    return f"variable {index} has shape {saved_shapes[index]}, the recipe's {expected_shapes[index]}"
