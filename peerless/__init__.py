"""Peerless: serverless peer-to-peer training of PyTorch models.

    import peerless
    run = peerless.train("examples/mnist.toml")
    print(run.summary["test_accuracy"])

Importing starts nothing and loads neither torch nor boto3; names are resolved when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peerless.api import Run, resume, train

__all__ = ["Run", "resume", "train"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from peerless import api

        return getattr(api, name)
    raise AttributeError(f"module 'peerless' has no attribute {name!r}")
