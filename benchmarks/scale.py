"""What a peer has to carry as peers are added: bytes under `reduce_scatter`, and control messages in a simulation.

Bytes are those of real peers with given gradients of 25 MB (benchmarks/peer.py), as their own counters have them:
bodies of messages and of S3 objects, sent and received, between two barriers. Of each peer the larger of both counts,
on average over as many rounds as there are peers, so that everyone has had every turn; and of all peers the largest.
One compressed gradient is what a peer's contribution takes in S3, without its header.

Control is counted in `benchmarks/simulation.py`: the state machine of up to 1,000 peers without any I/O, with messages
lost and doubled and processes that die, at the same rates for every number of peers, from the first commit on. Control
is every message but announcements of contributions (`frame`): hello, commit, result, stop, silent, shard, reduced, and
each heartbeat; and every request to S3 but those for contributions and averages: for records, and for contributions
that are not there. A message to everyone is published once, and delivered to all others. Weights are not simulated.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

from benchmarks.crew import ELEMENTS, Crew, configuration
from benchmarks.meeting import Gathering, Meeting
from benchmarks.reporting import Figure
from benchmarks.simulation import DATA, Faults, Tally, World
from contract.clock import SystemClock
from contract.records import PeerReport
from infra.local.cloud import LocalCloud
from peer_agent.exchange.topology import NAMES

BYTES_AT = (4, 8, 16)
#: Rounds that are simulated, by number of peers.
SIMULATED = {4: 20, 16: 12, 64: 6, 256: 4, 1_000: 3}
#: From these to the most peers: control may grow as the logarithm does.
COMPARED = (4, 16)
WARM = 2
_LIMIT_SECONDS = 600.0


def run() -> list[Figure]:
    """Measure, simulate, and give the figures. Raises RunFailed, StuckError."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        folder = Path(name)
        with LocalCloud.start(folder / "servers", log=_tell) as cloud:
            carried = {peers: carry(cloud, folder, peers) for peers in BYTES_AT}
    return [*byte_figures(carried), *simulated()]


def simulated() -> list[Figure]:
    """Control in runs of the state machine, for each topology."""
    found = []
    for way in NAMES:
        found += control_figures(way, [simulate(peers, rounds, way) for peers, rounds in SIMULATED.items()])
    return found


def carry(cloud: LocalCloud, folder: Path, peers: int, elements: int = ELEMENTS) -> float:
    """Bytes per peer and round, relative to one compressed gradient."""
    rounds = WARM + peers + 2
    config = configuration(peers, rounds, elements, exchange={"topology": "reduce_scatter"})
    crew = Crew(cloud, folder / f"peers-{peers}", config, f"bench-{peers}")
    with Meeting(folder / f"meeting-{peers}", peers) as meeting, crew.working(meeting):
        crew.wait(_LIMIT_SECONDS)
    report = PeerReport.from_json(crew.store.get(crew.spec.places.report(0)))
    each = bytes_each(meeting.gatherings[WARM], meeting.gatherings[WARM + peers], peers)
    relative = each / (report.gradient_bytes_encoded / report.rounds)
    _tell(f"{peers} peers: {each / 1e6:.3f} MB per peer and round, {relative:.3f} compressed gradients")
    return relative


def bytes_each(before: Gathering, after: Gathering, rounds: int) -> float:
    """Bytes per round of the peer with the most: the larger of sent and received."""
    return max(
        (after.counts[rank][way] - before.counts[rank][way]) / rounds
        for rank in after.counts
        for way in ("bytes_sent", "bytes_received")
    )


def simulate(peers: int, rounds: int, way: str, faults: Faults | None = None) -> Tally:
    """A run of the state machine with faults."""
    began = SystemClock().monotonic()
    tally = World(peers, rounds, faults=faults, way=way).run()
    _tell(f"{peers} peers, {way}, in {SystemClock().monotonic() - began:.1f} s: {tally}")
    return tally


def byte_figures(carried: dict[int, float]) -> list[Figure]:
    """Compressed gradients per peer and round, by number of peers."""
    unit = "compressed gradients per peer and round"
    return [
        Figure(name=f"bytes_{peers}_peers", value=value, unit=unit, better="lower", must=2.2, aim=2.0)
        for peers, value in carried.items()
    ]


def published(tally: Tally) -> float:
    """Control messages that a peer sends per round; one to everyone counts once."""
    return tally.each(sum(tally.published.values()) - tally.published[DATA])


def delivered(tally: Tally) -> float:
    """Control messages that reach a peer per round."""
    return tally.each(sum(tally.arrived.values()) - tally.arrived[DATA])


def control(tally: Tally) -> float:
    """All of that, and requests to S3 that are control."""
    return published(tally) + delivered(tally) + tally.each(tally.requests["control"])


def beside_heartbeats(tally: Tally) -> float:
    """The part of it that is no heartbeat: those go by time, not by rounds, and hide what else may grow."""
    return control(tally) - tally.each(tally.published["heartbeat"] + tally.arrived["heartbeat"])


def control_figures(way: str, tallies: list[Tally]) -> list[Figure]:
    """Per peer and round, by number of peers, the fewest first; and what many times as many peers make of it."""
    found = []
    for tally in tallies:
        for name, value in (
            ("control", control(tally)),
            ("published", published(tally)),
            ("delivered", delivered(tally)),
            ("control_beside_heartbeats", beside_heartbeats(tally)),
            ("requests", tally.each(tally.requests["control"])),
            ("announcements_delivered", tally.each(tally.arrived[DATA])),
            ("data_requests", tally.each(tally.requests["data"])),
        ):
            each = f"{way}_{name}_{tally.peers}_peers"
            found.append(Figure(name=each, value=value, unit="per peer and round", better="lower"))
        for name, count, unit, must in (
            ("busiest", tally.busiest, "control messages delivered to one peer in a round", None),
            ("crashes", tally.crashes, "processes", None),
            ("dropped_alive", tally.wronged, "processes", 0),
        ):
            each = f"{way}_{name}_{tally.peers}_peers"
            found.append(Figure(name=each, value=float(count), unit=unit, better="lower", must=must))
        seconds = tally.seconds / tally.rounds
        each = f"{way}_round_{tally.peers}_peers"
        found.append(Figure(name=each, value=seconds, unit="simulated seconds", better="neither"))
    many = tallies[-1]
    for few in [tally for tally in tallies[:-1] if tally.peers in COMPARED]:
        logarithm = math.log(many.peers) / math.log(few.peers)
        for name, counted in (("control", control), ("control_beside_heartbeats", beside_heartbeats)):
            of = f"{way}_{name}_growth_from_{few.peers}_peers"
            growth = counted(many) / counted(few)
            found.append(Figure(name=of, value=growth, unit="x", better="lower", must=logarithm, aim=1.0))
    return found


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
