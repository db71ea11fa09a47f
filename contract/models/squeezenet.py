"""SqueezeNet 1.1 (Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", 2016, in the later
form with 2.4 times less computation).

The last convolution is initialised from a normal distribution of deviation 0.01, the others as He et al. 2015
(uniform), biases with zero, as torchvision does.

Shapes: N samples, C channels, S pixels of height and width, K classes; H by W is a map inside the network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Fire(nn.Module):
    """Squeeze to few channels by a 1x1 convolution, then expand by 1x1 and 3x3 convolutions side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, kernel_size=1)
        self.expand_1x1 = nn.Conv2d(squeeze, expand, kernel_size=1)
        self.expand_3x3 = nn.Conv2d(squeeze, expand, kernel_size=3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        squeezed = self.activation(self.squeeze(x_NCHW))
        return torch.cat((self.activation(self.expand_1x1(squeezed)), self.activation(self.expand_3x3(squeezed))), 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1. Its three poolings round up, so that 28 pixels still leave a map of 1x1 (32: 1x1, 224: 13x13).

    The classifier is a 1x1 convolution whose map is averaged, so the number of parameters does not depend on the size
    of the image.
    """

    def __init__(self, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(512, classes, kernel_size=1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if module is self.classifier:
                    nn.init.normal_(module.weight, 0.0, 0.01)
                else:
                    nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x_NCSS: Tensor) -> Tensor:
        map_NKHW = torch.relu(self.classifier(self.dropout(self.features(x_NCSS))))
        return map_NKHW.mean((2, 3))


def squeezenet1_1(*, classes: int, channels: int, image_size: int, dropout: float = 0.5) -> nn.Module:
    """SqueezeNet 1.1: 1,235,496 parameters for 1,000 classes and 3 channels."""
    return SqueezeNet(classes, channels, dropout)
