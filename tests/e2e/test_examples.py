"""The examples beside the demo run as they stand, on small data."""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import ROOT, Workplace

SMALL = {
    "data.source": "npz",
    "data.validation_samples": "100",
    "model": "mlp",
    "batch_size": "20",
    "epochs": "1",
}


@pytest.mark.slow  # seven and eight processes each; tests/unit/test_examples.py reads them in `make test`
@pytest.mark.parametrize(
    ("name", "peers", "told"),
    [("robust", 7, "commit"), ("reduce_scatter", 8, "shard_averaged"), ("diloco", 4, "commit")],
)
def test_an_example_ends_with_the_same_weights_everywhere(
    workplace: Workplace, name: str, peers: int, told: str
) -> None:
    (workplace.path / "examples").mkdir(exist_ok=True)
    (workplace.path / f"examples/{name}.toml").write_text((ROOT / f"examples/{name}.toml").read_text())
    small = {**SMALL, "data.path": str(workplace.path / "data.npz")}
    settings = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    done = workplace.peerless(
        "train", f"examples/{name}.toml", "--local", "--json", "--run-dir", name, *settings, timeout=300
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["peers"], summary["peers_lost"], summary["reason"]) == (peers, 0, "epoch_limit")
    assert len(set(summary["weights_sha256"].values())) == 1
    events = [json.loads(line) for line in (workplace.path / name / "events.jsonl").read_text().splitlines()]
    assert {event["rank"] for event in events if event["event"] == told} == set(range(peers))
