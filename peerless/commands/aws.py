"""The commands for a deployment, from `deploy` to `doctor`. All honour the AWS environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from contract.errors import ConfigError, UserError
from peerless.commands.options import (
    INTERRUPTED,
    Config,
    Json,
    Local,
    Name,
    Peers,
    RunDir,
    Set,
    Yes,
    asker,
    interruptible,
    note,
    overrides,
    show,
)

DEFAULT_NAME = "peerless"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`, in the order in which people meet them."""
    for command in (deploy, attach, status, logs, stop, destroy, doctor):
        app.command()(interruptible()(command))


def deploy(
    config: Config,
    local: Local = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what would change, and change nothing.")] = False,
    local_docker: Annotated[
        bool, typer.Option("--local-docker", help="Build the images with this machine's Docker, not in the cloud.")
    ] = False,
    peers: Peers = None,
    set_: Set = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Make or change what CONFIG needs in an AWS account: buckets, workers, state machines, broker, peers."""
    from peerless.launch.deploy import deploy

    chosen = _configuration(config, overrides(set_, peers=peers))
    confirm = asker(yes or local)
    made = deploy(chosen, local=local, diff=diff, local_docker=local_docker, note=note, confirm=confirm)
    if made is None:
        if not diff:
            raise UserError("nothing was deployed")
        return
    told = {
        "deployment": made.settings.name,
        "peers": made.settings.peers,
        "run_bucket": made.run_bucket,
        "train with": f"peerless train {config}{' --local --deployed' if local else ''}",
    }
    show(told, as_json)


def attach(
    run: Annotated[str | None, typer.Argument(help="The run; without, the deployment's current or last one.")] = None,
    name: Name = DEFAULT_NAME,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Follow a run on AWS again, and fetch its result once it has ended. Ctrl-C lets go of it; it goes on."""
    from rich.console import Console

    from peerless.launch.aws import attach
    from peerless.report.progress import observer

    console = Console(stderr=as_json)
    with observer(console) as view:
        outcome = attach(checked(name), run, view, run_dir=run_dir)
    show_result(outcome.summary, str(outcome.folder.path), console, as_json)


def status(name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """Say what stands of a deployment, what it is doing, and what it costs per hour at this moment."""
    from contract.clock import SystemClock
    from peerless.launch.account import Account
    from peerless.launch.status import status

    checked(name)
    found = status(Account(), name, SystemClock())
    if as_json:
        print(json.dumps(found))
        return
    run, unknown = found["run"], found["price_unknown"]
    in_service = ", ".join(map(str, found["peers_in_service"])) or "none"
    cost = f"{found['usd_per_hour']:.4f}" + (
        f" without {', '.join(unknown)}, whose price is unknown" if unknown else ""
    )
    show({"deployment": f"{name} in {found['region']}", **found["stacks"]}, False)
    show(
        {"peers": f"{found['peers_wanted']} wanted, in service: {in_service}", "run": _told(run), "USD per hour": cost},
        False,
    )


def logs(
    name: Name = DEFAULT_NAME,
    peer: Annotated[int | None, typer.Option("--peer", metavar="N", help="One peer's, by its rank.")] = None,
    workers: Annotated[bool, typer.Option("--workers", help="Those of the gradient workers.")] = False,
    broker: Annotated[bool, typer.Option("--broker", help="Those of the broker.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    since: Annotated[float, typer.Option(metavar="HOURS", min=0.0, help="How far back, in hours.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Show what the peers write; or the gradient workers, or the broker."""
    from contract.clock import SystemClock
    from peerless.launch import logs
    from peerless.launch.account import Account

    if (peer is not None) + workers + broker > 1:
        raise ConfigError("--peer, --workers and --broker exclude each other")
    checked(name)
    clients, clock = Account().client, SystemClock()
    wanted = logs.sources(clients, name, peer=peer, workers=workers, broker=broker)
    try:
        for line in logs.lines(clients, wanted, clock.now() - since * 3_600, follow=follow, clock=clock):
            text = json.dumps({"t": line.t, "stream": line.stream, "text": line.text}) if as_json else str(line)
            print(text, flush=follow)
    except KeyboardInterrupt:
        if not follow:
            raise


def stop(name: Name = DEFAULT_NAME, yes: Yes = False, as_json: Json = False) -> None:
    """Remove what costs while nothing runs: peers, broker, network, alarms. The data stay; `deploy` brings it back."""
    from contract.clock import SystemClock
    from peerless.launch import stop
    from peerless.launch.account import Account
    from peerless.launch.status import settings_of

    checked(name)
    clients = Account().client
    found = stop.found_or_missing(clients, name)
    doomed = stop.to_stop(found, settings_of(found))
    names = ", ".join(stack.title for stack in doomed) or "none"
    note(f"to be deleted: {names}; the logs of the peers go too, a run that goes on is ended, the data stay")
    if not asker(yes)(f"stop the deployment {name} now?"):
        raise UserError("nothing was stopped")
    stop.stop(clients, name, doomed, note, SystemClock())
    show({"deployment": name, "deleted": [stack.name for stack in doomed]}, as_json)


def destroy(
    name: Name = DEFAULT_NAME,
    local: Local = False,
    keep_data: Annotated[bool, typer.Option("--keep-data", help="Keep the buckets with what is in them.")] = False,
    purge: Annotated[bool, typer.Option("--purge", help="Delete the data too, without a question of its own.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Remove a deployment. Its buckets are deleted only if they are empty, if asked and told so, or with --purge."""
    from contract.clock import SystemClock
    from peerless.launch import stop
    from peerless.launch.deploy import BOOTSTRAP_STACK, Target
    from peerless.launch.destroy import buckets_of, destroy, holds_data

    if keep_data and purge:
        raise ConfigError("--keep-data and --purge exclude each other")
    checked(name)
    target = Target.local() if local else Target.aws()
    found = stop.found_or_missing(target.clients, name)
    full = [bucket for bucket in buckets_of(target.clients, found) if holds_data(target.clients, bucket)]
    note(f"to be deleted: {', '.join(stack.title for stack in found)} of {name} in {target.region}")
    if not asker(yes)(f"destroy the deployment {name} now?"):
        raise UserError("nothing was destroyed")
    if full and not purge and not keep_data and not yes:
        purge = asker(False)(
            f"its {len(full)} buckets hold data and results that may be nowhere else; delete them for good?"
        )
    left = destroy(target.clients, name, purge=purge, note=note, clock=SystemClock())
    if left:
        note(f"{len(left)} buckets stay with their data; `peerless destroy --purge` deletes them")
    if not local:
        note(f"the CDK's own stack {BOOTSTRAP_STACK} stays, for other applications; it costs next to nothing")
    show({"deployment": name, "deleted": [stack.name for stack in found], "buckets_left": left}, as_json)


def doctor(
    config: Annotated[Path | None, typer.Argument(help="Configuration to deploy; without, what is.")] = None,
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Look whether this machine, the AWS account and the region can deploy and train; say what to mend, and how."""
    from peerless.launch.deployed import settings_for
    from peerless.launch.doctor import examine
    from peerless.launch.quotas import FAILED

    settings = settings_for(_configuration(config, [])) if config is not None else None
    findings = examine(settings.name if settings else checked(name), settings)
    if as_json:
        print(json.dumps({"findings": [vars(finding) for finding in findings]}))
    else:
        for finding in findings:
            print(f"{finding.state:8} {finding.name}: {finding.sentence()}")
    if any(finding.state == FAILED for finding in findings):
        raise typer.Exit(1)


def checked(name: str) -> str:
    """A deployment's name that can be one. Raises ConfigError."""
    from infra.settings import Settings

    return Settings(name=name).name


def show_result(summary: dict[str, Any], folder: str, console: Any, as_json: bool) -> None:
    """A finished run: its figures, and the exit status of one that was interrupted."""
    from peerless.report.table import result_table

    if as_json:
        print(json.dumps(summary))
    else:
        console.print(result_table(summary, folder))
    if summary["reason"] == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _configuration(path: Path, given: list[str]) -> Any:
    import contract.config
    from peerless.launch import shipping

    return shipping.resolve_paths(contract.config.from_toml(path, given), path.resolve().parent)


def _told(run: dict[str, Any] | None) -> str:
    if run is None:
        return "none yet"
    if run["id"] is None:
        return str(run["state"])
    return (
        f"{run['id']}, {run['state']}, {run['rounds']} of at most {run['rounds_limit']} rounds, "
        f"{run['peers_reported']} of {run['peers']} peers have reported"
    )
