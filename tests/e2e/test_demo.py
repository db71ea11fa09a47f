"""The demo as `make demo` runs it, and what it must reach; the round benchmark with its own checks.

The limits in seconds are for cores without other work: `python -m benchmarks demo` shows them.
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import round
from benchmarks.reporting import cores
from tests.e2e.conftest import ROOT, Workplace
from tests.e2e.test_breaking import rounds_of, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Rounds after which a second run is compared with the first.
REPEATED = 20


def demo(folder: Path, *arguments: str) -> dict[str, Any]:
    """Train examples/mnist.toml in `folder`, servers included; gives the summary."""
    place = Workplace(folder)
    command = ["train", str(ROOT / "examples/mnist.toml"), "--local", "--json", "--run-dir", "run", *arguments]
    done = place.peerless(*command, timeout=500)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def first(folder: Path) -> dict[str, Any]:
    return demo(folder)


def test_the_demo_reaches_its_figures(first: dict[str, Any]) -> None:
    assert first["test_accuracy"] >= 0.97
    assert first["peak_memory_bytes"] <= 6e9
    assert first["compression_ratio"] >= 7
    assert len(set(first["weights_sha256"].values())) == 1
    assert list(first["weights_sha256"]) == ["0", "1", "2", "3"]
    assert first["peers_lost"] == 0
    assert first["frames_rejected"] == {}
    assert first["lambda_invocations"] == first["lambda_service"]["invocations"] == 4 * 108 * 2


def test_the_same_seed_gives_the_same_bits(first: dict[str, Any], tmp_path: Path, folder: Path) -> None:
    """Its first rounds once more, to where it is interrupted; test_training.py repeats a whole run, model and all."""
    place = Workplace(tmp_path)
    command = place.command("train", str(ROOT / "examples/mnist.toml"), "--local", "--run-dir", "run")
    again = subprocess.Popen(
        command, cwd=tmp_path, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: again.poll() is not None or rounds_of(tmp_path / "run") >= REPEATED, "rounds to compare", 300)
    again.send_signal(signal.SIGINT)
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 130, errors
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert REPEATED <= summary["rounds"] < first["rounds"]
    events = [json.loads(line) for line in (folder / "run" / "events.jsonl").read_text().splitlines()]
    between = {e["base_weights"] for e in events if e["event"] == "round_started" and e["round"] == summary["rounds"]}
    assert set(summary["weights_sha256"].values()) == between


def test_the_round_benchmark_finds_equal_work_on_both_sides() -> None:
    """At a small size: its own checks, and the values that are no times."""
    figures = {figure.name: figure.value for figure in round.whole(rounds=4, warm=1)}
    assert figures["invocations_over_batches"] == 1
    assert {"round_over_bare_torch", "seconds_per_round", "seconds_compute"} <= set(figures)
    assert 1 <= figures["weights_downloads"] <= cores(), "per round, by so many warm workers"
