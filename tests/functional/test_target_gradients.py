"""Gradients at targets that are no classes, by the worker and in process, against plain torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from contract import wire
from contract.batches import BatchRef, encode_batch
from contract.clock import SystemClock
from contract.codec import codec
from contract.env import WorkerEnv
from contract.errors import ModelError
from contract.keys import Place
from lambdas.gradient_worker.handler import GradientWorker
from tests.fakes.gradient_round import PEER_BUCKET, PLAIN, GradientRound, prepare
from tests.fakes.store import MemoryStore


def with_targets(store: MemoryStore, made: GradientRound, y: torch.Tensor, loss: str) -> Any:
    """The first batch's task with other targets."""
    blob = encode_batch(made.samples[0][0], y)
    place = Place(PEER_BUCKET, "targets")
    store.put(place, blob)
    batch = BatchRef(index=0, key=place.key, samples=len(y), sha256=hashlib.sha256(blob).hexdigest())
    return replace(made.tasks[0], batch=batch, loss=loss)


@pytest.mark.parametrize("shape", [(4,), (2, 2)])
@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_the_gradient_is_that_of_plain_torch_to_the_bit(loss: str, shape: tuple[int, ...]) -> None:
    store = MemoryStore()
    made = prepare(store, PLAIN)
    x = made.samples[0][0]
    y = torch.rand(len(x), *shape, generator=torch.Generator().manual_seed(2))
    task = with_targets(store, made, y, loss)
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
    answer = GradientWorker(env, store, SystemClock())(task.to_event())
    function = functional.mse_loss if loss == "mse" else functional.binary_cross_entropy_with_logits
    made.model.train()
    expected = function(made.model(x).reshape(y.shape), y)
    expected.backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in made.model.parameters()]).numpy()
    assert np.abs(gradient).max() > 1e-3
    frame = wire.decode(store.get(task.output), expected_elements=None, expected_buffers_bytes=None)
    assert codec("none").decode(frame.payload, made.layout.elements).tobytes() == gradient.tobytes()
    assert answer.loss == float(expected.detach())


def test_a_model_with_too_few_outputs_is_told_once_and_never_retried() -> None:
    store = MemoryStore()
    made = prepare(store, PLAIN)
    task = with_targets(store, made, torch.zeros(8, 7), "mse")
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None)
    with pytest.raises(ModelError, match=r"^batch 0 .* answers with shape \[8, 4\], but the targets have .*\[8, 7\]"):
        GradientWorker(env, store, SystemClock())(task.to_event())
