"""Sending a prepared data set: batches and manifest into each peer's own bucket, validation set into the run's.

Batches share objects of some megabytes and are read by byte range. One object per batch would cost a PUT each, and a
PUT costs twelve times a GET, which costs the same by range: 108 batches of 0.4 MB are 6 objects instead of 108.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from contract.batches import BatchRef, Manifest, encode_batch
from contract.errors import PeerlessError
from contract.keys import Place, Places
from contract.store import ObjectStore
from peerless.data.prepared import Prepared

#: Batches are put together up to this size; a larger batch has an object to itself.
OBJECT_BYTES = 8 << 20
#: The same on a local AWS, which reads a whole object for every range of it and charges nothing for a PUT.
LOCAL_OBJECT_BYTES = 1 << 20
_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class UploadResult:
    """What lies in S3 after an upload."""

    manifests: tuple[Manifest, ...]
    """By rank."""
    validation_sha256: str
    """Digest of the validation object, hex."""
    validation_samples: int
    """Samples in it."""
    objects: int
    """Objects written, manifests and validation set included."""
    bytes: int
    """Their bytes."""

    @property
    def samples(self) -> tuple[int, ...]:
        """Training samples by rank."""
        return tuple(manifest.samples for manifest in self.manifests)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches by rank."""
        return tuple(len(manifest.batches) for manifest in self.manifests)


def upload(
    prepared: Prepared, store: ObjectStore, places: Places, *, threads: int = _THREADS, object_bytes: int = OBJECT_BYTES
) -> UploadResult:
    """Write batches and validation set, and the manifests once all of that is there: a manifest names nothing missing.

    The buckets must exist. On any failure, and on Ctrl-C, what this call wrote is removed again as far as the store
    still answers, and the error goes on: StoreUnavailable, or what else the store raises. `threads` bounds the memory
    too: each holds one object of `object_bytes`, or one batch where that is larger.
    """
    return _Upload(prepared, store, places).run(threads, object_bytes)


def upload_partition(
    prepared: Prepared, store: ObjectStore, places: Places, rank: int, *, object_bytes: int = OBJECT_BYTES
) -> Manifest:
    """Write the batches of a data set with one partition into the bucket of `rank`; gives the manifest to be written.

    On any failure what this call wrote is removed again, as `upload` does.
    """
    return _Upload(prepared, store, places, rank).run_partition(_THREADS, object_bytes)


class _Upload:
    def __init__(self, prepared: Prepared, store: ObjectStore, places: Places, first: int = 0) -> None:
        """`first` is the rank of the first partition."""
        self._prepared, self._store, self._places, self._first = prepared, store, places, first
        self._lock = threading.Lock()
        self._attempted: list[Place] = []
        self._bytes = 0

    def run(self, threads: int, object_bytes: int) -> UploadResult:
        ranks = range(len(self._prepared.partitions))
        with self._pool(threads) as pool:
            validation = pool.submit(self._put_validation)  # the largest object first
            groups = [
                [pool.submit(self._put_group, rank, group) for group in self._groups(rank, object_bytes)]
                for rank in ranks
            ]
            _all_done([validation, *(future for rank in groups for future in rank)])
            manifests = tuple(
                Manifest(rank=rank, batches=tuple(ref for future in groups[rank] for ref in future.result()))
                for rank in ranks
            )
            _all_done([pool.submit(self._put_manifest, manifest) for manifest in manifests])
        return UploadResult(
            manifests=manifests,
            validation_sha256=validation.result(),
            validation_samples=len(self._prepared.validation),
            objects=len(self._attempted),
            bytes=self._bytes,
        )

    def run_partition(self, threads: int, object_bytes: int) -> Manifest:
        with self._pool(threads) as pool:
            groups = [pool.submit(self._put_group, 0, group) for group in self._groups(0, object_bytes)]
            _all_done(groups)
            return Manifest(rank=self._first, batches=tuple(ref for future in groups for ref in future.result()))

    @contextlib.contextmanager
    def _pool(self, threads: int) -> Iterator[ThreadPoolExecutor]:
        """Threads to put with; on any failure, and on Ctrl-C, what they have put is removed again."""
        pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="upload")
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            with contextlib.suppress(PeerlessError):  # the first error is the one to report
                self._store.delete(self._attempted)
            raise
        pool.shutdown(wait=True)

    def _groups(self, rank: int, object_bytes: int) -> Iterator[range]:
        """Consecutive batches that share an object."""
        together = max(1, object_bytes // (self._prepared.batch_size * self._prepared.sample_bytes))
        count = self._prepared.batches[rank]
        for start in range(0, count, together):
            yield range(start, min(start + together, count))

    def _put_group(self, rank: int, group: range) -> list[BatchRef]:
        place = self._places.batch(self._first + rank, group[0])
        content, references = bytearray(), []
        for index in group:
            x, y = self._prepared.batch(rank, index)
            blob = encode_batch(x, y)
            references.append(
                BatchRef(
                    index=index,
                    key=place.key,
                    samples=len(y),
                    sha256=hashlib.sha256(blob).hexdigest(),
                    offset=len(content),
                    length=len(blob) if len(group) > 1 else None,
                )
            )
            content += blob
        self._put(place, content)
        return references

    def _put_validation(self) -> str:
        blob = encode_batch(*self._prepared.validation_set())
        self._put(self._places.validation(), blob)
        return hashlib.sha256(blob).hexdigest()

    def _put_manifest(self, manifest: Manifest) -> None:
        self._put(self._places.manifest(manifest.rank), manifest.to_json())

    def _put(self, place: Place, content: bytes | bytearray) -> None:
        with self._lock:
            self._attempted.append(place)
            self._bytes += len(content)
        self._store.put(place, content)


def _all_done(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, or raise the first error as soon as it is there."""
    wait(futures, return_when=FIRST_EXCEPTION)
    for future in futures:
        if future.done():
            future.result()
