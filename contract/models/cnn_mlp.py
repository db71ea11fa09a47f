"""Two small models: a convolutional network after LeNet-5, and a dense network.

LeNet-5: LeCun et al., "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998; here with
ReLU, maximum pooling and wider layers. Weights are initialised by torch's defaults (uniform, bound 1/sqrt(fan in)).

Shapes: N samples, C channels, S pixels of height and width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from contract.errors import ModelError


class SmallCnn(nn.Module):
    """Two convolutions and two dense layers: 117,066 parameters for 10 classes of 28-pixel images of one channel.

    Pooling brings 28 pixels to 5x5. Other sizes are averaged to 5x5 before the first dense layer (below 26 pixels:
    repeated), so the number of parameters does not depend on the size of the image.
    """

    def __init__(self, classes: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, kernel_size=5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(5),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * 5 * 5, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, classes),
        )

    def forward(self, x_NCSS: Tensor) -> Tensor:
        logits_NK: Tensor = self.classifier(self.features(x_NCSS))
        return logits_NK


def cnn(*, classes: int, channels: int, image_size: int, hidden: int = 128) -> nn.Module:
    """The small convolutional network; `hidden` is the width of its dense layer."""
    _check_positive("cnn", hidden=hidden)
    return SmallCnn(classes, channels, hidden)


def mlp(*, classes: int, channels: int, image_size: int, hidden: int = 500, layers: int = 1) -> nn.Module:
    """A dense network of `layers` hidden layers with `hidden` units: by default 397,510 parameters on MNIST.

    Every pixel is an input, so the number of parameters grows with the image.
    """
    _check_positive("mlp", hidden=hidden, layers=layers)
    stack: list[nn.Module] = [nn.Flatten()]
    width = channels * image_size * image_size
    for _ in range(layers):
        stack += [nn.Linear(width, hidden), nn.ReLU(inplace=True)]
        width = hidden
    return nn.Sequential(*stack, nn.Linear(width, classes))


def _check_positive(model: str, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ModelError(f"model {model}: {name} is {value!r}, but must be a whole number of at least 1")
