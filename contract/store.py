"""Objects in S3: a small port, and its one implementation over boto3 (the only import of boto3 in `contract`).

Conditional writes are how peers agree, so their unclear answers are settled here. An answer that never came (timeout,
cut connection, 5xx) may hide a success: the same bytes are tried again under the same condition, and where that comes
back as lost (412), the object is read and compared. The same bytes mean that our lost request had won. Records carry a
nonce, so two writers never write the same bytes by chance.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
)
from botocore.handlers import add_expect_header, convert_body_to_file_like_object

from contract.clock import Clock, SystemClock
from contract.errors import CorruptObject, ObjectMissing, PermanentError, StoreUnavailable
from contract.keys import Place

T = TypeVar("T")
Data = bytes | bytearray | memoryview

#: Seconds between attempts, before jitter of a quarter either way; they outlast five seconds of 503 from S3.
_WAITS = (0.2, 0.6, 1.8, 5.0)
_NO_ANSWER = (ConnectionError, HTTPClientError, IncompleteReadError)
_BUSY_CODES = {"SlowDown", "Throttling", "RequestTimeout", "InternalError", "ServiceUnavailable"}
_DELETE_AT_ONCE = 1_000  # S3's limit per request


@dataclass(frozen=True)
class Stored:
    """An object as S3 has it: entity tag (as S3 writes it, quotes included) and size in bytes."""

    etag: str
    size: int


@dataclass
class StoreCounts:
    """Requests sent, as S3 bills them (failed attempts included), and bytes of objects received and sent."""

    gets: int = 0
    puts: int = 0
    lists: int = 0
    deletes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class ObjectStore(Protocol):
    """What the rest of the code may ask of S3. Everything may raise StoreUnavailable once the retries are spent."""

    def put(self, place: Place, data: Data) -> Stored:
        """Write, whatever is there."""
        ...

    def create(self, place: Place, data: Data) -> Stored | None:
        """Write only where nothing is (`If-None-Match: *`); None when something else was there first."""
        ...

    def replace(self, place: Place, data: Data, etag: str) -> Stored | None:
        """Write only over the version `etag` (`If-Match`); None when that is no longer there."""
        ...

    def get(self, place: Place, most: int | None = None) -> bytes:
        """The object's bytes. Raises ObjectMissing; CorruptObject where it has more than `most`, before any is read."""
        ...

    def get_range(self, place: Place, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises ObjectMissing; CorruptObject when the object ends before."""
        ...

    def find(self, place: Place, most: int | None = None) -> tuple[bytes, str] | None:
        """Bytes and entity tag, or None where there is no object. Raises CorruptObject as `get` does."""
        ...

    def head(self, place: Place) -> Stored | None:
        """Entity tag and size without the bytes, or None where there is no object."""
        ...

    def list(self, bucket: str, prefix: str, owner: str | None = None) -> list[str]:
        """All keys that start with `prefix`, in the order of their UTF-8 bytes; `owner` as in Place."""
        ...

    def delete(self, places: Sequence[Place]) -> None:
        """Remove objects; one that is not there counts as removed."""
        ...


class _Busy(Exception):
    """S3 did not answer, or said that it could not: the request may or may not have been carried out."""


class _Conflict(Exception):
    """409: another conditional write is under way; the request was not carried out and should be sent again."""


class _Lost(Exception):
    """412, or 404 under `If-Match`: the condition does not hold."""


class S3Store:
    """S3 over boto3. Thread-safe; the client is built at the first use.

    `endpoint_url` names another S3 than AWS's (path-style addresses); the environment's own settings for that are not
    looked at. `attempts` bounds the tries of each call. Timeouts are in seconds, per attempt. `session` brings
    credentials of its own (None: those that the environment gives) and is used by this object alone.
    """

    def __init__(
        self,
        *,
        region: str,
        endpoint_url: str | None = None,
        clock: Clock | None = None,
        attempts: int = 5,
        connect_timeout_seconds: float = 5.0,
        read_timeout_seconds: float = 60.0,
        session: boto3.session.Session | None = None,
    ) -> None:
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        self.counts = StoreCounts()
        self._region, self._endpoint_url = region, endpoint_url
        self._clock: Clock = clock or SystemClock()
        self._attempts = attempts
        self._connect_timeout, self._read_timeout = connect_timeout_seconds, read_timeout_seconds
        self._session = session
        self._lock = threading.Lock()
        self._made: Any = None

    def put(self, place: Place, data: Data) -> Stored:
        body = bytes(data)
        return self._retry("put", place, lambda: self._put(place, body))

    def create(self, place: Place, data: Data) -> Stored | None:
        return self._conditional(place, bytes(data), IfNoneMatch="*")

    def replace(self, place: Place, data: Data, etag: str) -> Stored | None:
        return self._conditional(place, bytes(data), IfMatch=etag)

    def get(self, place: Place, most: int | None = None) -> bytes:
        found = self.find(place, most)
        if found is None:
            raise ObjectMissing(f"{place} does not exist")
        return found[0]

    def get_range(self, place: Place, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise ValueError(f"{length} bytes from {offset} are no range")
        if length == 0:
            return b""
        span = f"bytes={offset}-{offset + length - 1}"
        found = self._retry("get", place, lambda: self._get(place, length, Range=span))
        if found is None:
            raise ObjectMissing(f"{place} does not exist")
        if len(found[0]) != length:
            raise CorruptObject(f"{place} ends before byte {offset + length}")
        return found[0]

    def find(self, place: Place, most: int | None = None) -> tuple[bytes, str] | None:
        return self._retry("get", place, lambda: self._get(place, most))

    def head(self, place: Place) -> Stored | None:
        def attempt() -> Stored | None:
            answer = self._send("head_object", place, "gets", Key=place.key)
            return None if answer is None else Stored(answer["ETag"], answer["ContentLength"])

        return self._retry("head", place, attempt)

    def list(self, bucket: str, prefix: str, owner: str | None = None) -> list[str]:
        keys: list[str] = []
        place = Place(bucket, prefix, owner)
        more: dict[str, str] = {}
        while True:
            page = self._retry("list", place, functools.partial(self._page, place, more))
            keys += [entry["Key"] for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return keys
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, places: Sequence[Place]) -> None:
        by_bucket: dict[tuple[str, str | None], list[str]] = {}
        for place in places:
            by_bucket.setdefault((place.bucket, place.owner), []).append(place.key)
        for (bucket, owner), keys in by_bucket.items():
            for start in range(0, len(keys), _DELETE_AT_ONCE):
                self._delete(bucket, owner, keys[start : start + _DELETE_AT_ONCE])

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._lock:
            client, self._made = self._made, None
        if client is not None:
            client.close()

    def _delete(self, bucket: str, owner: str | None, keys: Sequence[str]) -> None:
        place = Place(bucket, keys[0], owner)
        objects = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def attempt() -> None:
            answer = self._send("delete_objects", place, "deletes", Delete=objects)
            for error in (answer or {}).get("Errors", ()):
                if error.get("Code") in _BUSY_CODES:
                    raise _Busy(error["Code"])
                raise PermanentError(f"S3 refused to delete s3://{bucket}/{error.get('Key')}: {error.get('Code')}")

        self._retry("delete", place, attempt)

    def _put(self, place: Place, body: bytes, **condition: str) -> Stored:
        answer = self._send("put_object", place, "puts", Key=place.key, Body=body, **condition)
        if answer is None and not condition:
            raise ObjectMissing(f"there is no bucket {place.bucket} in S3 at {self._host()}")
        if answer is None:
            raise _Lost
        self._count(bytes_out=len(body))
        return Stored(answer["ETag"], len(body))

    def _get(self, place: Place, most: int | None = None, **options: str) -> tuple[bytes, str] | None:
        answer = self._send("get_object", place, "gets", Key=place.key, **options)
        if answer is None:
            return None
        try:
            # Its own `with` would hand out the raw stream, which does not notice that bytes are missing.
            with contextlib.closing(answer["Body"]) as stream:
                if most is not None and answer["ContentLength"] > most:
                    raise CorruptObject(f"{place} has {answer['ContentLength']} bytes, where {most} are the most")
                data: bytes = stream.read()
        except _NO_ANSWER as error:
            raise _Busy(type(error).__name__) from error
        self._count(bytes_in=len(data))
        return data, answer["ETag"]

    def _page(self, place: Place, more: dict[str, str]) -> dict[str, Any]:
        answer = self._send("list_objects_v2", place, "lists", Prefix=place.key, **more)
        if answer is None:
            raise ObjectMissing(f"there is no bucket {place.bucket}")
        return answer

    def _conditional(self, place: Place, body: bytes, **condition: str) -> Stored | None:
        unclear = False

        def attempt() -> Stored | None:
            nonlocal unclear
            try:
                return self._put(place, body, **condition)
            except _Busy:
                unclear = True
                raise
            except _Lost:
                return self._own(place, body) if unclear else None

        try:
            return self._retry("put", place, attempt)
        except StoreUnavailable:
            if not unclear:
                raise
            # The last attempt may have been carried out too. What is there now decides; where that is what was there
            # before, it stays open.
            found = self._get_once(place)
            if found is None or found[1] == condition.get("IfMatch"):
                raise
            return Stored(found[1], len(body)) if found[0] == body else None

    def _own(self, place: Place, body: bytes) -> Stored | None:
        """Ours after all, when the object holds exactly what an unanswered request of ours carried."""
        found = self._get(place)
        return Stored(found[1], len(body)) if found is not None and found[0] == body else None

    def _get_once(self, place: Place) -> tuple[bytes, str] | None:
        try:
            return self._get(place)
        except _Busy:
            return None

    def _retry(self, verb: str, place: Place, attempt: Callable[[], T]) -> T:
        begun = self._clock.monotonic()
        cause = ""
        for number in range(self._attempts):
            if number:
                wait = _WAITS[min(number, len(_WAITS)) - 1]
                self._clock.sleep(wait * random.uniform(0.75, 1.25))  # noqa: S311  (spreads clients, hides nothing)
            try:
                return attempt()
            except (_Busy, _Conflict) as error:
                cause = str(error)
        seconds = self._clock.monotonic() - begun
        raise StoreUnavailable(
            f"S3 at {self._host()} failed to {verb} {place.key!r} in bucket {place.bucket}: "
            f"{cause}, {self._attempts} attempts in {seconds:.1f} s"
        )

    def _send(self, operation: str, place: Place, counter: str, **arguments: Any) -> dict[str, Any] | None:
        """One request; None when there is no such object. Raises _Busy, _Conflict, _Lost, PermanentError."""
        if place.owner is not None:
            arguments["ExpectedBucketOwner"] = place.owner
        self._count(**{counter: 1})
        try:
            answer: dict[str, Any] = getattr(self._client(), operation)(Bucket=place.bucket, **arguments)
        except _NO_ANSWER as error:
            raise _Busy(type(error).__name__) from error
        except ClientError as error:
            self._judge(place, error)
            return None
        except BotoCoreError as error:
            raise PermanentError(f"S3 at {self._host()} cannot be asked for {place}: {error}") from error
        return answer

    def _judge(self, place: Place, error: ClientError) -> None:
        """Return for an object that is not there, raise what anything else means."""
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        if status == 404 and code == "NoSuchBucket":
            raise ObjectMissing(f"there is no bucket {place.bucket} in S3 at {self._host()}") from error
        if status == 404:
            return
        if status == 412:
            raise _Lost from error
        if status == 409:
            raise _Conflict(f"{status} {code}") from error
        if status == 416:
            raise CorruptObject(f"{place} is shorter than the range that was asked for") from error
        if status == 429 or status >= 500 or code in _BUSY_CODES:
            raise _Busy(f"{status} {code}") from error
        raise PermanentError(f"S3 at {self._host()} refused {place}: {status} {code}") from error

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    def _make_client(self) -> Any:
        host = urlsplit(self._endpoint_url or "").hostname
        options: dict[str, Any] = {"ignore_configured_endpoint_urls": True}  # unknown to the stubs
        config = Config(
            retries={"total_max_attempts": 1},  # botocore would resend without telling: see the module's text
            max_pool_connections=32,
            proxies={} if host in ("127.0.0.1", "localhost", "::1") else None,
            # Frames, batches and states carry SHA-256 digests, which whoever reads them checks; records are signed. To
            # sum up all bytes once more on either side, which botocore does by itself, was half the cost of a read.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if self._endpoint_url else "auto", "payload_signing_enabled": False},
            connect_timeout=self._connect_timeout,
            read_timeout=self._read_timeout,
            **options,
        )
        # A session of our own: boto3's shared one must not be used from several threads.
        session = self._session or boto3.session.Session()
        client = session.client("s3", region_name=self._region, endpoint_url=self._endpoint_url, config=config)
        # botocore asks before it sends a body (`Expect: 100-continue`), and reads the answer byte by byte: a round trip
        # more for every write, to save the bytes of the few that are refused.
        client.meta.events.unregister("before-call.s3", add_expect_header)
        # It also makes a file of bytes, and a file is sent in pieces of 16 KiB; bytes go out in larger ones.
        client.meta.events.unregister("before-parameter-build.s3.PutObject", convert_body_to_file_like_object)
        return client

    def _host(self) -> str:
        parts = urlsplit(self._endpoint_url or str(self._client().meta.endpoint_url))
        return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)
