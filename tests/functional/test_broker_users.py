"""The custom resource that makes the peers' accounts: what it answers, and when, whatever happens to it."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambdas.broker_users import handler as users
from tests.fakes.certificates import self_signed
from tests.fakes.custom_resource import Context, Request, Server, event

SECRETS = ("admin-secret", "old-secret", "zero-secret", "one-secret")


@pytest.fixture
def cloudformation() -> Iterator[Server]:
    """Where the answers go."""
    with Server() as server:
        yield server


def properties(management: str, *ranks: int, **more: Any) -> dict[str, Any]:
    words = ("zero", "one")
    return {
        "Management": management,
        "Administrator": {"Username": "admin", "Password": "admin-secret", "Previous": "admin-secret"},
        "Users": [
            {
                "Username": f"peer-{rank}",
                "Password": f"{words[rank]}-secret",
                "Configure": f"^c{rank}$",
                "Write": f"^w{rank}$",
                "Read": f"^r{rank}$",
            }
            for rank in ranks
        ],
        "Version": "1",
        **more,
    }


def answered(cloudformation: Server) -> dict[str, Any]:
    """The one answer. It goes to the signed address and carries no type, which is not part of the signature."""
    (request,) = cloudformation.requests
    assert (request.method, request.path) == ("PUT", "/answers/one?X-Amz-Signature=abc")
    assert "Content-Type" not in request.headers
    told: dict[str, Any] = request.json()
    assert (told["RequestId"], told["LogicalResourceId"]) == ("request-1", "Users")
    assert told["PhysicalResourceId"]
    assert not any(secret in request.body.decode() for secret in SECRETS)
    return told


def password_of(request: Request) -> str:
    """The administrator's, as the request has it."""
    return base64.b64decode(request.headers["Authorization"].removeprefix("Basic ")).decode().partition(":")[2]


def test_accounts_are_made_with_their_rights(cloudformation: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(lambda request: 200 if request.method == "GET" else 201) as broker:
        users.handler(event("Create", cloudformation.url, properties(broker.url, 0, 1)), Context())
    assert answered(cloudformation)["Status"] == "SUCCESS"
    assert broker.asked() == [
        ("GET", "/api/whoami"),
        ("PUT", "/api/users/peer-0"),
        ("PUT", "/api/permissions/%2F/peer-0"),
        ("PUT", "/api/users/peer-1"),
        ("PUT", "/api/permissions/%2F/peer-1"),
    ]
    assert broker.requests[1].json() == {"password": "zero-secret", "tags": ""}
    assert broker.requests[2].json() == {"configure": "^c0$", "write": "^w0$", "read": "^r0$"}
    printed = capsys.readouterr()
    assert not any(secret in printed.out + printed.err for secret in SECRETS)
    assert json.loads(printed.out)["status"] == "SUCCESS"


def test_an_update_removes_who_is_no_longer_named_and_keeps_its_name(cloudformation: Server) -> None:
    old = {"OldResourceProperties": properties("https://old", 0, 1), "PhysicalResourceId": "as-before"}
    with Server(lambda request: 200 if request.method == "GET" else 204) as broker:
        users.handler(event("Update", cloudformation.url, properties(broker.url, 0, Version="2"), **old), Context())
    assert answered(cloudformation)["PhysicalResourceId"] == "as-before"
    assert broker.asked()[-1] == ("DELETE", "/api/users/peer-1")
    assert broker.requests[1].json()["password"] == "zero-secret"


def test_a_changed_administrator_s_password_is_set_with_the_previous_one(cloudformation: Server) -> None:
    now = {"password": "old-secret"}

    def reply(request: Request) -> int:
        if password_of(request) != now["password"]:
            return 401
        if request.path == "/api/users/admin":
            now["password"] = request.json()["password"]
            assert request.json()["tags"] == "administrator"
        return 200 if request.method == "GET" else 204

    administrator = {"Username": "admin", "Password": "admin-secret", "Previous": "old-secret"}
    with Server(reply) as broker:
        changed = properties(broker.url, 0, Administrator=administrator)
        users.handler(event("Update", cloudformation.url, changed), Context())
    assert answered(cloudformation)["Status"] == "SUCCESS"
    assert now["password"] == "admin-secret"
    assert ("PUT", "/api/users/peer-0") in broker.asked()


@pytest.mark.parametrize("previous", ["admin-secret", "old-secret"])
def test_a_wrong_password_is_one_sentence(
    cloudformation: Server, capsys: pytest.CaptureFixture[str], previous: str
) -> None:
    administrator = {"Username": "admin", "Password": "admin-secret", "Previous": previous}
    with Server(lambda request: 401) as broker:
        wrong = properties(broker.url, 0, Administrator=administrator)
        users.handler(event("Create", cloudformation.url, wrong), Context())
    told = answered(cloudformation)
    assert told["Status"] == "FAILED"
    host = broker.url.removeprefix("http://")
    assert told["Reason"] == f"the broker at {host} refused the administrator's name or password (401)"
    assert "secret" not in capsys.readouterr().out


def test_a_broker_that_is_not_ready_is_asked_again(cloudformation: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "FIRST_PAUSE_SECONDS", 0.01)
    replies = [503, 503, 200, 201, 500, 204]
    with Server(lambda request: replies.pop(0)) as broker:
        users.handler(event("Create", cloudformation.url, properties(broker.url, 0)), Context())
    assert answered(cloudformation)["Status"] == "SUCCESS"
    assert replies == []


def test_a_broker_that_cannot_be_reached_fails_before_the_function_ends(
    cloudformation: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "FIRST_PAUSE_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    context = Context(users.ANSWER_SECONDS + 0.3)
    users.handler(event("Create", cloudformation.url, properties(f"http://127.0.0.1:{port}", 0)), context)
    told = answered(cloudformation)
    assert told["Status"] == "FAILED"
    assert told["Reason"] == (
        f"the broker at 127.0.0.1:{port} did not do what it was asked for within the time: connection refused"
    )


def test_with_its_own_end_near_it_answers_and_asks_nothing(cloudformation: Server) -> None:
    with Server() as broker:
        users.handler(event("Create", cloudformation.url, properties(broker.url, 0)), Context(20.0))
    told = answered(cloudformation)
    assert (told["Status"], broker.requests) == ("FAILED", [])
    assert "there was no time left to ask" in told["Reason"]


def test_whatever_hangs_the_answer_comes_in_time(cloudformation: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver, for one, heeds no limit of ours."""
    monkeypatch.setattr(users, "GRACE_SECONDS", 0.0)
    free = threading.Event()

    def hang(*_: object) -> int:
        free.wait(60)
        return 200

    real = users.request
    monkeypatch.setattr(
        users, "request", lambda method, url, *rest: (hang if "hangs" in url else real)(method, url, *rest)
    )
    context = Context(users.ANSWER_SECONDS + 0.2)
    users.handler(event("Create", cloudformation.url, properties("https://hangs.test", 0)), context)
    free.set()
    assert answered(cloudformation)["Reason"] == "the broker's accounts were not made within the time"


@pytest.mark.parametrize("reply", [204, 404])
def test_deleting_removes_the_accounts(cloudformation: Server, reply: int) -> None:
    with Server(lambda request: reply) as broker:
        users.handler(event("Delete", cloudformation.url, properties(broker.url, 0, 1)), Context())
    assert answered(cloudformation)["Status"] == "SUCCESS"
    assert broker.asked() == [("DELETE", "/api/users/peer-0"), ("DELETE", "/api/users/peer-1")]


@pytest.mark.parametrize("broken", ["gone", "refuses", "nonsense"])
def test_deleting_never_keeps_a_stack_from_being_deleted(
    cloudformation: Server, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(users, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(users, "DELETE_SECONDS", 0.2)
    with Server(lambda request: 401) as broker:
        wanted = properties(broker.url, 0)
        if broken == "gone":
            wanted["Management"] = "http://127.0.0.1:1"
        elif broken == "nonsense":
            del wanted["Users"]
        users.handler(event("Delete", cloudformation.url, wanted), Context())
    told = answered(cloudformation)
    assert told["Status"] == "SUCCESS"
    assert told["Reason"].startswith("the accounts were left: ")


def test_an_error_of_our_own_is_answered_without_its_text(cloudformation: Server) -> None:
    wrong = properties("https://broker.test", 0)
    wrong["Users"][0] = ["zero-secret"]
    users.handler(event("Create", cloudformation.url, wrong), Context())
    told = answered(cloudformation)
    assert told["Status"] == "FAILED"
    assert told["Reason"].startswith("internal error, TypeError in of, line ")


@pytest.mark.parametrize("management", ["http://broker.test", "ftp://127.0.0.1"])
def test_no_password_goes_anywhere_without_tls(cloudformation: Server, management: str) -> None:
    users.handler(event("Create", cloudformation.url, properties(management, 0)), Context())
    assert answered(cloudformation)["Reason"] == f"{management} is no address of https"


def test_a_certificate_that_nobody_signed_is_refused(cloudformation: Server, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def shake_hands() -> None:
            client, _ = listener.accept()
            with client, pytest.raises(ssl.SSLError):
                context.wrap_socket(client, server_side=True)

        server = threading.Thread(target=shake_hands, daemon=True)
        server.start()
        url = f"https://127.0.0.1:{port}"
        users.handler(event("Create", cloudformation.url, properties(url, 0)), Context())
        server.join(10)
    told = answered(cloudformation)
    assert told["Status"] == "FAILED"
    assert told["Reason"].startswith(f"the broker at 127.0.0.1:{port} has no valid certificate: self")


def test_an_answer_that_is_not_taken_at_once_is_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "FIRST_PAUSE_SECONDS", 0.01)
    replies = [500, 503, 200]
    with Server(lambda request: replies.pop(0)) as cloudformation, Server() as broker:
        users.handler(event("Delete", cloudformation.url, properties(broker.url)), Context())
    assert len(cloudformation.requests) == 3


def test_an_address_that_has_expired_is_told_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with (
        Server(lambda request: 403) as cloudformation,
        Server() as broker,
        pytest.raises(users.Failed, match="CloudFormation could not be told: status 403"),
    ):
        users.handler(event("Delete", cloudformation.url, properties(broker.url)), Context())
    assert "status 403" in capsys.readouterr().out
