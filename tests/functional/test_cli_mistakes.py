"""Mistakes in what was asked, through the command's own entry point: one sentence, status 2, nothing begun."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from peerless.cli import main
from tests.e2e.conftest import make_workplace


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--set", "data.path=absent.npz"], "absent.npz is missing"),
        (["--peers", "900"], "900 peers"),
        (["--set", "model=nowhere:Net"], "nowhere"),
        (["--set", "init_from=absent.safetensors"], "absent.safetensors"),
        (["--set", "init_from=config.toml"], "config.toml: the initial weights are not a readable safetensors file"),
        (["--set", "loss=nll"], "loss is nll, which takes log-probabilities, but the model mlp gives logits"),
        (["--set", 'code.include=["absent.py"]'], "absent.py"),
        (["--run-dir", "used"], "used: the run folder exists and is not empty"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    place = make_workplace(tmp_path)
    (place.path / "used").mkdir()
    (place.path / "used" / "file").touch()
    before = sorted(place.path.rglob("*"))
    children = psutil.Process().children(recursive=True)
    monkeypatch.chdir(place.path)
    monkeypatch.setattr(sys, "argv", ["peerless", "train", "config.toml", "--local", "--run-dir", "run", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    told = [line for line in errors.splitlines() if line.startswith("peerless: ")]
    assert len(told) == 1
    assert named in told[0]
    assert "Traceback" not in errors
    assert sorted(place.path.rglob("*")) == before
    assert set(psutil.Process().children(recursive=True)) <= set(children)
