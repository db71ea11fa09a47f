"""Options that several commands have, and how every command ends on Ctrl-C and asks before it spends."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from contract.errors import UserError

_CONFIG = typer.Argument(help="Configuration, TOML; examples/mnist.toml writes every key out.", show_default=False)
Config = Annotated[Path, _CONFIG]
MaybeConfig = Annotated[Path | None, _CONFIG]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. optimizer.lr=0.1; repeatable."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output; progress goes to standard error.")
]
Peers = Annotated[
    int | None, typer.Option("--peers", metavar="N", help="Number of peers (instead of the configuration's).")
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="S", help="Seed (instead of the configuration's).")]
RunDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of this run; without, runs/<run-id>.")]
Yes = Annotated[bool, typer.Option("--yes", help="Answer yes to what is asked.")]
Name = Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the deployment, `aws.name`.")]
Local = Annotated[bool, typer.Option("--local", help="On the servers of `peerless local up`, in place of AWS.")]

INTERRUPTED = 130


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Typer would end without a word."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"peerless: {str(interrupt) or 'interrupted; what had been started is stopped again'}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from interrupt


def overrides(given: list[str] | None, **options: int | None) -> list[str]:
    """`--set` texts, with `--peers` and `--seed` as the last word."""
    return [*(given or ()), *(f"{key}={value}" for key, value in options.items() if value is not None)]


def show(status: dict[str, Any], as_json: bool) -> None:
    """One JSON object, or a line per entry."""
    if as_json:
        print(json.dumps(status))
    else:
        for name, value in status.items():
            print(f"{name:14} {value}")


def note(text: str) -> None:
    """A line for the user, beside what the command prints."""
    print(text, file=sys.stderr, flush=True)


def asker(yes: bool) -> Callable[[str], bool]:
    """Asks a question on the terminal; `yes` answers it. Raises UserError where nobody sits at one."""

    def confirm(question: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise UserError(f"{question} Nobody is there to answer; add --yes to agree beforehand")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return confirm
