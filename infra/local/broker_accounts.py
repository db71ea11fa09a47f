"""An account per peer on the broker of a local run, with rights on its own queues only, as infra/amazon_mq.py has them.

A private node is given its accounts when it starts, as definitions with salted hashes; passwords are derived from the
administrator's, so that whoever has that finds them, and nothing but it has to be kept. On a broker given by URL
accounts are made for one run through the management API, where that answers at its usual port and the URL's account is
an administrator there, and removed at the run's end. Otherwise all peers use the URL's account.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import json
import re
import secrets
import ssl
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from contract.errors import BrokerUnavailable
from infra.amazon_mq import rights, user_name

#: Ranks that have an account on a private node from its start on, those that join a run later included.
RANKS = 256
_SALT_BYTES = 4
_REQUEST_SECONDS = 5.0


class Accounts(Protocol):
    """The accounts of one run's peers."""

    def url(self, rank: int) -> str:
        """The broker's URL for this rank's process. Raises BrokerUnavailable."""
        ...

    def close(self) -> None:
        """Remove what was made for the run."""
        ...


class Shared:
    """One URL for all."""

    def __init__(self, url: str) -> None:
        self._url = url

    def url(self, rank: int) -> str:
        return self._url

    def close(self) -> None: ...


class Derived:
    """Those of a private node."""

    def __init__(self, url: str) -> None:
        """`url` is the administrator's."""
        self._url = url

    def url(self, rank: int) -> str:
        if rank >= RANKS:
            raise BrokerUnavailable(f"the private RabbitMQ node has accounts for ranks below {RANKS} only")
        return _with_account(self._url, user_name(rank), derived_password(self._url, rank))

    def close(self) -> None: ...


class Made:
    """Those of one run on somebody else's broker, made when they are first asked for."""

    def __init__(self, url: str, management: Management, run: str) -> None:
        self._url, self._management, self._run = url, management, run
        self._urls: dict[int, str] = {}

    def url(self, rank: int) -> str:
        if rank not in self._urls:
            name, password = self._name(rank), secrets.token_urlsafe(24)
            self._management.put(name, password, asdict(rights(rank, re.escape(self._run))))
            self._urls[rank] = _with_account(self._url, name, password)
        return self._urls[rank]

    def close(self) -> None:
        for rank in list(self._urls):
            self._management.remove(self._name(rank))
            del self._urls[rank]

    def _name(self, rank: int) -> str:
        return f"peerless-{self._run}-{user_name(rank)}"


class Management:
    """RabbitMQ's management API at `base` (http or https), with the account and for the virtual host of an AMQP URL."""

    def __init__(self, base: str, url: str) -> None:
        parts = urlsplit(url)
        self._base, self._vhost = urlsplit(base), quote(_vhost(url), safe="")
        token = base64.b64encode(f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def administers(self) -> bool:
        """Whether it answers, and this account is an administrator's."""
        try:
            status, body = self._call("GET", "/api/whoami")
            found = json.loads(body) if status == 200 else {}
        except (OSError, ValueError, http.client.HTTPException):
            return False
        tags = found.get("tags", "") if isinstance(found, dict) else ""
        return "administrator" in (tags.split(",") if isinstance(tags, str) else tags)

    def put(self, name: str, password: str, may: dict[str, str]) -> None:
        """Make an account with these rights on the virtual host. Raises BrokerUnavailable."""
        self._do("PUT", f"/api/users/{quote(name, safe='')}", {"password": password, "tags": ""})
        self._do("PUT", f"/api/permissions/{self._vhost}/{quote(name, safe='')}", may)

    def remove(self, name: str) -> None:
        """Remove an account; one that is not there is as well. Raises BrokerUnavailable."""
        self._do("DELETE", f"/api/users/{quote(name, safe='')}", None, (204, 404))

    def _do(self, method: str, path: str, value: object, expected: Sequence[int] = (201, 204)) -> None:
        what = f"the management API at {self._base.netloc}"
        try:
            status, _ = self._call(method, path, value)
        except (OSError, http.client.HTTPException) as error:
            raise BrokerUnavailable(f"{what} does not answer: {type(error).__name__}") from error
        if status not in expected:
            raise BrokerUnavailable(f"{what} answered {method} {path} with status {status}")

    def _call(self, method: str, path: str, value: object = None) -> tuple[int, bytes]:
        host, port = self._base.hostname or "", self._base.port
        connection: http.client.HTTPConnection
        if self._base.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, port, timeout=_REQUEST_SECONDS, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_REQUEST_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, None if value is None else json.dumps(value), self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


def accounts(
    url: str, run: str, note: Callable[[str], None], *, private: bool, management: Sequence[str] | None = None
) -> Accounts:
    """The accounts for the peers of `run` on the broker at `url`, which may be empty. `private` nodes have theirs.

    `management` are the addresses at which its management API may answer; the usual ones by default. Where no accounts
    can be made, a line to `note` says so.
    """
    if not url:
        return Shared(url)
    if private:
        return Derived(url)
    for base in usual_addresses(url) if management is None else management:
        api = Management(base, url)
        if api.administers():
            return Made(url, api, run)
    note(
        "all peers use the one account of the broker's URL: no management API answers beside that broker which lets it "
        "make an account for each"
    )
    return Shared(url)


def usual_addresses(url: str) -> tuple[str, ...]:
    """Where the management API of the broker at `url` answers as a rule; Amazon MQ's has https' own port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return (f"https://{host}:15671", f"https://{host}") if parts.scheme == "amqps" else (f"http://{host}:15672",)


def definitions(url: str) -> str:
    """What a private node starts from, as JSON: the administrator of `url`, and the peers' accounts."""
    parts = urlsplit(url)
    administrator = unquote(parts.username or "")
    users: list[dict[str, Any]] = [_user(administrator, unquote(parts.password or ""), ["administrator"])]
    permissions = [_permission(administrator, {"configure": ".*", "write": ".*", "read": ".*"})]
    for rank in range(RANKS):
        users.append(_user(user_name(rank), derived_password(url, rank), []))
        permissions.append(_permission(user_name(rank), asdict(rights(rank))))
    return json.dumps({"vhosts": [{"name": "/"}], "users": users, "permissions": permissions})


def derived_password(url: str, rank: int) -> str:
    """Of a rank's account on the private node whose administrator `url` names."""
    secret = unquote(urlsplit(url).password or "").encode()
    return base64.urlsafe_b64encode(hmac.digest(secret, user_name(rank).encode(), "sha256")).decode().rstrip("=")


def _user(name: str, password: str, tags: list[str]) -> dict[str, Any]:
    salt = secrets.token_bytes(_SALT_BYTES)
    digest = base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
    return {"name": name, "password_hash": digest, "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": tags}


def _permission(name: str, may: dict[str, str]) -> dict[str, str]:
    return {"user": name, "vhost": "/", **may}


def _with_account(url: str, name: str, password: str) -> str:
    parts = urlsplit(url)
    server = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(name, safe='')}:{quote(password, safe='')}@{server}").geturl()


def _vhost(url: str) -> str:
    """The virtual host that an AMQP URL names; without one it is `/`."""
    return unquote(urlsplit(url).path.removeprefix("/")) or "/"
