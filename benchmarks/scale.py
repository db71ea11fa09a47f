"""What a peer has to carry as peers are added: bytes under `reduce_scatter`, and control messages in a simulation.

Bytes are those of real peers with given gradients of 25 MB (benchmarks/peer.py), as their own counters have them:
bodies of messages and of S3 objects, sent and received, between two barriers. Of each peer the larger of both counts,
on average over as many rounds as there are peers, so that everyone has had every turn; and of all peers the largest.
One compressed gradient is what a peer's contribution takes in S3, without its header.

Messages are counted in `benchmarks/simulation.py`: the state machine of up to 1,000 peers without any I/O, with
messages lost and doubled and processes that die, at the same rates for every number of peers.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.crew import ELEMENTS, Crew, configuration
from benchmarks.meeting import Gathering, Meeting
from benchmarks.reporting import Figure
from benchmarks.simulation import Tally, World
from contract.records import PeerReport
from infra.local.cloud import LocalCloud

BYTES_AT = (4, 8, 16)
#: Peers by rounds that are simulated.
SIMULATED = {10: 20, 100: 10, 1_000: 3}
WARM = 2
_LIMIT_SECONDS = 600.0


def run() -> list[Figure]:
    """Measure, simulate, and give the figures. Raises RunFailed, StuckError."""
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        folder = Path(name)
        with LocalCloud.start(folder / "servers", log=_tell) as cloud:
            carried = {peers: carry(cloud, folder, peers) for peers in BYTES_AT}
    return [*byte_figures(carried), *message_figures([simulate(peers) for peers in SIMULATED])]


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


def simulate(peers: int) -> Tally:
    """A run of the state machine with faults."""
    tally = World(peers, SIMULATED[peers]).run()
    _tell(f"{peers} peers simulated: {tally}")
    return tally


def byte_figures(carried: dict[int, float]) -> list[Figure]:
    """Compressed gradients per peer and round, by number of peers."""
    unit = "compressed gradients per peer and round"
    return [
        Figure(name=f"bytes_{peers}_peers", value=value, unit=unit, better="lower", must=2.2, aim=2.0)
        for peers, value in carried.items()
    ]


def control(tally: Tally) -> float:
    """Messages that a peer sends and copies that reach it, per round, but for announcements of contributions."""
    counts = sum(tally.published.values()) + sum(tally.arrived.values())
    return tally.each(counts - tally.published["frame"] - tally.arrived["frame"])


def message_figures(tallies: list[Tally]) -> list[Figure]:
    """Per peer and round, by number of peers; and what a hundred times as many peers make of it."""
    found = []
    for tally in tallies:
        for name, value in (
            ("control_messages", control(tally)),
            ("messages_published", tally.each(sum(tally.published.values()))),
            ("announcements_received", tally.each(tally.arrived["frame"])),
            ("requests", tally.each(tally.requests)),
        ):
            unit = "per peer and round"
            found.append(Figure(name=f"{name}_{tally.peers}_peers", value=value, unit=unit, better="lower"))
        crashes, wronged, unit = float(tally.crashes), float(tally.wronged), "processes"
        found.append(Figure(name=f"crashes_{tally.peers}_peers", value=crashes, unit=unit, better="neither"))
        found.append(
            Figure(name=f"dropped_alive_{tally.peers}_peers", value=wronged, unit=unit, better="lower", must=0)
        )
    few, many = tallies[0], tallies[-1]
    growth = control(many) / control(few)
    # log 1,000 / log 10
    found.append(Figure(name="control_messages_growth", value=growth, unit="x", better="lower", must=3.0, aim=1.0))
    return found


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
