"""When may a side of `benchmarks/training.py` take its steps?

A side stays silent until it is warm, says "ready", and from then on waits for a line "mode lead steps tail". It takes
the `lead` outside the clock, to use up what its input prepared while others ran, then the timed `steps`, then the
`tail`, so that a neighbour of the same turn never has the machine to itself; and answers with the seconds of the steps.
"""

import sys
import time


def turns(warm_up):
    """Yields the mode of each step that the caller is to take, "warm-up" at first; ends with the standard input.

    Args:
        warm_up: Steps before the side is ready: tracing, compilation, threads.
    """
    for _ in range(warm_up):
        yield "warm-up"
    answer = "ready"
    while True:
        print(answer, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        mode, *counts = line.split()
        lead, steps, tail = map(int, counts)
        for _ in range(lead):
            yield mode
        started = time.perf_counter()
        for _ in range(steps):
            yield mode
        answer = f"{time.perf_counter() - started}"
        for _ in range(tail):
            yield mode
