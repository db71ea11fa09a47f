"""One real peer whose gradient costs nothing: `python -m peer_agent` with another gradient service and nothing else.

    python -m benchmarks.peer --meeting SOCKET --averages FOLDER -- ARGUMENTS OF THE AGENT

A gradient is there at once, the same in every round; with a meeting it is handed out when all peers have asked for
theirs, which they do when they have passed the barrier of the round before. Without `--meeting` nobody waits. In the
last round the average that the round before has applied is left in the folder, for the check by value.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from benchmarks.meeting import Attendance, cpu_seconds
from benchmarks.vectors import gradient
from contract.batches import BatchRef
from contract.clock import SystemClock
from contract.local_steps import LocalSteps
from contract.runspec import RunSpec
from contract.tensors import Buffers
from peer_agent import __main__ as agent
from peer_agent.exchange import open_exchange
from peer_agent.ports import CountedStore, Exchange, RoundGradient


class GivenGradients:
    """A GradientService that computes nothing. The optimizer must be plain SGD with learning rate 1."""

    def __init__(
        self,
        spec: RunSpec,
        rank: int,
        store: CountedStore,
        exchange: Exchange,
        attendance: Attendance | None,
        folder: Path,
    ) -> None:
        self._gradient = gradient(rank, int(spec.model.options["elements"]))
        self._samples, self._rank, self._rounds = spec.samples[rank], rank, spec.rounds_limit
        self._store, self._exchange = store, exchange
        self._attendance, self._folder = attendance, folder
        self._before: NDArray[np.float32] | None = None

    def compute(
        self,
        *,
        round: int,
        incarnation: int,
        weights_sha256: str,
        flat: NDArray[np.float32],
        buffers: Buffers,
        batches: Sequence[BatchRef],
        seed: int,
        steps: LocalSteps | None = None,
    ) -> RoundGradient:
        """The gradient; see GradientService."""
        passed = SystemClock().monotonic()
        if round == self._rounds - 1 and self._before is not None:
            np.save(self._folder / f"average-{self._rank}.npy", self._before - flat)
        self._before = flat if round == self._rounds - 2 else None
        if self._attendance is not None:
            self._attendance.meet(round, self._counts(), passed)
        return RoundGradient(
            gradient=self._gradient,
            buffers=buffers,
            samples=self._samples,
            loss=0.0,
            invocations=0,
            executions=0,
            bytes_in=0,
            bytes_out=0,
        )

    def close(self) -> None:
        """Whoever waits at a meeting is let go by an error."""
        if self._attendance is not None:
            self._attendance.close()

    def _counts(self) -> dict[str, float]:
        """Since the start: bytes and messages, S3 and broker together; requests to S3; seconds of the processors."""
        stored, sent = self._store.counts, self._exchange.counts
        return {
            "bytes_sent": sent.bytes_sent + stored.bytes_out,
            "bytes_received": sent.bytes_received + stored.bytes_in,
            "messages_sent": sent.messages_sent,
            "messages_received": sent.messages_received,
            "requests": stored.gets + stored.puts + stored.lists + stored.deletes,
            "cpu_seconds": cpu_seconds(),
        }


def main(argv: list[str]) -> int:
    """Run the agent to its end; its exit status."""
    at = argv.index("--")
    arguments, opened = _parse(argv[:at]), list[Exchange]()

    def remembered(*positional: Any, **named: Any) -> Exchange:
        opened.append(open_exchange(*positional, **named))
        return opened[-1]

    def service(spec: RunSpec, rank: int, *, store: CountedStore, **_: object) -> GivenGradients:
        attendance = None if arguments.meeting is None else Attendance(arguments.meeting, rank)
        return GivenGradients(spec, rank, store, opened[-1], attendance, arguments.averages)

    with mock.patch.object(agent, "open_exchange", remembered), mock.patch.object(agent, "gradient_service", service):
        return agent.main(argv[at + 1 :])


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer")
    parser.add_argument("--meeting", type=Path, default=None)
    parser.add_argument("--averages", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # as the agent itself ends
