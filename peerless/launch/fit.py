"""Where a deployment is another than a configuration asks for without harm to a run: told, not refused."""

from __future__ import annotations

from contract.config import RunConfig
from infra.settings import Settings

#: What is in a configuration's [aws], in the settings of a deployment, and needed by no run in particular.
_NAMES = (
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


def differences(config: RunConfig, settings: Settings) -> list[str]:
    """A sentence for each. What would harm the run is refused by `Deployment.check`."""
    found: list[tuple[str, object, object]] = [
        (name, getattr(settings, name), getattr(config.aws, name)) for name in _NAMES
    ]
    if config.aws.max_hours > settings.max_hours:
        found.append(("max_hours", settings.max_hours, config.aws.max_hours))
    return [
        f"aws.{name}: deployed with {_shown(there)}, the configuration says {_shown(here)}"
        for name, there, here in found
        if there != here
    ]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
