"""Whether this machine, account and region can deploy and train: one line per thing, with its remedy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from contract.errors import PeerlessError
from infra import toolkit
from infra.images.staging import check_index
from infra.settings import Settings
from peerless.launch import quotas
from peerless.launch.account import Account, Clients
from peerless.launch.deployed import Deployment
from peerless.launch.quotas import FAILED, OK, WARNING, Finding, look
from peerless.launch.status import settings_of
from peerless.launch.stop import found_or_missing


def examine(name: str, settings: Settings | None = None, account: Callable[[], Account] = Account) -> list[Finding]:
    """All findings, in the order in which to mend them. `settings` is what would be deployed (None: what is, or else
    the defaults). Raises nothing that a finding can tell."""
    found = [_node(), _cdk(), *([_torch_index(settings)] if settings is not None else [])]
    try:
        here = account()
        identity = here.identity()
    except PeerlessError as error:
        return [*found, Finding(name="credentials", state=FAILED, text=str(error))]
    told = f"account {identity.account} as {identity.arn}"
    if here.profile != "default":
        told += f", profile {here.profile}"
    found.append(Finding(name="credentials", state=OK, text=told))
    place = f" at {here.endpoint_url}" if here.endpoint_url else ""
    found.append(Finding(name="region", state=OK, text=f"{here.region}{place}"))
    found.append(look("deployment", lambda: _deployment(here.client, name)))
    return [*found, *_service_findings(here, settings or _deployed_settings(here.client, name) or Settings(name=name))]


def _service_findings(here: Account, settings: Settings) -> list[Finding]:
    clients, region = here.client, here.region
    questions: dict[str, Callable[[], Finding]] = {
        "bootstrap": lambda: quotas.bootstrapped(clients, region),
        "instance type": lambda: quotas.instance_offered(clients, settings.instance_type, region),
        "instances": lambda: quotas.vcpus(clients, settings.instance_type, settings.peers),
    }
    if settings.workers:
        wanted = settings.peers * (settings.concurrency or 2)
        questions["Lambda concurrency"] = lambda: quotas.lambda_concurrency(clients, wanted)
    if not settings.local_docker:
        questions["CodeBuild"] = lambda: quotas.image_builds(clients, settings.architecture)
    if settings.broker:
        questions["broker type"] = lambda: quotas.broker_offered(clients, settings.broker_instance_type, region)
    return [look(name, question) for name, question in questions.items()]


def _node() -> Finding:
    try:
        path = toolkit.node()
    except PeerlessError as error:
        return Finding(name="Node.js", state=FAILED, text=str(error))
    said = subprocess.run([path, "--version"], capture_output=True, encoding="utf-8", check=False).stdout.strip()
    return Finding(name="Node.js", state=OK, text=f"{said}, {path}")


def _cdk() -> Finding:
    version = toolkit.installed_version(toolkit.command_folder())
    if version == toolkit.CDK_VERSION:
        return Finding(name="CDK command", state=OK, text=f"aws-cdk {version}")
    text = f"aws-cdk {toolkit.CDK_VERSION} is not installed yet"
    return Finding(name="CDK command", state=WARNING, text=text, remedy="`peerless deploy` installs it")


def _torch_index(settings: Settings) -> Finding:
    try:
        check_index(settings)
    except PeerlessError as error:
        return Finding(name="torch", state=FAILED, text=str(error))
    return Finding(name="torch", state=OK, text=f"the images take it from {settings.torch_index}")


def _deployment(clients: Clients, name: str) -> Finding:
    try:
        has = Deployment.find(clients, name).settings
    except PeerlessError as error:
        return Finding(name="deployment", state=WARNING, text=str(error))
    return Finding(name="deployment", state=OK, text=f"{name}, {has.peers} peers")


def _deployed_settings(clients: Clients, name: str) -> Settings | None:
    try:
        return settings_of(found_or_missing(clients, name))
    except PeerlessError:
        return None
