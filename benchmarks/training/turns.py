"""Turn protocol between `benchmarks/training.py` and its worker processes.

A worker prints "ready" after its warm-up, then waits for lines "mode lead_in steps lead_out" on its standard input. It
takes the `lead_in` steps untimed, to use up the input that it prepared during the turns of others; then the timed
`steps`; then the `lead_out` steps untimed, so that the slower worker of the same turn is never alone on the machine. It
prints the seconds of the timed steps.
"""

import sys
import time


def turns(warmup_modes, warmup_steps):
    """Yield the mode of each step that the caller takes; end when the standard input ends.

    Args:
        warmup_modes: Modes in which the worker is warmed up: tracing, compilation, threads.
        warmup_steps: Number of steps in each of them.
    """
    for mode in warmup_modes:
        for _ in range(warmup_steps):
            yield mode
    reply = "ready"
    while True:
        print(reply, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        mode, *counts = line.split()
        lead_in, steps, lead_out = map(int, counts)
        for _ in range(lead_in):
            yield mode
        start = time.perf_counter()
        for _ in range(steps):
            yield mode
        reply = f"{time.perf_counter() - start}"
        for _ in range(lead_out):
            yield mode
