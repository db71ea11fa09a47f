"""The `peerless` command.

Exit status: 0 done, 1 a failure, 2 a user's mistake, 130 interrupted. What went wrong is one sentence on standard
error; `--debug` adds the traceback.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from contract.errors import PeerlessError, UserError
from peerless.report import streams

app = typer.Typer(
    name="peerless",
    help="Train PyTorch models with peers that own their data and rent their compute by the millisecond.",
    epilog="--debug, anywhere on the line, shows tracebacks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
local = typer.Typer(help="Keep the local AWS, RabbitMQ and Lambda service running between runs.", no_args_is_help=True)
app.add_typer(local, name="local")

Config = Annotated[
    Path, typer.Argument(help="Configuration, TOML; examples/mnist.toml writes every key out.", show_default=False)
]
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

INTERRUPTED = 130


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Typer would end without a word."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print(f"peerless: {str(interrupt) or 'interrupted; what had been started is stopped again'}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from interrupt


@app.command()
@_interruptible()
def train(
    config: Config,
    on_this_machine: Annotated[bool, typer.Option("--local", help="Run everything on this machine.")] = False,
    peers: Peers = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of this run [default: runs/<run-id>].")
    ] = None,
    seed: Seed = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Train, and leave config.toml, events.jsonl, model.safetensors, summary.json and logs in the run's folder."""
    from peerless import api
    from peerless.report.progress import observer
    from peerless.report.table import result_table

    if not on_this_machine:
        raise UserError("peerless train: training on AWS is not there yet; add --local to train on this machine")
    console = Console(stderr=as_json)
    with observer(console) as view:
        run = api.train(config, overrides=_overrides(overrides, peers=peers, seed=seed), run_dir=run_dir, observer=view)
    if as_json:
        print(json.dumps(run.summary))
    else:
        console.print(result_table(run.summary, str(run.folder)))
    if run.summary["reason"] == "interrupted":
        raise typer.Exit(INTERRUPTED)


@app.command()
@_interruptible()
def prepare(
    config: Config, peers: Peers = None, seed: Seed = None, overrides: Set = None, as_json: Json = False
) -> None:
    """Fetch and check the data, divide them, build the model, and show what a run would do; start nothing."""
    from peerless.launch.preview import preview
    from peerless.report.table import preview_table

    notes = Console(stderr=True)
    plan = preview(config, _overrides(overrides, peers=peers, seed=seed), notes.print)
    if as_json:
        print(json.dumps(plan))
    else:
        Console().print(preview_table(plan))


@local.command("up")
@_interruptible()
def local_up(as_json: Json = False) -> None:
    """Start the servers and leave them running; `peerless train --local` in this folder then uses them."""
    from infra.local.cloud import LocalCloud
    from peerless.launch.local import LOCAL_FOLDER

    _show(LocalCloud.up(LOCAL_FOLDER), as_json)


@local.command("down")
@_interruptible()
def local_down(as_json: Json = False) -> None:
    """Stop the servers that `peerless local up` started in this folder."""
    from infra.local.cloud import LocalCloud
    from peerless.launch.local import LOCAL_FOLDER

    _show(LocalCloud.down(LOCAL_FOLDER), as_json)


@local.command("status")
@_interruptible()
def local_status(as_json: Json = False) -> None:
    """Say which servers run, and where they listen."""
    from infra.local.cloud import LocalCloud
    from peerless.launch.local import LOCAL_FOLDER

    _show(LocalCloud.status(LOCAL_FOLDER), as_json)


def _overrides(given: list[str] | None, **options: int | None) -> list[str]:
    """`--set` texts, with `--peers` and `--seed` as the last word."""
    return [*(given or ()), *(f"{key}={value}" for key, value in options.items() if value is not None)]


def _show(status: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(status))
    else:
        for name, value in status.items():
            print(f"{name:14} {value}")


def report_error(error: PeerlessError) -> int:
    """Print the sentence of an error and give the exit status that belongs to it."""
    print(f"peerless: {error}", file=sys.stderr)
    return 2 if isinstance(error, UserError) else 1


def guarded(command: Callable[[], Any], debug: bool) -> int:
    """Run `command`; turn what Peerless reports into a sentence and an exit status."""
    try:
        command()
    except PeerlessError as error:
        if debug:
            raise
        return report_error(error)
    except SystemExit as status:
        return status.code if isinstance(status.code, int) else 1
    except Exception as error:  # a mistake of ours; the sentence asks for what is needed to find it
        if debug:
            raise
        told = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"peerless: internal error, {told} (--debug shows where)", file=sys.stderr)
        return 1
    return 0


def main() -> None:
    """Entry point of the `peerless` command."""
    if platform.system() not in ("Linux", "Darwin"):
        sys.exit("peerless: Peerless runs on Linux and macOS; on Windows use WSL2")
    streams.secure()
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    sys.exit(guarded(app, debug))
