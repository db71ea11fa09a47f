"""`peerless export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peerless.commands.options import Json, interruptible, note, show
from peerless.commands.runs import RUNS


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(export))


def export(
    run: Annotated[str, typer.Argument(help="A run that has ended, by its name or folder.", show_default=False)],
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="safetensors, or state_dict (torch.load, weights only).")
    ] = "safetensors",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="File, or folder that exists; without, the run's name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a run's model, checked against its summary, and a card beside it: data, result, cost, hashes, settings."""
    from peerless.launch.export import export

    made = export(run, form, out, runs_dir=RUNS)
    if not made.checked:
        note("the weights were not compared with the summary: the run is of an older version")
    told = {
        "run": made.run,
        "model": str(made.model),
        "card": str(made.card),
        "model_sha256": made.model_sha256,
        "file_sha256": made.file_sha256,
    }
    show(told | ({"checked": made.checked} if as_json else {}), as_json)
