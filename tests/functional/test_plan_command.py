"""`peerless plan` through the command's own entry point: a small model, really timed; and a user's mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from contract.config import from_toml
from peerless.cli import main
from tests.e2e.conftest import make_workplace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data and configuration, and an empty cache."""
    made = make_workplace(tmp_path)
    monkeypatch.chdir(made.path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made.path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command's exit status."""
    monkeypatch.setattr(sys, "argv", ["peerless", "plan", "config.toml", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_from_a_measurement_to_a_changed_configuration(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "config.toml").write_text("# mine\n" + (place / "config.toml").read_text())
    assert run(monkeypatch, "--calibrate", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["configured"]["plan"]["service"] == "lambda"
    assert told["configured"]["round_seconds_band"][0] < told["configured"]["round_seconds"]
    assert told["frontier"]
    # Kept: the next time nothing is measured.
    assert run(monkeypatch, "--json", "--apply") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["calibration"] == told["calibration"]
    assert again["frontier"] == told["frontier"]
    config = from_toml(place / "config.toml")
    assert (place / "config.toml").read_text().startswith("# mine\n")
    taken = again["frontier"][again["marks"]["chosen"]]["plan"]
    assert (config.compute.service, config.exchange.codec) == (taken["service"], taken["codec"])
    assert config.aws.instance_type == taken["instance_type"]
    # What was applied is what is configured now.
    assert run(monkeypatch, "--json") == 0
    after = json.loads(capsys.readouterr().out)
    assert after["changes"] == {}
    assert after["configured"]["usd"] == pytest.approx(again["frontier"][again["marks"]["chosen"]]["usd"])
    # For people: a table, a picture, and sentences.
    assert run(monkeypatch, "--svg", "frontier.svg") == 0
    shown = capsys.readouterr().out
    for text in ("as configured", "F fastest, K knee, C cheapest", "Serverless", "g5.xlarge", "Taken"):
        assert text in shown
    drawn = ElementTree.fromstring((place / "frontier.svg").read_text())  # noqa: S314
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert "USD to the end" in texts
    assert any("fastest" in (text or "") for text in texts)
    assert run(monkeypatch, "--svg", "absent/frontier.svg") == 2
    assert "absent/frontier.svg: the picture cannot be written" in capsys.readouterr().err


def test_a_run_teaches_what_it_took_and_where_it_arrived(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = place / "runs" / "seen"
    seen.mkdir(parents=True)
    (seen / "config.toml").write_text(from_toml(place / "config.toml").to_toml())
    told: list[dict[str, object]] = []
    for number in range(6):
        told += [
            {"event": "worked", "round": number, "step_seconds": 0.2},
            {"event": "stage", "stage": "compute", "round": number, "seconds": 1.0},
            {"event": "commit", "round": number, "t": 100.0 + 1.5 * number, "contributors": [0, 1, 2]},
            {"event": "validated", "round": number, "validation_accuracy": 0.8 + number / 50},
        ]
    (seen / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    assert run(monkeypatch, "--calibrate", "--from-run", "seen", "--target-accuracy", "0.85", "--json") == 0
    shown = capsys.readouterr()
    assert "seen: a round took 1.5 s (median of 3); predicted before it was known: " in shown.err
    result = json.loads(shown.out)
    assert {(each["where"], each["part"]) for each in result["calibration"]["corrections"]} == {
        ("local.lambda", "step"), ("local.lambda", "compute"), ("local.lambda", "exchange"),
    }  # fmt: skip
    assert result["configured"]["rounds"] == 4
    # Kept: now the same run is predicted as it was.
    assert run(monkeypatch, "--from-run", str(seen), "--json") == 0
    assert "known: 1.5 s" in capsys.readouterr().err
    assert run(monkeypatch, "--set", "compute.channels_last=true") == 2
    assert "add --calibrate" in capsys.readouterr().err
    assert run(monkeypatch, "--calibrate", "--from-run", "seen", "--set", "compute.channels_last=true") == 2
    assert "--from-run seen: it trained another model, or on other inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "add --calibrate"),
        (["--deadline", "soon"], "--deadline soon: write seconds"),
        (["--budget", "0"], "--budget 0: write US dollars"),
        (["--target-accuracy", "97"], "--target-accuracy 97: write a share"),
        (["--assume", "gpu.h100=1"], "--assume gpu.h100=1: write NAME=VALUE; there is"),
        (["--apply", "--peers", "2"], "--apply goes by the file alone"),
        (["--set", "data.path=absent.npz"], "absent.npz is missing"),
    ],
)
def test_a_mistake_is_one_sentence(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    before = (place / "config.toml").read_text()
    assert run(monkeypatch, *arguments) == 2
    told = capsys.readouterr()
    assert not told.out
    assert named in told.err
    assert "Traceback" not in told.err
    assert (place / "config.toml").read_text() == before


def test_what_needs_a_run_says_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--calibrate", "--from-run", "absent") == 2
    assert "--from-run absent: there is no run of that name here" in capsys.readouterr().err
    assert run(monkeypatch, "--calibrate", "--target-accuracy", "0.9") == 2
    assert "no run is known; name a run that got so far with --from-run RUN" in capsys.readouterr().err
    assert run(monkeypatch, "--deadline", "1", "--apply") == 2
    assert "no plan keeps these limits, so that config.toml stays as it is" in capsys.readouterr().err
    assert run(monkeypatch, "--vary", "peers=two") == 2
    assert "peers" in capsys.readouterr().err
