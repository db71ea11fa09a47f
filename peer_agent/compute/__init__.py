"""Where a peer's gradient is computed: on Lambda workers, or in its own process."""

from __future__ import annotations

from contract.clock import Clock
from contract.runspec import RunSpec
from contract.store import ObjectStore
from peer_agent.compute.local import LocalGradientService
from peer_agent.compute.stepfunctions import StepFunctionsGradientService
from peer_agent.ports import GradientService

__all__ = ["LocalGradientService", "StepFunctionsGradientService", "gradient_service"]


def gradient_service(
    spec: RunSpec, rank: int, *, store: ObjectStore, endpoint_url: str | None, clock: Clock
) -> GradientService:
    """The service that the run's configuration names; nothing is contacted yet. Raises ModelError, ConfigError."""
    if spec.config.compute.service == "local":
        return LocalGradientService(spec, rank, store=store)
    return StepFunctionsGradientService(spec, rank, store=store, endpoint_url=endpoint_url, clock=clock)
