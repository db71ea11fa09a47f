"""The peer as a child process."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from peer_agent.instance.ports import Process


class SystemProcesses:
    """Children of this process."""

    def start(self, command: Sequence[str], environment: Mapping[str, str], output: Path) -> Process:
        with open(output, "ab") as file:
            return subprocess.Popen(
                list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )


def how_it_ended(status: int) -> str:
    """A few words for an exit status, as the end of "the peer …"."""
    number = -status if status < 0 else status - 128
    if number == 9:
        return "was killed by signal 9 (perhaps for want of memory)"
    if status < 0 or status > 128:
        return f"was killed by signal {number}"
    return f"ended with status {status}"
