"""A real gradient for benchmarks of the codec: VGG-11 with a CIFAR head, some steps into training on MNIST."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from contract import models, tensors
from contract.config import DataConfig
from contract.modelspec import ModelSpec
from peerless import data
from peerless.data.preprocess import fit

F32 = NDArray[np.float32]

#: 9,225,610 parameters: eight convolutions and one dense layer on the averaged features.
MODEL = ModelSpec(name="vgg11", classes=10, channels=3, image_size=32, options={"head": "cifar"})
# STEPS: where kurtosis and zeros are nearest to those of the gradient that the limits were set on (docs/benchmarks.md).
STEPS, BATCH_SIZE, LEARNING_RATE, MOMENTUM = 70, 64, 0.01, 0.9
#: Samples of MNIST that the steps draw from.
SAMPLES = 10_000
#: Sums depend on the number of threads, and the gradient on every sum before it.
THREADS = 2
SEED = 0
#: Values that share a scale in `tiled`.
BLOCK = 1 << 16


def vgg11_gradient(steps: int = STEPS) -> F32:
    """(9225610,) float32: the gradient of one batch after `steps` steps of SGD, flat in the order of the parameters.

    The same on every run on one kind of processor with one release of torch. Sets torch's number of threads.
    """
    torch.set_num_threads(THREADS)
    digits = data.load(DataConfig(source="mnist"), log=_tell)
    images_NCHW = np.repeat(digits.train_x[:SAMPLES], MODEL.channels, axis=1)
    labels_N = torch.from_numpy(digits.train_y[:SAMPLES])
    transform = fit(images_NCHW, np.arange(SAMPLES), ("min_max", "standardise"), MODEL.image_size)
    model = models.initial_weights(MODEL, SEED)
    layout = tensors.Layout.of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    rng = np.random.default_rng(SEED)
    loss = torch.zeros(())
    for step in range(steps + 1):
        if step:
            optimizer.step()
            optimizer.zero_grad()
        batch = rng.integers(SAMPLES, size=BATCH_SIZE)
        loss = functional.cross_entropy(model(torch.from_numpy(transform.apply(images_NCHW[batch]))), labels_N[batch])
        loss.backward()  # type: ignore[no-untyped-call]
    gradient = tensors.flat_gradient(model, layout)
    digest = hashlib.sha256(gradient.tobytes()).hexdigest()[:12]
    _tell(f"gradient of VGG-11 after {steps} steps, where the loss is {loss.item():.4f}: SHA-256 {digest}…")
    return gradient


def tiled(gradient: F32, size: int, seed: int = SEED) -> F32:
    """(size,) float32: `gradient` again and again, each block of BLOCK values times a scale of its own.

    Scales are log-normal with a deviation of one in the logarithm, as layers of one model differ.
    """
    repeated = np.resize(gradient, size)
    rng = np.random.default_rng(seed)
    for start in range(0, size, BLOCK):
        repeated[start : start + BLOCK] *= np.float32(rng.lognormal())
    return repeated


def kurtosis(x: F32) -> float:
    """Fourth central moment over the squared variance; 3 for a normal distribution, more for heavier tails."""
    square = np.square(x - x.mean(dtype=np.float64), dtype=np.float64)
    return float(np.square(square).mean() / square.mean() ** 2)


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
