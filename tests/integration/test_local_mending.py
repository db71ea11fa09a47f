"""Servers that die in place: what survives of RabbitMQ and MiniStack, and when they are given up."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pika
import pytest
from botocore.exceptions import ClientError

from contract.clock import SystemClock
from contract.config import ComputeConfig, RunConfig
from contract.errors import LocalStackError
from contract.keys import Place
from contract.store import S3Store
from infra.local import ministack, rabbitmq
from infra.local.cloud import S3_FOLDER, LocalCloud
from infra.local.mending import MOST_RESTARTS
from infra.local.processes import Starting
from peerless.launch.resources import LocalResources, places_for
from tests.processes import wait_for


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """Servers of these tests' own, with a broker of theirs."""
    with LocalCloud.start(tmp_path_factory.mktemp("cloud"), broker_url="") as cloud:
        yield cloud


def kill(cloud: LocalCloud, name: str) -> None:
    child = cloud.children[name]
    os.kill(child.pid, signal.SIGKILL)
    wait_for(lambda: child.poll() is not None)


def mended(cloud: LocalCloud, notes: list[str], name: str, restored: Any = lambda _: None) -> None:
    """Look until the server answers again."""

    def look() -> bool:
        assert cloud.mend(notes.append, restored) == []
        return f"{name} answers again" in notes

    wait_for(look, 60)


def test_a_killed_broker_comes_back_with_its_queues_its_accounts_and_its_messages(
    cloud: LocalCloud, notes: list[str]
) -> None:
    if rabbitmq.NAME not in cloud.children:
        pytest.fail("this test is about a private node: unset PEERLESS_BROKER_URL")
    with pika.BlockingConnection(pika.URLParameters(cloud.broker_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("inbox", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "inbox", b"kept", pika.BasicProperties(delivery_mode=2))
    before = cloud.children[rabbitmq.NAME].pid
    kill(cloud, rabbitmq.NAME)
    mended(cloud, notes, rabbitmq.NAME)
    assert notes == ["RabbitMQ was killed by signal 9; starting it again (1 of 3)", "RabbitMQ answers again"]
    assert cloud.children[rabbitmq.NAME].pid != before
    with pika.BlockingConnection(pika.URLParameters(cloud.broker_url)) as connection:
        _, _, body = connection.channel().basic_get("inbox", auto_ack=True)
    assert body == b"kept"


def test_a_killed_ministack_comes_back_with_its_objects_and_their_conditions(
    cloud: LocalCloud, notes: list[str]
) -> None:
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="bucket")
    tag = s3.put_object(Bucket="bucket", Key="runs/r/members/0000.json", Body=b"first")["ETag"]
    kill(cloud, ministack.NAME)
    told: list[str] = []
    mended(cloud, notes, ministack.NAME, told.append)
    assert told == [ministack.NAME]
    found = s3.get_object(Bucket="bucket", Key="runs/r/members/0000.json")
    assert (found["Body"].read(), found["ETag"]) == (b"first", tag)
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"0123"'}):
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket="bucket", Key="runs/r/members/0000.json", Body=b"second", **condition)
    s3.put_object(Bucket="bucket", Key="runs/r/members/0000.json", Body=b"second", IfMatch=tag)


def test_functions_and_state_machines_of_a_run_are_made_once_more(cloud: LocalCloud, notes: list[str]) -> None:
    """The same names, hence the same ARNs; the bucket is there already, and the workers have gone on."""
    config = RunConfig(peers=2, compute=ComputeConfig(state_machine="inline_map", reduce="always"))
    resources = LocalResources(cloud, places_for("mended-r2", 2, cloud.region), "mended")
    machines = resources.provide(config, (2, 2), {}, 1)
    assert [arn.rpartition(":")[2] for arn in machines] == ["peerless-mended-0", "peerless-mended-1"]
    assert resources.provide(config, (2, 2), {}, 1) == machines, "as when the run is taken up on the same servers"
    kill(cloud, ministack.NAME)
    mended(cloud, notes, ministack.NAME, lambda _: resources.restore())
    states = cloud.client("stepfunctions")
    assert [states.describe_state_machine(stateMachineArn=arn)["status"] for arn in machines] == ["ACTIVE"] * 2
    for kind in ("gradient", "reduce"):
        name = f"peerless-mended-{kind}"
        assert cloud.client("lambda").get_function(FunctionName=name)
        assert name in states.describe_state_machine(stateMachineArn=machines[0])["definition"]
    assert resources.counters()["workers_started"] == 2
    resources.remove(keep_buckets=True)
    buckets = {bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]}
    assert states.list_state_machines()["stateMachines"] == []
    assert "peerless-mended-r2-run" not in buckets, "it was empty, and MiniStack finds no empty bucket again"


def test_a_server_that_keeps_dying_is_given_up_by_its_name(tmp_path: Path, notes: list[str], broker_url: str) -> None:
    with LocalCloud.start(tmp_path, broker_url=broker_url) as cloud:
        for attempt in range(MOST_RESTARTS):
            kill(cloud, ministack.NAME)
            mended(cloud, notes, ministack.NAME)
            assert f"starting it again ({attempt + 1} of 3)" in notes[0]
            notes.clear()
        kill(cloud, ministack.NAME)
        (told,) = cloud.mend(notes.append)
        assert told.startswith("MiniStack ended with status 137 while running")
        assert cloud.mend(notes.append) == [told]
        assert notes == []


def test_servers_that_are_stopped_while_one_is_mended_leave_nothing(tmp_path: Path, broker_url: str) -> None:
    with LocalCloud.start(tmp_path, broker_url=broker_url) as cloud:
        kill(cloud, ministack.NAME)
        assert cloud.mend(lambda _: None) == []
        begun = SystemClock().monotonic()
    assert SystemClock().monotonic() - begun < 30
    assert not ministack.answers(int(cloud.endpoint_url.rpartition(":")[2]))
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_objects_outlive_servers_that_are_told_to_keep_them(tmp_path: Path, broker_url: str) -> None:
    for round in range(3):
        with LocalCloud.start(tmp_path, broker_url=broker_url) as cloud:
            s3 = cloud.client("s3")
            if round == 0:
                s3.create_bucket(Bucket="bucket")
                s3.put_object(Bucket="bucket", Key="a/b", Body=b"x")
            assert s3.get_object(Bucket="bucket", Key="a/b")["Body"].read() == b"x"
            cloud.keep_data = round < 2
        assert (tmp_path / S3_FOLDER).exists() == (round < 2)


def session() -> boto3.session.Session:
    return boto3.session.Session(
        aws_access_key_id="local",
        aws_secret_access_key="local",
        region_name=ministack.REGION,
    )


def store_at(server: ministack.MiniStack) -> S3Store:
    return S3Store(region=ministack.REGION, endpoint_url=server.endpoint_url, session=session())


def test_what_a_killed_process_left_half_done_is_mended(tmp_path: Path) -> None:
    """A replaced object whose description is still that of the version before, as between MiniStack's two writes."""
    data = tmp_path / "data"
    place = Place("bucket", "members/0000.json")
    server = ministack.start(tmp_path / "ms", tmp_path / "log", Starting(), data)
    try:
        session().client("s3", endpoint_url=server.endpoint_url).create_bucket(Bucket=place.bucket)
        first = store_at(server).put(place, b"first")
    finally:
        server.child.kill()
    (blob,) = data.rglob("0000.json")
    described = blob.with_name("0000.json.meta.json")
    assert json.loads(described.read_text())["etag"] == first.etag
    blob.write_bytes(b"other")
    os.utime(blob, ns=(described.stat().st_mtime_ns + 1,) * 2)
    blob.with_name("0000.json.tmp").write_bytes(b"oth")
    again = ministack.start(tmp_path / "ms", tmp_path / "log", Starting(), data)
    try:
        store = store_at(again)
        found = store.find(place)
        assert found is not None
        assert found[0] == b"other"
        assert found[1] != first.etag
        assert store.replace(place, b"third", first.etag) is None
        assert store.replace(place, b"third", found[1]) is not None
        assert store.list("bucket", "") == [place.key]
    finally:
        again.child.stop()


def test_two_do_not_work_on_the_same_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ministack, "_LOCK_SECONDS", 0.2)
    data = tmp_path / "data"
    server = ministack.start(tmp_path / "ms", tmp_path / "log", Starting(), data)
    try:
        with pytest.raises(LocalStackError, match="another MiniStack works on the objects in"):
            ministack.start(tmp_path / "other", tmp_path / "log", Starting(), data)
    finally:
        server.child.stop()
    ministack.start(tmp_path / "ms", tmp_path / "log", Starting(), data).child.stop()
