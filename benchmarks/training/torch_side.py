"""What does PyTorch do in a turn of `benchmarks/training.py`?

    python torch_side.py '{"batch": 128, ...}'      # started by benchmarks/training.py, which triggers it over a pipe

The same network, trained by the usual loop: channels last, a `DataLoader` with worker processes, SGD with the weight
decay that equals the penalty of the Keras sides. Pixels are normalised a batch at a time and cross between processes as
bytes. Needs torch and numpy only; our package never imports it.
"""

import json
import random
import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from turns import turns


class Block(nn.Module):
    """A pre-activation block B(3, 3); where the shape changes, branch and projection share the pre-activation."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.norm_1, self.norm_2 = nn.BatchNorm2d(before), nn.BatchNorm2d(after)
        self.conv_1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.conv_2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.projection = None if before == after else nn.Conv2d(before, after, 1, stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        active = self.relu(self.norm_1(x))
        branch = self.conv_2(self.relu(self.norm_2(self.conv_1(active))))
        return branch + (x if self.projection is None else self.projection(active))


def network():
    """WRN-16-1, ten classes."""
    groups = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), *[Block(*group) for group in groups],
        nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)


class Augmented(Dataset):
    """Zero padding by 4, a random crop, a random flip; uint8 `(32, 32, 3)` and the class."""

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


def epochs(spec):
    """Batches without end."""
    with np.load(spec["data"]) as file:
        dataset = Augmented(file["images"], file["labels"].astype(np.int64))
    loader = DataLoader(
        dataset, spec["batch"], shuffle=True, drop_last=True,
        num_workers=spec["loaders"], persistent_workers=spec["loaders"] > 0,
    )  # fmt: skip
    while True:
        yield from loader


def train(spec):
    model, criterion, batches = network().train(), nn.CrossEntropyLoss(), epochs(spec)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    mean = torch.tensor([125.3, 123.0, 113.9]).view(1, 3, 1, 1)
    std = torch.tensor([63.0, 62.1, 66.7]).view(1, 3, 1, 1)
    total, hits = 0.0, 0
    for _ in turns(spec["warm_up"]):
        images, labels = next(batches)
        images = (images.permute(0, 3, 1, 2) - mean) / std  # a view of (batch, 32, 32, 3): channels last already
        optimizer.zero_grad()
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        total += loss.item()
        hits += (logits.argmax(1) == labels).sum().item()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    torch.set_num_threads(given["threads"])
    train(given)
