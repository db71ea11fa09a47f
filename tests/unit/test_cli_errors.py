"""What the command makes of an exception: a sentence and an exit status; a traceback only on demand."""

from __future__ import annotations

import pytest

from contract.errors import ConfigError, RunFailed
from peerless.cli import guarded


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (ConfigError("no such key"), 2, "peerless: no such key\n"),
        (RunFailed("peer 1 failed"), 1, "peerless: peer 1 failed\n"),
        (KeyError("a\nb"), 1, "peerless: internal error, KeyError: 'a\\nb' (--debug shows where)\n"),
        (
            OSError("two\nlines"),
            1,
            "peerless: internal error, OSError: two lines (--debug shows where)\n",
        ),
    ],
)
def test_every_exception_is_one_line_and_raised_only_for_debugging(
    error: Exception, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise error

    assert guarded(command, debug=False) == status
    assert capsys.readouterr().err == sentence
    with pytest.raises(type(error)):
        guarded(command, debug=True)
