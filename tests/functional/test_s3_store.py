"""S3Store where S3 answers late, never, or with an error: what was carried out decides, not what was heard."""

from __future__ import annotations

import http.server
import io
import itertools
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError
from botocore.response import StreamingBody
from moto import mock_aws

from contract.errors import ObjectMissing, PermanentError, StoreUnavailable
from contract.keys import Place
from contract.store import S3Store, StoreCounts
from tests.fakes.clock import FakeClock

PLACE = Place("bucket", "runs/r/record.json")
MINE, OTHER, OLD = b"mine", b"somebody else's", b"old"
#: What happens to one request: "done"; "lost": carried out, but the answer never arrives; "never": does not arrive; a
#: number: this HTTP status instead; or a function that runs first, before the request is carried out.
Fate = str | int | Callable[[], object]


def status(code: int, name: str = "Error") -> ClientError:
    return ClientError({"Error": {"Code": name}, "ResponseMetadata": {"HTTPStatusCode": code}}, "Operation")


class Wire:
    """A client whose requests meet the fates that a test gives, by operation and in order; then all goes well."""

    def __init__(self, client: Any, fates: dict[str, list[Fate]]) -> None:
        self._client, self._fates = client, fates
        self.meta = client.meta
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        def send(**arguments: Any) -> Any:
            self.sent.append((operation, arguments))
            left = self._fates.get(operation, [])
            fate = left.pop(0) if left else "done"
            if callable(fate):
                fate()
            elif isinstance(fate, int):
                raise status(fate)
            elif fate == "never":
                raise ConnectTimeoutError(endpoint_url="https://s3")
            answer = getattr(self._client, operation)(**arguments)
            if fate == "lost":
                raise ReadTimeoutError(endpoint_url="https://s3")
            if fate == "lost 503":
                raise status(503, "SlowDown")
            if fate == "cut":
                answer["Body"] = StreamingBody(io.BytesIO(answer["Body"].read()[:-1]), answer["ContentLength"])
            return answer

        return send

    def bodies(self) -> list[bytes]:
        return [arguments["Body"] for operation, arguments in self.sent if operation == "put_object"]


class ScriptedStore(S3Store):
    """S3Store over moto, through a `Wire`."""

    def __init__(self, attempts: int = 5, **fates: list[Fate]) -> None:
        self.clock = FakeClock()
        super().__init__(region="us-east-1", clock=self.clock, attempts=attempts)
        self.fates = fates
        self.wire: Wire

    def _make_client(self) -> Wire:
        self.wire = Wire(super()._make_client(), self.fates)
        return self.wire


@pytest.fixture(autouse=True)
def s3() -> Iterator[Any]:
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=PLACE.bucket)
        yield client
        client.close()


def write(s3: Any, data: bytes) -> Callable[[], object]:
    return lambda: s3.put_object(Bucket=PLACE.bucket, Key=PLACE.key, Body=data)


def stored(s3: Any) -> bytes:
    data: bytes = s3.get_object(Bucket=PLACE.bucket, Key=PLACE.key)["Body"].read()
    return data


@pytest.mark.parametrize(
    "fates",
    [
        ["done"],
        ["lost"],
        ["lost 503"],
        ["lost", "never", "lost", 409],
        ["never", "done"],
        [503, "done"],
        [500, "lost"],
        [409, "done"],
        [409, 409, 409, 409, "done"],
        ["never", "never", "never", "never", "lost"],
    ],
    ids=str,
)
def test_create_wins_although_answers_are_lost(s3: Any, fates: list[Fate]) -> None:
    store = ScriptedStore(put_object=list(fates))
    won = store.create(PLACE, MINE)
    assert won is not None
    assert won == store.head(PLACE)
    assert stored(s3) == MINE
    assert set(store.wire.bodies()) == {MINE}, "every attempt sends the same body"


@pytest.mark.parametrize("before", [[], ["never"], [409], [503, 409], ["never"] * 3], ids=str)
def test_create_is_lost_when_somebody_else_was_first(s3: Any, before: list[Fate]) -> None:
    store = ScriptedStore(put_object=[*before, write(s3, OTHER)])
    assert store.create(PLACE, MINE) is None
    assert stored(s3) == OTHER


def test_create_is_lost_to_the_same_bytes_when_no_answer_was(s3: Any) -> None:
    write(s3, MINE)()
    assert ScriptedStore().create(PLACE, MINE) is None
    assert ScriptedStore(put_object=[409]).create(PLACE, MINE) is None


def test_the_last_attempts_lost_answer_is_settled_by_reading(s3: Any) -> None:
    assert ScriptedStore(attempts=1, put_object=["lost"]).create(PLACE, MINE) is not None
    assert ScriptedStore(attempts=1, put_object=["never"]).create(PLACE, OTHER) is None
    assert stored(s3) == MINE


def test_create_that_never_arrives_stays_open(s3: Any) -> None:
    store = ScriptedStore(attempts=3, put_object=["never"] * 3)
    with pytest.raises(StoreUnavailable, match="ConnectTimeoutError, 3 attempts"):
        store.create(PLACE, MINE)
    store = ScriptedStore(attempts=1, put_object=["lost"], get_object=["never"])
    with pytest.raises(StoreUnavailable, match="ReadTimeoutError, 1 attempts"):
        store.create(PLACE, MINE)


def test_create_under_nothing_but_conflicts_does_not_guess(s3: Any) -> None:
    store = ScriptedStore(put_object=[409] * 5)
    with pytest.raises(StoreUnavailable, match="409 Error, 5 attempts"):
        store.create(PLACE, MINE)
    assert [operation for operation, _ in store.wire.sent] == ["put_object"] * 5


def test_a_comparison_that_fails_is_made_again(s3: Any) -> None:
    store = ScriptedStore(put_object=["lost"], get_object=["never", 503, "cut"])
    assert store.create(PLACE, MINE) is not None


@pytest.mark.parametrize("fates", [["done"], ["lost"], ["never", "lost"], [409, "lost 503"]], ids=str)
def test_replace_wins_although_answers_are_lost(s3: Any, fates: list[Fate]) -> None:
    old = ScriptedStore().put(PLACE, OLD)
    store = ScriptedStore(put_object=list(fates))
    won = store.replace(PLACE, MINE, old.etag)
    assert won is not None
    assert won == store.head(PLACE)
    assert stored(s3) == MINE


@pytest.mark.parametrize("before", [[], ["never"], [409]], ids=str)
def test_replace_is_lost_when_somebody_else_was_first(s3: Any, before: list[Fate]) -> None:
    old = ScriptedStore().put(PLACE, OLD)
    assert ScriptedStore(put_object=[*before, write(s3, OTHER)]).replace(PLACE, MINE, old.etag) is None
    assert stored(s3) == OTHER


def test_a_replacement_that_was_itself_replaced_is_lost(s3: Any) -> None:
    old = ScriptedStore().put(PLACE, OLD)
    store = ScriptedStore(put_object=["lost", write(s3, OTHER)])
    assert store.replace(PLACE, MINE, old.etag) is None
    assert stored(s3) == OTHER


def test_the_last_attempts_lost_replacement_is_settled_by_reading(s3: Any) -> None:
    old = ScriptedStore().put(PLACE, OLD)
    with pytest.raises(StoreUnavailable):  # the old version is still there: neither won nor lost
        ScriptedStore(attempts=1, put_object=["never"]).replace(PLACE, MINE, old.etag)
    assert ScriptedStore(attempts=1, put_object=["lost"]).replace(PLACE, MINE, old.etag) is not None
    assert ScriptedStore(attempts=1, put_object=["never"]).replace(PLACE, OTHER, old.etag) is None


def test_reads_are_tried_again(s3: Any) -> None:
    write(s3, MINE)()
    store = ScriptedStore(
        get_object=["never", "cut", 503],
        head_object=[500],
        list_objects_v2=["lost"],
        delete_objects=["never", "lost"],
    )
    assert store.get(PLACE) == MINE
    assert store.get_range(PLACE, 1, 2) == b"in"
    assert store.head(PLACE) is not None
    assert store.list(PLACE.bucket, "") == [PLACE.key]
    store.delete([PLACE])
    assert store.find(PLACE) is None


def test_the_waits_grow_and_outlast_five_seconds_of_503(s3: Any) -> None:
    store = ScriptedStore(put_object=[503] * 4)
    store.put(PLACE, MINE)
    assert len(store.clock.slept) == 4
    assert all(later > earlier for earlier, later in itertools.pairwise(store.clock.slept))
    assert 5.0 < sum(store.clock.slept) < 10.0


@pytest.mark.parametrize("operation", ["put", "create", "get", "find", "head"])
def test_a_refusal_is_not_tried_again(s3: Any, operation: str) -> None:
    store = ScriptedStore(put_object=[403], get_object=[403], head_object=[403])
    arguments = (PLACE, MINE) if operation in ("put", "create") else (PLACE,)
    with pytest.raises(PermanentError, match=r"refused s3://bucket/runs/r/record\.json: 403 Error"):
        getattr(store, operation)(*arguments)
    assert len(store.wire.sent) == 1
    assert store.clock.slept == []


def test_missing_credentials_are_said_so(s3: Any) -> None:
    def none() -> object:
        raise NoCredentialsError

    with pytest.raises(PermanentError, match="Unable to locate credentials"):
        ScriptedStore(get_object=[none]).get(PLACE)


def test_an_object_that_cannot_be_deleted_is_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [{"Errors": [{"Key": "a", "Code": "InternalError"}]}, {"Errors": [{"Key": "b", "Code": "AccessDenied"}]}]
    store = ScriptedStore()
    monkeypatch.setattr(store, "_make_client", lambda: _Answers(answers))
    with pytest.raises(PermanentError, match="refused to delete s3://bucket/b: AccessDenied"):
        store.delete([Place("bucket", "a"), Place("bucket", "b")])
    assert not answers


class _Answers:
    """A client that gives prepared answers to delete_objects."""

    def __init__(self, answers: list[dict[str, Any]]) -> None:
        self._answers = answers

    def delete_objects(self, **_: Any) -> dict[str, Any]:
        return self._answers.pop(0)


@pytest.mark.parametrize("owner", ["123456789012", None])
def test_every_call_names_the_owner_where_one_is_known(s3: Any, owner: str | None) -> None:
    store = ScriptedStore()
    place = Place(PLACE.bucket, PLACE.key, owner)
    stored = store.put(place, MINE)
    store.replace(place, MINE, stored.etag)
    store.create(place, MINE)
    store.find(place)
    store.get_range(place, 0, 1)
    store.head(place)
    store.list(place.bucket, "", owner)
    store.delete([place])
    assert len(store.wire.sent) == 8
    assert [arguments.get("ExpectedBucketOwner") for _, arguments in store.wire.sent] == [owner] * 8
    assert all("ExpectedBucketOwner" in arguments for _, arguments in store.wire.sent) == (owner is not None)


def test_requests_and_bytes_are_counted_as_they_are_billed(s3: Any) -> None:
    store = ScriptedStore(put_object=[503], get_object=["cut"])
    store.put(PLACE, b"12345")
    store.create(PLACE, b"12345")
    store.get(PLACE)
    store.get_range(PLACE, 0, 2)
    store.head(PLACE)
    store.list(PLACE.bucket, "")
    store.delete([PLACE])
    store.find(PLACE)
    assert store.counts == StoreCounts(gets=5, puts=3, lists=1, deletes=1, bytes_in=7, bytes_out=5)


def test_requests_carry_no_checksum_beside_the_objects_own_digests_and_ask_nothing_first(s3: Any) -> None:
    store, requests = ScriptedStore(), []
    store.put(PLACE, MINE)
    store.wire.meta.events.register("before-send.s3", lambda request, **_: requests.append(request))
    store.create(Place(PLACE.bucket, "runs/r/another"), MINE)
    assert store.get(PLACE) == MINE
    assert [request.method for request in requests] == ["PUT", "GET"]
    named = {name.lower() for request in requests for name in request.headers}
    assert not [name for name in named if "checksum" in name or name in ("content-md5", "x-amz-trailer")]
    assert "expect" not in named  # a body goes out without asking first
    store.delete([PLACE])  # S3 requires a checksum here
    assert store.find(PLACE) is None


def test_nothing_is_built_before_the_first_use_and_the_environment_does_not_redirect(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    store = ScriptedStore()
    assert not hasattr(store, "wire")
    store.put(PLACE, MINE)
    assert "amazonaws.com" in store.wire.meta.endpoint_url
    store.close()
    assert store.get(PLACE) == MINE, "closing is not the end"


def test_attempts_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="attempts"):
        S3Store(region="us-east-1", attempts=0)


class _Always503(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def unmocked(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # the loopback interface is no proxy's business


@pytest.mark.usefixtures("unmocked")
def test_an_s3_that_is_busy_is_asked_as_often_as_configured_and_named() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Always503) as server:
        server.asked = 0  # type: ignore[attr-defined]
        port = server.server_address[1]
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        store = S3Store(
            region="us-east-1", endpoint_url=f"http://127.0.0.1:{port}", clock=FakeClock(), read_timeout_seconds=20
        )
        try:
            with pytest.raises(StoreUnavailable) as caught:
                store.get(PLACE)
        finally:
            store.close()
            server.shutdown()
            serving.join()
    assert server.asked == 5, "botocore's own retries are off"  # type: ignore[attr-defined]
    for part in (f"127.0.0.1:{port}", "bucket bucket", "'runs/r/record.json'", "503", "5 attempts"):
        assert part in str(caught.value)


@pytest.mark.usefixtures("unmocked")
def test_an_s3_that_is_not_there_is_named() -> None:
    with socket.socket() as held:  # bound, but not listening: connections are refused
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        store = S3Store(region="us-east-1", endpoint_url=f"http://127.0.0.1:{port}", clock=FakeClock())
        with pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port} failed to put .* in bucket bucket: Endpoint"):
            store.create(PLACE, MINE)
        store.close()


def test_a_bucket_that_is_not_there_is_missing_and_not_a_lost_race(s3: Any) -> None:
    with pytest.raises(ObjectMissing, match="there is no bucket nowhere"):
        ScriptedStore().create(Place("nowhere", "k"), MINE)
