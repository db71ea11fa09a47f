"""A run of real peers with given gradients: its buckets, one `python -m benchmarks.peer` per rank, and what they leave.

The servers are the local ones; nothing of a peer is replaced but its gradient service.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.meeting import Meeting
from benchmarks.vectors import F32, MODEL
from contract import models
from contract.clock import SystemClock
from contract.codec import codec
from contract.config import RunConfig
from contract.errors import RunFailed
from contract.keys import Place
from contract.packing import Packing, packing
from contract.records import Commit, Contributor
from contract.sharding import ShardedCodec, Sharding, bounds
from contract.store import S3Store
from contract.tensors import Layout
from contract.wire import decode
from infra.local.cloud import LocalCloud
from infra.local.processes import Child
from peerless import data
from peerless.launch.resources import places_for
from peerless.launch.upload import provide
from peerless.launch.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
#: 25 MB of float32.
ELEMENTS = 6_250_000
#: What goes before a rank's command, to run it elsewhere (a network namespace).
Prefix = Callable[[int], Sequence[str]]

_WAIT_SECONDS = 0.05
_ANY = 1 << 40  # bytes: what these peers have written is trusted


def configuration(peers: int, rounds: int, elements: int = ELEMENTS, **changes: Any) -> RunConfig:
    """A run of `rounds` rounds whose steps subtract the average itself; `changes` are sections or keys."""
    values: dict[str, Any] = {
        "name": "bench",
        "peers": peers,
        "epochs": rounds,
        "batches_per_round": 0,
        "validate_every": rounds,
        "model": MODEL,
        "model_options": {"elements": elements},
        "data": {"preprocess": ()},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.0},
        "early_stopping": {"patience": 0},
        "compute": {"service": "local"},
    }
    return RunConfig.model_validate({**values, **changes})


class Crew:
    """The peers of one run. `folder` gets events and logs."""

    def __init__(self, cloud: LocalCloud, folder: Path, config: RunConfig, run: str, prefix: Prefix | None = None):
        self.config, self.folder = config, folder
        self._cloud, self._prefix = cloud, prefix or (lambda rank: ())
        self._places = places_for(run, config.peers, cloud.region)
        self._events = folder / "events.jsonl"
        folder.mkdir(parents=True)
        self.children: dict[int, Child] = {}
        """The latest process by rank."""
        self.store = S3Store(region=cloud.region, endpoint_url=cloud.endpoint_url, session=cloud.session())
        samples = 4 * config.peers
        dataset = data.Dataset(
            train_x=np.zeros((samples + 2, 2), np.float32),
            train_y=np.arange(samples + 2, dtype=np.int64) % 2,
            test_x=np.zeros((2, 2), np.float32),
            test_y=np.arange(2, dtype=np.int64),
            classes=2,
            names=(),
            provenance="the benchmark",
        )
        work = Workload.of(config, _tell, dataset)
        for bucket in (self._places.run_bucket, *self._places.peer_buckets):
            cloud.client("s3").create_bucket(Bucket=bucket)
        machines, clock = ("",) * config.peers, SystemClock()
        self.spec = provide(config, work, self.store, self._places, machines=machines, code_digest="", clock=clock)

    def start(self, rank: int, meeting: Meeting | None = None) -> Child:
        """Start the process of a rank, or another one of it."""
        command = [*self._prefix(rank), sys.executable, "-m", "benchmarks.peer", "--averages", str(self.folder)]
        command += [] if meeting is None else ["--meeting", str(meeting.path)]
        command += ["--", "--rank", str(rank), "--run", self.spec.run, "--run-bucket", self._places.run_bucket]
        command += ["--events", str(self._events), "--debug"]
        scratch = self.folder / f"scratch-{rank}"
        scratch.mkdir(exist_ok=True)
        child = self.children[rank] = Child.start(
            f"peer {rank}",
            command,
            env={**self._cloud.environment(environment()), "TMPDIR": str(scratch)},
            cwd=ROOT,
            log_path=self.folder / f"peer-{rank}.log",
            afterwards=["rm", "-rf", str(scratch)],
        )
        return child

    @contextlib.contextmanager
    def working(self, meeting: Meeting | None = None) -> Iterator[None]:
        """All ranks' processes; they are killed at the end, if they still are there."""
        with ExitStack() as stack:
            for rank in range(self.config.peers):
                stack.callback(self.start(rank, meeting).kill)
            stack.callback(self.kill)
            yield

    def kill(self) -> None:
        """End what runs, at once."""
        for child in self.children.values():
            child.kill()

    def check(self) -> None:
        """Raises LocalStackError when a process has ended."""
        for child in self.children.values():
            child.check()

    def wait(self, seconds: float, without: Sequence[int] = ()) -> None:
        """Return when the processes have ended in order, those of `without` apart. Raises RunFailed."""
        finish([child for rank, child in self.children.items() if rank not in without], seconds)

    def events(self) -> list[dict[str, Any]]:
        """Everything that the peers have told so far."""
        if not self._events.exists():
            return []
        lines = self._events.read_bytes().split(b"\n")[:-1]  # whatever follows the last end of line is half a line
        return [json.loads(line) for line in lines]

    def stages(self, first: int, last: int) -> dict[str, list[float]]:
        """Seconds of every run of each stage in the rounds `first` to `last`, of all peers."""
        found: dict[str, list[float]] = {}
        for event in self.events():
            if event["event"] == "stage" and first <= event["round"] <= last:
                found.setdefault(event["stage"], []).append(event["seconds"])
        return found

    def applied(self) -> list[F32]:
        """By rank, the average (n,) that the peers applied in the last round but one."""
        return [np.load(self.folder / f"average-{rank}.npy") for rank in range(self.config.peers)]

    def contributed(self) -> NDArray[np.float64]:
        """The mean (n,) of what was contributed to that round, decoded and weighted by samples."""
        elements, codec_of = self._elements, self._sharded if self.in_shards else codec
        commit = Commit.from_json(self.store.get(self._places.commit(self._proof_round)))
        total = sum(contributor.samples for contributor in commit.contributors)
        mean = np.zeros(elements, np.float64)
        for contributor in commit.contributors:
            blob = self._contribution(contributor)
            frame = decode(blob, expected_elements=elements, expected_buffers_bytes=0, digest=contributor.digest)
            values = codec_of(frame.header.codec).decode(frame.payload, elements)
            mean += values.astype(np.float64) * (contributor.samples / total)
        return mean

    def _contribution(self, contributor: Contributor) -> bytes:
        stored = self.store.get(Place(self._places.run_bucket, contributor.key, self._places.account))
        if not self.in_shards:
            return self._packing.unpack(stored, _ANY)
        layout, inner = Layout.of(models.build(self.spec.model)), codec(self.config.exchange.codec)
        sharding = Sharding(layout, inner, self.config.peers, not self._packing.in_ranges)
        member = self._proof_round, contributor.rank, contributor.incarnation
        places = [self._places.piece(*member, piece) for piece in range(len(sharding.pieces))]
        return sharding.whole(stored, [self._packing.unpack(self.store.get(place), _ANY) for place in places])

    def averaged(self) -> F32:
        """`reduce_scatter`: the averages (n,) of all shards of that round, decoded and put together."""
        parts = []
        for shard, part in enumerate(bounds(self._elements, self.config.peers)):
            size = part.stop - part.start
            blob = self._packing.unpack(self.store.get(self._places.shard(self._proof_round, shard)), _ANY)
            frame = decode(blob, expected_elements=size, expected_buffers_bytes=0)
            parts.append(codec(frame.header.codec).decode(frame.payload, size))
        return np.concatenate(parts)

    @property
    def in_shards(self) -> bool:
        """Whether owners of shards average for all."""
        return self.config.exchange.topology == "reduce_scatter"

    @property
    def _packing(self) -> Packing:
        return packing(self.config.exchange.packing)

    @property
    def _elements(self) -> int:
        return int(self.spec.model.options["elements"])

    @property
    def _proof_round(self) -> int:
        return self.spec.rounds_limit - 2

    def _sharded(self, name: str) -> ShardedCodec:
        return ShardedCodec(codec(name), self._elements, self.config.peers)


def finish(children: Sequence[Child], seconds: float) -> None:
    """Return when all have ended in order. Raises RunFailed when one has not, or the time is up."""
    clock = SystemClock()
    deadline = clock.monotonic() + seconds
    running = list(children)
    while running:
        for child in list(running):
            status = child.wait(_WAIT_SECONDS)
            if status is None:
                continue
            running.remove(child)
            if status != 0:
                raise RunFailed(f"{child.name} ended with status {status}: {child.log_tail()}")
        if clock.monotonic() > deadline:
            raise RunFailed(f"{running[0].name} did not end within {seconds:g} s: {running[0].log_tail()}")


def environment() -> Mapping[str, str]:
    """What the processes of both sides of a comparison get: one thread each, and this repository, codec included."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    sources = os.pathsep.join(map(str, (ROOT, ROOT / "vendor/qsgd_compress/src")))
    return {**os.environ, **threads, "PYTHONPATH": sources}


def _tell(note: str) -> None:
    print(note, file=sys.stderr)
