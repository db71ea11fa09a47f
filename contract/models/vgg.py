"""VGG-11 (configuration A of Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition", 2014, Table 1), without batch normalisation.

Convolutions are initialised as He et al. 2015 (normal, fan out), dense layers from a normal distribution of deviation
0.01, biases with zero, as torchvision does; the paper's own deviation of 0.01 everywhere doesn't train from scratch.

Shapes: N samples, C channels, S pixels of height and width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from contract.errors import ModelError

#: Output channels of the 3x3 convolutions; 0 stands for a 2x2 maximum pooling.
LAYERS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)

#: Five poolings halve the image five times.
SMALLEST = 32


class Vgg11(nn.Module):
    """VGG-11. Images under 32 pixels are padded with zeros to 32, evenly on both sides.

    The map that reaches the classifier is averaged to 7x7 (head `imagenet`; a smaller one is repeated) or to one
    position (head `cifar`), so the number of parameters does not depend on the size of the image.
    """

    def __init__(self, classes: int, channels: int, head: str, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for out in LAYERS:
            if out == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(width, out, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            width = out
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(7 if head == "imagenet" else 1)
        self.classifier = _imagenet_head(classes, dropout) if head == "imagenet" else nn.Linear(width, classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x_NCSS: Tensor) -> Tensor:
        missing = SMALLEST - x_NCSS.shape[-1]
        if missing > 0:
            before, after = missing // 2, missing - missing // 2
            x_NCSS = functional.pad(x_NCSS, (before, after, before, after))
        pooled = self.pool(self.features(x_NCSS))
        logits_NK: Tensor = self.classifier(pooled.flatten(1))
        return logits_NK


def _imagenet_head(classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(4096, classes),
    )


def vgg11(*, classes: int, channels: int, image_size: int, head: str = "imagenet", dropout: float = 0.5) -> nn.Module:
    """VGG-11: 132,863,336 parameters for 1,000 classes and 3 channels with head `imagenet` (the paper's).

    Head `cifar` is one dense layer on the averaged features: 9,225,610 parameters for 10 classes and 3 channels;
    `dropout` has no effect there. Raises ModelError for another head.
    """
    if head not in ("imagenet", "cifar"):
        raise ModelError(f"model vgg11: head is {head!r}, but must be imagenet or cifar")
    return Vgg11(classes, channels, head, dropout)
