"""What the experiments' runs have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peerless.reproduce.experiment import Scale
from peerless.reproduce.tables import PEERS

#: Images for validation; the paper does not say how many.
VALIDATION = 512
#: Pixels to which images are brought: the smallest that all the models take without padding.
PIXELS = 32


def training(
    model: str,
    *,
    service: str,
    batch_size: int,
    samples: int,
    epochs: int,
    peers: int = PEERS,
    batches_per_round: int = 0,
    options: Mapping[str, Any] | None = None,
    source: str = "mnist",
    codec: str = "none",
    mode: str = "sync",
) -> dict[str, Any]:
    """A run on MNIST or CIFAR-10; by default with one update per epoch, over all batches of a peer, as the paper's.

    `samples` are for all peers together (0: all there are), and `service` says who computes gradients: "local" the peer
    itself, "lambda" one worker per batch. Nothing ends it early, and a slow machine costs no peer its membership.
    """
    return {
        "name": "reproduce",
        "peers": peers,
        "mode": mode,
        "epochs": epochs,
        "batch_size": batch_size,
        "batches_per_round": batches_per_round,
        "model": model,
        "model_options": dict(options or {}),
        "data": {
            "source": source,
            "image_size": PIXELS,
            "validation_samples": VALIDATION,
            "train_samples": samples,
        },
        "optimizer": {"name": "sgd", "lr": 0.01},
        "early_stopping": {"patience": 0},
        "compute": {"service": service, "batches_per_worker": 1, "timeout_seconds": 900},
        "exchange": {"codec": codec, "start_timeout_seconds": 600.0, "round_timeout_seconds": 3_600.0},
        "membership": {"heartbeat_timeout_seconds": 120.0},
    }


def vgg11(scale: Scale, **chosen: Any) -> dict[str, Any]:
    """VGG-11 for `training`: small with one dense layer at its end (9.2 million parameters), full as in the paper."""
    return training("vgg11", options={"head": "cifar" if scale is Scale.SMALL else "imagenet"}, **chosen)


def vgg_on_workers(_scale: Scale, **chosen: Any) -> dict[str, Any]:
    """VGG-11 where each batch's gradient goes through a local S3: with one dense layer at any scale.

    With the paper's head an epoch at full scale would write 940 gradients of 515 MB.
    """
    return training("vgg11", options={"head": "cifar"}, **chosen)
