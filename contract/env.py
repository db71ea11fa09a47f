"""What a peer, its instance and a worker take from their environment, typed and checked once. Free of torch.

Nothing here overrides a run's configuration: the environment says where servers are, never how to train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from contract.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AgentEnv:
    """Environment of `python -m peer_agent`."""

    broker_url: str = field(repr=False)  # it may hold a password, which must not reach a log
    """PEERLESS_BROKER_URL, `amqp://` or `amqps://`; empty means that S3 alone carries the run."""
    endpoint_url: str | None
    """AWS_ENDPOINT_URL: a local AWS; None means AWS itself."""
    region: str
    """AWS_REGION, else AWS_DEFAULT_REGION."""
    code_dir: Path | None
    """PEERLESS_CODE_DIR: folder of the user's own code; None where there is none."""
    account: str | None = None
    """PEERLESS_ACCOUNT: the AWS account that must own the run's bucket, 12 digits; None where it is not known. Once the
    run's configuration is read, its places say so for all buckets."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> AgentEnv:
        """Raises ConfigError, naming the variable and never its value where that could hold a password."""
        return cls(
            broker_url=_url(environ, "PEERLESS_BROKER_URL", ("amqp", "amqps")) or "",
            endpoint_url=_url(environ, "AWS_ENDPOINT_URL", ("http", "https")),
            region=_region(environ),
            code_dir=_folder(environ, "PEERLESS_CODE_DIR"),
            account=_account(environ),
        )


@dataclass(frozen=True, kw_only=True)
class InstanceEnv:
    """Environment of `python -m peer_agent.instance`, which its stack writes. The peer itself, a child, inherits it."""

    deployment: str
    """PEERLESS_DEPLOYMENT: name of the deployment, for logs and metrics."""
    run_bucket: str
    """PEERLESS_RUN_BUCKET."""
    rank: int
    """PEERLESS_RANK, from 0."""
    broker_endpoint: str = field(repr=False)
    """PEERLESS_BROKER_ENDPOINT, `amqps://host:5671` without user and password; empty where S3 alone carries runs."""
    broker_secret: str
    """PEERLESS_BROKER_SECRET: ARN (or name) of the secret with this peer's user, JSON `{"username", "password"}`."""
    group: str
    """PEERLESS_GROUP: the auto scaling group that holds this instance and no other; empty where there is none."""
    account: str | None
    """PEERLESS_ACCOUNT, see AgentEnv."""
    endpoint_url: str | None
    """AWS_ENDPOINT_URL: a local AWS; None means AWS itself."""
    region: str
    """AWS_REGION, else AWS_DEFAULT_REGION."""
    code_dir: Path | None
    """PEERLESS_CODE_DIR: folder of the user's own code; None where there is none."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> InstanceEnv:
        """Raises ConfigError, naming the variable and never its value where that could hold a password."""
        endpoint = _url(environ, "PEERLESS_BROKER_ENDPOINT", ("amqp", "amqps")) or ""
        parts = urlsplit(endpoint)
        if "@" in parts.netloc or parts.path not in ("", "/") or parts.query:
            raise ConfigError(
                "PEERLESS_BROKER_ENDPOINT must be a URL of the form amqps://host:port and nothing more; "
                "user and password come from the secret that PEERLESS_BROKER_SECRET names"
            )
        secret = environ.get("PEERLESS_BROKER_SECRET", "").strip()
        if endpoint and not secret:
            raise ConfigError("PEERLESS_BROKER_SECRET is not set, but PEERLESS_BROKER_ENDPOINT names a broker")
        return cls(
            deployment=_needed(environ, "PEERLESS_DEPLOYMENT"),
            run_bucket=_needed(environ, "PEERLESS_RUN_BUCKET"),
            rank=_rank(environ, "PEERLESS_RANK"),
            broker_endpoint=endpoint.rstrip("/"),
            broker_secret=secret,
            group=environ.get("PEERLESS_GROUP", "").strip(),
            account=_account(environ),
            endpoint_url=_url(environ, "AWS_ENDPOINT_URL", ("http", "https")),
            region=_region(environ),
            code_dir=_folder(environ, "PEERLESS_CODE_DIR"),
        )


#: What processes of workers and peers start with besides, on AWS as locally: what a batch or a round frees stays with
#: the process for the next one. By itself glibc gives it back to the kernel, from which it comes anew, page by page:
#: up to a tenth of what VGG-11 or SqueezeNet compute. Arrays of 64 MiB and more go back at once all the same, and other
#: C libraries ignore it (https://man7.org/linux/man-pages/man3/mallopt.3.html).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


@dataclass(frozen=True, kw_only=True)
class WorkerEnv:
    """Environment of a Lambda worker."""

    endpoint_url: str | None
    """AWS_ENDPOINT_URL: a local AWS; None means AWS itself."""
    region: str
    """AWS_REGION (Lambda sets it), else AWS_DEFAULT_REGION."""
    code_dir: Path | None
    """PEERLESS_CODE_DIR: folder of the user's own code; None where there is none."""
    shared_dir: Path | None = None
    """PEERLESS_SHARED_DIR: folder in which the worker processes of one machine share what they fetch; None where each
    fetches for itself."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> WorkerEnv:
        """Raises ConfigError, naming the variable."""
        return cls(
            endpoint_url=_url(environ, "AWS_ENDPOINT_URL", ("http", "https")),
            region=_region(environ),
            code_dir=_folder(environ, "PEERLESS_CODE_DIR"),
            shared_dir=_folder(environ, "PEERLESS_SHARED_DIR"),
        )


@dataclass(frozen=True, kw_only=True)
class ReducerEnv:
    """Environment of a Lambda reducer, which needs none of the user's code."""

    endpoint_url: str | None
    """AWS_ENDPOINT_URL: a local AWS; None means AWS itself."""
    region: str
    """AWS_REGION (Lambda sets it), else AWS_DEFAULT_REGION."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> ReducerEnv:
        """Raises ConfigError, naming the variable."""
        return cls(endpoint_url=_url(environ, "AWS_ENDPOINT_URL", ("http", "https")), region=_region(environ))


def _region(environ: Mapping[str, str]) -> str:
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise ConfigError("AWS_REGION is not set; name the AWS region, for example AWS_REGION=us-east-1")
    return region


def _needed(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"{name} is not set")
    return value


def _rank(environ: Mapping[str, str], name: str) -> int:
    value = _needed(environ, name)
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name} = {value!r} is not a rank, a number from 0")
    return int(value)


def _account(environ: Mapping[str, str]) -> str | None:
    value = environ.get("PEERLESS_ACCOUNT", "").strip()
    if value and not (value.isascii() and value.isdigit() and len(value) == 12):
        raise ConfigError(f"PEERLESS_ACCOUNT = {value!r} is not an AWS account, 12 digits")
    return value or None


def _url(environ: Mapping[str, str], name: str, schemes: tuple[str, ...]) -> str | None:
    value = environ.get(name, "").strip()
    if not value:
        return None
    try:
        parts = urlsplit(value)
        fits = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(f"{name} is not a URL of the form {schemes[0]}://host:port")
    return value


def _folder(environ: Mapping[str, str], name: str) -> Path | None:
    value = environ.get(name, "")
    if not value:
        return None
    folder = Path(value)
    if not folder.is_dir():
        raise ConfigError(f"{name}: {folder} is not a folder")
    return folder
