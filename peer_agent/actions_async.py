"""The commands of asynchronous mode: average what is there, validate the own weights, share them, end together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from contract.errors import CorruptObject, ObjectMissing
from contract.objective import Evaluation
from contract.records import Member, MemberRef
from contract.runspec import RunSpec
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.actions import Actions
from peer_agent.asynchronous import AsyncMachine, AsyncRules
from peer_agent.conduct import CONTENT
from peer_agent.contributions import UnusableContent
from peer_agent.latest import staleness
from peer_agent.own_weights import OwnWeights
from peer_agent.ports import Ports


class AsyncActions(Actions):
    """What a peer does in asynchronous mode. Its own weights lie in S3 only where someone needs them there: Lambda
    workers the current ones, everybody the best ones at the end, and others as OwnWeights has it."""

    machine: AsyncMachine

    def __init__(self, spec: RunSpec, member: Member, ports: Ports, spool_folder: Path | None = None) -> None:
        super().__init__(spec, member, ports, spool_folder)
        self._stored: set[str] = set()  # weights objects that this peer has put and not deleted
        self.own_weights = OwnWeights(
            ports.store, spec.places, self.layout, self.me, spool_folder, self.trust.signer.sign, self.trust.doubt
        )
        self.machine = AsyncMachine(
            AsyncRules(
                me=self.me,
                peers=spec.config.peers,
                rounds=spec.rounds_limit,
                max_staleness=spec.config.exchange.max_staleness,
                initial_weights=spec.initial_weights,
                validates=lambda round: spec.validation_number(round) is not None,
                frames=self.frame_rules,
                average_every=spec.config.exchange.average_weights_every,
                keep_every=spec.config.checkpoint.every_rounds,
            )
        )

    def execute(self, command: s.Command) -> Iterable[s.Event]:
        match command:
            case s.FindLatest(known):
                return self._find_latest(known)
            case s.Average(round, headers, weights):
                return self._average(round, headers, weights)
            case s.PutWeights(round, to):
                return self._put_weights(round, to)
            case s.FindWeights(known):
                return self._find_weights(known)
            case s.TakeUp(header):
                return self._take_up(header)
            case s.TellPresence(round, left, back):
                return self._tell_presence(round, left, back)
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
        if header.kind is Kind.WEIGHTS:
            return self._hold_weights(header, body, sender)
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

    def _average(
        self, round: int, headers: tuple[FrameHeader, ...], weights: tuple[FrameHeader, ...]
    ) -> Iterable[s.Event]:
        self.reception.end()
        fields = {
            "contributors": [header.rank for header in headers],
            "incarnations": [header.incarnation for header in headers],
            "staleness": [staleness(header, round) for header in headers],
            "loss": next((header.loss for header in headers if header.rank == self.me.rank), None),
        }
        self.ports.events.emit("averaged", round=round, fields=fields)
        with self.ports.metrics.stage("update", round):
            if weights:
                self._average_weights(round, weights)
            self.convergence.pace(round)
            self.update.step(headers, self.contributions.frames(headers))
            self.contributions.settle(headers)
        self.tell_aggregated(round)
        self.rounds_applied += 1
        self.bill.tell(round)
        self.spool.retain({header.digest for header in headers})
        self.own_weights.forget_all_but(self.machine.weights)
        too_old = round - self.spec.config.exchange.max_staleness - 1
        if too_old >= 0:
            self.contributions.delete(too_old, [self.me])
        if self.spec.config.compute.service == "lambda":
            self._put_current(round + 1)
        return [s.Applied(round, self.update.weights_sha256)]

    def _average_weights(self, round: int, others: Sequence[FrameHeader]) -> None:
        """Go on from the average of the own weights and these; the optimizer's state stays this peer's own."""
        before = self.update.flat
        samples = dict(enumerate(self.spec.samples))
        mean, buffers = self.own_weights.mean(
            before, self.update.buffers, others, samples, self.spec.config.aggregation, self.spool.folder
        )
        norm = float(np.linalg.norm(mean))
        self.update.adopt(mean, buffers)
        fields = {
            "contributors": sorted([self.me.rank, *(header.rank for header in others)]),
            "staleness": [staleness(header, round) for header in others],
            "distance": float(np.linalg.norm(before - mean)) / norm if norm else 0.0,
            "weights": self.update.weights_sha256,
        }
        self.ports.events.emit("weights_averaged", round=round, fields=fields)

    def _put_weights(self, round: int, to: tuple[int, ...] | None) -> Iterable[s.Event]:
        """Beside the loop, while the round's gradient is computed: the object first, then the word that it is there."""
        flat, buffers = self.update.flat, self.update.buffers

        def put() -> bytes:
            self.fence.check()
            with self.ports.metrics.stage("send", round) as stage:
                frame = self.own_weights.put(round, flat, buffers)
                stage.bytes_out += len(frame)
            return frame

        def announce(frame: bytes) -> Iterable[s.Event]:
            self.own_weights.clear(round)
            message = self.contributions.announcement(frame)
            for recipient in [None] if to is None else to:
                self.ports.exchange.publish("frame", message, recipient)
            return []

        self.ports.background.start(put, announce)
        return []

    def _find_weights(self, known: Sequence[tuple[MemberRef, int]] | None) -> Iterable[s.Event]:
        for found in self.own_weights.find(known):
            if isinstance(found, MemberRef):
                self.reject("corrupt", found.rank, None)
            else:
                yield s.FrameArrived(found, b"", sender=found.rank)
        yield s.WeightsSought()

    def _hold_weights(self, header: FrameHeader, body: bytes, sender: int | None) -> Sequence[s.Event]:
        try:
            received = self.own_weights.hold(header, body)
        except (ObjectMissing, CorruptObject) as error:
            return self._useless(error, header, sender)
        self.reception.received(received)
        return [s.ContributionHeld(header)]

    def _take_up(self, header: FrameHeader) -> Sequence[s.Event]:
        """Go on where another peer stood; what this rank's earlier process owed others is lost."""
        try:
            flat, buffers = self.own_weights.get(header)
        except (ObjectMissing, CorruptObject) as error:
            return self._useless(error, header, header.rank)
        self.update.adopt(flat, buffers)
        self.rounds_applied = header.round
        fields = {"replayed": 0, "base_weights": self.update.weights_sha256, "from": header.rank}
        self.ports.events.emit("caught_up", round=header.round, fields=fields)
        if self.contributions.feedback is not None:
            self.ports.events.emit("residual_lost", round=header.round)
        if self.spec.config.compute.service == "lambda":
            self._put_current(header.round)
        return [s.CaughtUp(header.round, self.update.weights_sha256, None)]

    def _useless(self, error: Exception, header: FrameHeader, sender: int | None) -> Sequence[s.Event]:
        """Count weights of which nothing can be made."""
        reason = "missing" if isinstance(error, ObjectMissing) else "corrupt"
        if isinstance(error, UnusableContent):
            reason = CONTENT
        return [*self.reject(reason, sender, header.round), s.HoldFailed(header)]

    def _tell_presence(self, round: int, left: Sequence[int], back: Sequence[MemberRef]) -> Iterable[s.Event]:
        for rank in left:
            self.ports.events.emit("member_dropped", round=round, fields={"member": rank, "reason": "silent"})
        for member in back:
            fields = {"member": member.rank, "incarnation": member.incarnation}
            self.ports.events.emit("member_joined", round=round, fields=fields)
        return []

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
        self.own_weights.retire()

    def close(self) -> None:
        """Remove what is on disk."""
        super().close()
        self.own_weights.close()
