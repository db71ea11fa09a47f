"""`peerless reproduce`: the first paper's tables and figures, run here, beside the paper's own numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from peerless.commands.options import Json, interruptible, note
from peerless.reproduce.experiment import Scale


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(reproduce))


def reproduce(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="table1, table2, table3, figure3, figure4, figure5 or figure6.", show_default=False
        ),
    ],
    scale: Annotated[
        Scale,
        typer.Option(help="small: within ten minutes on two cores; full: the paper's numbers of images and epochs."),
    ] = Scale.SMALL,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the result goes; without, runs/reproduce-NAME-….")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run what a table or figure of the paper shows; write it as Markdown, JSON, CSV and SVG beside the paper's own.

    Every row says whether it is measured here, computed from the price book, derived by a model, or the paper's.
    """
    from contract.clock import SystemClock
    from peerless.launch.run_folder import new_run_id
    from peerless.reproduce.experiments import named
    from peerless.reproduce.result import markdown
    from peerless.reproduce.runner import reproduce

    experiment = named(name)
    folder = out or Path("runs") / new_run_id(f"reproduce-{name}", SystemClock())
    made, written = reproduce(experiment, scale, folder, note)
    if as_json:
        print(json.dumps({"name": made.name, "files": [str(path) for path in written], "runs": list(made.runs)}))
    else:
        print(markdown(made), end="")
        note(f"written to {folder}")
