"""Worker process of `benchmarks/stacked.py` for PyTorch: one wide residual network, trained as fast as PyTorch can.

    python torch_worker.py '{"width": 1, "batch": 128, "device": "cuda"}'    # started by benchmarks/stacked.py

Images stay on the device as bytes; crops and flips are gathers there. Channels last, bfloat16 autocast,
`torch.compile`, fused SGD; on a GPU the whole step is one CUDA graph. For each line with a number of steps on standard
input the worker prints the seconds that they took. Needs only torch and NumPy.
"""

import json
import sys
import time

import torch
from torch import nn


class Block(nn.Module):
    """Pre-activation block B(3, 3); if the shape changes, branch and projection share the pre-activation."""

    def __init__(self, in_channels, out_channels, stride):
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(in_channels), nn.BatchNorm2d(out_channels)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.projection = None
        if in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x):
        activation = torch.relu(self.norm_1(x))
        branch = self.conv_2(torch.relu(self.norm_2(self.conv_1(activation))))
        return branch + (x if self.projection is None else self.projection(activation))


def network(width):
    """Return a WRN-16-width for ten classes."""
    k = width
    groups = [(16, 16 * k, 1), (16 * k, 16 * k, 1), (16 * k, 32 * k, 2)]
    groups += [(32 * k, 32 * k, 1), (32 * k, 64 * k, 2), (64 * k, 64 * k, 1)]
    blocks = [Block(*group) for group in groups]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), *blocks, nn.BatchNorm2d(64 * k), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64 * k, 10),
    )  # fmt: skip


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
