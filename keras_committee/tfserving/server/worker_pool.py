"""Where do requests run, how many may wait, and when is one given up?"""

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
    """A few threads with a bounded queue before them; gRPC and REST may share one."""

    def __init__(self, limits: Limits, num_threads: int | None = None):
        self._limits = limits
        self._thread_pool = ThreadPoolExecutor(num_threads or max(4, os.cpu_count() or 1), "serving")
        self._lock, self._pending = threading.Lock(), 0

    async def run(self, job: Callable[[float], ResultT]) -> ResultT:
        """The answer of `job(deadline)`, run in a thread; `deadline` is on the monotonic clock.

        Raises:
            StatusError: UNAVAILABLE where too many wait; DEADLINE_EXCEEDED where it takes too long.
        """
        deadline = time.monotonic() + self._limits.response_timeout
        future = self.submit(job, deadline)
        try:
            async with asyncio.timeout(self._limits.response_timeout):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise StatusError("DEADLINE_EXCEEDED", f"no answer within {self._limits.response_timeout:g} s") from error

    def submit(self, job: Callable[[float], ResultT], deadline: float) -> "Future[ResultT]":
        """Queues `job`. Raises UNAVAILABLE where the queue is full."""
        with self._lock:
            if self._pending >= self._limits.max_queue_size:
                raise StatusError("UNAVAILABLE", f"{self._limits.max_queue_size} requests are waiting; try again later")
            self._pending += 1
        future = self._thread_pool.submit(job, deadline)
        future.add_done_callback(self._on_done)
        return future

    def close(self) -> None:
        """Waits for what runs; what waits is dropped."""
        self._thread_pool.shutdown(cancel_futures=True)

    def _on_done(self, _future: "Future[ResultT]") -> None:
        with self._lock:
            self._pending -= 1


def seconds_until(deadline: float) -> float:
    """Seconds until `deadline`. Raises DEADLINE_EXCEEDED where there are none."""
    if (seconds := deadline - time.monotonic()) <= 0:
        raise StatusError("DEADLINE_EXCEEDED", "the request waited until its deadline")
    return seconds


@contextlib.contextmanager
def timed(record: Callable[[float], None]) -> Iterator[None]:
    """Tells `record` how many seconds the block took, however it ends."""
    start = time.perf_counter()
    try:
        yield
    finally:
        record(time.perf_counter() - start)
