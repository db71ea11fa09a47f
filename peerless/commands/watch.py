"""`peerless watch`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from contract.errors import UserError
from peerless.commands.options import interruptible, note
from peerless.commands.runs import RUNS, WIDE


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(watch))


def watch(
    run: Annotated[
        str, typer.Argument(help="A run that was started on this machine, by its name or folder.", show_default=False)
    ],
) -> None:
    """Watch a run that goes on: peers, rounds, curves, bytes, bill, faults. Ctrl-C lets go of it; it goes on.

    Ends with the run; of a run that has ended it shows how.
    """
    import contract.config
    from contract.clock import SystemClock
    from peerless.launch import watch as watching
    from peerless.launch.runs import ELSEWHERE, open_run, row_of
    from peerless.report.view import View
    from peerless.report.view_lines import StateLines

    folder, clock = open_run(run, RUNS, "peerless watch"), SystemClock()
    config = contract.config.from_toml(folder.config)
    row = row_of(folder)
    if row.state == ELSEWHERE:
        raise UserError(f"the run in {folder.path} is not followed on this machine: {row.detail}")
    console = _console()
    with View(console, clock) if console.is_terminal else StateLines(console, clock) as view:
        try:
            went_on = watching.watch(folder, config.peers, view, clock)
        except KeyboardInterrupt:
            note(f"let go of the run, which goes on; `peerless watch {run}` follows it again")
            return
    if not (went_on and console.is_terminal):  # there the last picture stands already
        console.print(view.picture())
    _tell_end(folder, console)


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _tell_end(folder: Any, console: Any) -> None:
    """How the run ended: by its summary, or that it was killed. Raises CorruptObject."""
    from contract.errors import CorruptObject
    from peerless.launch.runs import read_summary, row_of
    from peerless.report.table import result_table

    summary = read_summary(folder)
    if summary is None:
        row = row_of(folder)
        told = f"the run was {row.state}: no process works on it, and it has no summary"
        note(f"{told}; to go on with it: {row.detail}" if row.detail else told)
        return
    try:
        console.print(result_table(summary, str(folder.path)))
    except (KeyError, TypeError) as error:
        raise CorruptObject(f"{folder.summary} is not whole, or of another version ({error})") from error
    if summary.get("error"):
        note(f"the run failed: {summary['error']}")
