"""A custom resource: accounts on RabbitMQ with exactly the rights that they are given, through its management API.

It runs in subnets that lead to the broker and, through S3's gateway endpoint, to the address that CloudFormation waits
at; nowhere else. CloudFormation waits for up to an hour where nobody answers, so `handler` answers whatever happens, in
time before its own end. Passwords come in the event, which therefore nothing prints.

The resource's properties:

    Management      https://host[:port] of the broker's management API
    Administrator   {Username, Password, Previous}; Previous is the password that still holds while it is being changed
    Users           [{Username, Password, Configure, Write, Read}, ...]: patterns of names in the virtual host `/`
    Version         anything; another one applies all of it again
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

#: Kept for the answer, of the function's own time.
ANSWER_SECONDS = 30.0
#: How long a broker is asked to forget accounts that go with it anyway.
DELETE_SECONDS = 30.0
#: What a request may overrun the time by, before it is left alone.
GRACE_SECONDS = 5.0
#: For one request; a broker that has just been made may take connections and not answer them.
REQUEST_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
#: CloudFormation takes 4,096 bytes; a reason needs no more than a sentence.
MOST_CHARACTERS = 500

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Context(Protocol):
    """What is used of Lambda's context."""

    def get_remaining_time_in_millis(self) -> int: ...


class Failed(Exception):
    """Why the accounts are not as they should be: one sentence, without a password."""


class NotLetIn(Failed):
    """The broker refused the administrator's name or password."""


@dataclass(frozen=True)
class Budget:
    """The time that is left for something, in seconds: the function's own less what must remain after it."""

    context: Context
    kept_seconds: float

    def left(self) -> float:
        """Never below 0."""
        return max(self.context.get_remaining_time_in_millis() / 1_000 - self.kept_seconds, 0.0)

    def pause(self, seconds: float) -> None:
        """Wait, but no longer than there is time."""
        threading.Event().wait(min(seconds, self.left()))


@dataclass(frozen=True)
class User:
    """An account, and the patterns of names that it may configure, write to and read from."""

    name: str
    password: str = field(repr=False)
    configure: str
    write: str
    read: str

    @classmethod
    def of(cls, value: Mapping[str, str]) -> User:
        return cls(value["Username"], value["Password"], value["Configure"], value["Write"], value["Read"])


def handler(event: Mapping[str, Any], context: Context) -> None:
    """Create, update or delete the accounts, and tell CloudFormation. Raises Failed where it cannot be told."""
    resource = str(event.get("PhysicalResourceId") or f"broker-users-{event['LogicalResourceId']}")
    status, reason = _outcome(event, context)
    if status == "FAILED" and event.get("RequestType") == "Delete":
        # The broker is gone, or goes next, and the accounts with it: no reason to keep the stack from being deleted.
        status, reason = "SUCCESS", f"the accounts were left: {reason}"
    print(json.dumps({"event": str(event.get("RequestType")), "status": status, "reason": reason}))
    body = {
        "Status": status,
        "Reason": reason[:MOST_CHARACTERS],
        "PhysicalResourceId": resource,
        "StackId": event["StackId"],
        "RequestId": event["RequestId"],
        "LogicalResourceId": event["LogicalResourceId"],
    }
    answer(str(event["ResponseURL"]), json.dumps(body).encode(), Budget(context, 1.0))


def _outcome(event: Mapping[str, Any], context: Context) -> tuple[str, str]:
    """Status and reason. The work is done in a thread, so that whatever hangs in it, the answer comes in time."""
    found = ["FAILED", "the broker's accounts were not made within the time"]
    budget = Budget(context, ANSWER_SECONDS)
    if event.get("RequestType") == "Delete":
        budget = Budget(context, ANSWER_SECONDS + max(budget.left() - DELETE_SECONDS, 0.0))

    def work() -> None:
        try:
            _apply(event, budget)
            found[:] = ["SUCCESS", "the accounts are as they should be"]
        except Failed as error:
            found[:] = ["FAILED", str(error)]
        except Exception as error:
            # Its text may quote what it failed at, and with it a password.
            where = traceback.extract_tb(error.__traceback__)[-1]
            found[:] = ["FAILED", f"internal error, {type(error).__name__} in {where.name}, line {where.lineno}"]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(budget.left() + GRACE_SECONDS)
    status, reason = list(found)
    return status, reason


def _apply(event: Mapping[str, Any], budget: Budget) -> None:
    """Raises Failed."""
    properties = event["ResourceProperties"]
    users = [User.of(value) for value in properties["Users"]]
    administrator = properties["Administrator"]
    name, password = str(administrator["Username"]), str(administrator["Password"])
    management = Management(str(properties["Management"]), name, password, budget)
    if event["RequestType"] == "Delete":
        management.remove([user.name for user in users])
        return
    try:
        management.check()
    except NotLetIn:
        previous = str(administrator.get("Previous", password))
        if previous == password:
            raise
        management = Management(str(properties["Management"]), name, previous, budget)
        management.check()
        management.change_own_password(password)
    for user in users:
        management.put(user)
    before = event.get("OldResourceProperties", {}).get("Users", [])
    management.remove(sorted({str(value["Username"]) for value in before} - {user.name for user in users}))


class Management:
    """RabbitMQ's management API, as one administrator. Everything raises Failed, which names the host."""

    def __init__(self, url: str, username: str, password: str, budget: Budget) -> None:
        self._url, self._username, self._budget = url, username, budget
        self._host = urlsplit(url).netloc
        self._authorise(password)

    def _authorise(self, password: str) -> None:
        token = base64.b64encode(f"{self._username}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def check(self) -> None:
        """That the administrator is let in. Raises NotLetIn."""
        self._call("GET", "/api/whoami", None, (200,))

    def change_own_password(self, password: str) -> None:
        """Keeps the administrator's tag; later calls use the new password."""
        value = {"password": password, "tags": "administrator"}
        self._call("PUT", f"/api/users/{quote(self._username, safe='')}", value, (201, 204))
        self._authorise(password)

    def put(self, user: User) -> None:
        """Make the account, or give it this password and these rights. It has no tag, so it cannot use this API."""
        name = quote(user.name, safe="")
        self._call("PUT", f"/api/users/{name}", {"password": user.password, "tags": ""}, (201, 204))
        rights = {"configure": user.configure, "write": user.write, "read": user.read}
        self._call("PUT", f"/api/permissions/%2F/{name}", rights, (201, 204))

    def remove(self, names: Sequence[str]) -> None:
        """Remove accounts; one that is not there is as well."""
        for name in names:
            self._call("DELETE", f"/api/users/{quote(name, safe='')}", None, (204, 404))

    def _call(self, method: str, path: str, value: object, expected: tuple[int, ...]) -> None:
        """One request, repeated while the broker cannot be reached or is not ready, as long as there is time."""
        body = None if value is None else json.dumps(value).encode()
        pause, cause = FIRST_PAUSE_SECONDS, "there was no time left to ask"
        while (left := self._budget.left()) > 0:
            try:
                status = request(method, self._url, path, body, self._headers, min(left, REQUEST_SECONDS))
            except ssl.SSLCertVerificationError as error:
                raise Failed(f"the broker at {self._host} has no valid certificate: {error.verify_message}") from error
            except (OSError, http.client.HTTPException) as error:
                cause = _cause(error)
            else:
                if status in expected:
                    return
                if status == 401:
                    raise NotLetIn(f"the broker at {self._host} refused the administrator's name or password (401)")
                cause = f"{method} {path} was answered with status {status}"
                if status < 500 and status != 429:
                    raise Failed(f"the broker at {self._host}: {cause}")
            self._budget.pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        raise Failed(f"the broker at {self._host} did not do what it was asked for within the time: {cause}")


def answer(url: str, body: bytes, budget: Budget) -> None:
    """Put `body` where CloudFormation waits for it, trying for as long as there is time. Raises Failed."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path  # the query is the address's signature
    pause, cause = FIRST_PAUSE_SECONDS, "there was no time left"
    while (left := budget.left()) > 0:
        try:
            status = request("PUT", url, path, body, {}, min(left, REQUEST_SECONDS))
            if status == 200:
                return
            cause = f"status {status}"
            if status < 500 and status != 429:
                break
        except (OSError, http.client.HTTPException) as error:
            cause = _cause(error)
        budget.pause(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    print(json.dumps({"event": "answer", "status": "FAILED", "reason": cause}))
    raise Failed(f"CloudFormation could not be told: {cause}")


def request(
    method: str, url: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_seconds: float
) -> int:
    """One HTTP request to the host of `url`; the answer's status. Certificates are verified; plain HTTP is for tests on
    this machine only. Raises Failed for another scheme, OSError and HTTPException."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout_seconds, context=context)
    elif parts.scheme == "http" and host in _LOOPBACK:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_seconds)
    else:
        raise Failed(f"{parts.scheme}://{parts.netloc} is no address of https")
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def _cause(error: Exception) -> str:
    """One clause that quotes nothing which was sent."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
