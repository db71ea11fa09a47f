"""What Step Functions is asked about an execution that has ended: what it took, and why it failed.

Answers explain and are counted; none decides what becomes of the round, so a question that is refused costs its answer
and nothing else. Express executions have no history, and of a forgotten one there is nothing to ask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from contract.batches import Share
from contract.config import ComputeConfig
from contract.errors import StoreUnavailable
from contract.tasks import Failure
from peer_agent.compute import attempts, diagnosis
from peer_agent.compute.batches import name_batch
from peer_agent.compute.diagnosis import Ending
from peer_agent.compute.executions import EXPRESS_SECONDS, FORGOTTEN, Executions
from peer_agent.compute.results import Results


class Inquiry:
    """About executions of one peer's state machine."""

    def __init__(self, executions: Executions, rank: int, compute: ComputeConfig) -> None:
        self._executions, self._rank, self._compute = executions, rank, compute
        self._distributed = compute.state_machine == "distributed_map"

    def ending(self, description: Mapping[str, Any], items: Sequence[Share]) -> Ending:
        """How one of `items` ended, and what it took: by its output, and by its history where that says more."""
        ending = Ending.of(description, items)
        known = not self._executions.express and description["status"] != FORGOTTEN
        if known and not ending.complete:
            with contextlib.suppress(ClientError, BotoCoreError):  # it was asked for the bill, not for gradients
                return attempts.completed(
                    ending, self._executions.client, description, items, distributed=self._distributed
                )
        return ending

    def failed_children(self, description: Mapping[str, Any]) -> list[tuple[str, Failure]]:
        """Inputs and failures of some children of an execution's distributed maps."""
        found: list[tuple[str, Failure]] = []
        with contextlib.suppress(ClientError, BotoCoreError):
            found += diagnosis.failed_children(self._executions.client, description)
        return found

    def failures(self, round: int, description: Mapping[str, Any], ending: Ending) -> dict[int, str]:
        """Sentences on failed items by index: all that the output names, or some children of a distributed map."""
        found = dict(ending.failures)
        if self._distributed:
            with contextlib.suppress(ClientError, BotoCoreError):
                found |= diagnosis.of_children(self._executions.client, description)
        return {
            index: diagnosis.sentence(failure, name_batch(index, self._rank, round), self._compute)
            for index, failure in sorted(found.items())
        }

    def explain(
        self,
        round: int,
        asked: Sequence[Share],
        description: Mapping[str, Any],
        results: Results | None = None,
    ) -> str:
        """Why an execution failed; `results` are given where it was for an item's sake."""

        def missing() -> Sequence[Share]:
            with contextlib.suppress(StoreUnavailable):
                return [] if results is None else results.missing(asked)
            return []

        express = self._executions.express
        if express and description["status"] == "TIMED_OUT":
            return (
                f"no gradient for rank {self._rank} in round {round}: its Express execution was ended after "
                f"{EXPRESS_SECONDS // 60} minutes, their limit; set aws.express = false and deploy again, or give a "
                "round less work (batches_per_round, batch_size)"
            )
        client, compute = None if express else self._executions.client, self._compute
        try:
            return diagnosis.explain(client, description, asked, self._rank, round, compute, missing)
        except (ClientError, BotoCoreError):
            return diagnosis.explain(None, description, asked, self._rank, round, compute, missing)
