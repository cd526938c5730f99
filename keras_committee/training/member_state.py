"""The training state of a member, as arrays and JSON for its checkpoints."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_committee.checkpoints import Checkpoint, with_saved_dtype
from keras_committee.errors import RunError
from keras_committee.training.averaging import SlowWeights, StochasticWeightAverage, WeightAverages, WeightEMA


@dataclasses.dataclass(frozen=True)
class BestEpoch:
    """The epoch with the best validation score so far, and the name under which its weights are saved."""

    epoch: int
    score: float
    weights_name: str


@dataclasses.dataclass
class MemberState:
    """Everything that determines how a member's training continues, besides the recipe, the seed and the step.

    The model's variables hold the weights, the batch statistics, the states of the seed generators, and each block's
    survival probability and run count; the optimizer's hold its moments, its iterations and its loss scale.

    Args:
        model: The member, built.
        optimizer: Its optimizer, built.
        ema: The exponential moving averages, or None.
        swa: The average over the last epochs, or None; never with `ema`.
        slow_weights: The slow weights of Lookahead, or None.
        step: Number of trained steps.
        history: One row per finished epoch.
        losses: Loss of each step of the unfinished epoch.
        num_correct: Number of correctly classified examples of each step of the unfinished epoch.
        gradients: Mean absolute gradient of each block, float32 `(blocks,)`, in each step of the unfinished epoch.
        block_run_counts: In how many steps each block had run at the start of the epoch, `(blocks,)`.
        timed_steps: Number of timed steps of the unfinished epoch, and their total seconds.
        best: The best epoch so far, or None.
        rollbacks: Offset of the data order; it grows with every rollback.
        stopped_early: Whether training ended before its last epoch for lack of progress.
    """

    model: keras.Model
    optimizer: Any
    ema: WeightEMA | None = None
    swa: StochasticWeightAverage | None = None
    slow_weights: SlowWeights | None = None
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

    @property
    def averages(self) -> WeightAverages | None:
        """The averages that the member is saved with, or None."""
        return self.ema or self.swa

    def begin_epoch(self, block_run_counts: np.ndarray) -> None:
        """Clear the values of the epoch before."""
        self.losses, self.num_correct, self.gradients = [], [], []
        self.block_run_counts, self.timed_steps = block_run_counts, (0, 0.0)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays, by role and index."""
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
        """Return everything else, as JSON."""
        return {
            "history": self.history,
            "hits": self.num_correct,
            "timed": self.timed_steps,
            "best": dataclasses.asdict(self.best) if self.best else None,
            "rollbacks": self.rollbacks,
            "stopped": self.stopped_early,
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore what `arrays` and `document` returned.

        Raises:
            RunError: If the checkpoint belongs to another network or another optimizer.
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
        """Return the current values of the model's variables, for `set_weights`."""
        return {f"model/{index:05d}": _read_variable(variable) for index, variable in enumerate(self.model.variables)}

    def set_weights(self, arrays: dict[str, np.ndarray]) -> None:
        for index, variable in enumerate(self.model.variables):
            _write_variable(variable, arrays[f"model/{index:05d}"])

    def is_finite(self) -> bool:
        """Return whether every trainable weight is finite."""
        return all(np.isfinite(keras.ops.convert_to_numpy(weight)).all() for weight in self.model.trainable_variables)

    def _variables(self) -> dict[str, list]:
        slow_variables = self.slow_weights.variables if self.slow_weights else []
        return {
            "model": self.model.variables,
            "optimizer": self.optimizer.variables,
            "averages": self.averages.variables if self.averages else [],
            "slow": slow_variables,
        }


def _read_variable(variable) -> np.ndarray:
    """Return the value; for a variable that each replica has for itself, the values `(replicas, ...)`."""
    value = variable.value
    if _is_per_replica(value):
        return np.stack([part.numpy() for part in value.values])
    return np.asarray(value.numpy())


def _write_variable(variable, array: np.ndarray) -> None:
    value = variable.value
    dtype = value.dtype.as_numpy_dtype
    array = with_saved_dtype(array, dtype)
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
    saved = [arrays[name].shape for name in sorted(arrays) if name.startswith(f"{role}/")]
    expected = [tuple(variable.shape) for variable in variables]
    if len(saved) != len(expected):
        mismatch = f"it has {len(saved)} variables, the recipe's {role} has {len(expected)}"
    else:
        pairs = enumerate(zip(expected, saved, strict=True))
        # Per-replica variables are saved with a leading axis of replicas.
        differing = [index for index, (shape, saved_shape) in pairs if shape not in (saved_shape, saved_shape[1:])]
        if not differing:
            return
        index = differing[0]
        mismatch = f"variable {index} has shape {saved[index]}, the recipe's has {expected[index]}"
    raise RunError(
        f"the saved state belongs to another {role}: {mismatch}. "
        "Resume with the recipe that wrote it, or train this member again: --restart."
    )
