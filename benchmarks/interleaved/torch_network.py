"""Wide residual networks in PyTorch, the peer of the training benchmarks. Needs only torch."""

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
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        activation = self.relu(self.norm_1(x))
        branch = self.conv_2(self.relu(self.norm_2(self.conv_1(activation))))
        return branch + (x if self.projection is None else self.projection(activation))


def network(width=1):
    """Return a WRN-16-width for ten classes, channels last."""
    groups = [(16, 16 * width, 1), (16 * width, 16 * width, 1), (16 * width, 32 * width, 2)]
    groups += [(32 * width, 32 * width, 1), (32 * width, 64 * width, 2), (64 * width, 64 * width, 1)]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), *[Block(*group) for group in groups],
        nn.BatchNorm2d(64 * width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64 * width, 10),
    )  # fmt: skip
    return model.to(memory_format=torch.channels_last)
