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
                summary = found
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


def _text(file: Path, problems: list[str], what: str) -> str | None:
    """The content; None, and a sentence, where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        problems.append(f"{file} is not there, so the report lacks {what}")
    except OSError as error:
        problems.append(f"{file} cannot be read ({error.strerror}), so the report lacks {what}")
    return None
