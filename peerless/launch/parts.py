"""What a run's folder says of a run that is not finished: which internal runs it has had so far, and where they lie.

A run that is taken up again continues under a new internal name (`<run>-r2`, `<run>-r3`, …) in the same buckets,
because the records of the old one say that it has ended. The file goes when the run is finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from contract.errors import ConfigError, CorruptObject
from contract.records import Record
from peerless.launch.result import UNFINISHED
from peerless.launch.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Parts(Record):
    """`.resume.json`."""

    NAME: ClassVar[str] = "record of an unfinished run"

    version: int = 1
    runs: tuple[str, ...]
    """Internal names in order; the first is the run's own."""
    run_bucket: str
    servers: str = ""
    """Folder of the servers of `peerless local up` that hold the data; empty where they are in the run's own folder."""
    deployed: bool = False
    """Whether it runs on what `peerless deploy --local` made."""

    @property
    def run(self) -> str:
        """The run's own name."""
        return self.runs[0]

    def next(self) -> Parts:
        """With one more internal run."""
        return replace(self, runs=(*self.runs, f"{self.run}-r{len(self.runs) + 1}"))

    def write(self, folder: RunFolder) -> None:
        """Raises RunFailed."""
        folder.write(folder.parts, self.to_json())


def find(run: str, runs_dir: Path, told: str = "--resume") -> RunFolder:
    """The folder of `run`, which is its name or its folder. Raises ConfigError, which begins with `told`."""
    for path in (Path(run), runs_dir / run):
        if path.is_dir() and (path / "config.toml").is_file():
            return RunFolder(path)
    raise ConfigError(f"{told} {run}: there is no run of that name in {runs_dir}, and it is no folder of a run")


def read(folder: RunFolder) -> Parts:
    """What can be taken up in `folder`. Raises ConfigError, which says why nothing can."""
    reason = _reason(folder)
    if reason is not None and reason not in UNFINISHED:
        raise ConfigError(f"the run in {folder.path} is finished ({reason}); there is nothing to resume")
    try:
        return Parts.from_json(folder.parts.read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"the run in {folder.path} cannot be resumed: it ended before its first round was completed, or it is of "
            "an older version, or trained elsewhere; start it anew"
        ) from error
    except CorruptObject as error:
        raise ConfigError(f"the run in {folder.path} cannot be resumed: {error}") from error


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Be the one who works on the run. Raises ConfigError while another does; ends with this process at the latest."""
    with folder.events.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"the run in {folder.path} is going on") from error
        yield


def is_going_on(folder: RunFolder) -> bool:
    """Whether somebody works on the run. Raises ConfigError where that cannot be seen."""
    try:
        with folder.events.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise ConfigError(f"{folder.events} cannot be read ({error.strerror})") from error
    return False


def drop_torn_line(events: Path) -> None:
    """Take off what a killed peer may have left half written at the end of events.jsonl."""
    with events.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)


def _reason(folder: RunFolder) -> str | None:
    """How the run ended, by its summary; None where it has none, or one that is not of a run."""
    try:
        return str(json.loads(folder.summary.read_bytes())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
