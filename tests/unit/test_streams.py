"""Output that nobody can read any more: the command goes on, and says nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
from peerless.report import streams
streams.secure()
print("x" * 100_000, flush=True)
print("still here \\u00fc", file=sys.stderr, flush=True)
fresh = os.open(os.devnull, os.O_RDONLY)
os.close(fresh)
sys.exit(7 if fresh > 2 else 8)
"""


def run(redirection: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, CODE],  # noqa: S607
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("redirection", ["> >(true)", ">&-", "<&- >&-", ">/dev/full"])
def test_a_standard_output_that_is_gone_changes_nothing_else(redirection: str) -> None:
    if "full" in redirection and not os.path.exists("/dev/full"):
        redirection = ">&-"  # macOS has no such device
    done = run(redirection)
    assert (done.returncode, done.stderr) == (7, "still here ü\n")


def test_even_with_all_three_closed() -> None:
    assert run("<&- >&- 2>&-").returncode == 7


def test_what_a_terminal_cannot_show_is_escaped() -> None:
    done = run(">/dev/null", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (7, "still here \\xfc\n")
