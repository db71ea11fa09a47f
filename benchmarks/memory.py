"""A whole peer among 16 that average a model of 100 MB: what a round takes beyond model and optimizer state.

One peer is real (benchmarks/peer.py: nothing of it is replaced but its gradient service), on the local S3 and without
a broker. The other fifteen are claims and contributions that this process puts there, signed, with the frames of
benchmarks/aggregation.py, 12.5 MB each. In the round that is measured the peer fetches and checks fifteen
contributions, commits, aggregates and steps; and it records the result, in the place of a leader that does not.

Its memory is the most that the process has resident at any moment since its own contribution went out (VmHWM): frames
in its spool, the aggregate, what S3's client holds, everything. Subtracted is what has to be there: a peer of the same
kind with a tiny model (interpreter and libraries), and five models: the weights, the optimizer's own copy of them, its
momentum, the module that validates, and the vector that stands for this peer's gradient. Scratch files and frames that
the spool has on disk are the system's cache, and not in it.

`peak_` is the most until the step has been taken, which is what aggregation costs; `round_` the most of the whole
round, with the upload of new weights where the result's writer has to put them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from benchmarks.aggregation import CODEC, ELEMENTS, PEERS, STRATEGIES, make_frames, resident
from benchmarks.crew import Crew, configuration
from benchmarks.reporting import Figure
from contract import wire
from contract.clock import SystemClock
from contract.config import AggregationConfig, RunConfig
from contract.errors import RunFailed
from contract.keys import Place
from contract.signing import SigningKey
from infra.local.cloud import LocalCloud
from peer_agent.keyring import USE
from peer_agent.membership import FIRST_INCARNATION, claim
from peer_agent.records import new_nonce

T = TypeVar("T")

#: The round that counts, when the optimizer has its state, and how many there are. The peer comes next after that
#: round's leader, so it waits for a second after its step, and then writes the result itself.
ROUND, ROUNDS, RANK = 1, 3, 3
#: Models that a peer of this configuration holds all the time.
HELD = 5
TINY = 4_096
_LIMIT_SECONDS, _LOOK_SECONDS = 600.0, 0.02


def run() -> list[Figure]:
    """Measure, and give the figures. Raises RunFailed."""
    figures = []
    with tempfile.TemporaryDirectory(prefix="peerless-bench-") as name:
        folder = Path(name)
        with LocalCloud.start(folder / "servers", broker=False, log=_tell) as cloud:
            tiny = max(most(cloud, folder, "tiny", STRATEGIES["mean"], TINY))
            _tell(f"a peer with a tiny model: {tiny / 1e6:.0f} MB")
            for name, strategy in STRATEGIES.items():
                found = most(cloud, folder, name, strategy, ELEMENTS)
                peak, whole = ((resident - tiny) / (4 * ELEMENTS) - HELD for resident in found)
                _tell(f"{name:14} {peak:.2f} models beyond what it holds, {whole:.2f} in the whole round")
                figures.append(Figure(name=f"peak_{name}", value=peak, unit="models", better="lower", must=3.0))
                figures.append(Figure(name=f"round_{name}", value=whole, unit="models", better="lower"))
            figures.append(Figure(name="tiny_peer", value=tiny / 1e6, unit="MB", better="neither"))
    return figures


def most(cloud: LocalCloud, folder: Path, name: str, strategy: AggregationConfig, elements: int) -> tuple[int, int]:
    """Bytes that the peer has resident at most in the round that counts: until it has taken its step, and until the
    next round begins. Raises RunFailed."""
    frames = folder / f"frames-{elements}"
    if not frames.exists():
        frames.mkdir()
        _tell(f"{PEERS} frames of {elements} values …")
        make_frames(frames, elements)
    crew = Crew(cloud, folder / name, configured(strategy, elements), f"bench-{name.replace('_', '-')}")
    others = Others(crew, frames)
    try:
        others.join()
        child = crew.start(RANK)
        for round in range(ROUND):
            others.contribute(round)
        # Its own contribution is out, and nothing of the others' there.
        _until(crew, lambda: crew.store.head(others.place(ROUND, RANK)))
        Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # VmHWM begins anew
        others.contribute(ROUND)
        _until(crew, lambda: _told(crew, ROUND, "stage", "update"))
        peak = resident("VmHWM", child.pid)
        _until(crew, lambda: _told(crew, ROUND + 1, "round_started"))
        return peak, resident("VmHWM", child.pid)
    finally:
        crew.kill()


def configured(strategy: AggregationConfig, elements: int) -> RunConfig:
    """A run whose other peers are never missed, however long a round takes."""
    return configuration(
        PEERS,
        ROUNDS,
        elements,
        aggregation=strategy.model_dump(),
        optimizer={"name": "sgd", "lr": 1.0, "momentum": 0.9},
        exchange={"transport": "s3", "codec": CODEC, "poll_seconds": 0.2, "round_timeout_seconds": _LIMIT_SECONDS},
        membership={"heartbeat_timeout_seconds": _LIMIT_SECONDS},
    )


class Others:
    """All ranks but one, as what they leave in S3."""

    def __init__(self, crew: Crew, frames: Path) -> None:
        """`frames` has a frame by rank, of any run."""
        self._crew, self._frames = crew, frames
        self._keys = {rank: SigningKey.generate() for rank in range(PEERS) if rank != RANK}

    def join(self) -> None:
        """Hold their ranks."""
        for rank, key in self._keys.items():
            claim(
                self._crew.store,
                self._crew.spec.places,
                rank=rank,
                peer_id=f"other-{rank}",
                nonce=new_nonce(),
                public_keys={USE: key.public},
                sign=key.sign,
            )

    def contribute(self, round: int) -> None:
        """Once the real peer has: from the weights that it stands at."""
        place = self.place(round, RANK)
        _until(self._crew, lambda: self._crew.store.head(place))
        base = wire.decode_header(self._crew.store.get(place)).base_weights
        for rank, key in self._keys.items():
            elements = int(self._crew.spec.model.options["elements"])
            blob = (self._frames / str(rank)).read_bytes()
            frame = wire.decode(blob, expected_elements=elements, expected_buffers_bytes=0)
            header = replace(
                frame.header,
                run=self._crew.spec.run,
                round=round,
                base_round=round,
                base_weights=base,
                incarnation=FIRST_INCARNATION,
                samples=self._crew.spec.samples[rank],
                loss=0.0,
            )
            self._crew.store.put(self.place(round, rank), key.sign_frame(wire.encode(header, bytes(frame.payload))))

    def place(self, round: int, rank: int) -> Place:
        """Where a contribution lies."""
        return self._crew.spec.places.contribution(round, rank, FIRST_INCARNATION)


def _told(crew: Crew, round: int, name: str, stage: str | None = None) -> bool:
    wanted = round, name, stage
    return any((event["round"], event["event"], event.get("stage")) == wanted for event in crew.events())


def _until(crew: Crew, found: Callable[[], T]) -> T:
    """What `found` gives once it is true. Raises RunFailed, and LocalStackError where the peer has ended."""
    clock = SystemClock()
    deadline = clock.monotonic() + _LIMIT_SECONDS
    while not (value := found()):
        crew.check()
        if clock.monotonic() > deadline:
            raise RunFailed(f"the peer did not get on within {_LIMIT_SECONDS:g} s: {crew.folder / f'peer-{RANK}.log'}")
        clock.sleep(_LOOK_SECONDS)
    return value


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
