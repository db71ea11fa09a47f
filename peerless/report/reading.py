"""Reads what a run's folder keeps, as far as it can be read, and says where it cannot."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.errors import UserError
from peerless.report.story import DamagedEvent, Story

#: Of more damaged lines than these, the number alone is told.
_DAMAGES_TOLD = 5
_SENTENCE_CHARACTERS = 160
#: Figures of the summary by their forms.
_NUMBERS = frozenset(
    {
        "rounds",
        "epochs",
        "parts",
        "test_accuracy",
        "test_loss",
        "validation_loss",
        "seconds_training",
        "seconds_total",
        "lambda_invocations",
        "state_machine_executions",
        "compression_ratio",
        "peak_memory_bytes",
        "estimated_usd",
    }
)
_COUNTS = frozenset(("bytes_sent", "bytes_received", "restarts"))
_LISTS = frozenset(("joined", "left", "lost_ranks"))
_STAGE = ("seconds", "cpu_percent", "peak_bytes", "peak_rss_bytes", "bytes_in", "bytes_out")


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """One run as its folder tells it."""

    name: str
    """Its folder's: the run's own, unless --run-dir gave it another."""
    folder: Path
    story: Story
    summary: dict[str, Any]
    """Empty where the run has none yet, or it cannot be read."""
    config: dict[str, Any]
    """As in config.toml; empty where that cannot be read."""
    config_text: str
    problems: tuple[str, ...]
    """What could not be read, and where: a sentence each."""


def read_run(folder: Path) -> KeptRun:
    """Raises UserError where the folder tells nothing at all."""
    problems: list[str] = []
    events, summary_file, config_file = (folder / name for name in ("events.jsonl", "summary.json", "config.toml"))
    story = Story()
    if (lines := _text(events, problems, "the events")) is not None:
        problems += tell(story, events, lines.split("\n"))
    summary: dict[str, Any] = {}
    if (text := _text(summary_file, problems, "the figures of the summary; a run gets one when it ends")) is not None:
        try:
            found = json.loads(text)
            if isinstance(found, dict):
                summary = {key: value for key, value in found.items() if _is_sound(key, value)}
                problems += [
                    f"{summary_file}: {key} has another form than it should" for key in found if key not in summary
                ]
            else:
                problems.append(f"{summary_file} is no summary: it has no JSON object")
        except ValueError as error:
            problems.append(f"{summary_file} is damaged ({error}); its figures are left out")
    config: dict[str, Any] = {}
    config_text = _text(config_file, problems, "the configuration") or ""
    try:
        config = tomllib.loads(config_text)
    except tomllib.TOMLDecodeError as error:
        problems.append(f"{config_file} is damaged ({error}); it is shown as it is")
    if not summary and story.start is None:
        raise UserError(f"{folder}: there is nothing to report: no event and no summary can be read")
    return KeptRun(
        name=folder.resolve().name,
        folder=folder,
        story=story,
        summary=summary,
        config=config,
        config_text=config_text,
        problems=tuple(problems),
    )


def tell(story: Story, file: Path, lines: Iterable[str]) -> list[str]:
    """Feed the lines of events.jsonl to `story`; gives a sentence for each that is no event, with its number."""
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise DamagedEvent("no JSON object")
            story.add(event)
        except (ValueError, RecursionError, DamagedEvent) as error:
            wrong.append(f"{file}, line {number}: left out, as it cannot be read ({str(error)[:_SENTENCE_CHARACTERS]})")
    if len(wrong) > _DAMAGES_TOLD:
        more = len(wrong) - _DAMAGES_TOLD
        wrong = [*wrong[:_DAMAGES_TOLD], f"{file}: {more} more lines cannot be read either"]
    return wrong


def _is_sound(key: str, value: Any) -> bool:
    """Whether a figure of the summary has the form that the report takes for granted; None is no figure."""
    if value is None:
        return True
    if key in _NUMBERS:
        return _is_number(value)
    if key in _COUNTS:
        return isinstance(value, dict) and all(each.isdigit() and _is_number(count) for each, count in value.items())
    if key == "weights_sha256":
        return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
    if key == "stages":
        rows = value.values() if isinstance(value, dict) else [None]
        return all(isinstance(row, dict) and all(_is_number(row.get(name)) for name in _STAGE) for row in rows)
    if key == "rejected_by_sender":
        return isinstance(value, dict) and all(isinstance(reasons, dict) for reasons in value.values())
    if key == "cost":
        parts = [value.get(name, {}) for name in ("parts", "use")] if isinstance(value, dict) else [None]
        numbers = [each for part in parts for each in (part.values() if isinstance(part, dict) else [None])]
        return all(map(_is_number, numbers)) and _is_number(value.get("total", 0))
    return key not in _LISTS or isinstance(value, list | dict)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(file: Path, problems: list[str], what: str) -> str | None:
    """The content; None, and a sentence, where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems.append(f"{file} is not there, so the report lacks {what}")
    except OSError as error:
        problems.append(f"{file} cannot be read ({error.strerror}), so the report lacks {what}")
    return None
