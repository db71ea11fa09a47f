"""The `peerless` command.

Exit status: 0 done, 1 a failure, 2 a user's mistake, 130 interrupted. What went wrong is one sentence on standard
error; `--debug` adds the traceback.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from contract.errors import PeerlessError, UserError
from peerless.commands import aws, export, join, plan, report, reproduce, runs, statemachine, watch
from peerless.commands.options import (
    Config,
    Json,
    MaybeConfig,
    Peers,
    RunDir,
    Seed,
    Set,
    Yes,
    asker,
    interruptible,
    overrides,
    show,
)
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


@app.command()
@interruptible()
def train(
    config: MaybeConfig = None,
    on_this_machine: Annotated[bool, typer.Option("--local", help="Run everything on this machine.")] = False,
    deployed: Annotated[
        bool, typer.Option("--deployed", help="With --local: on what `peerless deploy --local` made.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="In place of CONFIG: go on with a run, by its name or folder."),
    ] = None,
    peers: Peers = None,
    run_dir: RunDir = None,
    seed: Seed = None,
    set_: Set = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Train, and leave config.toml, events.jsonl, model.safetensors, summary.json and logs in the run's folder.

    On AWS, on what `peerless deploy` made there, unless --local says otherwise.
    """
    from peerless import api
    from peerless.report.progress import observer

    if resume is not None:
        _refuse_beside_resume(config, on_this_machine, deployed, run_dir)
    elif config is None:
        raise UserError("peerless train: name a configuration, or with --resume a run to go on with")
    if deployed and not on_this_machine:
        raise UserError("peerless train: --deployed goes with --local; on AWS a run always uses what is deployed")
    console, given = Console(stderr=as_json), overrides(set_, peers=peers, seed=seed)
    with observer(console) as view:
        if config is None:
            run = api.resume(str(resume), overrides=given, observer=view)
        elif on_this_machine:
            run = api.train(config, overrides=given, run_dir=run_dir, observer=view, deployed=deployed)
        else:
            run = api.train_on_aws(config, overrides=given, run_dir=run_dir, observer=view, confirm=asker(yes))
    aws.show_result(run.summary, str(run.folder), console, as_json)


def _refuse_beside_resume(config: Path | None, on_this_machine: bool, deployed: bool, run_dir: Path | None) -> None:
    """Raise UserError for what contradicts --resume."""
    if config is not None:
        raise UserError(
            "peerless train --resume: the run has its configuration; leave CONFIG out, and change what may change "
            "with --set"
        )
    if not on_this_machine:
        raise UserError(
            "peerless train --resume: on AWS a run's instances go on by themselves, and a run that has ended there is "
            "started anew; add --local for a run that was trained on this machine"
        )
    if deployed or run_dir is not None:
        raise UserError("peerless train --resume: the run knows its folder and its deployment; leave those options out")


@app.command()
@interruptible()
def prepare(config: Config, peers: Peers = None, seed: Seed = None, set_: Set = None, as_json: Json = False) -> None:
    """Fetch and check the data, divide them, build the model, and show what a run would do; start nothing."""
    from peerless.launch.preview import preview
    from peerless.report.table import preview_table

    notes = Console(stderr=True)
    plan = preview(config, overrides(set_, peers=peers, seed=seed), notes.print)
    if as_json:
        print(json.dumps(plan))
    else:
        Console().print(preview_table(plan))


@local.command("up")
@interruptible()
def local_up(as_json: Json = False) -> None:
    """Start the servers and leave them running; `peerless train --local` in this folder then uses them."""
    from infra.local.cloud import LocalCloud
    from peerless.launch.run_folder import LOCAL_FOLDER

    show(LocalCloud.up(LOCAL_FOLDER), as_json)


@local.command("down")
@interruptible()
def local_down(as_json: Json = False) -> None:
    """Stop the servers that `peerless local up` started in this folder."""
    from infra.local import unfinished
    from infra.local.cloud import LocalCloud
    from peerless.launch.run_folder import LOCAL_FOLDER

    kept = ", ".join(unfinished.runs(LOCAL_FOLDER))
    show({**LocalCloud.down(LOCAL_FOLDER), **({"data kept of": kept} if kept else {})}, as_json)


@local.command("status")
@interruptible()
def local_status(as_json: Json = False) -> None:
    """Say which servers run, and where they listen."""
    from infra.local.cloud import LocalCloud
    from peerless.launch.run_folder import LOCAL_FOLDER

    show(LocalCloud.status(LOCAL_FOLDER), as_json)


join.register(app)
watch.register(app)
runs.register(app)
export.register(app)
aws.register(app)
report.register(app)
statemachine.register(app)
plan.register(app)
reproduce.register(app)


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
