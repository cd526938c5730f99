"""Worker threads for requests, with a bounded queue and deadlines."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from keras_committee.tfserving.server.limits import Limits
from keras_committee.tfserving.tf_protocol import StatusError

ResultT = TypeVar("ResultT")


class BoundedExecutor:
    """A thread pool that accepts at most `limits.max_queue_size` jobs at a time, waiting or running.

    Args:
        limits: Queue size and response timeout.
        num_threads: Number of threads; None for one per core, at least 4.
    """

    def __init__(self, limits: Limits, num_threads: int | None = None):
        self._limits = limits
        self._thread_pool = ThreadPoolExecutor(num_threads or max(4, os.cpu_count() or 1), "serving")
        self._lock, self._pending = threading.Lock(), 0

    async def run(self, job: Callable[[float], ResultT]) -> ResultT:
        """Run `job(deadline)` in a thread and return its result; `deadline` is on the monotonic clock.

        Raises:
            StatusError: UNAVAILABLE if the queue is full; DEADLINE_EXCEEDED after `limits.response_timeout` seconds.
        """
        deadline = time.monotonic() + self._limits.response_timeout
        future = self.submit(job, deadline)
        try:
            async with asyncio.timeout(self._limits.response_timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise StatusError("DEADLINE_EXCEEDED", f"no answer within {self._limits.response_timeout:g} s") from error

    def submit(self, job: Callable[[float], ResultT], deadline: float) -> "Future[ResultT]":
        """Queue `job(deadline)`.

        Raises:
            StatusError: UNAVAILABLE if the queue is full.
        """
        with self._lock:
            if self._pending >= self._limits.max_queue_size:
                raise StatusError("UNAVAILABLE", f"{self._limits.max_queue_size} requests are waiting; try again later")
            self._pending += 1
        future = self._thread_pool.submit(job, deadline)
        future.add_done_callback(self._on_done)
        return future

    def close(self) -> None:
        """Cancel the waiting jobs and wait for the running ones."""
        self._thread_pool.shutdown(cancel_futures=True)

    def _on_done(self, _future: "Future[ResultT]") -> None:
        with self._lock:
            self._pending -= 1


def seconds_until(deadline: float) -> float:
    """Return the seconds until `deadline` on the monotonic clock.

    Raises:
        StatusError: DEADLINE_EXCEEDED if it has passed.
    """
    if (seconds := deadline - time.monotonic()) <= 0:
        raise StatusError("DEADLINE_EXCEEDED", "the request waited until its deadline")
    return seconds


@contextlib.contextmanager
def timed(record: Callable[[float], None]) -> Iterator[None]:
    """Call `record` with the duration of the block in seconds, also if the block raises."""
    start = time.perf_counter()
    try:
        yield
    finally:
        record(time.perf_counter() - start)
