"""Worker process of `benchmarks/training.py` for PyTorch.

    python torch_worker.py '{"batch": 128, ...}'      # started by benchmarks/training.py, which controls it over a pipe

Trains the same network with the usual loop on one cached batch, so that its input costs nothing: channels last, SGD
whose weight decay equals the L2 penalty of the Keras networks. Modes: "float32", "autocast" in bfloat16, and
"compiled", the same under `torch.compile`. Needs only torch, and a C++ compiler for the last.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from turns import turns

sys.path.append(str(Path(__file__).parents[1]))
from interleaved.torch_network import network


def make_step(mode, spec):
    """Return a function that takes one training step of a new network."""
    torch.manual_seed(0)
    model, criterion = network(spec["width"]).train(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    forward = torch.compile(model) if mode == "compiled" else model
    images = torch.randn(spec["batch"], 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (spec["batch"],))
    precision = contextlib.nullcontext if mode == "float32" else lambda: torch.autocast("cpu", torch.bfloat16)

    def step():
        optimizer.zero_grad()
        with precision():
            loss = criterion(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, spec["cores"])
    torch.set_num_threads(len(spec["cores"]))
    steps = {mode: make_step(mode, spec) for mode in spec["modes"]}
    for mode in turns(spec["modes"], spec["warmup_steps"]):
        steps[mode]()
