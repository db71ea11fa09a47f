"""One of four peers killed at 25 MB: the longest round of the survivors, beyond the time after which it is dropped.

Real peers with given gradients (benchmarks/peer.py) on RabbitMQ and the local S3; nobody is started again. The victim
gets SIGKILL at another moment of a round each time, and each time another rank does, so that the leader of the round is
among them. A round of a survivor lasts from its beginning to the beginning of the next, as its events tell. The
heartbeats' timeout, which is what it takes at least, is subtracted; it must not be longer than three median rounds and
two seconds, so that a long one cannot hide anything.

The benchmark ends with an error unless the survivors dropped the victim, went through all rounds, and ended with the
same weights.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.crew import Crew, configuration
from benchmarks.reporting import Figure
from contract.clock import SystemClock
from contract.errors import RunFailed
from contract.records import PeerReport
from infra.local.cloud import LocalCloud

PEERS, ROUNDS, KILLED_IN = 4, 30, 12
#: Of a median round, by victim: when in the round it dies.
MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)
#: Rounds at the beginning that do not count.
WARM = 5
HEARTBEAT_SECONDS, TIMEOUT_SECONDS = 0.5, 2.0
_LIMIT_SECONDS, _LOOK_SECONDS = 120.0, 0.005


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One run in which a peer was killed. Seconds."""

    median: float
    """A round before that."""
    longest: float
    """The longest round of a survivor."""
    dropped_after: float
    """From the kill to the commit that leaves the victim out, as the last survivor applies it."""


def run() -> list[Figure]:
    """Kill peers, and give the figures. Raises RunFailed."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        folder = Path(name)
        with LocalCloud.start(folder / "servers", log=_tell) as cloud:
            losses = [lose(cloud, folder, number) for number in range(len(MOMENTS))]
    return figures(losses)


def figures(losses: list[Loss]) -> list[Figure]:
    """The worst of all kills."""
    median = statistics.median(loss.median for loss in losses)
    beyond = max(loss.longest for loss in losses) - TIMEOUT_SECONDS
    dropped = max(loss.dropped_after for loss in losses)
    timeout, most = TIMEOUT_SECONDS, 3 * median + 2
    return [
        Figure(name="longest_round_beyond_timeout", value=beyond, unit="s", better="lower", must=2.2, aim=0.5),
        Figure(name="heartbeat_timeout", value=timeout, unit="s", better="lower", must=round(most, 2)),
        Figure(name="seconds_until_dropped", value=dropped, unit="s after the kill", better="lower"),
        Figure(name="seconds_per_round", value=median, unit="s", better="neither"),
    ]


def lose(cloud: LocalCloud, folder: Path, number: int) -> Loss:
    """A run that loses rank `number` modulo the peers, at the moment of that number. Raises RunFailed."""
    victim, clock = number % PEERS, SystemClock()
    membership = {"heartbeat_seconds": HEARTBEAT_SECONDS, "heartbeat_timeout_seconds": TIMEOUT_SECONDS}
    config = configuration(PEERS, ROUNDS, membership=membership)
    crew = Crew(cloud, folder / f"run-{number}", config, f"bench-{number}")
    with crew.working():
        while KILLED_IN not in begun(crew.events(), victim):
            crew.check()
            clock.sleep(_LOOK_SECONDS)
        median = statistics.median(lengths(crew.events(), victim, WARM))
        clock.sleep(MOMENTS[number] * median)
        killed_at = clock.now()
        crew.children[victim].kill()
        crew.wait(_LIMIT_SECONDS, without=[victim])
    events = crew.events()
    survivors = [rank for rank in range(PEERS) if rank != victim]
    drops = [event["t"] for event in events if event["event"] == "member_dropped" and event["member"] == victim]
    if len(drops) != len(survivors):
        raise RunFailed(f"{len(drops)} of {len(survivors)} survivors tell that peer {victim} was dropped")
    places = crew.spec.places
    ends = {PeerReport.from_json(crew.store.get(places.report(rank))).weights_sha256 for rank in survivors}
    if len(ends) != 1:
        raise RunFailed(f"the survivors of peer {victim} ended with {len(ends)} different weights")
    longest = max(max(lengths(events, rank, WARM)) for rank in survivors)
    found = Loss(median=median, longest=longest, dropped_after=max(drops) - killed_at)
    _tell(f"peer {victim} killed {MOMENTS[number]:g} of a round into round {KILLED_IN}: {found}")
    return found


def begun(events: Iterable[dict[str, Any]], rank: int) -> dict[int, float]:
    """When a peer began its rounds: seconds since the epoch by round."""
    return {e["round"]: e["t"] for e in events if e["event"] == "round_started" and e["rank"] == rank}


def lengths(events: Iterable[dict[str, Any]], rank: int, first: int) -> list[float]:
    """Seconds of a peer's rounds from `first` on, but for the last one that it began."""
    starts = sorted(begun(events, rank).items())
    return [after - before for (round, before), (_, after) in pairwise(starts) if round >= first]


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
