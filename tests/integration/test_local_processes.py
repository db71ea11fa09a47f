"""Real processes under the guard: how they start, fail and end, and that nothing outlives its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from contract.clock import SystemClock
from contract.errors import LocalStackError
from infra.local.guard import ORPHAN_SECONDS
from infra.local.processes import Child, Starting, run_command, wait_until_ready
from tests.fakes.clock import FakeClock
from tests.processes import family, gone, wait_for

ROOT = Path(__file__).resolve().parents[2]
#: A process that ignores SIGTERM, one of its group, and one that has left for a session of its own.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
    time.sleep(300)
print("ready", flush=True)
time.sleep(300)
"""
#: Starts a child, says who there is, and then does what it is told.
OWNER = """
import json, os, sys, time
from pathlib import Path
from infra.local.processes import Child
options = json.loads(sys.argv[2])
child = Child.start("sample", [sys.executable, "-c", sys.argv[1]], log_path=Path(sys.argv[3]), **options)
forked = os.fork() if "--fork" in sys.argv else 1
if forked:
    print(json.dumps({"guard": child.guard_pid, "pid": child.pid, "forked": forked}), flush=True)
time.sleep(300)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "sample.log"


@pytest.fixture
def start(log: Path) -> Iterator[Callable[..., Child]]:
    """Starts Python code as a child; whatever still runs after the test is killed."""
    children: list[Child] = []

    def start_one(code: str, **options: object) -> Child:
        child = Child.start("sample", [sys.executable, "-c", code], log_path=log, **options)  # type: ignore[arg-type]
        children.append(child)
        return child

    yield start_one
    for child in children:
        child.kill()


def said(log: Path, text: str) -> Callable[[], bool]:
    return lambda: text in log.read_text()


def test_output_goes_to_the_log_and_the_status_comes_back(start: Callable[..., Child], log: Path) -> None:
    child = start("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    assert child.wait(20) == 7
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_a_signal_s_status_is_a_shell_s(start: Callable[..., Child]) -> None:
    child = start("import os; os.kill(os.getpid(), 9)")
    assert child.wait(20) == 128 + signal.SIGKILL


def test_the_child_gets_only_its_environment_and_folder(start: Callable[..., Child], log: Path, tmp_path: Path) -> None:
    child = start("import os; print(sorted(os.environ), os.getcwd())", env={"ONLY": "this"}, cwd=tmp_path)
    child.wait(20)
    assert "'ONLY'" in log.read_text()
    assert "'HOME'" not in log.read_text()
    assert str(tmp_path) in log.read_text()


def test_stopping_lets_a_child_end_in_order(start: Callable[..., Child], log: Path) -> None:
    child = start(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('tidied', flush=True), sys.exit(3)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)"
    )
    wait_for(said(log, "ready"))
    assert child.stop() == 3
    assert "tidied" in log.read_text()
    assert child.stop() == 3


def test_stopping_ends_the_stubborn_with_their_whole_family(start: Callable[..., Child], log: Path) -> None:
    child = start(STUBBORN, grace_seconds=0.3)
    wait_for(said(log, "ready"))
    wait_for(lambda: len(family(child.guard_pid)) == 4)
    processes = family(child.guard_pid)
    assert child.stop() == 128 + signal.SIGKILL
    assert gone(processes)


def test_killing_does_not_wait_for_the_grace(start: Callable[..., Child], log: Path) -> None:
    child = start(STUBBORN, grace_seconds=600)
    wait_for(said(log, "ready"))
    processes = family(child.guard_pid)
    clock = SystemClock()
    before = clock.monotonic()
    child.kill()
    assert clock.monotonic() - before < 15
    assert gone(processes)


def test_one_that_was_asked_to_end_can_still_be_killed(start: Callable[..., Child], log: Path) -> None:
    child = start(STUBBORN, grace_seconds=600)
    wait_for(said(log, "ready"))
    processes = family(child.guard_pid)
    clock = SystemClock()
    before = clock.monotonic()
    child.terminate()
    child.terminate()
    assert child.wait(0.5) is None
    assert child.kill() == 128 + signal.SIGKILL
    assert clock.monotonic() - before < 10
    assert gone(processes)


def test_what_a_child_leaves_running_ends_with_it(start: Callable[..., Child], log: Path) -> None:
    child = start("import subprocess; print('pid', subprocess.Popen(['sleep', '300']).pid, flush=True)")
    child.wait(20)
    assert not psutil.pid_exists(int(log.read_text().split()[-1]))


def test_a_terminal_s_interrupt_reaches_neither_child_nor_guard(start: Callable[..., Child]) -> None:
    child = start("import time; time.sleep(300)")
    here = os.getpgid(0)
    assert os.getpgid(child.pid) == child.pid != here
    assert os.getpgid(child.guard_pid) != here
    assert os.getsid(child.pid) != os.getsid(0)


def test_a_command_that_does_not_exist_is_one_sentence(log: Path) -> None:
    with pytest.raises(LocalStackError, match="RabbitMQ cannot be started: no-such-server: No such file or directory"):
        Child.start("RabbitMQ", ["no-such-server"], log_path=log)


def test_an_early_end_is_told_with_the_end_of_the_log(start: Callable[..., Child], log: Path) -> None:
    child = start("print('line 1'); print('port 5 is taken'); raise SystemExit(4)")
    with pytest.raises(LocalStackError, match=r"ended with status 4 while starting.*port 5 is taken") as caught:
        wait_until_ready(child, lambda: False, starting=Starting(), timeout_seconds=30)
    assert str(log) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_told_after_its_time(start: Callable[..., Child]) -> None:
    child = start("import time; time.sleep(300)")
    starting = Starting(clock=FakeClock())
    with pytest.raises(LocalStackError, match="did not answer within 60 s"):
        wait_until_ready(child, lambda: False, starting=starting, timeout_seconds=60)


def test_waiting_ends_when_called_off(start: Callable[..., Child]) -> None:
    child = start("import time; time.sleep(300)")
    starting = Starting()
    starting.cancelled.set()
    with pytest.raises(LocalStackError, match="interrupted"):
        wait_until_ready(child, lambda: False, starting=starting, timeout_seconds=60)


def own(code: str, log: Path, *arguments: str, **options: object) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    """A process that owns a child; gives it and the process ids it told."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, code, json.dumps(options), str(log), *arguments],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert owner.stdout is not None
    with owner.stdout:
        return owner, json.loads(owner.stdout.readline())


def test_nothing_outlives_an_owner_that_was_killed(log: Path) -> None:
    owner, ids = own(STUBBORN, log, grace_seconds=0.3)
    wait_for(said(log, "ready"))
    wait_for(lambda: len(family(ids["guard"])) == 4)
    processes = family(ids["guard"])
    owner.kill()
    owner.wait()
    wait_for(lambda: gone(processes))


def test_a_killed_owner_s_children_get_little_grace(log: Path) -> None:
    owner, ids = own(STUBBORN, log, grace_seconds=600)
    wait_for(said(log, "ready"))
    processes = family(ids["guard"])
    owner.kill()
    owner.wait()
    wait_for(lambda: gone(processes), ORPHAN_SECONDS + 15)


def test_an_owner_that_lives_gives_all_the_grace_it_promised(start: Callable[..., Child], log: Path) -> None:
    child = start(
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (time.sleep({ORPHAN_SECONDS + 0.5}), sys.exit(3)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(300)",
        grace_seconds=60,
    )
    wait_for(said(log, "ready"))
    assert child.stop() == 3


def test_not_even_when_a_fork_of_the_owner_holds_the_lifeline(log: Path) -> None:
    owner, ids = own("import time; print('ready', flush=True); time.sleep(300)", log, "--fork")
    wait_for(said(log, "ready"))
    processes = family(ids["guard"])
    owner.kill()
    owner.wait()
    try:
        assert psutil.pid_exists(ids["forked"])
        wait_for(lambda: gone(processes))
    finally:
        os.kill(ids["forked"], signal.SIGKILL)


def test_the_last_command_runs_even_then(log: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    owner, ids = own("import time; time.sleep(300)", log, afterwards=["rm", "-rf", str(data)])
    processes = family(ids["guard"])
    owner.kill()
    owner.wait()
    wait_for(lambda: gone(processes))
    assert not data.exists()


def test_a_killed_guard_takes_its_child_along(start: Callable[..., Child], log: Path) -> None:
    child = start("import os, time; os.fork(); print('ready', flush=True); time.sleep(300)")
    wait_for(lambda: log.read_text().count("ready") == 2)
    processes = family(child.pid)
    os.kill(child.guard_pid, signal.SIGKILL)
    assert child.stop() == -signal.SIGKILL
    wait_for(lambda: gone(processes))


def test_a_command_s_status_and_output_come_back(log: Path) -> None:
    code, output = run_command(
        "sh", ["sh", "-c", "echo hello; exit 5"], log_path=log, starting=Starting(), timeout_seconds=20
    )
    assert (code, output) == (5, "hello\n")


def test_a_missing_command_has_the_shell_s_status(log: Path) -> None:
    assert run_command("x", ["no-such"], log_path=log, starting=Starting(), timeout_seconds=20) == (127, "")


def test_a_command_that_takes_too_long_is_ended(log: Path) -> None:
    code, _ = run_command("sh", ["sleep", "300"], log_path=log, starting=Starting(), timeout_seconds=0.2)
    assert code == 124
