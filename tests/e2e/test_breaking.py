"""What a user meets when something goes wrong: one sentence, the right exit status, nothing left running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from contract.clock import SystemClock
from tests.e2e.conftest import EPOCHS, Workplace

BROKEN_MODEL = """
import torch

class Broken(torch.nn.Linear):
    def __init__(self, classes):
        super().__init__(64, classes)

    def forward(self, x):
        raise ValueError("the model's own mistake")
"""


def sentence(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of an error; there must be no traceback."""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("peerless: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def wait_for(condition: object, what: str, seconds: float = 60.0) -> None:
    """Return once `condition()` holds; the wait is bounded and fails with what was waited for."""
    clock = SystemClock()
    deadline = clock.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert clock.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        clock.sleep(0.05)


def rounds_of(folder: Path) -> int:
    """Commits that peer 0 has applied."""
    events = folder / "events.jsonl"
    lines = events.read_text().splitlines() if events.exists() else []
    return sum('"event":"commit"' in line.replace(" ", "") and '"rank":0' in line.replace(" ", "") for line in lines)


def start(place: Workplace, *arguments: str, epochs: int = 500, run_dir: str = "run") -> subprocess.Popen[str]:
    """Start a long run and return once its third round is committed."""
    command = place.command(
        "train", "config.toml", "--local", "--run-dir", run_dir, "--set", f"epochs={epochs}", *arguments
    )
    process = subprocess.Popen(
        command, cwd=place.path, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        wait_for(lambda: process.poll() is not None or rounds_of(place.path / run_dir) >= 3, "the third round", 180)
        assert process.poll() is None, process.communicate()
    except AssertionError:
        process.kill()
        process.communicate()
        raise
    return process


def descendants(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def alive(processes: list[psutil.Process]) -> list[str]:
    return [str(process) for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_mistake_is_told_before_anything_starts(workplace: Workplace) -> None:
    """Others are in tests/functional/test_cli_mistakes.py, without a process of their own."""
    done = workplace.peerless("train", "config.toml", "--local", "--run-dir", "mistake", "--set", "optimiser.lr=1")
    assert done.returncode == 2
    assert "unknown key optimiser; did you mean optimizer?" in sentence(done)
    assert not (workplace.path / "mistake").exists()


def test_a_corrupt_data_file_is_told(lonely_workplace: Workplace) -> None:
    data = lonely_workplace.path / "data.npz"
    data.write_bytes(data.read_bytes()[:2_000])
    done = lonely_workplace.peerless("train", "config.toml", "--local")
    assert done.returncode == 2
    assert "data.npz" in sentence(done)
    assert not (lonely_workplace.path / "runs").exists()


@pytest.mark.slow
def test_a_model_that_raises_in_the_worker_is_told(workplace: Workplace) -> None:
    (workplace.path / "broken.py").write_text(BROKEN_MODEL)
    done = workplace.peerless(
        "train", "config.toml", "--local", "--run-dir", "raises", "--set", "model=broken:Broken",
        "--set", 'code.include=["broken.py"]',
    )  # fmt: skip
    assert done.returncode == 1
    told = sentence(done)
    assert "the model's own mistake" in told
    assert "batch" in told
    summary = json.loads((workplace.path / "raises" / "summary.json").read_text())
    assert summary["reason"] == "failed"
    assert "the model's own mistake" in summary["error"]


def test_an_unreachable_broker_is_named(lonely_workplace: Workplace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"amqp://someone:hush@127.0.0.1:{port}/"
    done = lonely_workplace.peerless("train", "config.toml", "--local", PEERLESS_BROKER_URL=url)
    assert done.returncode == 1
    assert f"127.0.0.1:{port}" in sentence(done)
    assert "hush" not in done.stderr + done.stdout
    assert not (lonely_workplace.path / "runs").exists()


def test_a_malformed_broker_url_is_a_mistake_and_is_not_repeated(lonely_workplace: Workplace) -> None:
    done = lonely_workplace.peerless("train", "config.toml", "--local", PEERLESS_BROKER_URL="http://someone:hush@host")
    assert done.returncode == 2
    assert "PEERLESS_BROKER_URL is not a URL of the form amqp://" in sentence(done)
    assert "hush" not in done.stderr + done.stdout
    assert not (lonely_workplace.path / "runs").exists()


@pytest.mark.slow  # tests/chaos has dead peers in every phase of a round
@pytest.mark.timeout(400)
def test_a_killed_peer_is_started_again_and_the_run_ends_well(workplace: Workplace) -> None:
    process = start(workplace, epochs=12, run_dir="killed")
    victim(process, 1).kill()
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert "peer 1 was killed by signal 9; started again" in output
    summary = json.loads((workplace.path / "killed" / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"], summary["error"]) == ("epoch_limit", 36, None)
    assert (summary["peers_lost"], summary["restarts"]) == (0, {"1": 1})
    assert list(summary["weights_sha256"]) == ["0", "1", "2"]
    assert len(set(summary["weights_sha256"].values())) == 1


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_peer_that_is_not_started_again_is_lost_and_the_others_end_well(workplace: Workplace) -> None:
    process = start(workplace, "--set", "membership.restarts=0", epochs=6, run_dir="lost")
    victim(process, 1).kill()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    summary = json.loads((workplace.path / "lost" / "summary.json").read_text())
    assert (summary["peers_lost"], summary["lost_ranks"], summary["restarts"]) == (1, [1], {})
    assert list(summary["weights_sha256"]) == ["0", "2"]
    assert len(set(summary["weights_sha256"].values())) == 1


@pytest.mark.slow
def test_below_the_quorum_a_killed_peer_fails_the_run_in_one_sentence(workplace: Workplace) -> None:
    process = start(workplace, "--set", "membership.restarts=0", "--set", "membership.quorum=3", run_dir="quorum")
    started = descendants(process)
    victim(process, 1).kill()
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 1
    told = [line for line in errors.splitlines() if line.startswith("peerless: ")]
    assert len(told) == 1
    assert "peer 1 was killed by signal 9" in told[0]
    wait_for(lambda: not alive(started), "the run's processes to end", 20)


@pytest.mark.slow
def test_a_killed_launcher_leaves_nothing_running(lonely_workplace: Workplace) -> None:
    process = start(lonely_workplace)
    started = descendants(process)
    assert len(started) > 8, "servers, workers and peers"
    process.kill()
    process.communicate()
    wait_for(lambda: not alive(started), f"the end of {len(started)} processes", 20)


def test_ctrl_c_while_the_servers_start_stops_them(lonely_workplace: Workplace) -> None:
    command = lonely_workplace.command("train", "config.toml", "--local", "--run-dir", "run")
    process = subprocess.Popen(
        command, cwd=lonely_workplace.path, env=lonely_workplace.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: len(descendants(process)) >= 4, "the first servers", 60)
    started = descendants(process)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (
        130,
        "peerless: interrupted before training began; everything was stopped\n",
    )
    summary = json.loads((lonely_workplace.path / "run" / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"]) == ("interrupted", 0)
    wait_for(lambda: not alive(started), "the servers to end", 20)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_servers_are_started_again_and_the_weights_are_the_same(
    lonely_workplace: Workplace, undisturbed: dict[str, Any]
) -> None:
    process = start(lonely_workplace, epochs=EPOCHS)
    server(process, "ministack").kill()
    wait_for(lambda: rounds_of(lonely_workplace.path / "run") >= 9, "rounds after MiniStack's death", 60)
    server(process, "beam.smp").kill()
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    for name in ("MiniStack", "RabbitMQ"):
        assert f"{name} answers again" in output
    summary = json.loads((lonely_workplace.path / "run" / "summary.json").read_text())
    assert (summary["rounds"], summary["peers_lost"], summary["restarts"]) == (3 * EPOCHS, 0, {})
    assert summary["weights_sha256"] == undisturbed["weights_sha256"]


@pytest.mark.slow
def test_a_server_that_cannot_be_replaced_ends_the_run_within_seconds_and_by_its_name(
    lonely_workplace: Workplace,
) -> None:
    process = start(lonely_workplace)
    started = descendants(process)
    server(process, "infra.local.lambda_service").kill()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.startswith("peerless: Lambda service ended with status 137 while running")
    assert len(errors.splitlines()) == 1
    summary = json.loads((lonely_workplace.path / "run" / "summary.json").read_text())
    assert summary["reason"] == "failed"
    assert summary["rounds"] >= 3
    wait_for(lambda: not alive(started), "the run's processes to end", 20)


def server(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """The one whose module or program is `name`."""
    (found,) = [c for c in descendants(process) if c.cmdline()[1:3] == ["-m", name] or c.name() == name]
    return found


def victim(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    """A peer's own process."""
    (found,) = [c for c in descendants(process) if c.name().startswith("python") and _is_peer(c, rank)]
    return found


def _is_peer(process: psutil.Process, rank: int) -> bool:
    words = process.cmdline()
    return words[1:3] == ["-m", "peer_agent"] and words[words.index("--rank") + 1] == str(rank)
