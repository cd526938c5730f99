"""Worker process of `benchmarks/stacked.py` for PyTorch: one wide residual network, trained as fast as PyTorch can.

    python torch_worker.py '{"width": 1, "batch": 128, "device": "cuda"}'    # started by benchmarks/stacked.py

Images stay on the device as bytes; crops and flips are gathers there. Channels last, bfloat16 autocast,
`torch.compile`, fused SGD; on a GPU the whole step is one CUDA graph. For each line with a number of steps on standard
input the worker prints the seconds that they took. Needs only torch and NumPy.
"""

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))
from interleaved.torch_network import network


class Trainer:
    """The training step, its static inputs, and the images on the device."""

    def __init__(self, spec):
        self.device, self.batch = spec["device"], spec["batch"]
        torch.manual_seed(0)
        self.images = torch.randint(0, 256, (10_000, 32, 32, 3), dtype=torch.uint8, device=self.device)
        self.labels = torch.randint(0, 10, (10_000,), device=self.device)
        self.mean = torch.tensor([125.3, 123.0, 113.9], device=self.device)
        self.std = torch.tensor([63.0, 62.1, 66.7], device=self.device)
        self.reflected = torch.tensor([4, 3, 2, 1, *range(32), 30, 29, 28, 27], device=self.device)
        self.model = network(spec["width"]).to(self.device, memory_format=torch.channels_last).train()
        cuda = self.device == "cuda"
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=cuda
        )
        self.indices = torch.zeros(self.batch, dtype=torch.int64, device=self.device)
        self.draws = torch.zeros(self.batch, 3, dtype=torch.int64, device=self.device)
        self.forward = torch.compile(self.loss)
        self.step = self.capture() if cuda else self.eager_step

    def loss(self, indices, draws):
        offsets = torch.arange(32, device=self.device)
        rows = self.reflected[draws[:, :1] + offsets]
        columns = self.reflected[draws[:, 1:2] + offsets]
        columns = torch.where(draws[:, 2:] == 1, columns.flip(1), columns)
        pixels = self.images[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        pixels = ((pixels.float() - self.mean) / self.std).permute(0, 3, 1, 2)  # a view, channels last
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits = self.model(pixels)
        return nn.functional.cross_entropy(logits.float(), self.labels[indices])

    def eager_step(self):
        self.optimizer.zero_grad(set_to_none=True)
        self.forward(self.indices, self.draws).backward()
        self.optimizer.step()

    def capture(self):
        """Return the replay of the step as one CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(5):
                self.eager_step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.forward(self.indices, self.draws).backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
        return graph.replay

    def run(self, steps):
        """Return the seconds that a number of steps take."""
        order = torch.randint(0, 10_000, (steps, self.batch), device=self.device)
        limits = torch.tensor([9, 9, 2], device=self.device)
        draws = (torch.rand(steps, self.batch, 3, device=self.device) * limits).long()
        self.synchronize()
        started = time.perf_counter()
        for step in range(steps):
            self.indices.copy_(order[step])
            self.draws.copy_(draws[step])
            self.step()
        self.synchronize()
        return time.perf_counter() - started

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    if spec.get("threads"):
        torch.set_num_threads(spec["threads"])
    trainer = Trainer(spec)
    trainer.run(3)
    print("ready", flush=True)
    for line in sys.stdin:
        print(trainer.run(int(line)), flush=True)
