"""Whole runs of which a batch fails for good whenever it is due: borne, counted and told, or the end of the run."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from peerless.report.table import result_table
from tests.e2e.conftest import Workplace
from tests.e2e.test_breaking import sentence

#: Refuses to learn from a blank picture; it may still be asked about one.
MODEL = """
import torch

class Choosy(torch.nn.Linear):
    def __init__(self, classes):
        super().__init__(64, classes)

    def forward(self, x):
        flat = x.flatten(1)
        if self.training and (flat.amin(1) == flat.amax(1)).any():
            raise ValueError("a blank picture")
        return super().forward(flat)
"""
#: Which picture is blank, and where its peer's rounds of two, two and one batches come to it.
BLANK, RANK, BATCH, ROUNDS = 5, 2, 2, (1, 3)
CAUSE = r"the model failed on a batch of shape .*: ValueError: a blank picture \(ModelError\); its log: (/\S+\.log)"


@pytest.fixture
def blank(workplace: Workplace) -> list[str]:
    """Arguments of a run that trains such a model on data with a blank picture."""
    data = dict(np.load(workplace.path / "data.npz"))
    data["x_train"][BLANK] = 255
    np.savez(workplace.path / "blank.npz", **data)
    (workplace.path / "choosy.py").write_text(MODEL)
    settings = ("data.path=blank.npz", "model=choosy:Choosy", 'code.include=["choosy.py"]')
    return [word for setting in settings for word in ("--set", setting)]


def events(folder: Path, name: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == name]


def shown(summary: dict[str, Any]) -> str:
    """The table that ends a run."""
    text = io.StringIO()
    Console(file=text, width=200).print(result_table(summary, "run"))
    return text.getvalue()


@pytest.mark.slow  # tests/functional/test_rounds_with_failed_batches.py has it in `make test`
def test_a_run_goes_on_without_the_batch_that_fails(workplace: Workplace, blank: list[str]) -> None:
    summary = workplace.train(*blank, "--set", "compute.tolerated_failures=1", run_dir="borne")
    assert (summary["reason"], summary["rounds"], summary["error"]) == ("epoch_limit", 6, None)
    assert list(summary["weights_sha256"]) == ["0", "1", "2"]
    assert len(set(summary["weights_sha256"].values())) == 1
    assert summary["test_accuracy"] > 0.9, "it learns from the others"
    told = events(workplace.path / "borne", "batches_failed")
    assert [(event["rank"], event["round"], event["failed"], event["samples"]) for event in told] == [
        (RANK, round, 1, 40) for round in ROUNDS
    ]
    for event in told:
        (cause,) = event["causes"]
        assert cause.startswith(f"no gradient for batch {BATCH} of rank {RANK} in round {event['round']}: ")
        assert "ValueError: a blank picture (ModelError); its log: /" in cause
    samples = {e["round"]: e["samples"] for e in events(workplace.path / "borne", "commit") if e["contributors"]}
    assert samples == {0: 240, 1: 200, 2: 120, 3: 200, 4: 240, 5: 120}, "means over what came"
    assert summary["batches_failed"] == {str(RANK): len(ROUNDS)}
    assert f"batches that failed for good: {len(ROUNDS)} of peer {RANK}" in shown(summary)
    # MiniStack knows no error by its name, so that it tries even this one twice more.
    assert summary["lambda_invocations"] == summary["lambda_service"]["invocations"] == 30 + 2 * len(ROUNDS)


@pytest.mark.slow  # likewise
def test_beyond_the_tolerance_the_run_ends_in_a_sentence_with_the_weights_it_had(
    workplace: Workplace, blank: list[str]
) -> None:
    settings = ["--set", "compute.tolerated_failures=0.4"]
    done = workplace.peerless("train", "config.toml", "--local", "--run-dir", "beyond", *blank, *settings)
    assert done.returncode == 1
    first = ROUNDS[0]
    expected = (
        rf"^peerless: peer {RANK}: no gradient for batch {BATCH} of rank {RANK} in round {first}: {CAUSE}; "
        rf"1 of 2 batches failed \({BATCH}\), and compute\.tolerated_failures = 0\.4 bears 0 \(logs: beyond/logs\)$"
    )
    found = re.search(expected, sentence(done))
    assert found is not None, sentence(done)
    assert "a blank picture" in Path(found[1]).read_text()
    folder = workplace.path / "beyond"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["reason"], summary["rounds"]) == ("failed", first)
    commits = {event["round"]: event["contributors"] for event in events(folder, "commit")}
    assert commits == {0: [0, 1, 2], first: []}, "nothing of the failed round counts"
    held = {event["base_weights"] for event in events(folder, "round_started") if event["round"] == first}
    assert held == {summary["model_sha256"]}, "what is kept are the weights before it"
    assert summary["batches_failed"] == {}
