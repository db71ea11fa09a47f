"""Mistakes in what `peerless reproduce` is asked for: one sentence, status 2, nothing begun."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from peerless.cli import main


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["table9"], "'table9' is none of table1, table2, table3, figure3, figure4, figure5, figure6"),
        (
            ["table3", "--out", "used"],
            "used: the folder of the result exists and is not empty; name another with --out",
        ),
        (["table3", "--out", "used/file/below"], "used/file/below: the folder of the result cannot be created"),
        (["table3", "--scale", "huge"], "'huge'"),
    ],
)
def test_a_mistake_is_told_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    named: str,
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["peerless", "reproduce", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    errors = capsys.readouterr().err
    assert named in errors
    assert "Traceback" not in errors
    assert sorted(tmp_path.rglob("*")) == before
