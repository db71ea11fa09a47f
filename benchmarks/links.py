"""Four peers on links of 100 Mbit/s each way, on one machine: a network namespace per peer, and one for the servers.

The servers' namespace holds a bridge; each peer has a cable to it (veth), shaped by a token bucket at both ends, so
that both directions have the rate. The servers' side is not shaped: S3 and a broker serve many peers at once.

No namespace has a name. Each belongs to processes, which die with the benchmark whatever ends it
(infra/local/guard.py), and the kernel removes it, its bridge and its cables with the last of them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self
from unittest import mock

from contract.clock import SystemClock
from infra.local import cloud as local_cloud
from infra.local import ministack, rabbitmq
from infra.local.cloud import LocalCloud
from infra.local.processes import Child

MEGABITS = 100
#: What the interface is called in every peer's namespace.
INTERFACE = "eth0"
#: A network that exists in these namespaces only.
_HUB = "10.0.0.1"
_BRIDGE = "hub"
#: One segment that the kernel hands over in one piece fits into the bucket; the queue holds 50 ms.
_SHAPE = ("tbf", "rate", f"{MEGABITS}mbit", "burst", "128kb", "latency", "50ms")
_PROGRAMS = ("ip", "tc", "unshare", "nsenter")


def namespace() -> list[str]:
    """What goes before a command to run it in a new network namespace of its own."""
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def refusal() -> str:
    """Why namespaces with shaped links cannot be made here, in one sentence; empty where they can."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"there is no program {missing[0]} on this machine."
    cables = "ip link add name shaped0 type veth peer name shaped1 && tc qdisc add dev shaped0 root "
    script = f"ip link add name {_BRIDGE} type bridge && {cables}"
    done = subprocess.run(
        [*namespace(), "sh", "-c", script + " ".join(_SHAPE)], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return f"network namespaces with shaped links cannot be made here ({said})."


class Links:
    """The wires, made by a process that is alone in its namespace: the servers' one. A context manager."""

    def __init__(self, peers: int, folder: Path) -> None:
        """`folder` gets the logs of the processes that hold the namespaces."""
        self._peers, self._folder = peers, folder
        self._stack = ExitStack()
        self._holders: list[Child] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            _ip("link", "set", "lo", "up")
            _ip("link", "add", _BRIDGE, "type", "bridge")
            _ip("addr", "add", f"{_HUB}/24", "dev", _BRIDGE)
            _ip("link", "set", _BRIDGE, "up")
            for rank in range(self._peers):
                log = self._folder / f"namespace-{rank}.log"
                holder = Child.start(f"namespace {rank}", ["unshare", "--net", "sleep", "infinity"], log_path=log)
                stack.callback(holder.kill)
                self._holders.append(holder)
                self._connect(rank)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def enter(self, rank: int) -> Sequence[str]:
        """What goes before a command to run it at a peer's end of its link."""
        return ["nsenter", f"--net=/proc/{self._holders[rank].pid}/ns/net"]

    def _connect(self, rank: int) -> None:
        there, cable = self.enter(rank), f"peer{rank}"
        _wait_for_namespace(self._holders[rank].pid)
        _ip("link", "add", cable, "type", "veth", "peer", "name", INTERFACE, "netns", str(self._holders[rank].pid))
        _ip("link", "set", cable, "master", _BRIDGE, "up")
        _run("tc", "qdisc", "add", "dev", cable, "root", *_SHAPE)
        _run(*there, "ip", "link", "set", "lo", "up")
        _run(*there, "ip", "addr", "add", f"10.0.0.{rank + 2}/24", "dev", INTERFACE)
        _run(*there, "ip", "link", "set", INTERFACE, "up")
        _run(*there, "tc", "qdisc", "add", "dev", INTERFACE, "root", *_SHAPE)


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[LocalCloud]:
    """MiniStack and RabbitMQ at the hub's address, where the peers reach them."""
    with ExitStack() as stack:
        for module in (local_cloud, ministack, rabbitmq):
            # A run on one machine needs no other address than the loopback's, so there is no parameter for one.
            stack.enter_context(mock.patch.object(module, "LOOPBACK", _HUB))
        yield stack.enter_context(LocalCloud.start(folder))


def _wait_for_namespace(pid: int) -> None:
    """Return once the process has left our namespace: `unshare` is executed before it does so."""
    clock, own = SystemClock(), os.readlink("/proc/self/ns/net")
    while os.readlink(f"/proc/{pid}/ns/net") == own:
        clock.sleep(0.01)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    """Raises CalledProcessError, after its output was shown."""
    subprocess.run(command, check=True)
