"""The folder of one run: what a user keeps of it.

config.toml         complete configuration; `peerless train config.toml --local` repeats the run
events.jsonl        one JSON object a line, from all peers
model.safetensors   the saved model
summary.json        the figures of the run
logs/               one log per process
code/               the user's own code as it was shipped, if any
dataset.npz         the data, where they were passed from Python

While the run is not finished, what `peerless train --resume` and `peerless join` need is there too:
.resume.json        the run's internal names and where its buckets are (peerless/launch/parts.py)
.s3/                the objects of the local S3, where the run has servers of its own
.servers.json       where the servers listen, while the run goes on
.guest-*            locked by those who have joined, as long as they take part
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contract.clock import Clock
from contract.errors import ConfigError, RunFailed
from infra.local.cloud import S3_FOLDER

#: Where `peerless local up` keeps its state, relative to the working directory, as `runs` is.
LOCAL_FOLDER = Path(".peerless/local")


def new_run_id(name: str, clock: Clock) -> str:
    """`<name>-<UTC time>-<four random hex digits>`: sorts by time, unique, and valid in bucket and queue names."""
    moment = datetime.fromtimestamp(clock.now(), UTC)
    return f"{name}-{moment:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


class RunFolder:
    """Paths of one run and atomic writes into them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.events = path / "events.jsonl"
        self.model = path / "model.safetensors"
        self.summary = path / "summary.json"
        self.logs = path / "logs"
        self.code = path / "code"
        self.dataset = path / "dataset.npz"
        self.parts = path / ".resume.json"
        self.s3 = path / S3_FOLDER
        self.servers = path / ".servers.json"

    @staticmethod
    def check(path: Path) -> None:
        """Raise ConfigError unless a run may use this folder: it is absent or empty, so that no two runs mix."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"{path}: the run folder exists and is not empty; name another with --run-dir")

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Make the folder. Raises ConfigError."""
        cls.check(path)
        try:
            (path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{path}: the run folder cannot be created ({error.strerror})") from error
        return cls(path)

    def scratch(self, rank: int) -> Path:
        """An empty folder for the temporary files of a peer; whoever ends the peer removes it. Raises RunFailed."""
        folder = (self.path / f".peer-{rank}").resolve()
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of a peer whose guard was killed too
            folder.mkdir()
        except OSError as error:
            raise RunFailed(f"{folder} cannot be created ({error.strerror})") from error
        return folder

    def write(self, target: Path, content: bytes) -> None:
        """Write a file so that it is either absent or whole. Raises RunFailed."""
        temporary = target.with_name(f".{target.name}.part")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise RunFailed(
                f"{target} cannot be written ({error.strerror}); free space or name another folder with --run-dir"
            ) from error

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write summary.json, indented for people."""
        self.write(self.summary, (json.dumps(summary, indent=2) + "\n").encode())
