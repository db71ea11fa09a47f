"""`peerless runs`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from peerless.commands.options import Json, interruptible

#: Where `peerless train` keeps runs, relative to the working directory.
RUNS = Path("runs")
#: Characters of a line where nobody reads on a terminal: nothing is broken.
WIDE = 10_000


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(runs))


def runs(
    folder: Annotated[Path | None, typer.Argument(help="A folder with runs, or of one; without, runs/.")] = None,
    as_json: Json = False,
) -> None:
    """List the runs that are kept here, the newest first: what they trained, how they stand, how far they came."""
    from rich.console import Console

    from peerless.launch.runs import runs_in
    from peerless.report.view_runs import runs_table

    found = [] if folder is None and not RUNS.exists() else runs_in(folder or RUNS)
    if as_json:
        print(json.dumps({"runs": [dataclasses.asdict(row) for row in found]}))
        return
    console = Console()
    if not found:
        console.print(f"no runs in {folder or RUNS}", markup=False, highlight=False, soft_wrap=True)
        return
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(runs_table(found))
