"""Following a run from its bucket: which events come through, when it is over, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import StoreUnavailable
from contract.keys import Places
from contract.records import PeerReport
from peerless.launch.bucket_follow import (
    END_SECONDS,
    FAILED_SECONDS,
    LAST_SECONDS,
    START_SECONDS,
    BucketRun,
    Detached,
    Watch,
)
from tests.fakes.clock import FakeClock
from tests.fakes.store import MemoryStore
from tests.unit.test_follow import Recorder

PLACES = Places(run="run-1", run_bucket="runs", peer_buckets=("a", "b"), region="eu-west-1")


class Bucket:
    """A run's bucket, into which a script of moments puts things as time passes."""

    def __init__(self, folder: Path) -> None:
        self.store, self.clock, self.seen = MemoryStore(), FakeClock(), Recorder()
        self.file = folder / "events.jsonl"
        self.run = BucketRun(self.store, PLACES, 2, self.file, self.keys_after, self.clock)
        self.script: list[tuple[float, Callable[[], Any]]] = []
        self.on = True

    def keys_after(self, prefix: str, key: str) -> list[str]:
        while self.script and self.script[0][0] <= self.clock.monotonic():
            self.script.pop(0)[1]()
        return [found for found in self.store.list("runs", prefix) if found > key]

    def at(self, seconds: float, what: Callable[[], Any]) -> None:
        self.script.append((seconds, what))

    def chunk(self, rank: int, milliseconds: int, *events: dict[str, Any], tail: bytes = b"") -> None:
        body = b"".join(json.dumps({"rank": rank, "round": None, **event}).encode() + b"\n" for event in events)
        self.store.put(PLACES.events(rank, milliseconds), body + tail)

    def report(self, rank: int, error: str | None = None) -> None:
        report = PeerReport(
            run="run-1", rank=rank, incarnation=0, rounds=2, epochs=1, reason="epoch_limit", weights_sha256="00",
            model_sha256="00", seconds_training=1.0, bytes_sent=1, bytes_received=1, gradient_bytes_raw=1,
            gradient_bytes_encoded=1, lambda_invocations=0, state_machine_executions=0, error=error,
        )  # fmt: skip
        self.store.put(PLACES.report(rank), report.to_json())

    def off(self) -> None:
        self.on = False

    def follow(self, **watch: Any) -> str | None:
        return self.run.follow(Watch(**{"wants_out": bool, "alive": lambda: self.on, **watch}), self.seen)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


def test_events_come_in_order_once_each_and_into_the_file(bucket: Bucket) -> None:
    bucket.at(0, lambda: bucket.chunk(0, 1_000, {"t": 1.0, "event": "a"}, {"t": 3.0, "event": "c"}))
    bucket.at(0, lambda: bucket.chunk(1, 2_500, {"t": 2.0, "event": "b"}))
    bucket.at(20, lambda: bucket.chunk(0, 9_000, {"t": 9.0, "event": "d"}))
    bucket.at(30, lambda: (bucket.report(0), bucket.report(1)))
    bucket.at(33, lambda: (bucket.chunk(1, 30_000, {"t": 30.0, "event": "last"}), bucket.off()))
    assert bucket.follow() is None
    assert [event["event"] for event in bucket.seen.events] == ["a", "b", "c", "d", "last"]
    assert [json.loads(line) for line in bucket.file.read_text().splitlines()] == bucket.seen.events
    assert bucket.clock.monotonic() < 33 + 10


def test_a_line_that_a_dying_peer_left_half_written_is_passed_over(bucket: Bucket) -> None:
    bucket.chunk(0, 1, {"t": 1.0, "event": "whole"}, tail=b'{"t": 2.0, "eve')
    bucket.store.put(PLACES.events(0, 2), b'[1]\n{"t": "soon", "event": "x", "rank": 0, "round": 0}\n')
    bucket.report(0)
    bucket.report(1)
    bucket.off()
    assert bucket.follow() is None
    assert [event["event"] for event in bucket.seen.events] == ["whole"]


def test_all_reports_end_it_even_where_an_instance_stays(bucket: Bucket) -> None:
    bucket.report(0)
    bucket.report(1)
    assert bucket.follow() is None
    assert LAST_SECONDS <= bucket.clock.monotonic() < LAST_SECONDS + 10


def test_a_failure_is_told_and_the_others_get_a_while(bucket: Bucket) -> None:
    bucket.at(10, lambda: bucket.chunk(1, 5, {"t": 5.0, "event": "failed", "error": "batch 3: too hot"}))
    assert bucket.follow() == "peer 1: batch 3: too hot"
    assert 10 + FAILED_SECONDS <= bucket.clock.monotonic() < 10 + FAILED_SECONDS + 10


def test_a_report_of_a_failure_is_enough(bucket: Bucket) -> None:
    bucket.at(0, lambda: bucket.report(0))
    bucket.at(9, lambda: (bucket.report(1, "given up after 6 claims"), bucket.off()))
    assert bucket.follow() == "peer 1: given up after 6 claims"


def test_a_peer_that_never_reports_does_not_keep_the_run_open(bucket: Bucket) -> None:
    bucket.at(0, lambda: bucket.report(0))
    assert bucket.follow() is None
    assert END_SECONDS <= bucket.clock.monotonic() < END_SECONDS + 10


def test_a_stop_record_ends_it_too(bucket: Bucket) -> None:
    bucket.chunk(0, 1, {"t": 1.0, "event": "a"})
    bucket.at(50, lambda: bucket.store.put(PLACES.stop(), b"{}"))
    assert bucket.follow() is None
    assert 50 + END_SECONDS <= bucket.clock.monotonic() < 50 + END_SECONDS + 10


def test_instances_that_were_switched_off_are_noticed(bucket: Bucket) -> None:
    bucket.chunk(0, 1, {"t": 1.0, "event": "a"})
    bucket.at(40, bucket.off)
    told = bucket.follow()
    assert told is not None
    assert told.startswith("all instances were switched off before a peer had reported")
    assert 40 <= bucket.clock.monotonic() < 80


def test_instances_that_do_not_come_are_told_once_and_not_waited_for_without_end(bucket: Bucket) -> None:
    told = bucket.follow(trouble=lambda: ["peer 0 gets no instance: no capacity"])
    assert told is not None
    assert "no peer has been heard of for 20 minutes" in told
    assert bucket.seen.notes == ["peer 0 gets no instance: no capacity"]
    assert START_SECONDS <= bucket.clock.monotonic() < START_SECONDS + 10


def test_the_user_may_let_go(bucket: Bucket) -> None:
    with pytest.raises(Detached):
        bucket.follow(wants_out=lambda: bucket.clock.monotonic() > 7)
    assert bucket.clock.monotonic() < 8


def test_a_network_that_goes_and_comes_does_not_end_it(bucket: Bucket) -> None:
    working = bucket.keys_after

    def failing(prefix: str, key: str) -> list[str]:
        if 10 < bucket.clock.monotonic() < 500:
            raise StoreUnavailable("S3 at s3:443 failed to list")
        return working(prefix, key)

    bucket.run = BucketRun(bucket.store, PLACES, 2, bucket.file, failing, bucket.clock)
    bucket.at(0, lambda: bucket.chunk(0, 1, {"t": 1.0, "event": "a"}))
    bucket.at(500, lambda: (bucket.report(0), bucket.report(1), bucket.off()))
    assert bucket.follow() is None
    assert bucket.seen.notes == ["S3 at s3:443 failed to list; looking again, the run goes on"]


def test_many_peers_are_looked_at_less_often(tmp_path: Path) -> None:
    """What the requests cost is bounded: two a second, however many peers there are."""
    bucket, calls = Bucket(tmp_path), []
    places = Places(run="run-1", run_bucket="runs", peer_buckets=("a",) * 150, region="eu-west-1")

    def counted(prefix: str, key: str) -> list[str]:
        calls.append(prefix)
        return []

    run = BucketRun(bucket.store, places, 150, bucket.file, counted, bucket.clock)
    run.follow(Watch(wants_out=bool), bucket.seen)
    assert 2_000 < len(calls) <= 2 * bucket.clock.monotonic() + 151, "the last look comes at the end"
