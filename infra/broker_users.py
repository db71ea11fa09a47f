"""The peers' accounts on the broker, as values: names, and the names of queues and exchanges that each may touch.

Patterns follow contract/keys.py (a test compares them). Free of aws-cdk-lib.
"""

from __future__ import annotations

from dataclasses import dataclass

ADMINISTRATOR = "peerless-admin"


@dataclass(frozen=True)
class Rights:
    """Regular expressions over names in the virtual host `/` (https://www.rabbitmq.com/docs/access-control)."""

    configure: str
    """What it may declare and delete: every exchange, as those that it binds its inbox to must exist, and its inbox."""
    write: str
    """What it may publish to, and which queue it may bind. Not the default exchange, which leads to every queue."""
    read: str
    """What it may consume and purge, and which exchanges it may bind to."""


def user_name(rank: int) -> str:
    """The account of a peer."""
    return f"peer-{rank}"


def rights(rank: int) -> Rights:
    """Of the peer's account, in any run."""
    own, exchanges = f"inbox\\.{rank}", "peer\\.\\d+"
    return Rights(
        configure=_names(exchanges, own),
        write=_names(f"peer\\.{rank}", own),
        read=_names(exchanges, own),
    )


def _names(*endings: str) -> str:
    return rf"^peerless\.[^.]+\.({'|'.join(endings)})$"
