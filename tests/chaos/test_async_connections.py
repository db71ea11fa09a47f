"""Asynchronous mode while broker and S3 fail: nobody waits for another, nobody starts again, and all end together."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from infra.local.cloud import LocalCloud
from tests.chaos.broker import OwnBroker
from tests.chaos.conftest import Prepare
from tests.chaos.faults import everywhere, plan
from tests.chaos.fleet import Fleet
from tests.chaos.s3_proxy import S3Proxy
from tests.chaos.test_async_kills import assert_one_end
from tests.chaos.test_connections import through
from tests.fakes.tcp_proxy import TcpProxy

ASYNC = {"mode": "async", "epochs": 8, "exchange": {"average_weights_every": 3}}
GATES = everywhere([1, 2], 4, "after_upload")

pytestmark = pytest.mark.slow


def assert_unharmed(fleet: Fleet) -> None:
    """One end, reached by whoever was first; weights were averaged after the fault too."""
    reports = assert_one_end(fleet)
    assert {(report.reason, report.incarnation) for report in reports} == {("epoch_limit", 1)}
    assert max(report.rounds for report in reports) == fleet.spec.rounds_limit
    assert any(event["round"] > 4 for event in fleet.events("weights_averaged"))
    prefix = fleet.spec.places.all_own_weights()
    assert len(fleet.store.list(prefix.bucket, prefix.key)) <= len(reports)  # one of each may have been on its way


def test_every_connection_is_cut(prepare: Prepare, local_cloud: LocalCloud) -> None:
    parts = [urlsplit(url) for url in (local_cloud.broker_url, local_cloud.endpoint_url)]
    targets = [(str(part.hostname), part.port or 0) for part in parts]
    with TcpProxy(targets[0]) as broker, TcpProxy(targets[1]) as s3:
        fleet = prepare(**ASYNC)
        fleet.start(
            plan(*GATES),
            PEERLESS_BROKER_URL=through(local_cloud.broker_url, broker.port),
            AWS_ENDPOINT_URL=through(local_cloud.endpoint_url, s3.port),
        )
        fleet.until_struck(*GATES)
        before = broker.accepted
        broker.cut()
        s3.cut()
        fleet.release(*GATES)
        assert_unharmed(fleet)
        assert broker.accepted >= before + 2  # those who stood there, at least, came back


def test_s3_answers_503_for_five_seconds(prepare: Prepare, local_cloud: LocalCloud) -> None:
    with S3Proxy(local_cloud.endpoint_url) as s3:
        outage = s3.fail_for(5.0, begins=lambda request: request.writes("/contributions/000004/"))
        fleet = prepare(**ASYNC)
        fleet.start(AWS_ENDPOINT_URL=s3.endpoint_url)
        assert_unharmed(fleet)
        assert outage.refused >= 4


def test_the_broker_is_killed_and_comes_back(prepare: Prepare, tmp_path: Path) -> None:
    with OwnBroker(tmp_path) as broker:
        fleet = prepare(**ASYNC)
        fleet.start(plan(*GATES, pace_seconds=0.2), PEERLESS_BROKER_URL=broker.url)
        fleet.until_struck(*GATES)
        broker.kill()
        fleet.release(*GATES)
        broker.revive()
        assert_unharmed(fleet)
        assert broker.revivals == 1
