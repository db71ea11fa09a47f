"""Entry point of the Lambda function: parses the event, calls, answers.

Errors keep their class, because AWS reports the class name and the state machine's Retry rules go by it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from contract.ahead import fetched_ahead, how_far_ahead
from contract.clock import Clock, SystemClock
from contract.codec import codec
from contract.env import ReducerEnv
from contract.errors import ObjectMissing
from contract.reduce_tasks import ReduceAnswer, ReduceTask
from contract.store import ObjectStore, S3Store
from lambdas.gradient_reducer.mean import Input, inputs, mean_frame, naming


class GradientReducer:
    """One warm process, which keeps nothing but its store."""

    def __init__(self, env: ReducerEnv, store: ObjectStore | None = None, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._store = store or S3Store(region=env.region, endpoint_url=env.endpoint_url)

    def __call__(self, event: Mapping[str, Any]) -> ReduceAnswer:
        """Add up one group and store the mean. Raises the errors of contract.errors, naming group and frame."""
        begun = self._clock.monotonic()
        task = ReduceTask.from_event(event)
        read: list[int] = []  # appended to by several threads

        def fetch(source: Input) -> bytes | None:
            try:
                with naming(task, source.name):
                    blob = self._store.get(source.place)
            except ObjectMissing:
                if not task.tolerant:
                    raise
                return None
            read.append(len(blob))
            return blob

        ahead = how_far_ahead(codec(task.codec).encoded_bytes(task.elements))
        made = mean_frame(task, fetched_ahead(fetch, inputs(task), ahead=ahead))
        if made is not None:
            with naming(task):
                self._store.put(task.output, made.frame)
        return ReduceAnswer(
            level=task.group.level,
            group=task.group.number,
            items=made.items if made else 0,
            samples=made.samples if made else 0,
            bytes_in=sum(read),
            seconds=self._clock.monotonic() - begun,
            retries=int(event.get("retries", 0)),
        )


_reducer: GradientReducer | None = None


def handler(event: Mapping[str, Any], context: object) -> dict[str, Any]:
    """AWS's entry point; the process's reducer is made at its first invocation."""
    global _reducer
    if _reducer is None:
        _reducer = GradientReducer(ReducerEnv.read(os.environ))
    return _reducer(event).to_dict()
