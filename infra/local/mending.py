"""Servers that die in the middle of a run are started again in place: the same ports, over what they left on disk.

RabbitMQ finds its queues, accounts and persistent messages again, MiniStack S3's objects. What MiniStack has in memory
alone (functions, state machines) whoever made it makes once more; `restored` is called for that.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

from contract.errors import LocalStackError, PeerlessError
from infra.local.detached import State
from infra.local.processes import Child, Starting, ending, wait_until_ready

#: So often each server is started again; one that dies more often has a reason that a restart does not mend.
MOST_RESTARTS = 3
_READY_SECONDS = 90.0


def start_again(child: Child, answers: Callable[[], bool], starting: Starting) -> Child:
    """The dead child's command once more; returns when it answers. Raises LocalStackError; then nothing is left."""
    successor = child.again()
    try:
        wait_until_ready(successor, answers, starting=starting, timeout_seconds=_READY_SECONDS)
    except BaseException:
        successor.kill()
        raise
    return successor


class Mender:
    """Keeps the servers in `children` up; used by one thread. The work itself is done beside it."""

    def __init__(self, children: MutableMapping[str, Child], ways: Mapping[str, Callable[[Child], Child]]) -> None:
        """`ways` starts a server again by its name; one without a way is not mended. `children` is kept up to date."""
        self._children, self._ways = children, ways
        self._restarts: Counter[str] = Counter()
        self._under_way: dict[str, Future[Child]] = {}
        self._gone: dict[str, str] = {}
        self._pool: ThreadPoolExecutor | None = None

    def look(self, note: Callable[[str], None], restored: Callable[[str], None]) -> list[str]:
        """Begin or finish what is to be done, without waiting for it; a sentence per server that is gone for good.

        `note` gets a line for the user; `restored` is called in another thread with the name of a server that answers
        again, and may raise PeerlessError.
        """
        for name, child in list(self._children.items()):
            if name in self._under_way:
                if self._under_way[name].done():
                    self._finish(name, note)
            elif name not in self._gone and child.poll() is not None:
                self._begin(name, child, note, restored)
        return list(self._gone.values())

    def close(self) -> None:
        """Wait for restarts that are under way (called off by their `Starting`), so that their children are known."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            for name in list(self._under_way):
                self._finish(name, lambda _: None)

    def _begin(self, name: str, child: Child, note: Callable[[str], None], restored: Callable[[str], None]) -> None:
        try:
            child.check()
        except LocalStackError as error:
            if name not in self._ways or self._restarts[name] == MOST_RESTARTS:
                self._gone[name] = str(error)
                return
        self._restarts[name] += 1
        note(f"{name} {ending(child.poll() or 0)}; starting it again ({self._restarts[name]} of {MOST_RESTARTS})")
        self._pool = self._pool or ThreadPoolExecutor(2, thread_name_prefix="mending")
        self._under_way[name] = self._pool.submit(_mended, name, child, self._ways[name], restored)

    def _finish(self, name: str, note: Callable[[str], None]) -> None:
        try:
            self._children[name] = self._under_way.pop(name).result()
        except PeerlessError as error:
            self._gone[name] = f"{name} could not be started again: {error}"
        else:
            note(f"{name} answers again")


def _mended(name: str, child: Child, way: Callable[[Child], Child], restored: Callable[[str], None]) -> Child:
    successor = way(child)
    try:
        restored(name)
    except BaseException:
        successor.kill()
        raise
    return successor


class Watcher:
    """Notices that servers of `peerless local up`, which their supervisor mends, have been started again."""

    def __init__(self, folder: Path, state: State) -> None:
        self._folder, self._pids = folder, dict(state.pids)
        self._thread: threading.Thread | None = None
        self._failed: list[str] = []

    def look(self, note: Callable[[str], None], restored: Callable[[str], None]) -> list[str]:
        """As Mender's; a server that is gone for good is the supervisor's to tell."""
        state = State.read(self._folder)
        if state is None or (self._thread is not None and self._thread.is_alive()):
            return self._failed
        for name, pid in state.pids.items():
            if self._pids.get(name, pid) != pid:
                self._pids[name] = pid
                note(f"{name} was started again")
                self._thread = threading.Thread(target=partial(self._restore, name, restored), daemon=True)
                self._thread.start()
                break
        return self._failed

    def close(self) -> None:
        """Wait for what is under way."""
        if self._thread is not None:
            self._thread.join()

    def _restore(self, name: str, restored: Callable[[str], None]) -> None:
        try:
            restored(name)
        except PeerlessError as error:
            self._failed.append(f"{name} was started again, but {error}")
