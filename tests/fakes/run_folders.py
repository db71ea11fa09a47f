"""Folders as runs leave them, without a run: a configuration, events, a model with tied parameters and buffers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contract.config import RunConfig
from contract.tensors import weights_hash
from contract.weights_file import to_safetensors
from peerless.launch.follow import Told
from peerless.launch.result import SavedModel, summarise
from peerless.launch.run_folder import RunFolder
from tests.fakes.mixed_model import mixed, values

#: Seconds since the epoch of every made run's first event.
START = 1_795_336_776.0
RUN = "mnist-20261122-083936-2fa2"


def event(name: str, rank: int = 0, round: int | None = 0, t: float = 0.0, **fields: Any) -> dict[str, Any]:
    """As in events.jsonl, `t` seconds after the start."""
    return {"v": 1, "t": START + t, "run": RUN, "rank": rank, "round": round, "event": name, **fields}


def begun(path: Path, *events: dict[str, Any], **settings: Any) -> RunFolder:
    """A folder with a configuration and events, as it is while a run goes on."""
    folder = RunFolder.create(path)
    values = {"name": "mnist", "model": "package.of.mine:Net", "peers": 2, **settings}
    folder.write(folder.config, RunConfig.model_validate(values).to_toml().encode())
    write_events(folder, *events)
    return folder


def write_events(folder: RunFolder, *events: dict[str, Any]) -> None:
    """Append them, and make the file where it is missing."""
    with open(folder.events, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in events)


def ended(path: Path, *, model: bool = True, changes: dict[str, Any] | None = None, **settings: Any) -> RunFolder:
    """A folder with a summary, and with the model of `tests/fakes/mixed_model.py`; `changes` go into the summary."""
    folder = begun(path, event("peer_started", round=None, pid=1, mode="sync"), **settings)
    layout, flat, buffers = values(mixed())
    sha256, blob = weights_hash(layout, flat, buffers), to_safetensors(layout, flat, buffers)
    saved = SavedModel(sha256=sha256, safetensors=blob, test_loss=0.25, test_accuracy=0.9375) if model else None
    if saved is not None:
        folder.write(folder.model, saved.safetensors)
    summary = summarise(
        run=RUN,
        config=RunConfig(peers=2),
        reports=[],
        model=saved,
        counters={},
        told=Told(rounds=12),
        peak_memory_bytes=None,
        seconds_total=9.0,
        error=None,
    )
    folder.write_summary({**summary, "reason": "epoch_limit", **(changes or {})})
    return folder
