"""The convolutional network of the FedKeeper paper (Chadha et al. 2020, section 4.1), after McMahan et al. 2017.

Two 5x5 convolutions of 32 and 64 channels without padding, each followed by 2x2 maximum pooling, a dense layer of 512
units, and the output. The paper's dense network is `mlp` with its defaults: 397,510 parameters on MNIST.

Shapes: N samples, C channels, S pixels of height and width, K classes.
"""

from __future__ import annotations

from torch import nn


def fedkeeper_cnn(*, classes: int, channels: int, image_size: int) -> nn.Module:
    """582,026 parameters for 10 classes of 28-pixel images of one channel; more for larger images."""
    side = ((image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, kernel_size=5),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * side * side, 512),
        nn.ReLU(inplace=True),
        nn.Linear(512, classes),
    )
