"""Case 3: messages are lost, doubled, delayed and overtaken on their way to each peer; the weights are the same."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from contract.records import Stop
from infra.local.cloud import LocalCloud
from tests.chaos.amqp_proxy import MessageProxy, seeded
from tests.chaos.conftest import Prepare
from tests.chaos.fleet import Fleet
from tests.chaos.test_connections import through

#: What a message did not bring is looked for soon.
OFTEN = {"poll_seconds": 0.3}
SEEDS = [1, pytest.param(2, marks=pytest.mark.slow)]


def start(
    fleet: Fleet, broker_url: str, stack: ExitStack, seed: int, *, drop: float, double: float = 0.0, delay: float = 0.0
) -> list[MessageProxy]:
    """All peers, each behind a proxy of its own."""
    parts = urlsplit(broker_url)
    proxies = []
    for rank in range(fleet.spec.config.peers):
        fate = seeded(1_000 * seed + rank, drop=drop, double=double, delay=delay)
        proxies.append(stack.enter_context(MessageProxy((str(parts.hostname), parts.port or 0), fate)))
        fleet.start(ranks=[rank], PEERLESS_BROKER_URL=through(broker_url, proxies[rank].port))
    return proxies


@pytest.mark.parametrize("seed", SEEDS)
def test_messages_go_astray(prepare: Prepare, undisturbed: str, local_cloud: LocalCloud, seed: int) -> None:
    fleet = prepare(exchange=OFTEN)
    with ExitStack() as stack:
        proxies = start(fleet, local_cloud.broker_url, stack, seed, drop=0.15, double=0.2, delay=0.2)
        reports = fleet.end()
        counts = sum((proxy.counts for proxy in proxies), Counter[str]())
    assert {report.weights_sha256 for report in reports} == {undisturbed}
    assert {report.rounds for report in reports} == {fleet.spec.rounds_limit}
    # Twelve rounds of a frame from each of three others, and the records: so many messages at least.
    assert counts.total() > 12 * 12
    assert min(counts[fate] for fate in ("drop", "double", "delay", "overtaken")) > 10
    # A copy is recognised as one; nothing that came late or twice is held against anybody.
    counted = {reason for report in reports for reasons in report.frames_rejected.values() for reason in reasons}
    assert counted <= {"late", "stale"}


@pytest.mark.slow
def test_no_message_arrives_at_all(prepare: Prepare, undisturbed: str, local_cloud: LocalCloud) -> None:
    """S3 alone carries the run, though all believe in their broker."""
    fleet = prepare(exchange=OFTEN)
    with ExitStack() as stack:
        proxies = start(fleet, local_cloud.broker_url, stack, 1, drop=1.0)
        reports = fleet.end()
        assert all(proxy.counts["drop"] > 12 for proxy in proxies)
    assert {report.weights_sha256 for report in reports} == {undisturbed}


@pytest.mark.slow
def test_asynchronous_peers_bear_it_too(prepare: Prepare, local_cloud: LocalCloud) -> None:
    fleet = prepare(mode="async", exchange=OFTEN)
    with ExitStack() as stack:
        start(fleet, local_cloud.broker_url, stack, 1, drop=0.15, double=0.2, delay=0.2)
        reports = fleet.end()
    stop = Stop.from_json(fleet.store.get(fleet.spec.places.stop()))
    assert {(report.weights_sha256, report.reason) for report in reports} == {(stop.weights_sha256, "epoch_limit")}
