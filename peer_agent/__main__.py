"""One peer: `python -m peer_agent --rank N --run RUN --run-bucket BUCKET`, on a laptop as on EC2.

Exit status: 0 when the run ended in order, 1 for a failure that ends it for all, 2 for a mistake of the user's, 75 when
this process alone could not go on, 76 when another one has taken its rank over, 130 when a second signal cut it short.
A failure prints one line on standard error; its traceback comes with --debug only.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Self

import torch

from contract.clock import Clock, SystemClock
from contract.code import code_digest
from contract.env import AgentEnv
from contract.errors import (
    EXIT_ALONE,
    EXIT_SUPERSEDED,
    CodeError,
    ConfigError,
    ObjectMissing,
    PeerlessError,
    Superseded,
    UserError,
)
from contract.events import EventLog
from contract.joining import joined_ranks
from contract.keys import spec_place
from contract.records import Heartbeat, Member, MemberRef
from contract.runspec import RunSpec
from contract.signing import SigningKey
from contract.store import S3Store
from peer_agent.actions import Actions
from peer_agent.actions_async import AsyncActions
from peer_agent.actions_sync import SyncActions
from peer_agent.background import Threads
from peer_agent.compute import gradient_service
from peer_agent.exchange import open_exchange
from peer_agent.keyring import USE
from peer_agent.membership import ARITHMETIC, claim
from peer_agent.metrics import StageMetrics
from peer_agent.ports import Ports
from peer_agent.records import Records, new_nonce
from peer_agent.runner import Runner, is_alone

#: Signals closer together than this count as one: a terminal's Ctrl-C and the launcher's SIGTERM mean the same wish.
ONE_WISH_SECONDS = 1.0
#: S3 is asked for a minute and a half before a peer gives up: a server may be restarting.
STORE_ATTEMPTS = 20
_MODES: dict[str, Callable[[RunSpec, Member, Ports], Actions]] = {"sync": SyncActions, "async": AsyncActions}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one peer to its end; the exit status."""
    arguments = _parse(argv)
    clock = SystemClock()
    events = EventLog(arguments.events, arguments.run, arguments.rank, clock)
    runner: Runner | None = None
    with ExitStack() as stack, Interrupts(clock) as interrupts:
        stack.callback(events.close)
        try:
            runner = _build(arguments, AgentEnv.read(os.environ), clock, events, stack)
            interrupts.runner = runner
            runner.run()
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            if runner is None:
                events.emit("failed", fields={"error": _sentence(error)})
            if arguments.debug:
                traceback.print_exc()
            print(f"peerless: {_sentence(error)}", file=sys.stderr)
            return _status(error)
    return 0


def _build(arguments: argparse.Namespace, env: AgentEnv, clock: Clock, events: EventLog, stack: ExitStack) -> Runner:
    """Read the run's configuration, build the ports, and claim the rank; what must be closed goes on `stack`."""
    store = S3Store(region=env.region, endpoint_url=env.endpoint_url, clock=clock, attempts=STORE_ATTEMPTS)
    stack.callback(store.close)
    rank: int = arguments.rank
    spec = _read_spec(store, arguments.run, arguments.run_bucket, env.account)
    if rank >= spec.config.peers:
        spec = _with_joined(store, spec, rank)
    elif rank < 0:
        raise ConfigError(f"--rank {rank}: ranks start at 0")
    _prepare_process(spec, env)
    started = {"pid": os.getpid(), "mode": spec.config.mode, "rounds_limit": spec.rounds_limit}
    events.emit("peer_started", fields=started)

    broker_url = env.broker_url if spec.config.exchange.transport == "rabbitmq" else ""
    # Before the claim: whoever sees the claim may publish, and this peer's inbox must stand by then (decision 0004).
    exchange = open_exchange(
        broker_url,
        run=spec.run,
        rank=rank,
        peers=spec.config.peers,
        clock=clock,
        store=store,
        places=spec.places,
        heartbeat_seconds=spec.config.membership.heartbeat_seconds,
    )
    stack.callback(exchange.close)
    gradients = gradient_service(spec, rank, store=store, endpoint_url=env.endpoint_url, clock=clock)
    stack.callback(gradients.close)
    metrics = StageMetrics(events, clock)
    stack.callback(metrics.close)
    ports = Ports(
        store=store,
        exchange=exchange,
        gradients=gradients,
        metrics=metrics,
        events=events,
        clock=clock,
        background=Threads(spec.config.compute.threads),
        key=SigningKey.generate(),
    )
    member = claim(
        store,
        spec.places,
        rank=rank,
        peer_id=arguments.peer_id or f"{socket.gethostname()}-{rank}",
        nonce=new_nonce(),
        resources={"cores": os.cpu_count() or 1, ARITHMETIC: _arithmetic()},
        public_keys={USE: ports.key.public},
        is_dropped=lambda held: _is_dropped(store, spec, held),
        sign=ports.key.sign,
    )
    # From here on the others count on this process, which still has a model to build and weights to fetch.
    word = Heartbeat(run=spec.run, rank=rank, incarnation=member.incarnation, round=0)
    exchange.beat(ports.key.sign(word).to_json())
    return Runner(_MODES[spec.config.mode](spec, member, ports))


def _arithmetic() -> str:
    """What decides how this process rounds, as far as it can be told."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {platform.machine()}, {capability}, {torch.get_num_threads()} threads"


def _is_dropped(store: S3Store, spec: RunSpec, held: MemberRef) -> bool:
    """Whether the run has gone on without a process: it is no member of the latest commit's."""
    commit = Records(store, spec.places, held).latest_commit()
    return commit is not None and all(member.rank != held.rank for member in commit.members)


def _read_spec(store: S3Store, run: str, run_bucket: str, account: str | None) -> RunSpec:
    try:
        place = spec_place(run, run_bucket, account)
    except ValueError as error:
        raise ConfigError(f"--run {run}: {error}") from error
    try:
        return RunSpec.from_json(store.get(place))
    except ObjectMissing as error:
        raise ConfigError(f"there is no run {run} in bucket {run_bucket}: {error}") from error


def _with_joined(store: S3Store, spec: RunSpec, rank: int) -> RunSpec:
    """The run with all ranks that had joined it before this one, and this one."""
    records = joined_ranks(store, spec.places, spec.config.peers)
    last = spec.config.peers - 1 + len(records)
    if rank > last:
        raise ConfigError(f"--rank {rank}: run {spec.run} has ranks 0 to {last}; `peerless join` adds one")
    if spec.config.mode != "sync":
        raise ConfigError(f"--rank {rank}: nobody can join run {spec.run}, which is asynchronous")
    return spec.including(records)


def _prepare_process(spec: RunSpec, env: AgentEnv) -> None:
    """Threads and kernels change the bits of a sum, so both are fixed (invariant 8); foreign code is refused."""
    found = code_digest(env.code_dir)
    if found != spec.code_digest:
        raise CodeError(
            f"the user's code here has digest {found or 'none'}, but run {spec.run} was started with "
            f"{spec.code_digest or 'none'}; start the peer with that code in PEERLESS_CODE_DIR"
        )
    if env.code_dir is not None and str(env.code_dir) not in sys.path:
        sys.path.insert(0, str(env.code_dir))
    torch.set_num_threads(spec.config.compute.threads)
    # What `use_deterministic_algorithms` sets, without the second of imports that it makes for the compiler.
    torch.set_deterministic_debug_mode("warn")


class Interrupts:
    """SIGINT and SIGTERM ask for an orderly end; a second one ends the process at once."""

    def __init__(self, clock: Clock) -> None:
        self.runner: Runner | None = None
        self._clock = clock
        self._first_at: float | None = None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = self._clock.monotonic()
        if self.runner is None or (self._first_at is not None and now - self._first_at > ONE_WISH_SECONDS):
            raise KeyboardInterrupt
        if self._first_at is None:
            self._first_at = now
            self.runner.request_end("interrupted")


def _status(error: Exception) -> int:
    """What the launcher does about it depends on this: it starts a peer again only where that can help."""
    if isinstance(error, UserError):
        return 2
    if isinstance(error, Superseded):
        return EXIT_SUPERSEDED
    return EXIT_ALONE if is_alone(error) else 1


def _sentence(error: Exception) -> str:
    if isinstance(error, PeerlessError):
        return str(error)
    return f"internal error, {type(error).__name__}: {error} (--debug shows where)"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m peer_agent", description="One peer of a Peerless run.")
    parser.add_argument("--rank", type=int, required=True, help="rank to claim, from 0")
    parser.add_argument("--run", required=True, help="name of the run")
    parser.add_argument("--run-bucket", required=True, help="S3 bucket that holds the run's configuration and records")
    parser.add_argument("--peer-id", default="", help="identity that may take this rank over; host and rank by default")
    parser.add_argument("--events", type=Path, default=None, help="file to append events to (JSON lines)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser.parse_args(argv)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A gradient that nobody waits for any more may still be in torch's kernels, where the interpreter's own end would
    # crash it. Everything that needs closing has been closed.
    os._exit(status)
