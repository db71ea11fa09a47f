"""What every launch puts into a run's buckets before its peers start, wherever the buckets are."""

from __future__ import annotations

from contract import tensors
from contract.clock import Clock
from contract.config import RunConfig
from contract.keys import Places
from contract.prices import Prices
from contract.runspec import RunSpec, ValidationSet, rounds_per_epoch
from contract.store import ObjectStore
from peerless import data
from peerless.launch.workload import Workload


def provide(
    config: RunConfig,
    work: Workload,
    store: ObjectStore,
    places: Places,
    *,
    machines: tuple[str, ...],
    code_digest: str,
    clock: Clock,
    prices: Prices | None = None,
    object_bytes: int = data.OBJECT_BYTES,
) -> RunSpec:
    """Upload batches, validation set and initial weights, then `run.json`, which names them; gives its content.

    `machines` are the state machines' ARNs in rank order, "" where a peer computes in its own process. The buckets
    must exist. `prices` are for the peers' meters; batches are put together to objects of `object_bytes`. Raises
    StoreUnavailable and what else the store raises.
    """
    uploaded = data.upload(work.prepared, store, places, object_bytes=object_bytes)
    store.put(places.preprocessing(), data.Preprocessing.of(work.prepared).to_json())
    flat, buffers = tensors.flatten(work.model, work.layout), tensors.read_buffers(work.model, work.layout)
    sha256 = tensors.weights_hash(work.layout, flat, buffers)
    blob = tensors.encode_weights(
        work.layout, flat, buffers, run=places.run, round=0, rank=0, incarnation=0, sha256=sha256
    )
    store.create(places.weights(sha256), blob)
    spec = RunSpec(
        run=places.run,
        config=config,
        places=places,
        model=work.spec,
        samples=work.prepared.samples,
        batches=work.prepared.batches,
        rounds_per_epoch=rounds_per_epoch(work.prepared.batches, config.batches_per_round),
        initial_weights=sha256,
        validation=ValidationSet(sha256=uploaded.validation_sha256, samples=uploaded.validation_samples),
        state_machines=machines,
        code_digest=code_digest,
        created=clock.now(),
        prices=prices,
    )
    store.create(places.spec(), spec.to_json())
    return spec
