"""What a configuration asks of a deployment, and the deployment that exists, as its stacks' outputs tell it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from contract.config import RunConfig
from contract.errors import ConfigError, DeploymentMissing
from contract.keys import Places
from infra import outputs
from infra.settings import Settings
from peerless.launch import stacks
from peerless.launch.account import Clients
from peerless.launch.stacks import Stack
from statemachines import Mode

_WHOLE = ("CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "IMPORT_COMPLETE")
#: What stands in a deployment and in a run's configuration, and where the latter has it.
_SHARED = {
    "memory_mb": "compute.memory_mb",
    "timeout_seconds": "compute.timeout_seconds",
    "concurrency": "compute.concurrency",
    "tolerated_failures": "compute.tolerated_failures",
    "threads": "compute.threads",
    "express": "aws.express",
}


def settings_for(config: RunConfig, *, code_dir: str = "", code_digest: str = "", lambda_url: str = "") -> Settings:
    """What `config` (its paths absolute) asks of a deployment on AWS, with the user's code staged in `code_dir`; or,
    with `lambda_url`, on the local AWS whose functions the Lambda service there runs: without images, hence without
    code and snapshots. Raises ConfigError for what cannot be deployed.
    """
    aws, compute, local = config.aws, config.compute, bool(lambda_url)
    names = {field.name for field in dataclasses.fields(Settings)} & set(type(aws).model_fields)
    return Settings(
        peers=config.peers,
        local=local,
        lambda_url=lambda_url,
        workers=compute.service == "lambda",
        broker=config.exchange.transport == "rabbitmq",
        memory_mb=compute.memory_mb,
        timeout_seconds=compute.timeout_seconds,
        concurrency=compute.concurrency,
        tolerated_failures=float(compute.tolerated_failures),
        reduce=compute.reduce != "never",
        threads=compute.threads,
        code_dir="" if local else code_dir,
        code_requirements=() if local else config.code.requirements,
        code_digest="" if local else code_digest,
        **{name: getattr(aws, name) for name in names} | ({"snap_start": False} if local else {}),
    )


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A whole deployment. Lists are in rank order; they are empty where the settings say that there are none."""

    settings: Settings
    run_bucket: str
    peer_buckets: tuple[str, ...]
    functions: tuple[str, ...]
    """Names of the gradient workers' functions; a shared one once per rank."""
    function_arns: tuple[str, ...]
    """What state machines invoke: the alias, where there is one."""
    reducers: tuple[str, ...]
    """Names of the functions that add gradients up, likewise."""
    reducer_arns: tuple[str, ...]
    """What state machines invoke of theirs."""
    inline_machines: tuple[str, ...]
    distributed_machines: tuple[str, ...]
    machine_roles: tuple[str, ...]
    groups: tuple[str, ...]
    """Names of the auto scaling groups; empty on the local AWS."""
    log_groups: tuple[str, ...]
    """Of the peers' instances, one per stack of them; empty on the local AWS."""
    broker_endpoint: str
    """`amqps://host:5671`; "" without a broker of its own."""

    @classmethod
    def find(cls, clients: Clients, name: str, *, whole: bool = True) -> Deployment:
        """Raises DeploymentMissing where there is none or it is not `whole`, and what `account.told` raises.

        Of one that need not be whole, as after `peerless stop`, the buckets are there, and the rest as far as it is.
        """
        found = stacks.find(clients, Settings(name=name).prefix)
        if not found:
            raise DeploymentMissing(f"there is no deployment {name!r} here; `peerless deploy CONFIG` makes one")
        settings = _settings(name, found)
        by_name = {stack.name: stack for stack in found}
        for wanted in stack_names(settings) if whole else ():
            if wanted not in by_name:
                raise _not_whole(name, f"stack {wanted} is missing, as after `peerless stop`")
            if by_name[wanted].status not in _WHOLE:
                raise _not_whole(name, f"stack {wanted} is {by_name[wanted].status}")

        def ranked(kind: str, output: str) -> tuple[str, ...]:
            values = stacks.joined(found, kind, output)
            if len(values) != settings.peers and (whole or kind == outputs.STORAGE):
                raise _not_whole(name, f"its stacks name {len(values)} {output} for {settings.peers} peers")
            return values

        def by_workers(output: str) -> tuple[str, ...]:
            return ranked(outputs.WORKERS, output) if settings.workers else ()

        endpoint = stacks.joined(found, outputs.BROKER, outputs.BROKER_ENDPOINT)
        return cls(
            settings=settings,
            run_bucket=stacks.joined(found, outputs.STORAGE, outputs.RUN_BUCKET)[0],
            peer_buckets=ranked(outputs.STORAGE, outputs.PEER_BUCKETS),
            functions=by_workers(outputs.FUNCTIONS),
            function_arns=by_workers(outputs.FUNCTION_ARNS),
            reducers=by_workers(outputs.REDUCERS) if settings.reduce else (),
            reducer_arns=by_workers(outputs.REDUCER_ARNS) if settings.reduce else (),
            inline_machines=by_workers(outputs.INLINE_MACHINES),
            distributed_machines=by_workers(outputs.DISTRIBUTED_MACHINES),
            machine_roles=by_workers(outputs.MACHINE_ROLES),
            groups=() if settings.local else ranked(outputs.PEERS, outputs.AUTO_SCALING_GROUPS),
            log_groups=stacks.joined(found, outputs.PEERS, outputs.PEER_LOG_GROUP),
            broker_endpoint=endpoint[0] if endpoint else "",
        )

    def check(self, config: RunConfig, code_digest: str = "") -> None:
        """Raise DeploymentMissing unless a run of `config`, with code of that digest, can use this deployment.

        A run may have fewer peers than there are; the others stay switched off.
        """
        has, asked = self.settings, settings_for(config, lambda_url=self.settings.lambda_url)
        wrong = ""
        if config.peers > has.peers:
            wrong = f"has {has.peers} peers, but the configuration asks for {config.peers}"
        elif asked.workers and not has.workers:
            wrong = "has no gradient workers, but compute.service is lambda"
        elif asked.workers and asked.reduce and not has.reduce:
            wrong = f"has no gradient reducers, but compute.reduce is {config.compute.reduce}"
        elif asked.broker and not has.broker:
            wrong = "has no broker, but exchange.transport is rabbitmq"
        elif not has.local and code_digest != has.code_digest:
            there, here = has.code_digest[:12] or "none", code_digest[:12] or "none"
            wrong = f"holds other code of yours (digest {there}) than [code] has now (digest {here})"
        elif not has.local and has.code_requirements != asked.code_requirements:
            wrong = f"has code.requirements = {_toml(has.code_requirements)}, which the configuration changed"
        else:
            for name, key in _SHARED.items():
                given, wanted = getattr(has, name), getattr(asked, name)
                if given != wanted and (asked.workers or name == "threads"):
                    wrong = f"has {key} = {_toml(given)}, but the configuration says {_toml(wanted)}"
                    break
        if wrong:
            local = " --local" if has.local else ""
            raise DeploymentMissing(
                f"deployment {has.name!r} {wrong}; run `peerless deploy CONFIG{local}` to change it"
            )

    def places(self, run: str, peers: int, region: str, account: str | None) -> Places:
        """The places of a run of so many peers."""
        return Places(
            run=run, run_bucket=self.run_bucket, peer_buckets=self.peer_buckets[:peers], region=region, account=account
        )

    def machines(self, mode: Mode) -> tuple[str, ...]:
        """ARNs of the deployed state machines of a form. Raises ConfigError for `parallel`, which each run makes."""
        if mode is Mode.PARALLEL:
            raise ConfigError("compute.state_machine = parallel depends on the run's batches, so it is not deployed")
        return self.inline_machines if mode is Mode.INLINE_MAP else self.distributed_machines


def stack_names(settings: Settings) -> tuple[str, ...]:
    """Names of the stacks that make up a deployment, as infra/app.py builds them."""
    groups = range(len(settings.groups))
    kinds = [outputs.STORAGE]
    kinds += [f"{outputs.WORKERS}{number}" for number in groups if settings.workers]
    if not settings.local:
        kinds += [outputs.IMAGES, outputs.NETWORK, outputs.WATCH]
        kinds += [outputs.BROKER] if settings.broker else []
        kinds += [f"{outputs.PEERS}{number}" for number in groups]
    return tuple(f"{settings.prefix}-{kind}" for kind in kinds)


def _settings(name: str, found: list[Stack]) -> Settings:
    text = next((s.outputs.get(outputs.SETTINGS) for s in found if s.kind == outputs.STORAGE), None)
    if text is None:
        raise _not_whole(name, "its stack of buckets is missing or has no outputs yet")
    try:
        return Settings.from_mapping(json.loads(text))
    except (ConfigError, ValueError, AttributeError) as error:
        raise DeploymentMissing(
            f"deployment {name!r} was made by another version of Peerless ({error}); run `peerless deploy CONFIG` again"
        ) from error


def _not_whole(name: str, why: str) -> DeploymentMissing:
    return DeploymentMissing(f"deployment {name!r} is not whole: {why}; run `peerless deploy CONFIG` again")


def _toml(value: object) -> str:
    return json.dumps(value)
