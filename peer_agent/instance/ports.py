"""What an instance needs from the outside, as small protocols; tests give their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote, urlsplit

from contract.clock import Clock
from contract.errors import TransientError
from contract.store import ObjectStore
from peer_agent.instance.log import Log

T = TypeVar("T")

#: Between tries of what AWS could not answer, in seconds.
PATIENCE = (2.0, 5.0, 15.0, 30.0, 60.0)


@dataclass(frozen=True)
class Credentials:
    """A broker user."""

    username: str
    password: str = field(repr=False)

    def url(self, endpoint: str) -> str:
        """`endpoint` (`amqps://host:port`) with user and password, for the default virtual host."""
        parts = urlsplit(endpoint)
        return f"{parts.scheme}://{quote(self.username, safe='')}:{self.quoted}@{parts.netloc}/%2F"

    @property
    def quoted(self) -> str:
        """The password as it stands in a URL."""
        return quote(self.password, safe="")


class Secrets(Protocol):
    """Where passwords come from."""

    def credentials(self, name: str) -> Credentials:
        """The broker user in the secret `name` (an ARN). Raises TransientError, PermanentError."""
        ...


class Group(Protocol):
    """The auto scaling group that holds this instance."""

    def release(self) -> None:
        """Ask for no instance any more. Raises TransientError, PermanentError."""
        ...


class Process(Protocol):
    """A child that runs, or has ended."""

    def poll(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None while it runs."""
        ...

    def terminate(self) -> None:
        """Ask it to end in order (SIGTERM)."""
        ...

    def kill(self) -> None:
        """End it."""
        ...


class Processes(Protocol):
    """Starts children."""

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> Process:
        """What it writes is appended to `output`. Raises OSError."""
        ...


@dataclass(frozen=True, kw_only=True)
class InstancePorts:
    """Everything outside of this process's own memory."""

    store: ObjectStore
    secrets: Secrets
    group: Group
    processes: Processes
    clock: Clock
    log: Log

    def patiently(self, what: Callable[[], T]) -> T:
        """Try again what AWS could not answer, for some two minutes. Raises what `what` raises, TransientError last."""
        for wait in PATIENCE:
            try:
                return what()
            except TransientError as error:
                self.log.warning(f"{error}; trying again in {wait:g} s")
            self.clock.sleep(wait)
        return what()
