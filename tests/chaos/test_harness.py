"""The means of chaos themselves: what they are said to do, they do, and nothing else."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pika
import pytest

from contract.errors import StoreUnavailable
from contract.keys import Place
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from tests.chaos.amqp_proxy import Delivered, Fate, MessageProxy, seeded
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, Plan, everywhere, plan
from tests.chaos.s3_proxy import Outcome, S3Proxy


def test_a_plan_goes_through_json() -> None:
    told = plan(
        Fault(rank=1, round=2, at="after_upload", do="kill"),
        attacks={3: "flipped"},
        pace_seconds=0.5,
        keep_gradients=True,
    )
    assert Plan.from_json(told.to_json()) == told


def test_a_peer_waits_where_it_is_told_and_nothing_changes(prepare: Prepare, undisturbed: str) -> None:
    fleet = prepare()
    gates = everywhere([1, 2], 3, "after_upload")
    fleet.start(plan(*gates))
    fleet.until_struck(*gates)
    assert len(fleet.commits()) == 3
    assert all(fleet.exists(fleet.spec.places.contribution(3, rank, 1)) for rank in (1, 2))
    fleet.release(*gates)
    assert {report.weights_sha256 for report in fleet.end()} == {undisturbed}
    assert [c.round for c in fleet.commits()] == list(range(fleet.spec.rounds_limit + 1))


def test_a_peer_is_killed_and_stopped_where_it_is_told(prepare: Prepare) -> None:
    fleet = prepare()
    killed = Fault(rank=1, round=2, at="after_upload", do="kill")
    stopped = Fault(rank=2, round=2, at="before_compute", do="stop")
    fleet.start(plan(killed, stopped))
    fleet.until_struck(killed, stopped)
    assert fleet.process(1).status == -signal.SIGKILL
    assert fleet.exists(fleet.spec.places.contribution(2, 1, 1))
    assert not fleet.exists(fleet.spec.places.contribution(2, 2, 1))
    assert fleet.events("stage", 1, 2)[-1]["stage"] == "compute"  # `send` is not over
    assert not fleet.events("stage", 2, 2)


# ------------------------------------------------------------------------------------------------------- the proxies


Consume = Callable[[Callable[[Delivered], Fate], int, str], tuple[list[str], MessageProxy]]


@pytest.fixture
def delivered(broker_url: str, unique: str) -> Iterator[Consume]:
    """What a consumer behind a proxy gets of `count` numbered messages, until `last` comes; and the proxy."""
    parts = urlsplit(broker_url)
    direct = pika.BlockingConnection(pika.URLParameters(broker_url))
    channel = direct.channel()
    channel.queue_declare(unique)

    def consume(fate: Callable[[Delivered], Fate], count: int, last: str) -> tuple[list[str], MessageProxy]:
        for number in range(count):
            channel.basic_publish("", unique, str(number) * 3, pika.BasicProperties(type="frame"))
        with MessageProxy((str(parts.hostname), parts.port or 5672), fate) as proxy:
            url = parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()
            found: list[str] = []
            connection = pika.BlockingConnection(pika.URLParameters(url))
            through = connection.channel()
            for method, _, body in through.consume(unique, inactivity_timeout=10):
                assert method is not None, f"{found}, and then nothing"
                found.append(body.decode())
                through.basic_ack(method.delivery_tag)
                if found[-1] == last:
                    break
            through.cancel()
            connection.close()  # the broker would answer an acknowledgement too many with an error
        left = channel.queue_declare(unique, passive=True).method.message_count
        assert left == 0
        return found, proxy

    yield consume
    channel.queue_delete(unique)
    direct.close()


def test_messages_are_lost_doubled_and_delayed(delivered: Consume) -> None:
    fates: dict[int, Fate] = {1: "drop", 2: "double", 3: 2}
    seen = iter(range(100))
    found, proxy = delivered(lambda message: fates.get(next(seen), "pass"), 7, "666")
    assert found == ["000", "222", "222", "444", "555", "333", "666"]
    assert proxy.counts == {"pass": 4, "drop": 1, "double": 1, "delay": 1, "overtaken": 1}


def test_chance_repeats_itself_and_spares_heartbeats() -> None:
    def fates(exchange: str) -> list[Fate]:
        fate = seeded(7, drop=0.2, double=0.2, delay=0.2)
        return [fate(Delivered(1, tag, exchange, "frame", b"")) for tag in range(200)]

    drawn = fates("peerless.run.peer.0")
    assert drawn == fates("peerless.run.peer.0")
    assert all(20 < number < 60 for number in (drawn.count("drop"), drawn.count("double")))
    assert sum(isinstance(fate, int) for fate in drawn) > 20
    assert set(fates("peerless.run.pulse.0")) == {"pass", "double"}


@pytest.fixture
def proxied(local_cloud: LocalCloud) -> Iterator[tuple[S3Proxy, S3Store]]:
    with S3Proxy(local_cloud.endpoint_url) as proxy:
        store = S3Store(
            region=local_cloud.region, endpoint_url=proxy.endpoint_url, session=local_cloud.session(), attempts=2
        )
        yield proxy, store
        store.close()


def test_s3_goes_through_the_proxy_whole(proxied: tuple[S3Proxy, S3Store], bucket: str) -> None:
    proxy, store = proxied
    place = Place(bucket, "a/b c+d")
    blob = bytes(range(256)) * 4_000
    stored = store.create(place, blob)
    assert stored is not None
    assert store.create(place, b"other") is None
    assert store.find(place) == (blob, stored.etag)
    assert store.head(place) == stored
    assert store.get_range(place, 10, 5) == blob[10:15]
    assert store.list(bucket, "a/") == ["a/b c+d"]
    assert store.replace(place, b"new", stored.etag) is not None
    store.delete([place])
    assert store.head(place) is None
    assert set(proxy.counts) == {"pass"}


@pytest.mark.parametrize(
    ("outcome", "carried_out"), [("refuse", False), ("conflict", False), ("lose", True), ("deny", True)]
)
def test_an_answer_in_doubt(proxied: tuple[S3Proxy, S3Store], bucket: str, outcome: Outcome, carried_out: bool) -> None:
    """Tried again, a write is its own winner, whether or not the first attempt was carried out."""
    proxy, store = proxied
    rule = proxy.fail(lambda request: request.writes("mine"), outcome)
    assert store.create(Place(bucket, "mine"), b"mine") is not None
    assert store.create(Place(bucket, "mine"), b"yours") is None
    assert rule.met == 1
    assert proxy.counts[outcome] == 1
    # After a first success the second attempt meets 412, and the object is read to see whose it is.
    assert proxy.counts["pass"] == 2 + carried_out


def test_an_outage_refuses_everything_for_a_while(
    proxied: tuple[S3Proxy, S3Store], local_cloud: LocalCloud, bucket: str
) -> None:
    proxy, store = proxied
    outage = proxy.fail_for(0.5, begins=lambda request: request.writes("second"))
    store.put(Place(bucket, "first"), b"1")
    assert outage.until is None
    store.put(Place(bucket, "second"), b"2")  # not conditional
    with pytest.raises(StoreUnavailable, match="503 SlowDown, 2 attempts"):
        store.create(Place(bucket, "a second"), b"3")
    assert outage.refused == 3  # two attempts, and a look at what they may have left
    patient = S3Store(region=local_cloud.region, endpoint_url=proxy.endpoint_url, session=local_cloud.session())
    assert patient.create(Place(bucket, "a second"), b"3") is not None
    patient.close()
