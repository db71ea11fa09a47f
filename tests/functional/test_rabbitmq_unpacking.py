"""Fetching the server, with stand-ins for apt-get and dpkg: what is left in the cache whatever goes wrong."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.clock import SystemClock
from contract.errors import LocalStackError
from infra.local import rabbitmq_install as install
from infra.local.processes import Starting

APT = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in
  *update*) touch "$(dirname "$0")/updated" ;;
  *simulate*)
    if [ -e "$(dirname "$0")/lists-missing" ] && [ ! -e "$(dirname "$0")/updated" ]; then exit 100; fi
    echo "Inst erlang-base (1:25 Debian [amd64])"; echo "Inst rabbitmq-server (9.8.7-1 Debian [all])" ;;
  *download*)
    if [ -e "$(dirname "$0")/offline" ]; then exit 100; fi
    echo x > erlang-base.deb; echo x > rabbitmq-server.deb ;;
esac
"""
DPKG = """#!/bin/sh
mkdir -p "$3"
case "$2" in
  *erlang*) mkdir -p "$3/usr/lib/erlang/erts-1/bin"; echo x > "$3/usr/lib/erlang/erts-1/bin/erlexec" ;;
  *rabbitmq*)
    if [ -e "$(dirname "$0")/torn" ]; then exit 2; fi
    if [ -e "$(dirname "$0")/slow" ]; then sleep 60; fi
    mkdir -p "$3/usr/lib/rabbitmq/lib/rabbitmq_server-9.8.7/sbin"
    echo x > "$3/usr/lib/rabbitmq/lib/rabbitmq_server-9.8.7/sbin/rabbitmq-server" ;;
esac
"""


class Machine:
    """A PATH with our apt-get and dpkg, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.cache, self.log = folder / "bin", folder / "cache" / "peerless", folder / "log"
        self.bin.mkdir()
        for name, text in (("apt-get", APT), ("dpkg", DPKG)):
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)
        self.environ = {"PATH": f"{self.bin}:{os.defpath}", "XDG_CACHE_HOME": str(folder / "cache")}

    def set(self, condition: str) -> None:
        (self.bin / condition).touch()

    def calls(self, word: str) -> int:
        calls = self.bin / "calls"
        return calls.read_text().count(word) if calls.exists() else 0

    def unpack(self, cancelled: threading.Event | None = None) -> install.Server | None:
        starting = Starting(clock=SystemClock(), cancelled=cancelled or threading.Event())
        return install.unpacked_server(self.environ, self.log, starting)

    def left(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_fetched_server_is_used_again(machine: Machine) -> None:
    first, second = machine.unpack(), machine.unpack()
    assert first is not None
    assert first == second
    assert first.script.is_relative_to(machine.cache / "rabbitmq-9.8.7")
    assert first.path == (str(machine.cache / "rabbitmq-9.8.7" / "bin"),)
    assert machine.calls("download") == 1
    assert machine.left() == ["rabbitmq-9.8.7"]


def test_own_package_lists_are_fetched_where_the_system_has_none(machine: Machine) -> None:
    machine.set("lists-missing")
    assert machine.unpack() is not None
    calls = (machine.bin / "calls").read_text().splitlines()
    (update,) = [call for call in calls if call.endswith("update")]
    assert f"Dir::State::lists={machine.cache}" in update


def test_no_network_leaves_nothing_behind(machine: Machine) -> None:
    machine.set("offline")
    assert machine.unpack() is None
    assert machine.left() == []


def test_half_an_unpacking_never_counts(machine: Machine) -> None:
    machine.set("torn")
    assert machine.unpack() is None
    assert machine.left() == []
    (machine.bin / "torn").unlink()
    assert machine.unpack() is not None


def test_a_damaged_cache_is_fetched_anew(machine: Machine) -> None:
    server = machine.unpack()
    assert server is not None
    server.script.unlink()
    again = machine.unpack()
    assert again is not None
    assert again.script.exists()
    assert machine.calls("download") == 2
    assert machine.left() == ["rabbitmq-9.8.7"]


def test_what_a_killed_process_left_half_done_is_removed_in_time(machine: Machine) -> None:
    for age_days, name in ((0, "partial-of-somebody-at-work"), (2, "partial-of-a-dead-one")):
        (machine.cache / name / "root").mkdir(parents=True)
        then = SystemClock().now() - age_days * 86_400
        os.utime(machine.cache / name, (then, then))
    (machine.cache / "rabbitmq-9.8.7").mkdir()
    assert machine.unpack() is not None
    assert machine.left() == ["partial-of-somebody-at-work", "rabbitmq-9.8.7"]


def test_two_at_once_end_with_one_server(machine: Machine) -> None:
    with ThreadPoolExecutor(2) as pool:
        servers = list(pool.map(lambda _: machine.unpack(), range(2)))
    assert servers[0] is not None
    assert servers[0] == servers[1]
    assert machine.left() == ["rabbitmq-9.8.7"]


def test_calling_it_off_ends_the_unpacking_and_leaves_nothing(machine: Machine) -> None:
    machine.set("slow")
    cancelled = threading.Event()
    timer = threading.Timer(0.5, cancelled.set)
    timer.start()
    with pytest.raises(LocalStackError, match="interrupted"):
        machine.unpack(cancelled)
    timer.join()
    assert machine.left() == []


def test_without_debian_s_tools_there_is_nothing_to_unpack(machine: Machine) -> None:
    (machine.bin / "dpkg").unlink()
    machine.environ["PATH"] = str(machine.bin)
    assert machine.unpack() is None
