"""`peerless statemachine`: the definitions that runs use, to read and to look at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from contract.errors import ConfigError, UserError
from peerless.commands.options import interruptible

#: What a definition is shown with that is of no deployment.
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:gradient-worker"

Batches = Annotated[int, typer.Option("--batches", metavar="N", help="Batches of a peer's round.", show_default=False)]
ModeName = Annotated[
    str,
    typer.Option("--mode", metavar="M", help="auto, inline_map, distributed_map or parallel: compute.state_machine."),
]
Concurrency = Annotated[int, typer.Option("--concurrency", metavar="C", help="compute.concurrency.")]
Seconds = Annotated[int, typer.Option("--timeout-seconds", metavar="S", help="compute.timeout_seconds.")]
Tolerated = Annotated[float, typer.Option("--tolerated-failures", metavar="T", help="compute.tolerated_failures.")]
Function = Annotated[str, typer.Option("--function", metavar="ARN", help="The Lambda function that is invoked.")]

Reducer = Annotated[
    str, typer.Option("--reducer", metavar="ARN", help="The one that adds gradients up; none without (compute.reduce).")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Print or draw the state machine of a round.", no_args_is_help=True)
    for command in (render, draw):
        group.command()(interruptible()(command))
    app.add_typer(group, name="statemachine")


def render(
    batches: Batches,
    mode: ModeName = "auto",
    concurrency: Concurrency = 0,
    timeout_seconds: Seconds = 120,
    tolerated_failures: Tolerated = 0,
    function: Function = FUNCTION,
    reducer: Reducer = "",
) -> None:
    """Print the definition in Amazon States Language."""
    made = _definition(batches, mode, concurrency, timeout_seconds, tolerated_failures, function, reducer)
    print(json.dumps(made, indent=2))


def draw(
    batches: Batches,
    mode: ModeName = "auto",
    concurrency: Concurrency = 0,
    timeout_seconds: Seconds = 120,
    tolerated_failures: Tolerated = 0,
    function: Function = FUNCTION,
    reducer: Reducer = "",
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write an SVG picture there, and print nothing.")
    ] = None,
) -> None:
    """Print the definition as a Mermaid flow chart, or draw it."""
    from statemachines.picture import mermaid
    from statemachines.svg import svg as picture

    made = _definition(batches, mode, concurrency, timeout_seconds, tolerated_failures, function, reducer)
    if svg is None:
        print(mermaid(made, batches), end="")
        return
    try:
        svg.write_text(picture(made, batches), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--svg {svg}: the picture cannot be written ({error.strerror})") from error


def _definition(
    batches: int, mode: str, concurrency: int, timeout_seconds: int, tolerated: float, function: str, reducer: str
) -> dict[str, Any]:
    """Of the mode that `auto` takes, or of the named one. Raises ConfigError."""
    from contract.config import with_overrides
    from statemachines import choose_mode, definition

    count = int(tolerated) if tolerated == int(tolerated) else tolerated
    given = {"concurrency": concurrency, "timeout_seconds": timeout_seconds, "tolerated_failures": count}
    compute = with_overrides({"compute": given}, (), "peerless statemachine").compute
    if not function:
        raise ConfigError("--function is empty; name a function, or leave the option out")
    return definition(
        choose_mode(mode, batches, compute.tolerated_failures, compute.concurrency),
        function_arn=function,
        batches=batches,
        concurrency=compute.concurrency,
        timeout_seconds=compute.timeout_seconds,
        tolerated=compute.tolerated_failures,
        reducer_arn=reducer,
    )
