"""Runs in which nothing goes wrong, over what a run can go: RabbitMQ or S3 alone, in step or not.

Peers as one gets them from a shell are in tests/integration/test_peer_processes.py.
"""

from __future__ import annotations

import pytest

from contract.records import Stop
from tests.chaos.conftest import Prepare


@pytest.mark.slow
def test_s3_alone_gives_the_same_weights_as_with_a_broker(prepare: Prepare, undisturbed: str) -> None:
    fleet = prepare(exchange={"poll_seconds": 0.3})
    fleet.start(PEERLESS_BROKER_URL="")
    reports = fleet.end()
    assert {(r.rounds, r.reason, r.error) for r in reports} == {(12, "epoch_limit", None)}
    assert {r.weights_sha256 for r in reports} == {undisturbed}
    assert all(r.frames_rejected == {} for r in reports)


def test_asynchronous_peers_end_together(prepare: Prepare) -> None:
    fleet = prepare(mode="async", exchange={"poll_seconds": 0.3})
    fleet.start()
    reports = fleet.end()
    stop = Stop.from_json(fleet.store.get(fleet.spec.places.stop()))
    assert {(r.weights_sha256, r.model_sha256, r.reason) for r in reports} == {
        (stop.weights_sha256, stop.weights_sha256, "epoch_limit")
    }
