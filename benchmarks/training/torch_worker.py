"""Worker process of `benchmarks/training.py` for PyTorch.

    python torch_worker.py '{"batch": 128, ...}'      # started by benchmarks/training.py, which controls it over a pipe

Trains the same network with the usual loop: channels last, a `DataLoader` with worker processes, SGD whose weight decay
equals the L2 penalty of the Keras networks. Pixels are sent between processes as bytes and normalized per batch. Needs
only torch and NumPy.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from turns import turns

sys.path.append(str(Path(__file__).parents[1]))
from interleaved.torch_network import network


class AugmentedImages(Dataset):
    """Images with zero padding by 4, a random crop and a random flip: uint8 `(32, 32, 3)` and the class."""

    def __init__(self, images, labels):
        self._images, self._labels = images, labels

    def __len__(self):
        return len(self._labels)

    def __getitem__(self, index):
        padded = np.zeros((40, 40, 3), np.uint8)
        padded[4:36, 4:36] = self._images[index]
        top, left = random.randrange(9), random.randrange(9)
        image = padded[top : top + 32, left : left + 32]
        return np.ascontiguousarray(image[:, ::-1] if random.random() < 0.5 else image), self._labels[index]


def endless_batches(spec):
    """Yield batches without end."""
    with np.load(spec["data"]) as file:
        dataset = AugmentedImages(file["images"], file["labels"].astype(np.int64))
    loader = DataLoader(
        dataset, spec["batch"], shuffle=True, drop_last=True,
        num_workers=spec["loaders"], persistent_workers=spec["loaders"] > 0,
    )  # fmt: skip
    while True:
        yield from loader


def train(spec):
    """Run the usual training loop of PyTorch."""
    model, criterion, batches = network().train(), nn.CrossEntropyLoss(), endless_batches(spec)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean = torch.tensor([125.3, 123.0, 113.9]).view(1, 3, 1, 1)
    std = torch.tensor([63.0, 62.1, 66.7]).view(1, 3, 1, 1)
    total_loss, num_correct = 0.0, 0
    for _ in turns(spec["warmup_steps"]):
        images, labels = next(batches)
        images = (
            images.permute(0, 3, 1, 2) - mean
        ) / std  # permute returns a view of (batch, 32, 32, 3), which is channels last
        optimizer.zero_grad()
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
        num_correct += (logits.argmax(1) == labels).sum().item()


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    train(spec)
