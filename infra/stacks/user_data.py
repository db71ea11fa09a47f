"""What a peer's instance is told at its first boot: variables, then peer_boot.sh. Free of aws_cdk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: EC2's limit in bytes, before its encoding in base 64.
LIMIT = 16_384
_BOOT = Path(__file__).parent / "peer_boot.sh"


def user_data(*, container: Mapping[str, str], host: Mapping[str, str]) -> str:
    """The script. `container` is the environment of the peer's container, `host` what the boot needs beside it:
    IMAGE, LOG_GROUP, STREAM (prefix of the log streams' names) and MAX_SECONDS. No value may be a secret, since whoever
    may describe the launch template reads this. Raises ValueError for a value with a line break or a quote.
    """
    return "\n".join(
        [
            "#!/bin/bash",
            "set -euo pipefail",
            "mkdir -p /etc/peerless",
            *_file("/etc/peerless/peer.env", container),
            *_file("/etc/peerless/host.env", host),
            "",
            _BOOT.read_text(encoding="utf-8"),
        ]
    )


def _file(path: str, variables: Mapping[str, str]) -> list[str]:
    for name, value in variables.items():
        if any(mark in value for mark in "\n\r'\"\\ "):
            raise ValueError(f"{name} cannot stand in a file of variables: {value!r}")
    return [f"cat >{path} <<'END'", *(f"{name}={value}" for name, value in variables.items()), "END"]
