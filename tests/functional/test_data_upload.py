"""Uploading: what lies in S3 afterwards, and what lies there after a failure."""

from __future__ import annotations

import hashlib
import threading

import boto3
import numpy as np
import pytest
import torch
from moto import mock_aws

from contract.batches import Manifest, decode_batch
from contract.config import RunConfig
from contract.errors import StoreUnavailable
from contract.keys import Place, Places
from contract.store import ObjectStore, S3Store
from peerless.data import Dataset, Prepared, UploadResult, prepare, upload
from tests.fakes.store import MemoryStore

PLACES = Places(run="r", run_bucket="the-run", peer_buckets=("peer-0", "peer-1", "peer-2"), region="us-east-1")
BUCKETS = ("the-run", *PLACES.peer_buckets)
SAMPLE_BYTES = 4 * 9 + 8


@pytest.fixture
def prepared() -> Prepared:
    rng = np.random.default_rng(0)
    dataset = Dataset(
        train_x=rng.integers(0, 256, (110, 1, 3, 3), dtype=np.uint8), train_y=rng.integers(0, 4, 110),
        test_x=rng.integers(0, 256, (5, 1, 3, 3), dtype=np.uint8), test_y=rng.integers(0, 4, 5),
        classes=4, names=(), provenance="noise",
    )  # fmt: skip
    return prepare(RunConfig(peers=3, batch_size=8, data={"validation_samples": 10, "sizes": [3, 1, 1]}), dataset)


def check(store: ObjectStore, result: UploadResult, prepared: Prepared) -> None:
    """Every peer finds its batches by its manifest alone, bit for bit."""
    assert result.samples == prepared.samples == (60, 20, 20)
    assert result.batches == prepared.batches == (8, 3, 3)
    for rank in range(3):
        manifest = Manifest.from_json(store.get(PLACES.manifest(rank)))
        assert manifest == result.manifests[rank]
        assert [batch.samples for batch in manifest.batches][-1] == 4, "the remainder"
        for batch in manifest.batches:
            place = Place(PLACES.peer_buckets[rank], batch.key)
            whole = batch.length is None
            blob = store.get(place) if whole else store.get_range(place, batch.offset, batch.length)
            x, y = decode_batch(blob, batch.sha256)
            expected_x, expected_y = prepared.batch(rank, batch.index)
            assert torch.equal(x, expected_x)
            assert torch.equal(y, expected_y)
            assert len(y) == batch.samples
    x, y = decode_batch(store.get(PLACES.validation()), result.validation_sha256)
    assert torch.equal(x, prepared.validation_set()[0])
    assert len(y) == result.validation_samples == 10


@pytest.mark.parametrize(
    ("object_bytes", "objects"),
    [
        (1, 8 + 3 + 3),  # a batch larger than the object size has an object to itself
        (8 * SAMPLE_BYTES * 3, 3 + 1 + 1),
        (8 << 20, 3),
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_every_peer_gets_its_batches_and_manifest_in_its_own_bucket(prepared, object_bytes, objects, threads):
    store = MemoryStore()
    result = upload(prepared, store, PLACES, object_bytes=object_bytes, threads=threads)
    check(store, result, prepared)
    assert result.objects == len(store.objects) == objects + 3 + 1
    assert result.bytes == sum(map(len, store.objects.values()))
    for rank, bucket in enumerate(PLACES.peer_buckets):
        assert {key for found, key in store.objects if found == bucket} == {
            PLACES.manifest(rank).key,
            *(batch.key for batch in result.manifests[rank].batches),
        }
    assert [key for found, key in store.objects if found == "the-run"] == [PLACES.validation().key]


def test_the_same_over_s3(prepared, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        for bucket in BUCKETS:
            client.create_bucket(Bucket=bucket)
        store = S3Store(region="us-east-1")
        check(store, upload(prepared, store, PLACES, object_bytes=8 * SAMPLE_BYTES * 3), prepared)


def test_twice_is_the_same_bytes(prepared):
    stores = [MemoryStore(), MemoryStore()]
    for store in stores:
        upload(prepared, store, PLACES)
    assert stores[0].objects == stores[1].objects
    digest = hashlib.sha256(stores[0].objects["the-run", PLACES.validation().key]).hexdigest()
    assert upload(prepared, MemoryStore(), PLACES).validation_sha256 == digest


def test_manifests_come_after_everything_that_they_name(prepared):
    written: list[str] = []
    lock = threading.Lock()

    def note(operation: str, place: Place) -> None:
        with lock:
            written.append(place.key.rpartition("/")[2])

    upload(prepared, MemoryStore(before=note), PLACES, object_bytes=1)
    assert written[-3:] == ["manifest.json"] * 3
    assert "manifest.json" not in written[:-3]


@pytest.mark.parametrize("failing", [0, 7, 14, 15, 17])
@pytest.mark.parametrize("error", [StoreUnavailable("S3 does not answer"), KeyboardInterrupt()])
def test_a_failure_at_any_object_leaves_nothing(prepared, failing, error):
    count = 0
    lock = threading.Lock()

    def fail(operation: str, place: Place) -> None:
        nonlocal count
        with lock:
            if operation == "put":
                count += 1
                if count == failing + 1:
                    raise error

    store = MemoryStore(before=fail)
    with pytest.raises(type(error)):
        upload(prepared, store, PLACES, object_bytes=1)
    assert store.objects == {}


def test_cleaning_up_waits_for_what_is_still_being_written(prepared):
    failed, alive = threading.Event(), []

    def fail(operation: str, place: Place) -> None:
        if operation == "delete":
            alive.extend(thread.name for thread in threading.enumerate() if thread.name.startswith("upload"))
        elif place == PLACES.validation():
            failed.set()
            raise StoreUnavailable("S3 does not answer")
        else:
            assert failed.wait(timeout=60)

    store = MemoryStore(before=fail)
    with pytest.raises(StoreUnavailable):
        upload(prepared, store, PLACES, object_bytes=1, threads=4)
    assert alive == []
    assert store.objects == {}


def test_a_store_that_stays_away_leaves_no_manifest_and_reports_the_first_error(prepared):
    count = 0

    def fail(operation: str, place: Place) -> None:
        nonlocal count
        count += 1
        if count > 5:
            raise StoreUnavailable(f"S3 does not answer ({operation})")

    store = MemoryStore(before=fail)
    with pytest.raises(StoreUnavailable, match="put"):
        upload(prepared, store, PLACES, object_bytes=1, threads=1)
    assert not any(key.endswith("manifest.json") for _, key in store.objects)


def test_objects_of_other_runs_are_left_alone(prepared):
    store = MemoryStore(before=lambda operation, place: _refuse_manifests(operation, place))
    store.put(Place("peer-0", "runs/other/x"), b"kept")
    with pytest.raises(StoreUnavailable):
        upload(prepared, store, PLACES)
    assert store.objects == {("peer-0", "runs/other/x"): b"kept"}


def _refuse_manifests(operation: str, place: Place) -> None:
    if operation == "put" and place.key.endswith("manifest.json"):
        raise StoreUnavailable("S3 does not answer")
