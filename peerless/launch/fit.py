"""Whether a run fits what is deployed: asked before anything is uploaded, answered in one sentence with the remedy."""

from __future__ import annotations

from contract.config import RunConfig
from contract.errors import DeploymentMissing
from infra.settings import Settings


def check(config: RunConfig, settings: Settings, code_digest: str, remedy: str) -> None:
    """Raise DeploymentMissing for the first thing that would keep the run from working as configured.

    `remedy` is the command that changes the deployment, for example "peerless deploy config.toml".
    """
    for problem in _problems(config, settings, code_digest):
        raise DeploymentMissing(f"the deployment {settings.name} {problem}; run `{remedy}`")


def differences(config: RunConfig, settings: Settings) -> list[str]:
    """Where the deployment is another than configured without harm to the run, one sentence each."""
    names = (
        "architecture",
        "instance_type",
        "network",
        "broker_instance_type",
        "broker_cluster",
        "shared_worker",
        "reserved_concurrency",
        "snap_start",
        "data_days",
    )
    found = [(name, getattr(settings, name), getattr(config.aws, name)) for name in names]
    return [
        f"aws.{name}: deployed with {_shown(there)}, the configuration says {_shown(here)}"
        for name, there, here in found
        if there != here
    ]


def _problems(config: RunConfig, settings: Settings, code_digest: str) -> list[str]:
    compute, found = config.compute, []
    if config.peers > settings.peers:
        found.append(f"holds {settings.peers} peers, but the configuration has {config.peers}")
    if code_digest != settings.code_digest:
        had, has = _code(settings.code_digest), _code(code_digest)
        found.append(f"has {had} in its images, but the configuration brings {has}")
    if config.exchange.transport == "rabbitmq" and not settings.broker:
        found.append('has no broker, but exchange.transport is "rabbitmq"')
    if compute.service != "lambda":
        return found
    if not settings.workers:
        return [*found, 'has no gradient workers, but compute.service is "lambda"']
    if config.aws.express != settings.express:
        found.append(f"has aws.express = {_shown(settings.express)}, but the configuration says otherwise")
    for name in ("memory_mb", "timeout_seconds", "concurrency", "threads"):
        there, here = getattr(settings, name), getattr(compute, name)
        if there != here:
            found.append(f"has compute.{name} = {there}, but the configuration says {here}")
    return found


def _code(digest: str) -> str:
    return f"own code of digest {digest[:12]}" if digest else "no own code"


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
