"""Runs that were not finished on servers which outlive them: whose buckets stay when `peerless local down` stops these.

One file per run in `unfinished/` of the servers' folder, written before the run has anything that is worth keeping.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

_FOLDER = "unfinished"


def note(folder: Path, run: str, buckets: Sequence[str]) -> None:
    """From here on the run's buckets stay. Raises OSError."""
    place = folder / _FOLDER
    place.mkdir(parents=True, exist_ok=True)
    partial = place / f".{run}.part"
    partial.write_text(json.dumps(list(buckets)), encoding="utf-8")
    partial.replace(place / f"{run}.json")


def forget(folder: Path, run: str) -> None:
    """The run is finished, or nobody wants it any more. Raises OSError."""
    (folder / _FOLDER / f"{run}.json").unlink(missing_ok=True)


def runs(folder: Path) -> dict[str, tuple[str, ...]]:
    """The buckets of each run, by its name."""
    return {
        path.stem: tuple(json.loads(path.read_text(encoding="utf-8")))
        for path in sorted((folder / _FOLDER).glob("*.json"))
        if not path.name.startswith(".")
    }


def keep_only_their_buckets(folder: Path, data: Path) -> bool:
    """Remove all other buckets from MiniStack's files in `data`, once it has ended; whether any stays."""
    kept = {bucket for buckets in runs(folder).values() for bucket in buckets}
    for account in data.iterdir() if data.is_dir() else ():
        for bucket in account.iterdir() if account.is_dir() else ():
            if bucket.name not in kept:
                shutil.rmtree(bucket, ignore_errors=True)
    return any(data.glob("*/*"))
