"""MobileNetV3-Small (Howard et al., "Searching for MobileNetV3", 2019, Table 2).

Convolutions are initialised as He et al. 2015 (normal, fan out), dense layers from a normal distribution of deviation
0.01, biases with zero; batch normalisation with epsilon 0.001 and momentum 0.01, as torchvision does.

Shapes: N samples, C channels, S pixels of height and width, K classes; H by W is a map inside the network.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Block:
    """One row of the paper's Table 2."""

    kernel: int
    expanded: int
    out: int
    squeeze_excite: bool
    hard_swish: bool
    stride: int


def _row(kernel: int, expanded: int, out: int, squeeze_excite: bool, hard_swish: bool, stride: int) -> Block:
    return Block(
        kernel=kernel,
        expanded=expanded,
        out=out,
        squeeze_excite=squeeze_excite,
        hard_swish=hard_swish,
        stride=stride,
    )


#: kernel, expanded channels, output channels, squeeze and excite, hard swish (else ReLU), stride
BLOCKS = (
    _row(3, 16, 16, True, False, 2),
    _row(3, 72, 24, False, False, 2),
    _row(3, 88, 24, False, False, 1),
    _row(5, 96, 40, True, True, 2),
    _row(5, 240, 40, True, True, 1),
    _row(5, 240, 40, True, True, 1),
    _row(5, 120, 48, True, True, 1),
    _row(5, 144, 48, True, True, 1),
    _row(5, 288, 96, True, True, 2),
    _row(5, 576, 96, True, True, 1),
    _row(5, 576, 96, True, True, 1),
)


def _multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8 that is not more than 10% below `channels`, as the paper's code rounds widths."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _convolution(
    channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1, activation: nn.Module | None = None
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, and an activation where one is given."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=0.001, momentum=0.01),
    ]
    if activation is not None:
        layers.append(activation)
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Scale every channel by a gate that is computed from the means of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _multiple_of_8(channels / 4)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, kernel_size=1),
            nn.Hardsigmoid(inplace=True),
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        gate_NC11: Tensor = self.gate(x_NCHW)
        return gate_NC11 * x_NCHW


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, gate, project; with a shortcut where the shape stays the same."""

    def __init__(self, channels: int, block: Block) -> None:
        super().__init__()

        def activation() -> nn.Module:
            return nn.Hardswish(inplace=True) if block.hard_swish else nn.ReLU(inplace=True)

        layers: list[nn.Module] = []
        if block.expanded != channels:
            layers.append(_convolution(channels, block.expanded, kernel=1, activation=activation()))
        layers.append(
            _convolution(
                block.expanded,
                block.expanded,
                kernel=block.kernel,
                stride=block.stride,
                groups=block.expanded,
                activation=activation(),
            )
        )
        if block.squeeze_excite:
            layers.append(SqueezeExcite(block.expanded))
        layers.append(_convolution(block.expanded, block.out, kernel=1))
        self.layers = nn.Sequential(*layers)
        self.shortcut = block.stride == 1 and channels == block.out

    def forward(self, x_NCHW: Tensor) -> Tensor:
        out_NCHW: Tensor = self.layers(x_NCHW)
        return x_NCHW + out_NCHW if self.shortcut else out_NCHW


class MobileNetV3Small(nn.Module):
    """MobileNetV3-Small. Strides are the paper's at any size: 28 and 32 pixels end as a map of 1x1, 224 as one of 7x7.

    The map is averaged before the classifier, so the number of parameters does not depend on the size of the image.
    On a map of 1x1, batch normalisation needs batches of at least two samples.
    """

    def __init__(self, classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            _convolution(channels, 16, kernel=3, stride=2, activation=nn.Hardswish(inplace=True))
        ]
        width = 16
        for block in BLOCKS:
            layers.append(InvertedResidual(width, block))
            width = block.out
        layers.append(_convolution(width, 6 * width, kernel=1, activation=nn.Hardswish(inplace=True)))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * width, 1024),
            nn.Hardswish(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(1024, classes),
        )
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x_NCSS: Tensor) -> Tensor:
        pooled = self.pool(self.features(x_NCSS))
        logits_NK: Tensor = self.classifier(pooled.flatten(1))
        return logits_NK


def mobilenet_v3_small(*, classes: int, channels: int, image_size: int, dropout: float = 0.2) -> nn.Module:
    """MobileNetV3-Small: 2,542,856 parameters for 1,000 classes and 3 channels."""
    return MobileNetV3Small(classes, channels, dropout)
