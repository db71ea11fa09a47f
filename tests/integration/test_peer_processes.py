"""Peers as processes, as a user's machine and EC2 run them: over real S3 requests and a real RabbitMQ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.config import RunConfig
from contract.keys import Places
from contract.records import PeerReport
from contract.runspec import RunSpec
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from tests.fakes.small_run import prepare_run

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 100.0


@dataclass
class Run:
    """A prepared run and the processes of its peers."""

    spec: RunSpec
    store: S3Store
    folder: Path
    environment: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, ranks: Sequence[int], *arguments: str) -> None:
        for rank in ranks:
            command = [sys.executable, "-m", "peer_agent", "--rank", str(rank), "--run", self.spec.run]
            command += ["--run-bucket", self.spec.places.run_bucket, "--events", str(self.folder / "events.jsonl")]
            self.processes.append(
                subprocess.Popen(
                    [*command, *arguments],
                    cwd=ROOT,
                    env=self.environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def end(self) -> list[tuple[int, str]]:
        """Exit status and standard error of each."""
        found = []
        for process in self.processes:
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
            found.append((process.returncode, errors))
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def wait_for(self, name: str, round: int) -> None:
        clock = SystemClock()
        until = clock.monotonic() + PATIENCE_SECONDS
        while not any(event["round"] == round for event in self.events(name)):
            assert clock.monotonic() < until, f"no {name} of round {round}"
            assert all(p.poll() is None for p in self.processes), self.end()
            clock.sleep(0.05)

    def reports(self) -> list[PeerReport]:
        places = self.spec.places
        return [PeerReport.from_json(self.store.get(places.report(r))) for r in range(self.spec.config.peers)]


@pytest.fixture
def prepared(
    local_cloud: LocalCloud, bucket: str, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Run]]:
    for name, value in local_cloud.aws_environment().items():
        monkeypatch.setenv(name, value)
    store = S3Store(region=local_cloud.region, endpoint_url=local_cloud.endpoint_url)
    runs: list[Run] = []

    def prepare(*, samples: Sequence[int] = (24, 20, 12), **changes: Any) -> Run:
        values: dict[str, Any] = {
            "peers": 3,
            "epochs": 2,
            "batch_size": 8,
            "batches_per_round": 1,
            "exchange": {"codec": "qsgd4", "poll_seconds": 0.3, "start_timeout_seconds": 60.0},
            "compute": {"service": "local"},
        }
        config = RunConfig.model_validate({**values, **changes})
        places = Places(run=unique, run_bucket=bucket, peer_buckets=(bucket,) * config.peers, region=local_cloud.region)
        environment = {**os.environ, **local_cloud.environment(os.environ), "OMP_NUM_THREADS": "1"}
        runs.append(Run(prepare_run(store, config, samples, places), store, tmp_path / unique, environment))
        return runs[-1]

    yield prepare
    for run in runs:
        for process in run.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
    store.close()


def test_signals_to_all_end_the_run_in_order(prepared: Callable[..., Run]) -> None:
    run = prepared(epochs=5_000)
    run.start(range(3))
    run.wait_for("commit", 3)
    for process in run.processes:
        process.send_signal(signal.SIGTERM)
    assert run.end() == [(0, "")] * 3
    reports = run.reports()
    assert {r.reason for r in reports} == {"interrupted"}
    assert len({(r.rounds, r.weights_sha256, r.model_sha256) for r in reports}) == 1
    assert reports[0].rounds >= 3
    assert all(r.frames_rejected == {} for r in reports)
    assert {event["stage"] for event in run.events("stage")} == set(reports[0].stages) | {"convergence"}
    assert {event["rank"] for event in run.events("peer_started")} == {0, 1, 2}


def test_a_damaged_batch_ends_all_peers_with_one_line_each(prepared: Callable[..., Run]) -> None:
    run = prepared()
    for index in range(2):
        run.store.put(run.spec.places.batch(2, index), b"not a batch")
    run.start(range(3))
    ended = run.end()
    assert [status for status, _ in ended] == [1, 1, 1]
    for _, text in ended:
        assert text.startswith("peerless: ")
        assert text.count("\n") == 1
        assert "batch" in text
    assert {r.reason for r in run.reports()} == {"failed"}


def test_mistakes_are_one_line_and_status_2(prepared: Callable[..., Run]) -> None:
    run = prepared()
    run.start([7])
    run.start([0], "--run", "nowhere")
    (far, far_text), (lost, lost_text) = run.end()
    assert (far, lost) == (2, 2)
    assert far_text == f"peerless: --rank 7: run {run.spec.run} has ranks 0 to 2; `peerless join` adds one\n"
    assert lost_text.startswith("peerless: there is no run nowhere in bucket ")
    assert [event["error"] for event in run.events("failed")]
