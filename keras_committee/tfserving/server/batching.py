"""Batching of simultaneous requests by the rules of TF Serving."""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_committee.tfserving.tf_protocol import StatusError, check_inputs, choose_outputs, find_signature


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """Parameters of the same names, and with the same defaults, as in TF Serving's BatchingParameters.

    Attributes:
        max_batch_size: Rows of a batch.
        batch_timeout_micros: Microseconds that a request waits for others.
        max_enqueued_batches: Batches that wait; requests for more are UNAVAILABLE.
        num_batch_threads: Batches that run at a time.
        allowed_batch_sizes: Ascending sizes to pad batches to, ending with `max_batch_size`; () for no padding.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 4
    allowed_batch_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        allowed = self.allowed_batch_sizes
        if allowed and (list(allowed) != sorted(set(allowed)) or allowed[-1] != self.max_batch_size or allowed[0] < 1):
            raise StatusError(
                "INVALID_ARGUMENT",
                f"allowed_batch_sizes {list(allowed)} must increase and end with max_batch_size {self.max_batch_size}",
            )

    @classmethod
    def from_proto(cls, proto: Any) -> "BatchingParameters":
        """Create from a parsed BatchingParameters message; fields that are not set keep their defaults."""
        names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
        values = {name: getattr(proto, name).value for name in names if proto.HasField(name)}
        return cls(allowed_batch_sizes=tuple(proto.allowed_batch_sizes), **values)

    def padded_size(self, rows: int) -> int:
        """Return the size that a batch of `rows` rows is padded to."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


@dataclasses.dataclass(eq=False)
class _Task:
    inputs: dict[str, np.ndarray]
    rows: int
    deadline: float
    outputs: dict[str, np.ndarray] | None = None
    error: StatusError | None = None
    done: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass(eq=False)
class _Batch:
    key: tuple[str, tuple[str, ...]]  # signature and outputs
    created_at: float
    tasks: list[_Task] = dataclasses.field(default_factory=list)
    closed: bool = False

    @property
    def rows(self) -> int:
        return sum(task.rows for task in self.tasks)


class BatchedSession:
    """A session that joins calls to batches, limited by size and waiting time.

    If a batch fails, all of its calls do.

    Args:
        session: The session that runs the batches.
        parameters: Sizes and times.
    """

    def __init__(self, session: Any, parameters: BatchingParameters):
        self._session, self._parameters = session, parameters
        self.signatures, self.meta_graph = session.signatures, session.meta_graph
        self._condition = threading.Condition()
        self._queue: deque[_Batch] = deque()
        self._closing = False
        count = parameters.num_batch_threads
        self._threads = [threading.Thread(target=self._run_batches, name="batching", daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def run(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Run one signature, as `Session.run`. A call whose inputs have no common batch axis runs alone.

        Raises:
            StatusError: Besides the session's errors: INVALID_ARGUMENT for more rows than a batch can have,
                UNAVAILABLE if the queue is full, RESOURCE_EXHAUSTED if the deadline passes in the queue.
        """
        spec = find_signature(self.signatures, signature)
        check_inputs(spec, inputs)
        names = choose_outputs(spec.outputs, outputs)
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        sizes = {len(array) if array.ndim else -1 for array in arrays.values()}
        if len(sizes) != 1 or min(sizes) < 1:
            return self._session.run(signature, arrays, names, timeout=timeout)
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        task = _Task(arrays, sizes.pop(), deadline)
        self._enqueue((signature, tuple(names)), task)
        task.done.wait()
        if task.error is not None:
            raise StatusError(task.error.code, task.error.message)
        return task.outputs or {}

    def close(self) -> None:
        """Run the queued batches, then close the session."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()
        self._session.close()

    def _enqueue(self, key: tuple[str, tuple[str, ...]], task: _Task) -> None:
        max_rows = self._parameters.max_batch_size
        if task.rows > max_rows:
            raise StatusError(
                "INVALID_ARGUMENT", f"Task size {task.rows} is larger than maximum input batch size {max_rows}"
            )
        with self._condition:
            if self._closing:
                raise StatusError("UNAVAILABLE", "the session is closed")
            batch = next((queued for queued in reversed(self._queue) if queued.key == key and not queued.closed), None)
            if batch is None or batch.rows + task.rows > max_rows:
                if len(self._queue) >= self._parameters.max_enqueued_batches:
                    raise StatusError(
                        "UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full"
                    )
                if batch is not None:
                    batch.closed = True
                batch = _Batch(key, time.monotonic())
                self._queue.append(batch)
            batch.tasks.append(task)
            self._condition.notify_all()

    def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            error = self._run_batch(batch)
            for task in batch.tasks:
                task.error = error
                task.done.set()

    def _next_batch(self) -> _Batch | None:
        """Wait for a batch that is due and return it; None once the session is closed and the queue is empty."""
        with self._condition:
            while True:
                for batch in self._queue:
                    if self._closing or batch.closed or self._is_due(batch):
                        self._queue.remove(batch)
                        return batch
                if self._closing:
                    return None
                self._condition.wait(self._wait_seconds())

    def _is_due(self, batch: _Batch) -> bool:
        waited = time.monotonic() - batch.created_at
        return batch.rows >= self._parameters.max_batch_size or waited >= self._parameters.batch_timeout_micros / 1e6

    def _wait_seconds(self) -> float | None:
        deadlines = [batch.created_at + self._parameters.batch_timeout_micros / 1e6 for batch in self._queue]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _run_batch(self, batch: _Batch) -> StatusError | None:
        time_left = max(task.deadline for task in batch.tasks) - time.monotonic()
        if time_left <= 0:
            return StatusError("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue")
        signature, names = batch.key
        size = self._parameters.padded_size(batch.rows)
        try:
            inputs = _concatenate_inputs(batch.tasks, size - batch.rows)
            timeout = None if time_left == float("inf") else time_left
            outputs = self._session.run(signature, inputs, names, timeout=timeout)
            _distribute_outputs(batch.tasks, outputs, size)
        except StatusError as error:
            return error
        except Exception as error:  # otherwise the callers would wait forever
            return StatusError("INTERNAL", str(error))
        return None


def _concatenate_inputs(tasks: list[_Task], padding: int) -> dict[str, np.ndarray]:
    """Join the inputs along the batch axis, padded with copies of the first row of the last task."""
    joined: dict[str, np.ndarray] = {}
    for name in tasks[0].inputs:
        parts = [task.inputs[name] for task in tasks]
        parts += [parts[-1][:1]] * padding
        if len({part.shape[1:] for part in parts}) > 1:
            raise StatusError(
                "FAILED_PRECONDITION",
                f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off. "
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal "
                "dimensions starting with the first dim.",
            )
        joined[name] = np.concatenate(parts)
    return joined


def _distribute_outputs(tasks: list[_Task], outputs: dict[str, np.ndarray], size: int) -> None:
    for name, array in outputs.items():
        if not array.ndim or len(array) != size:
            raise StatusError(
                "FAILED_PRECONDITION",
                f"Batched output tensor {name} has the shape {list(array.shape)}; its 0th dimension should be {size}",
            )
    start = 0
    for task in tasks:
        task.outputs = {name: array[start : start + task.rows] for name, array in outputs.items()}
        start += task.rows
