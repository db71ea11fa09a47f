"""An object store in memory; tests/functional/test_store_contract.py holds it to what S3 does."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence

from contract.errors import CorruptObject, ObjectMissing
from contract.keys import Place
from contract.store import Data, StoreCounts, Stored


class MemoryStore:
    """ObjectStore in memory, thread-safe.

    `buckets` names those that exist; None means every bucket does. `before(operation, place)` runs ahead of each
    operation: a test raises in it, to inject a fault, or counts.
    """

    def __init__(
        self,
        buckets: Collection[str] | None = None,
        before: Callable[[str, Place], None] | None = None,
    ) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.counts = StoreCounts()
        self.before = before
        self._buckets = buckets
        self._lock = threading.Lock()

    def put(self, place: Place, data: Data) -> Stored:
        self._enter("put", place)
        with self._lock:
            return self._write(place, data)

    def create(self, place: Place, data: Data) -> Stored | None:
        self._enter("create", place)
        with self._lock:
            self.counts.puts += 1
            if (place.bucket, place.key) in self.objects:
                return None
            self.counts.puts -= 1
            return self._write(place, data)

    def replace(self, place: Place, data: Data, etag: str) -> Stored | None:
        self._enter("replace", place)
        with self._lock:
            present = self.objects.get((place.bucket, place.key))
            if present is None or _etag(present) != etag:
                self.counts.puts += 1
                return None
            return self._write(place, data)

    def get(self, place: Place, most: int | None = None) -> bytes:
        self._enter("get", place)
        with self._lock:
            self._check_size(place, most)
            return self._read(place)

    def get_range(self, place: Place, offset: int, length: int) -> bytes:
        self._enter("get_range", place)
        if offset < 0 or length < 0:
            raise ValueError(f"{length} bytes from {offset} are no range")
        if length == 0:
            return b""
        with self._lock:
            data = self._read(place, offset, length)
        if len(data) != length:
            raise CorruptObject(f"{place} ends before byte {offset + length}")
        return data

    def find(self, place: Place, most: int | None = None) -> tuple[bytes, str] | None:
        self._enter("find", place)
        with self._lock:
            if (place.bucket, place.key) not in self.objects:
                self.counts.gets += 1
                return None
            self._check_size(place, most)
            data = self._read(place)
            return data, _etag(data)

    def _check_size(self, place: Place, most: int | None) -> None:
        size = len(self.objects.get((place.bucket, place.key), b""))
        if most is not None and size > most:
            raise CorruptObject(f"{place} has {size} bytes, where {most} are the most")

    def head(self, place: Place) -> Stored | None:
        self._enter("head", place)
        with self._lock:
            self.counts.gets += 1
            data = self.objects.get((place.bucket, place.key))
            return None if data is None else Stored(_etag(data), len(data))

    def list(self, bucket: str, prefix: str, owner: str | None = None) -> list[str]:
        self._enter("list", Place(bucket, prefix, owner))
        with self._lock:
            self.counts.lists += 1
            found = [key for (held, key) in self.objects if held == bucket and key.startswith(prefix)]
        return sorted(found, key=str.encode)

    def delete(self, places: Sequence[Place]) -> None:
        for place in places:
            self._enter("delete", place)
        with self._lock:
            self.counts.deletes += bool(places)
            for place in places:
                self.objects.pop((place.bucket, place.key), None)

    def close(self) -> None:
        """Nothing to close; S3Store has connections."""

    def _enter(self, operation: str, place: Place) -> None:
        if self.before is not None:
            self.before(operation, place)
        if self._buckets is not None and place.bucket not in self._buckets:
            raise ObjectMissing(f"there is no bucket {place.bucket} in memory")

    def _write(self, place: Place, data: Data) -> Stored:
        body = bytes(data)
        self.objects[place.bucket, place.key] = body
        self.counts.puts += 1
        self.counts.bytes_out += len(body)
        return Stored(_etag(body), len(body))

    def _read(self, place: Place, offset: int = 0, length: int | None = None) -> bytes:
        self.counts.gets += 1
        data = self.objects.get((place.bucket, place.key))
        if data is None:
            raise ObjectMissing(f"{place} does not exist")
        part = data[offset:] if length is None else data[offset : offset + length]
        self.counts.bytes_in += len(part)
        return part


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
