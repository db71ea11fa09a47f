"""`peerless plan`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from contract.errors import UserError
from peerless.commands.options import Config, Json, Peers, Set, interruptible, note, overrides


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(interruptible()(plan))


def plan(
    config: Config,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Time the model on this machine first; kept for the next time.")
    ] = False,
    run: Annotated[
        str | None, typer.Option("--from-run", metavar="RUN", help="Learn from a run of this model, by name or folder.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="T", help="To be done by then: seconds, or like 90s, 15m, 2h.")
    ] = None,
    budget: Annotated[float | None, typer.Option("--budget", metavar="USD", help="Cost no more than this.")] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(
            "--target-accuracy", metavar="A", help="Stop at this accuracy (0.97), as the run of --from-run came there."
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary", metavar="KEY=V,V", help="Try these values of a key; one value holds it. E.g. peers=2,4,8."
        ),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option("--assume", metavar="NAME=VALUE", help="Replace an assumption; an unknown name lists them."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the frontier there as a picture, too.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Write the plan taken into CONFIG; comments and order stay.")
    ] = False,
    peers: Peers = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Predict time and money of this run and its alternatives on AWS, and choose; start nothing.

    Taken is the cheapest within --deadline, else the fastest within --budget, else the knee of the frontier.
    """
    from rich.console import Console

    import contract.config
    from contract.clock import SystemClock
    from peerless.launch import shipping
    from peerless.launch.workload import Workload
    from peerless.planner.apply import apply as write
    from peerless.planner.assumptions import assumptions
    from peerless.planner.choice import seconds_of
    from peerless.planner.job import Job
    from peerless.planner.local import cores
    from peerless.planner.picture import shown, svg
    from peerless.planner.planning import calibration_for, planned

    known = assumptions().replaced(assume or ())
    limit = None if deadline is None else seconds_of(deadline)
    if budget is not None and not budget > 0:
        raise UserError(f"--budget {budget:g}: write US dollars, more than 0")
    if accuracy is not None and not 0 < accuracy <= 1:
        raise UserError(f"--target-accuracy {accuracy:g}: write a share, for example 0.97")
    given = overrides(set_, peers=peers)
    if apply and given:
        raise UserError("--apply goes by the file alone: write what --set and --peers say into it first")
    chosen = shipping.resolve_paths(contract.config.from_toml(config, given), config.resolve().parent)
    shipping.check(chosen.code)
    with shipping.importable(chosen.code):
        work = Workload.of(chosen, note)
        calibration = calibration_for(
            chosen, work, known, anew=calibrate, run=run, clock=SystemClock(), cores=cores(), log=note
        )
    found = planned(
        Job.of(chosen, work), calibration, known, vary=vary or (), deadline=limit, budget=budget, accuracy=accuracy
    )
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        Console().print(shown(found.frontier, found.marks, found.configured, found.verdict, found.changes))
    if picture is not None:
        try:
            picture.write_text(svg(found.frontier, found.marks, found.configured), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--svg {picture}: the picture cannot be written ({error.strerror})") from error
    if apply:
        if found.taken is None:
            raise UserError(f"--apply: {found.marks.why}, so that {config} stays as it is")
        write(config, found.changes)
        note(f"{config}: {', '.join(found.changes) or 'nothing to change'}")
