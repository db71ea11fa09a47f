"""Case 2: broker and S3 fail in the middle of a round, and the run ends with the weights of one that nothing befell.

Nobody is dropped for it: a peer that cannot hear blames itself, and its clocks stand still.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.local.cloud import LocalCloud
from tests.chaos.broker import OwnBroker
from tests.chaos.conftest import Prepare
from tests.chaos.faults import everywhere, plan
from tests.chaos.fleet import Fleet
from tests.chaos.s3_proxy import S3Proxy
from tests.fakes.tcp_proxy import TcpProxy


@pytest.fixture
def s3(local_cloud: LocalCloud) -> Iterator[S3Proxy]:
    with S3Proxy(local_cloud.endpoint_url) as proxy:
        yield proxy


def through(url: str, port: int) -> str:
    """The same URL by way of a proxy on this machine."""
    parts = urlsplit(url)
    account, at, _ = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{account}{at}127.0.0.1:{port}").geturl()


def assert_unharmed(fleet: Fleet, undisturbed: str) -> None:
    """All peers ended with the undisturbed run's weights, and no commit went without anybody."""
    reports = fleet.end()
    assert {report.weights_sha256 for report in reports} == {undisturbed}
    assert {(report.rounds, report.incarnation, report.error) for report in reports} == {
        (fleet.spec.rounds_limit, 1, None)
    }
    everybody = list(range(fleet.spec.config.peers))
    assert [[c.rank for c in commit.contributors] for commit in fleet.commits()[:-1]] == (
        [everybody] * fleet.spec.rounds_limit
    )
    assert not fleet.events("weights_adopted")


def test_every_connection_is_cut_in_the_middle_of_a_round(
    prepare: Prepare, undisturbed: str, local_cloud: LocalCloud
) -> None:
    """While two peers stand between upload and announcement and the others wait for them."""
    parts = [urlsplit(url) for url in (local_cloud.broker_url, local_cloud.endpoint_url)]
    targets = [(str(part.hostname), part.port or 0) for part in parts]
    with TcpProxy(targets[0]) as broker, TcpProxy(targets[1]) as s3:
        fleet = prepare()
        gates = everywhere([1, 2], 4, "after_upload")
        fleet.start(
            plan(*gates),
            PEERLESS_BROKER_URL=through(local_cloud.broker_url, broker.port),
            AWS_ENDPOINT_URL=through(local_cloud.endpoint_url, s3.port),
        )
        fleet.until_struck(*gates)
        before = broker.accepted, s3.accepted
        broker.cut()
        s3.cut()
        fleet.release(*gates)
        assert_unharmed(fleet, undisturbed)
        assert broker.accepted == before[0] + fleet.spec.config.peers  # each once, and again
        assert s3.accepted >= before[1] + fleet.spec.config.peers


def test_s3_answers_503_for_five_seconds(prepare: Prepare, undisturbed: str, s3: S3Proxy) -> None:
    """From the attempt to commit round 4 on."""
    outage = s3.fail_for(5.0, begins=lambda request: request.writes("/commits/000004"))
    fleet = prepare()
    fleet.start(AWS_ENDPOINT_URL=s3.endpoint_url)
    assert_unharmed(fleet, undisturbed)
    assert outage.refused >= 4  # the commit alone was tried so often
    (before,) = {event["t"] for event in fleet.events("commit", rank=0, round=3)}
    (after,) = {event["t"] for event in fleet.events("commit", rank=0, round=4)}
    assert 4.0 < after - before < 20.0


#: A write by its key, how S3 fails there, how often, and how many requests must have met that.
DOUBTS = [
    ("/members/", "deny", 4),
    ("/contributions/000001/", "lose", 4),
    ("/contributions/000002/", "deny", 2),
    ("/contributions/000003/", "conflict", 3),
    ("/commits/000001", "lose", 1),
    ("/commits/000002", "deny", 2),
    ("/commits/000003", "conflict", 1),
    ("/commits/000004", "refuse", 2),
    ("/results/000001", "lose", 1),
    ("/results/000002", "deny", 2),
    ("/results/000003", "conflict", 1),
    ("/results/000004", "refuse", 2),
]


@pytest.mark.slow
def test_s3_leaves_every_write_in_doubt_once(prepare: Prepare, undisturbed: str, s3: S3Proxy) -> None:
    """Carried out and not answered, carried out and denied, refused for another write under way: each record is
    recognised by its nonce, so nobody loses against itself."""
    rules = [s3.fail(lambda request, part=part: request.writes(part), how, times) for part, how, times in DOUBTS]  # type: ignore[misc, arg-type]
    fleet = prepare()
    fleet.start(AWS_ENDPOINT_URL=s3.endpoint_url)
    assert_unharmed(fleet, undisturbed)
    assert [rule.met for rule in rules] == [times for *_, times in DOUBTS]


@pytest.mark.slow  # a node takes some ten seconds to start, twice
def test_the_broker_is_killed_in_the_middle_of_a_round_and_comes_back(
    prepare: Prepare, undisturbed: str, tmp_path: Path
) -> None:
    """Between upload and announcement of two peers: both announce to a broker that is not there."""
    with OwnBroker(tmp_path) as broker:
        fleet = prepare()
        gates = everywhere([1, 2], 4, "after_upload")
        fleet.start(plan(*gates), PEERLESS_BROKER_URL=broker.url)
        fleet.until_struck(*gates)
        broker.kill()
        fleet.release(*gates)
        broker.revive()
        assert_unharmed(fleet, undisturbed)
        assert broker.revivals == 1
