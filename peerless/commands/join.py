"""`peerless join`."""

from __future__ import annotations

from typing import Annotated

import typer

from peerless.commands.options import Json, Set, interruptible, show


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(join))


def join(
    run: Annotated[str, typer.Argument(help="A run that trains on this machine, by its name or folder.")],
    given: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="PATH_OR_SOURCE",
            help="An npz file, a folder with a folder per class, mnist, fashion-mnist, cifar10, or module:callable.",
        ),
    ],
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Join a run that is under way with data of your own, and follow the new peer. Ctrl-C: it leaves, the others go on.

    The data are preprocessed as the run's own; `--set` knows data.source, data.path and data.train_samples.
    """
    from rich.console import Console

    from peerless.launch.join import join_local
    from peerless.report.progress import observer

    with observer(Console(stderr=True)) as view:
        done = join_local(run, given, view, overrides=set_ or ())
    show(done, as_json)
