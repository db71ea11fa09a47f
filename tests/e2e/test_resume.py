"""A run that was killed with all its processes and servers, and taken up again with what lies in its folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from typing import Any

import psutil
import pytest

from infra.local.cloud import LocalCloud
from peerless.launch.run_folder import LOCAL_FOLDER
from tests.e2e.conftest import EPOCHS, Workplace
from tests.e2e.test_breaking import alive, descendants, rounds_of, sentence, start, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def kill_everything(process: subprocess.Popen[str]) -> None:
    """Launcher, guards, servers, workers and peers at once, as when a machine goes down."""
    everyone = [psutil.Process(process.pid), *descendants(process)]
    for each in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    wait_for(lambda: not alive(everyone), "the end of everything", 20)


def test_a_run_that_was_killed_with_everything_twice_ends_with_the_weights_of_one_that_was_not(
    lonely_workplace: Workplace, undisturbed: dict[str, Any]
) -> None:
    place, folder = lonely_workplace, lonely_workplace.path / "run"
    process = start(place, "--set", "checkpoint.every_rounds=2", epochs=EPOCHS)
    wait_for(lambda: rounds_of(folder) >= 6, "six rounds", 60)
    kill_everything(process)
    assert not (folder / "summary.json").exists()
    command = place.command("train", "--local", "--resume", "run")
    again = subprocess.Popen(
        command, cwd=place.path, env=place.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    before = rounds_of(folder)
    wait_for(lambda: again.poll() is not None or rounds_of(folder) >= before + 4, "four more rounds", 90)
    kill_everything(again)
    done = place.peerless("train", "--local", "--json", "--resume", str(folder), timeout=200)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rounds"], summary["parts"], summary["peers_lost"]) == (3 * EPOCHS, 3, 0)
    assert summary["weights_sha256"] == undisturbed["weights_sha256"]
    assert summary["model_sha256"] == undisturbed["model_sha256"]
    assert {path.name for path in folder.iterdir()} == {
        "config.toml", "events.jsonl", "model.safetensors", "summary.json", "logs"
    }, "nothing of the killed processes is left"  # fmt: skip


def test_a_run_that_was_ended_by_ctrl_c_goes_on_to_the_weights_of_one_that_was_not(
    lonely_workplace: Workplace, undisturbed: dict[str, Any]
) -> None:
    place, folder = lonely_workplace, lonely_workplace.path / "run"
    process = start(place)
    started = descendants(process)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors + output
    part = json.loads((folder / "summary.json").read_text())
    assert part["reason"] == "interrupted"
    assert 3 <= part["rounds"] < 3 * EPOCHS, "it was interrupted after its third"
    assert len(set(part["weights_sha256"].values())) == 1
    assert len(part["weights_sha256"]) == 3
    assert (folder / "model.safetensors").exists()
    assert "interrupted" in output
    assert "to go on with this run: peerless train --local --resume run" in output
    assert part["resume"] == "peerless train --local --resume run"
    wait_for(lambda: not alive(started), "the run's processes to end", 20)

    done = place.peerless("train", "--local", "--json", "--resume", "run", "--set", f"epochs={EPOCHS}", timeout=200)
    assert done.returncode == 0, done.stderr
    assert f"going on with round {part['rounds'] + 1}" in done.stderr
    summary = json.loads(done.stdout)
    assert (summary["run_id"], summary["parts"], summary["rounds"]) == (part["run_id"], 2, 3 * EPOCHS)
    assert (summary["reason"], summary["peers_lost"], summary["resume"]) == ("epoch_limit", 0, None)
    assert summary["weights_sha256"] == undisturbed["weights_sha256"]
    assert summary["model_sha256"] == undisturbed["model_sha256"]
    assert summary["lambda_invocations"] >= undisturbed["lambda_invocations"]


def test_data_stay_with_servers_that_are_taken_down_and_up(lonely_workplace: Workplace) -> None:
    place, folder = lonely_workplace, lonely_workplace.path / "run"
    LocalCloud.up(place.path / LOCAL_FOLDER)
    try:
        process = start(place, epochs=6)
        process.kill()
        process.communicate()
        done = place.peerless("local", "down")
        assert json.loads((folder / ".resume.json").read_text())["runs"][0] in done.stdout
        gone = place.peerless("train", "--local", "--resume", "run")
        assert gone.returncode == 2
        assert "are with the servers of `peerless local up` in" in sentence(gone)
        LocalCloud.up(place.path / LOCAL_FOLDER)
        done = place.peerless("train", "--local", "--json", "--resume", "run", timeout=200)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["rounds"] == 18
        assert LocalCloud.attach(place.path / LOCAL_FOLDER).client("s3").list_buckets()["Buckets"] == []
    finally:
        LocalCloud.down(place.path / LOCAL_FOLDER)
