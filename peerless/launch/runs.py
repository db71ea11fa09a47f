"""The runs that are kept in a folder, and how each stands: by its configuration, its summary and its events alone.

A folder may be damaged, half written or of another version; then its row says so, and the others are listed all the
same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contract.config
from contract.config import RunConfig
from contract.errors import ConfigError, CorruptObject, PeerlessError
from peerless.launch import parts
from peerless.launch.follow import EventTail
from peerless.launch.run_folder import RunFolder
from peerless.report.story import DamagedEvent, Story

#: States of a run. `elsewhere`: nothing here works on it and it has no summary, but its instances may go on.
RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
KILLED, ELSEWHERE, DAMAGED = "killed", "elsewhere", "damaged"
#: How many runs a mistaken name is answered with.
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run; None where nothing is known."""

    name: str
    """Its folder's."""
    folder: str
    state: str
    detail: str | None = None
    """Why it finished or failed, what is wrong with its folder, or what can be done."""
    started: float | None = None
    """Seconds since the epoch: its first event; before that when its folder was made."""
    model: str | None = None
    peers: int | None = None
    """Those that it began with."""
    joined: int | None = None
    mode: str | None = None
    rounds: int | None = None
    accuracy: float | None = None
    accuracy_of: str | None = None
    """`test`, or `validation` for a run without a summary."""
    usd: float | None = None
    as_if_on_aws: bool | None = None
    """Whether the run cost nothing, and `usd` is what the same would have cost on AWS."""


def runs_in(folder: Path) -> list[RunRow]:
    """All runs in `folder`, the newest first; the one run where it is a run's own folder. Raises ConfigError."""
    if (folder / "config.toml").is_file():
        return [row_of(RunFolder(folder))]
    try:
        inside = [path for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: there is no such folder; runs are kept in runs/ of the folder where they were started"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder}: the runs cannot be listed ({error.strerror})") from error
    rows = [row_of(run) for run in map(RunFolder, inside) if _is_of_a_run(run)]
    return sorted(rows, key=lambda row: (row.started or 0.0, row.name), reverse=True)


def open_run(run: str, runs_dir: Path, told: str) -> RunFolder:
    """The folder of `run`, which is its name or its folder. Raises ConfigError, which begins with `told` and names the
    latest runs that there are."""
    try:
        return parts.find(run, runs_dir, told)
    except ConfigError as error:
        names = []
        with contextlib.suppress(ConfigError):
            names = [row.name for row in runs_in(runs_dir)]
        if not names:
            raise ConfigError(f"{error}; there are no runs in {runs_dir}") from error
        more = f" and {len(names) - _NAMED} more (`peerless runs`)" if len(names) > _NAMED else ""
        raise ConfigError(f"{error}; there are {', '.join(names[:_NAMED])}{more}") from error


def row_of(folder: RunFolder) -> RunRow:
    """How the run in `folder` stands; never raises for what the folder holds."""
    base: dict[str, Any] = {"name": folder.path.resolve().name, "folder": str(folder.path)}
    try:
        config = contract.config.from_toml(folder.config)
    except ConfigError as error:
        return RunRow(**base, state=DAMAGED, detail=str(error), started=_made(folder))
    base |= {"model": config.model, "peers": config.peers, "mode": config.mode, "started": _started(folder)}
    try:
        if not is_going_on(folder):
            summary = read_summary(folder)
            return RunRow(**base, **_ended(summary)) if summary is not None else _left_behind(folder, config, base)
        return RunRow(**base, state=RUNNING, **_so_far(folder, config.peers))
    except PeerlessError as error:
        return RunRow(**base, state=DAMAGED, detail=str(error))


def is_going_on(folder: RunFolder) -> bool:
    """Whether a process on this machine works on the run. Raises ConfigError where that cannot be seen."""
    return folder.events.exists() and parts.is_going_on(folder)


def read_summary(folder: RunFolder) -> dict[str, Any] | None:
    """summary.json; None where there is none. Raises CorruptObject for one that is not of a run."""
    try:
        summary = json.loads(folder.summary.read_bytes())
        if not isinstance(summary["reason"], str):
            raise TypeError("`reason` is no text")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptObject(f"{folder.summary} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptObject(
            f"{folder.summary} is not the summary of a run ({type(error).__name__}: {error})"
        ) from error
    return dict(summary)


def events_of(tail: EventTail) -> Iterator[dict[str, Any]]:
    """New events; a line that is none is passed over, as a full disk may leave one."""
    while True:
        try:
            for event in tail.new():
                if isinstance(event, dict):
                    yield event
            return
        except ValueError:
            continue  # the tail stands behind the line already


def cost_of(summary: Mapping[str, Any]) -> tuple[float | None, bool | None]:
    """US dollars in all, and whether they are what the run would have cost on AWS; None where nobody counted."""
    cost = summary.get("cost")
    if isinstance(cost, Mapping) and _number(cost.get("total")) is not None:
        return _number(cost["total"]), bool(cost.get("as_if_on_aws"))
    usd = _number(summary.get("estimated_usd"))
    return usd, None if usd is None else False


def _ended(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of a run that has a summary."""
    reason, (usd, as_if) = summary["reason"], cost_of(summary)
    state = {"failed": FAILED, "interrupted": INTERRUPTED}.get(reason, FINISHED)
    accuracy, joined = _number(summary.get("test_accuracy")), summary.get("joined")
    detail = reason if state == FINISHED else summary.get("error") or summary.get("resume")
    return {
        "state": state,
        "detail": None if detail is None else str(detail),
        "joined": len(joined) if isinstance(joined, Mapping) else None,
        "rounds": summary["rounds"] if isinstance(summary.get("rounds"), int) else None,
        "accuracy": accuracy,
        "accuracy_of": None if accuracy is None else "test",
        "usd": usd,
        "as_if_on_aws": as_if,
    }


def _left_behind(folder: RunFolder, config: RunConfig, base: Mapping[str, Any]) -> RunRow:
    """A run that nobody here works on, and that has no summary."""
    told = _so_far(folder, config.peers)
    if not folder.events.exists():
        detail = "no event came yet; if it was started on AWS, `peerless attach` follows it"
        return RunRow(**base, state=ELSEWHERE, detail=detail, **told)
    if _first_event(folder).get("event") == "instance_started":
        detail = f"`peerless attach --name {config.aws.name}` follows it"
        return RunRow(**base, state=ELSEWHERE, detail=detail, **told)
    command = f"peerless train --local --resume {folder.path}" if folder.parts.exists() else None
    return RunRow(**base, state=KILLED, detail=command, **told)


def _so_far(folder: RunFolder, peers: int) -> dict[str, Any]:
    """What a row says by the events of a run."""
    story = Story()
    for event in events_of(EventTail(folder.events)):
        with contextlib.suppress(DamagedEvent):
            story.add(event)
    rounds = story.series()
    accuracy = next((each.validation_accuracy for each in reversed(rounds) if each.validation), None)
    usd = story.usd()
    return {
        "joined": sum(rank >= peers for rank in story.members),
        "rounds": max((each.number + 1 for each in rounds if any(each.contributors.values())), default=0),
        "accuracy": accuracy,
        "accuracy_of": None if accuracy is None else "validation",
        "usd": usd,
        "as_if_on_aws": None if usd is None else False,
    }


def _is_of_a_run(folder: RunFolder) -> bool:
    return any(path.exists() for path in (folder.config, folder.events, folder.summary, folder.model))


def _started(folder: RunFolder) -> float | None:
    return _number(_first_event(folder).get("t")) or _made(folder)


def _made(folder: RunFolder) -> float | None:
    for path in (folder.config, folder.path):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return None


def _first_event(folder: RunFolder) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        return next(events_of(EventTail(folder.events)), {})
    return {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
