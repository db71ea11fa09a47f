"""Folders of runs that never ran, with everything in them that a report can tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: A text that would do harm where it got into a page unescaped.
EVIL = '</pre></script></title><script>window.evil=1</script><img src=x onerror="window.evil=1">\'"&{{ 7*7 }}'
_STARTED = 1_790_000_000.0


def made_run(folder: Path, *, peers: int = 4, rounds: int = 20, mode: str = "sync", evil: bool = False) -> Path:
    """Write configuration, events and summary of a run in which much befell; with `evil`, in texts that inject."""
    folder.mkdir(parents=True)
    text = EVIL if evil else "the queue is gone"
    events = list(_events(peers, rounds, mode, text))
    (folder / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events))
    summary = _summary(folder.name, peers, rounds, mode, text)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    named = json.dumps(EVIL if evil else "cnn")
    (folder / "config.toml").write_text(
        f'name = "made"\nmode = "{mode}"\nmodel = {named}\n[exchange]\ncodec = "qsgd4"\n'
    )
    return folder


def _events(peers: int, rounds: int, mode: str, text: str) -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    def tell(name: str, rank: int, t: float, round: int | None, **fields: Any) -> None:
        head = {"v": 1, "t": _STARTED + t, "run": "made", "rank": rank, "round": round, "event": name}
        found.append({**head, **fields})

    for rank in range(peers):
        tell("peer_started", rank, 0.1 * rank, None, pid=100 + rank, mode=mode)
    for round in range(rounds):
        begin = 5.0 + 3.0 * round
        for rank in range(peers):
            tell("round_started", rank, begin, round, epoch=0, base_weights="ab" * 32)
            computed = 1.0 + 0.2 * ((rank + round) % peers)
            ends = {"compute": computed, "send": computed + 0.1, "receive": 2.5, "update": 2.7, "convergence": 2.8}
            before = 0.0
            for stage, end in ends.items():
                more = {"cpu_percent": 40.0, "peak_bytes": 10**7, "rss_bytes": 10**8}
                tell("stage", rank, begin + end, round, stage=stage, seconds=end - before, bytes_in=5000, **more)
                before = end
            loss = {"loss": 2.3 * 0.9**round + 0.01 * rank * (mode == "async")}
            valid = {"validation_loss": 2.2 * 0.9**round, "validation_accuracy": min(0.95, 0.1 + 0.05 * round)}
            everyone = list(range(peers))
            if mode == "async":
                tell("averaged", rank, begin + 2.6, round, contributors=everyone, staleness=[0] * peers, **loss)
                tell("validated", rank, begin + 2.7, round, samples=100, **valid)
            else:
                tell("commit", rank, begin + 2.6, round, contributors=everyone, writer=0, samples=512, **loss, **valid)
            tell("bill", rank, begin + 2.9, round, usd=0.0005 * (round + 1), limit_usd=1.0)
    for rank in range(peers):
        tell("member_dropped", rank, 20.0, 4, member=1, reason="silent")
        tell("member_joined", rank, 26.0, 6, member=1, incarnation=2)
    tell("peer_restarted", 1, 21.0, None, reason="was killed by signal 9", attempt=1)
    tell("batches_failed", 2, 30.0, 8, failed=2, samples=100, causes=[text])
    tell("not_reduced", 0, 31.0, 8, cause=text)
    for count in range(3):
        tell("frame_rejected", 0, 40.0 + count, 10, reason="corrupt", sender=1)
    tell("failed", 3, 60.0, None, error=text, alone=True)
    return found


def _summary(name: str, peers: int, rounds: int, mode: str, text: str) -> dict[str, Any]:
    stage = {"seconds": 12.345, "cpu_percent": 43.0, "peak_bytes": 1.5e7, "peak_rss_bytes": 2.5e8}
    stage |= {"bytes_in": 2.5e6, "bytes_out": 1.25e6}
    ranks = [str(rank) for rank in range(peers)]
    return {
        "run_id": name,
        "mode": mode,
        "peers": peers,
        "joined": {},
        "left": [],
        "lost_ranks": [3],
        "restarts": {"1": 1},
        "parts": 1,
        "rounds": rounds,
        "epochs": 2,
        "reason": "epoch_limit",
        "error": text,
        "test_accuracy": 0.8765,
        "test_loss": 0.4321,
        "validation_loss": 0.4567,
        "weights_sha256": dict.fromkeys(ranks, "ab" * 32),
        "seconds_training": 65.4321,
        "seconds_total": 77.7,
        "peak_memory_bytes": 1_234_567_890,
        "bytes_sent": dict.fromkeys(ranks, 3_000_000),
        "bytes_received": dict.fromkeys(ranks, 9_000_000),
        "codec": "qsgd4",
        "aggregation": "mean",
        "compression_ratio": 7.8321,
        "gradient_service": "lambda",
        "lambda_invocations": 1600,
        "state_machine_executions": 80,
        "estimated_usd": 0.04,
        "cost": {
            "total": 0.03214,
            "parts": {"lambda": 0.02, "step functions": 0.002, "s3": 0.00014, "broker": 0.01},
            "use": {"invocations": 1600, "gb_seconds": 1234.5},
            "as_if_on_aws": True,
            "prices": {"region": "us-east-1", "oldest": "2026-10-01", "newest": "2026-11-01", "overridden": []},
        },
        "rejected_by_sender": {"1": {"corrupt": 3}},
        "stages": dict.fromkeys(("compute", "send", "receive", "update", "convergence"), stage),
        "resume": None,
    }
