"""What a peer and a worker take from their environment, typed and checked once. Free of torch.

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

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> AgentEnv:
        """Raises ConfigError, naming the variable and never its value where that could hold a password."""
        return cls(
            broker_url=_url(environ, "PEERLESS_BROKER_URL", ("amqp", "amqps")) or "",
            endpoint_url=_url(environ, "AWS_ENDPOINT_URL", ("http", "https")),
            region=_region(environ),
            code_dir=_folder(environ, "PEERLESS_CODE_DIR"),
        )


@dataclass(frozen=True, kw_only=True)
class WorkerEnv:
    """Environment of a Lambda worker."""

    endpoint_url: str | None
    """AWS_ENDPOINT_URL: a local AWS; None means AWS itself."""
    region: str
    """AWS_REGION (Lambda sets it), else AWS_DEFAULT_REGION."""
    code_dir: Path | None
    """PEERLESS_CODE_DIR: folder of the user's own code; None where there is none."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> WorkerEnv:
        """Raises ConfigError, naming the variable."""
        return cls(
            endpoint_url=_url(environ, "AWS_ENDPOINT_URL", ("http", "https")),
            region=_region(environ),
            code_dir=_folder(environ, "PEERLESS_CODE_DIR"),
        )


def _region(environ: Mapping[str, str]) -> str:
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise ConfigError("AWS_REGION is not set; name the AWS region, for example AWS_REGION=us-east-1")
    return region


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
