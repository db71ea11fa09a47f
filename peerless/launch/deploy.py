"""From a configuration to a deployment: settings, what it costs by the hour, the CDK command, and what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from contract.clock import Clock, SystemClock
from contract.config import RunConfig
from contract.errors import ConfigError, DeployFailed
from infra import outputs, toolkit
from infra.images.staging import check_index
from infra.local.cloud import LocalCloud
from infra.settings import Settings
from peerless import cost
from peerless.launch import shipping, stacks
from peerless.launch.account import Account, Clients, told
from peerless.launch.deployed import Deployment, settings_for, stack_names
from peerless.launch.run_folder import LOCAL_FOLDER
from peerless.launch.status import settings_of

BOOTSTRAP_STACK = "CDKToolkit"
Note = Callable[[str], None]
Confirm = Callable[[str], bool]
#: Stacks with parts that take minutes: each of their steps is shown.
_SLOW = (outputs.BROKER, outputs.IMAGES)
_MADE_WITHOUT_ASKING = ["--require-approval", "never"]  # `deploy` has shown and asked what there is to ask


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to deploy: an AWS, and the environment in which the CDK command finds it."""

    clients: Clients
    region: str
    environ: Mapping[str, str]
    lambda_url: str = ""
    """Of the local AWS; "" on AWS itself."""

    @classmethod
    def local(cls) -> Target:
        """The servers of `peerless local up`. Raises LocalStackError where none run."""
        cloud = LocalCloud.attach(LOCAL_FOLDER)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environ = {**kept, **cloud.aws_environment(os.environ)}
        clients = functools.cache(cloud.client)  # making one takes longer than most of what it is asked
        return cls(clients=clients, region=cloud.region, environ=environ, lambda_url=cloud.lambda_url)

    @classmethod
    def aws(cls) -> Target:
        """What the user's environment names. Raises AccountError."""
        account = Account()
        return cls(clients=account.client, region=account.region, environ={**os.environ, "AWS_REGION": account.region})

    @property
    def is_local(self) -> bool:
        return bool(self.lambda_url)


def deploy(
    config: RunConfig,
    *,
    local: bool = False,
    diff: bool = False,
    local_docker: bool = False,
    note: Note,
    confirm: Confirm,
    target: Target | None = None,
    clock: Clock | None = None,
) -> Deployment | None:
    """Make or change the deployment that `config` (its paths absolute) asks for; gives it, or None where the user
    declined or only wanted the `diff`.

    With `local_docker` this machine's Docker builds the images. `note` gets lines for the user, `confirm` the question
    before anything that costs. Raises UserError for mistakes, DeployFailed with the reason of what failed, and
    KeyboardInterrupt with what goes on after it.
    """
    shipping.check(config.code)
    target = target or (Target.local() if local else Target.aws())
    prices = cost.book(config.cost.prices, config.cost.region or target.region)
    with tempfile.TemporaryDirectory(prefix="peerless-deploy-") as temporary:
        settings = dataclasses.replace(_settings(config, target, Path(temporary) / "code"), local_docker=local_docker)
        if not target.is_local:
            check_index(settings)
        leftover = _check_change(target.clients, settings)
        if diff:
            toolkit.cdk(["diff", "--method", "template"], settings, target.environ, say=_diff_lines(note))
            return None
        with told("ask who you are"):
            account = str(target.clients("sts").get_caller_identity()["Account"])
        bootstrapped = is_bootstrapped(target.clients)
        where = account, target.region
        for line in () if target.is_local else before(settings, *where, leftover, bootstrapped, prices):
            note(line)
        if not target.is_local and not confirm(f"deploy {settings.name} now?"):
            return None
        with _logged(settings.name) as (log, path):
            try:
                if not bootstrapped:
                    note(f"preparing account {account} in {target.region} for the CDK (stack {BOOTSTRAP_STACK})")
                    toolkit.bootstrap(account, target.region, target.environ, say=log)
                note(f"deploying {', '.join(stack_names(settings))}")
                arguments = ["deploy", "--all", "--progress", "events", *_MADE_WITHOUT_ASKING]
                say = _both(log, _progress(settings, note))
                toolkit.cdk(arguments, settings, target.environ, say=say)
            except DeployFailed as error:
                raise DeployFailed(f"{error} (log: {path})") from error
            except KeyboardInterrupt as error:
                raise KeyboardInterrupt(
                    "interrupted; CloudFormation goes on with what it has begun: `peerless deploy` takes it up again, "
                    "`peerless destroy` removes it"
                ) from error
        stacks.delete(target.clients, leftover, note, clock or SystemClock())
        return Deployment.find(target.clients, settings.name)


def is_bootstrapped(clients: Clients) -> bool:
    """Whether the account and region have what `cdk bootstrap` makes. Raises what `account.told` raises."""
    with told("look for the CDK's own stack"):
        pages = clients("cloudformation").get_paginator("describe_stacks").paginate()
        found = {stack["StackName"]: stack["StackStatus"] for page in pages for stack in page["Stacks"]}
    return found.get(BOOTSTRAP_STACK, "") in ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE")


def before(
    settings: Settings, account: str, region: str, leftover: list[stacks.Stack], bootstrapped: bool, prices: cost.Book
) -> list[str]:
    """What the user should know before saying yes: where it goes, what it costs by the hour, how long it takes."""
    lines = [f"deployment {settings.name!r} of {settings.peers} peers, account {account}, region {region}"]
    if not bootstrapped:
        lines.append(
            f"first `cdk bootstrap`, once per account and region: a stack {BOOTSTRAP_STACK} with a bucket, a registry "
            "and roles, among them CloudFormation's, which may do everything; `peerless destroy` leaves it"
        )
    for when, training in (("while it stands without a run", False), ("while a run trains", True)):
        parts = cost.hourly(settings, training=training, prices=prices)
        told_parts = ", ".join(f"{name} {usd:.4f}" for name, usd in parts.items())
        lines.append(f"USD per hour {when}: {sum(parts.values()):.4f} ({told_parts})")
    if unknown := cost.unpriced(settings, prices):
        lines.append(f"not in that sum, because Peerless does not know the price: {', '.join(unknown)}")
    lines.append("on top comes what runs use: gradient workers, state transitions, requests, storage")
    lines += [f"no longer asked for, so it is deleted: {stack.name}" for stack in leftover]
    if settings.broker:
        lines.append("a new broker takes 15 to 20 minutes, the images some ten minutes beside it")
    return lines


def _settings(config: RunConfig, target: Target, code_folder: Path) -> Settings:
    if target.is_local:
        return settings_for(config, lambda_url=target.lambda_url)
    _, digest = shipping.bundle(config.code, code_folder)
    return settings_for(config, code_dir=str(code_folder) if digest else "", code_digest=digest)


def _check_change(clients: Clients, settings: Settings) -> list[stacks.Stack]:
    """The stacks that a changed deployment no longer has. Raises ConfigError for what would orphan peers' data."""
    found = stacks.find(clients, settings.prefix)
    has = settings_of(found)  # of one that is stopped or half made too
    if has is not None and has.peers > settings.peers:
        raise ConfigError(
            f"deployment {settings.name!r} has {has.peers} peers and cannot shrink to {settings.peers}, because their "
            "buckets hold data; a run may have fewer peers (`peerless train --peers N`), and `peerless destroy` "
            "removes all"
        )
    wanted = stack_names(settings)
    return [stack for stack in found if stack.name not in wanted]


def _progress(settings: Settings, note: Note) -> Note:
    """Of the command's output: what begins, what is done, what fails, and the steps of the slow stacks."""
    slow = tuple(f"{settings.prefix}-{kind} " for kind in _SLOW)

    def say(line: str) -> None:
        text = line.strip()
        event = " | " in text
        if text.startswith(("✅", "❌")) or (event and ("_FAILED" in text or text.startswith(slow))):
            note(re.sub(r"\s+", " ", text))

    return say


def _diff_lines(note: Note) -> Note:
    """Without what the command says of its own work."""

    def say(line: str) -> None:
        if not re.match(r"(start|success|fail): |.*Synthesis time", line.strip()):
            note(line)

    return say


@contextlib.contextmanager
def _logged(name: str) -> Iterator[tuple[Note, Path]]:
    """A function that writes lines to the log file of the deployment `name`, and that file."""
    path = LOCAL_FOLDER.parent / f"deploy-{name}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise DeployFailed(f"{path} cannot be written ({error.strerror})") from error
    with file:
        yield (lambda line: print(line, file=file, flush=True)), path


def _both(first: Note, second: Note) -> Note:
    def say(line: str) -> None:
        first(line)
        second(line)

    return say
