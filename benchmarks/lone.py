"""One peer's gradient service on the local stack: state machine, worker processes and S3, without a peer around it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from contract.batches import BatchRef, encode_batch
from contract.clock import SystemClock
from contract.config import RunConfig
from contract.keys import Places
from contract.models import initial_weights
from contract.modelspec import ModelSpec
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from contract.store import S3Store
from contract.tensors import Buffers, Layout, encode_weights, flatten, read_buffers, weights_hash
from infra.local.cloud import LocalCloud
from peer_agent.compute import StepFunctionsGradientService
from peer_agent.ports import RoundGradient
from peerless.data import LOCAL_OBJECT_BYTES
from peerless.launch.resources import HANDLER, create_machine, machine_order, places_for
from statemachines import choose_mode

RANK, SEED = 0, 17
_READY_SECONDS = 180.0
_MEMORY_MB, _LIMIT_SECONDS = 1_769, 120


@dataclass(frozen=True)
class Lone:
    """A service ready to compute; weights and batches lie in S3."""

    service: StepFunctionsGradientService
    spec: RunSpec
    model: nn.Module
    layout: Layout
    flat: NDArray[np.float32]
    buffers: Buffers
    batches: tuple[BatchRef, ...]
    store: S3Store

    def compute(self, round: int) -> RoundGradient:
        """The gradient of all batches, as that of some round."""
        return self.service.compute(**self.arguments(round))

    def arguments(self, round: int) -> dict[str, Any]:
        """What `GradientService.compute` takes."""
        return {
            "round": round,
            "incarnation": 0,
            "weights_sha256": self.spec.initial_weights,
            "flat": self.flat,
            "buffers": self.buffers,
            "batches": self.batches,
            "seed": SEED,
        }


@contextlib.contextmanager
def lone_service(
    cloud: LocalCloud, name: str, model: ModelSpec, data: Sequence[tuple[Tensor, Tensor]], workers: int, **compute: Any
) -> Iterator[Lone]:
    """A service for the batches `data`, one or more x (N, …) and y (N, …), with `workers` warm processes.

    `name` is the run's; `compute` are keys of the configuration's [compute]. What was made goes at the end.
    """
    mode = choose_mode("auto", len(data)).value
    settings = {"state_machine": mode, "reduce": "never", **compute}  # there is one function
    config = RunConfig.model_validate({"name": "bench", "peers": 1, "batches_per_round": 0, "compute": settings})
    places = places_for(name, 1, cloud.region)
    for bucket in (places.run_bucket, *places.peer_buckets):
        cloud.client("s3").create_bucket(Bucket=bucket)
    store = S3Store(region=cloud.region, endpoint_url=cloud.endpoint_url, session=cloud.session())
    built = initial_weights(model, SEED)
    layout = Layout.of(built)
    flat, buffers = flatten(built, layout), read_buffers(built, layout)
    sha256 = weights_hash(layout, flat, buffers)
    store.put(
        places.weights(sha256), encode_weights(layout, flat, buffers, run=name, round=0, rank=RANK, incarnation=0)
    )
    refs = _put_batches(store, places, data)
    arn = cloud.register_function(
        name, handler=HANDLER, workers=workers, timeout_seconds=_LIMIT_SECONDS, memory_mb=_MEMORY_MB, env={}
    )
    states = cloud.client("stepfunctions")
    machine = create_machine(states, machine_order(config, name, arn, len(data)))
    spec = RunSpec(
        run=name,
        config=config,
        places=places,
        model=model,
        samples=(sum(len(y) for _, y in data),),
        batches=(len(data),),
        rounds_per_epoch=rounds_per_epoch((len(data),), 0),
        initial_weights=sha256,
        validation=ValidationSet(sha256="", samples=0),
        state_machines=(machine,),
    )
    service = StepFunctionsGradientService(
        spec, RANK, store=store, endpoint_url=cloud.endpoint_url, clock=SystemClock(), client=states
    )
    try:
        cloud.wait_function(name, _READY_SECONDS)
        yield Lone(service, spec, built, layout, flat, buffers, refs, store)
    finally:
        service.close()
        states.delete_state_machine(stateMachineArn=machine)
        cloud.remove_function(name)
        store.close()


def _put_batches(store: S3Store, places: Places, data: Sequence[tuple[Tensor, Tensor]]) -> tuple[BatchRef, ...]:
    """Put the batches together as a launch does (peerless/data/upload.py)."""
    refs: list[BatchRef] = []
    place, content = places.batch(RANK, 0), bytearray()
    for index, (x, y) in enumerate(data):
        blob = encode_batch(x, y)
        if content and len(content) + len(blob) > LOCAL_OBJECT_BYTES:
            store.put(place, content)
            place, content = places.batch(RANK, index), bytearray()
        digest = hashlib.sha256(blob).hexdigest()
        refs.append(
            BatchRef(index=index, key=place.key, samples=len(y), sha256=digest, offset=len(content), length=len(blob))
        )
        content += blob
    store.put(place, content)
    return tuple(refs)
