"""What Amazon MQ is told, as values: the broker's configuration, and the peers' accounts with what each may touch.

Patterns of names follow contract/keys.py (a test compares them). Free of aws-cdk-lib.
"""

from __future__ import annotations

from dataclasses import dataclass

ENGINE_VERSION = "4.2"
ADMINISTRATOR = "peerless-admin"
#: Connections that a broker of this size takes unless told otherwise, and at most; larger ones take 1,500 and more.
_SMALL, _CONNECTIONS, _MOST_CONNECTIONS = "mq.m7g.medium", 100, 300


@dataclass(frozen=True)
class Rights:
    """Regular expressions over names in the virtual host `/` (https://www.rabbitmq.com/docs/access-control)."""

    configure: str
    """What it may declare and delete: every exchange, as those that it binds its queues to must exist, and its queues,
    which are its inbox and, one per connection, those for heartbeats."""
    write: str
    """What it may publish to, and which queues it may bind. Not the default exchange, which leads to every queue."""
    read: str
    """What it may consume and purge, and which exchanges it may bind to."""


def user_name(rank: int) -> str:
    """The account of a peer."""
    return f"peer-{rank}"


def rights(rank: int, run: str = r"[^.]+") -> Rights:
    """Of the peer's account, in the runs whose names the regular expression `run` matches: in any by default."""
    queues = f"inbox\\.{rank}", f"pulses\\.{rank}\\.[0-9a-f]+"
    exchanges = "peer\\.\\d+", "pulse\\.\\d+"
    return Rights(
        configure=_names(run, *exchanges, *queues),
        write=_names(run, f"peer\\.{rank}", f"pulse\\.{rank}", *queues),
        read=_names(run, *exchanges, *queues),
    )


def _names(run: str, *endings: str) -> str:
    return rf"^peerless\.{run}\.({'|'.join(endings)})$"


def rabbitmq_conf(peers: int, instance_type: str) -> str:
    """`rabbitmq.conf` of the broker: https://docs.aws.amazon.com/amazon-mq/latest/developer-guide/configurable-values.html

    The first three are Amazon MQ's own values, written down because the exchange relies on them and defaults change: a
    peer acknowledges within minutes, sends a heartbeat each minute, and publishes nothing larger (larger frames travel
    through S3). Queues declare their own limits. Connections are raised only where the smallest broker would have too
    few: two per peer, as a peer that died holds its own until two heartbeats have failed.
    """
    values = {"consumer_timeout": 1_800_000, "heartbeat": 60, "max_message_size": 524_288}
    wanted = 2 * peers
    if instance_type == _SMALL and wanted > _CONNECTIONS:
        values["connection_max"] = min(wanted, _MOST_CONNECTIONS)
    return "".join(f"{key} = {value}\n" for key, value in values.items())
