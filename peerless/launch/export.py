"""`peerless export`: a run's model for use elsewhere, checked against the run's summary, with a card that describes it.

The file that a run saves carries names, shapes and order of its tensors, so the code of the model is not needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import contract.config
from contract.errors import ConfigError, CorruptObject, UserError
from contract.weights_file import Saved, read_saved
from peerless.launch.model_card import Card
from peerless.launch.run_folder import RunFolder
from peerless.launch.runs import is_going_on, open_run, read_summary


def _state_dict(saved: Saved, blob: bytes) -> bytes:
    file = io.BytesIO()
    torch.save(dict(saved.tensors), file)
    return file.getvalue()


#: By name: the ending of the file, and its content from what the run saved.
FORMATS: Mapping[str, tuple[str, Callable[[Saved, bytes], bytes]]] = {
    "safetensors": (".safetensors", lambda saved, blob: blob),
    "state_dict": (".pt", _state_dict),
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    run: str
    model: Path
    card: Path
    model_sha256: str
    """Of weights and buffers, as in summary.json."""
    file_sha256: str
    """Of the file's bytes."""
    checked: bool
    """Whether the weights could be compared with `model_sha256`: not those of a run of an older version."""


def export(run: str, form: str, out: Path | None, *, runs_dir: Path = Path("runs")) -> Exported:
    """Write the model of `run` (its name or folder) to `out`, a file or an existing folder, and its card beside it.

    Without `out` the file goes into the working directory, named after the run. Raises UserError for a mistake, and
    CorruptObject where the model is not the one that summary.json names.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form}: there are {' and '.join(FORMATS)}")
    folder = open_run(run, runs_dir, "peerless export")
    name = folder.path.resolve().name
    ending, encode = FORMATS[form]
    target = _target(out, f"{name}{ending}")
    card = target.with_suffix(".md")
    for path in (target, card):
        if path.exists():
            raise UserError(f"{path} exists; name another file with --out")
    summary, blob = _summary(folder), _model(folder)
    saved = _checked(folder, summary, blob)
    content = blob if form == "safetensors" else encode(saved, blob)
    made = Exported(
        run=str(summary.get("run_id", name)),
        model=target,
        card=card,
        model_sha256=str(summary["model_sha256"]),
        file_sha256=hashlib.sha256(content).hexdigest(),
        checked=saved.sha256 is not None,
    )
    text = Card(
        run=made.run,
        form=form,
        file=target.name,
        file_bytes=len(content),
        file_sha256=made.file_sha256,
        config=contract.config.from_toml(folder.config),
        summary=summary,
        saved=saved,
        code=folder.code,
    ).markdown()
    _write(target, content)
    _write(card, text.encode())
    return made


def _target(out: Path | None, name: str) -> Path:
    """Where the model goes. Raises ConfigError."""
    target = Path(name) if out is None else out / name if out.is_dir() else out
    if target.suffix == ".md":
        raise ConfigError(f"--out {target}: the model's card gets the ending .md; name the model's file otherwise")
    if not target.parent.is_dir():
        raise ConfigError(f"--out {target}: there is no folder {target.parent}")
    return target


def _summary(folder: RunFolder) -> dict[str, Any]:
    """Raises UserError for a run that has none, or no model."""
    if is_going_on(folder):
        raise UserError(f"the run in {folder.path} is going on; it has its model when it has ended (`peerless watch`)")
    summary = read_summary(folder)
    if summary is None:
        raise UserError(
            f"the run in {folder.path} has no summary.json, so it has not ended: `peerless train --local --resume` "
            "goes on with one that was trained here, `peerless attach` fetches the result of one on AWS"
        )
    if not summary.get("model_sha256"):
        raise UserError(f"the run in {folder.path} ended ({summary['reason']}) without a model")
    return summary


def _model(folder: RunFolder) -> bytes:
    """Raises UserError."""
    try:
        return folder.model.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{folder.model} is gone, which the run had saved") from error
    except OSError as error:
        raise UserError(f"{folder.model} cannot be read ({error.strerror})") from error


def _checked(folder: RunFolder, summary: Mapping[str, Any], blob: bytes) -> Saved:
    """Raises CorruptObject."""
    try:
        saved = read_saved(blob)
    except CorruptObject as error:
        raise CorruptObject(f"{folder.model}: {error}; it was damaged after the run") from error
    if saved.sha256 not in (None, summary["model_sha256"]):
        raise CorruptObject(
            f"{folder.model} holds the weights {saved.sha256[:12]}…, but the run's summary names "
            f"{str(summary['model_sha256'])[:12]}…; the file was changed after the run"
        )
    return saved


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all. Raises UserError."""
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{target} cannot be written ({error.strerror}); name another place with --out") from error
