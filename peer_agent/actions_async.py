"""The commands of asynchronous mode: average what is there, validate the own weights, end together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from contract.errors import CorruptObject
from contract.objective import Evaluation
from contract.records import Member, MemberRef
from contract.runspec import RunSpec
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.actions import Actions, Ports
from peer_agent.asynchronous import AsyncMachine, AsyncRules


class AsyncActions(Actions):
    """What a peer does in asynchronous mode. Its own weights lie in S3 only where someone needs them there: Lambda
    workers the current ones, everybody the best ones at the end."""

    machine: AsyncMachine

    def __init__(self, spec: RunSpec, member: Member, ports: Ports, spool_folder: Path | None = None) -> None:
        super().__init__(spec, member, ports, spool_folder)
        self._stored: set[str] = set()  # weights objects that this peer has put and not deleted
        self.machine = AsyncMachine(
            AsyncRules(
                me=self.me,
                peers=spec.config.peers,
                rounds=spec.rounds_limit,
                max_staleness=spec.config.exchange.max_staleness,
                initial_weights=spec.initial_weights,
                validates=lambda round: spec.validation_number(round) is not None,
                frames=self.frame_rules,
            )
        )

    def execute(self, command: s.Command) -> Iterable[s.Event]:
        match command:
            case s.FindLatest(known):
                return self._find_latest(known)
            case s.Average(round, headers):
                return self._average(round, headers)
            case s.Validate(round):
                return self._validate(round)
            case s.CreateStop(reason, round):
                return self._create_stop(reason, round)
            case s.Adopt(round, weights_sha256):
                self.update.adopt(*self.shelf.get(weights_sha256))
                return [s.Adopted(round, weights_sha256)]
            case _:
                return super().execute(command)

    def hold(self, header: FrameHeader, body: bytes, sender: int | None) -> Sequence[s.Event]:
        """Keep a frame in place of its sender's earlier one: a fast sender must not fill the disk of a slow peer."""
        answers = super().hold(header, body, sender)
        if answers:
            # Only what the machine knows of this sender: of others it may not have noted yet what lies there already.
            earlier = [known.digest for known in self.machine.latest if known.rank == header.rank]
            self.spool.forget([digest for digest in earlier if digest != header.digest])
        return answers

    def _find_latest(self, known: Sequence[tuple[MemberRef, int]]) -> Iterable[s.Event]:
        for member, round in self.contributions.latest(known):
            try:
                found = self.contributions.find(round, member)
            except CorruptObject:
                self.reject("corrupt", member.rank, round)
                continue
            if found is not None:
                yield s.FrameArrived(*found, sender=member.rank)

    def _average(self, round: int, headers: tuple[FrameHeader, ...]) -> Iterable[s.Event]:
        self.reception.end()
        fields = {
            "contributors": [header.rank for header in headers],
            "staleness": [max(0, round - header.base_round) for header in headers],
            "loss": next((header.loss for header in headers if header.rank == self.me.rank), None),
        }
        self.ports.events.emit("averaged", round=round, fields=fields)
        with self.ports.metrics.stage("update", round):
            self.update.step(headers, self.contributions.frames(headers))
            self.contributions.settle(headers)
        self.rounds_applied += 1
        self.tell_bill(round)
        self.spool.retain({header.digest for header in headers})
        too_old = round - self.spec.config.exchange.max_staleness - 1
        if too_old >= 0:
            self.contributions.delete(too_old, [self.me])
        if self.spec.config.compute.service == "lambda":
            self._put_current(round + 1)
        return [s.Applied(round, self.update.weights_sha256)]

    def _validate(self, round: int) -> Iterable[s.Event]:
        """Evaluate the own weights beside the loop; meanwhile frames of others are taken in."""
        flat, buffers = self.update.flat, self.update.buffers

        def done(found: Evaluation) -> Iterable[s.Event]:
            stop = self.decide(round, self.update.weights_sha256, found.loss)
            if self.convergence.best_weights == self.update.weights_sha256:
                self._put_current(round)
            return [s.Validated(round, found.loss, found.accuracy, stop)]

        self.ports.background.start(lambda: self.evaluate(round, flat, buffers), done)
        return []

    def _create_stop(self, reason: str, round: int) -> Iterable[s.Event]:
        """Name the final weights: the best that this peer has validated, or its current ones; they lie in S3 first."""
        if not self.convergence.best_weights:
            self._put_current(round)
        weights = self.convergence.best_weights or self.update.weights_sha256
        stop, won = self.records.create_stop(reason, round, weights, self.convergence.best_loss)
        if won:
            self.ports.exchange.publish("stop", stop.to_json())
        return [s.StopFound(stop)]

    def _put_current(self, round: int) -> None:
        """Store the current weights, and delete this peer's earlier ones but the best."""
        current = self.update.weights_sha256
        if current not in self._stored and current != self.spec.initial_weights:
            self.shelf.put(round, self.update)
            self._stored.add(current)
        self._delete_all_but({current, self.convergence.best_weights})

    def _delete_all_but(self, kept: set[str]) -> None:
        gone = self._stored - kept
        self.shelf.delete(gone)
        self._stored -= gone

    def conclude(self) -> None:
        """All hand over the weights that the stop record names; this peer's other objects go."""
        super().conclude()
        stop = self.machine.stop
        if stop is not None and stop.weights_sha256:
            self.final_model, self.best_loss = stop.weights_sha256, stop.validation_loss
        self._delete_all_but({self.final_model})
