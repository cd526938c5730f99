"""What decides how an unfinished member goes on, and how does it become arrays and back?"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_committee.errors import RunError
from keras_committee.training.averages import Averages
from keras_committee.training.checkpoint import Checkpoint


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
