"""`peerless report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import RunFailed, UserError
from peerless.commands.options import interruptible, note

if TYPE_CHECKING:
    from peerless.report.reading import KeptRun

#: In the names of files that several runs share.
_NAME_CHARACTERS = 120


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(report))


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Runs, by their names or folders.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Without, report.html in the run's folder, or report-NAMES.html here."
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FOLDER", help="Write the figures as CSV files too, into FOLDER.")
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write one HTML file about a run, or several side by side: it needs no network, and nothing beside it.

    Accuracy and loss, seconds per stage, who waited for whom, bytes, cost, faults, the configuration. A run that goes
    on is reported as far as it has come.
    """
    from peerless.launch import parts
    from peerless.report import csvs, document
    from peerless.report.reading import read_run

    folders = [parts.find(run, Path("runs"), "peerless report").path for run in runs]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("peerless report: the same run is named twice")
    kept = [read_run(folder) for folder in folders]
    if len({run.name for run in kept}) < len(kept):  # folders of the same name in different places
        kept = [replace(run, name=str(run.folder)) for run in kept]
    for problem in (problem for run in kept for problem in run.problems):
        note(f"note: {problem}")
    target = out or _default(kept)
    _write(target, document.page(kept))
    print(target)
    if csv is not None:
        for name, content in csvs.csv_files(kept).items():
            _write(csv / name, content)
        print(csv)
    if open_:
        typer.launch(target.resolve().as_uri())


def _default(runs: Sequence[KeptRun]) -> Path:
    """Beside what it tells of."""
    if len(runs) == 1:
        return runs[0].folder / "report.html"
    names = "-".join(run.folder.resolve().name for run in runs)
    return Path(f"report-{names[:_NAME_CHARACTERS]}.html")


def _write(file: Path, content: str) -> None:
    """Raises UserError where the file cannot lie there, RunFailed where the disk refuses."""
    if file.is_dir():
        raise UserError(f"peerless report: {file} is a folder; name a file")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    except (NotADirectoryError, FileExistsError, PermissionError) as error:
        raise UserError(f"peerless report: {file} cannot be written ({error.strerror}); name another place") from error
    except OSError as error:
        raise RunFailed(f"peerless report: {file} cannot be written ({error.strerror})") from error
