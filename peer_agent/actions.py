"""What a peer does when the state machine says so: the commands that both modes share.

Each action returns the events that answer its command. Nothing in here decides anything about the protocol.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract import models
from contract.algorithms import Algorithm, algorithm, local_steps
from contract.averaging import Remarks
from contract.batches import Manifest
from contract.codec import codec
from contract.errors import CorruptObject, ObjectMissing
from contract.extensions import MAX_SHARDS
from contract.header import MAX_HEADER_BYTES
from contract.history import History
from contract.local_steps import LocalSteps
from contract.objective import Evaluation
from contract.optimizers import idle
from contract.packing import packing
from contract.records import Member, MemberRef
from contract.runspec import RunSpec
from contract.seeds import public_seed
from contract.sharding import Sharding
from contract.tensors import Buffers, Layout
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.barrier import WeightsShelf
from peer_agent.bill import Bill
from peer_agent.compute.reduced import planned_reducers
from peer_agent.conduct import CONTENT
from peer_agent.contributions import Contributions, UnusableContent
from peer_agent.convergence import Convergence
from peer_agent.exchange.topology import Topology, topology
from peer_agent.machine import Machine
from peer_agent.membership import Fence
from peer_agent.newcomers import UNJOINED, Newcomers
from peer_agent.pieces import Pieces
from peer_agent.ports import Ports, RoundGradient
from peer_agent.reception import Reception
from peer_agent.records import Records
from peer_agent.spool import Spool
from peer_agent.trust import Trust
from peer_agent.update import Update
from peer_agent.validation import Validator


@dataclass
class _Own:
    """This peer's contribution to a round, as its parts come in."""

    round: int
    base_weights: str
    validate: bool
    gradient: RoundGradient | None = None
    validation: Evaluation | None = None


#: Gradients that one peer computes at the same time, by gradient service: its own processor has one round's to do,
#: while Lambda workers start on the next round beside a straggler of the last one.
AT_ONCE = {"local": 1, "lambda": 2}
#: Failed batches of a round that are told one by one.
TOLD_FAILURES = 5
#: Bytes that a shard's payload may have beyond its part of the whole one's.
SHARD_OVERHEAD = 256


class Actions:
    """The state of one peer beside the protocol's, and what it can do. Subclasses add the machine and the commands of
    their mode."""

    machine: Machine

    def __init__(self, spec: RunSpec, member: Member, ports: Ports, spool_folder: Path | None = None) -> None:
        """Fetches manifest and initial weights. Raises ObjectMissing, CorruptObject, ModelError, StoreUnavailable."""
        self.spec, self.member, self.ports = spec, member, ports
        self.me = MemberRef(rank=member.rank, incarnation=member.incarnation)
        model = models.build(spec.model)
        self.layout = Layout.of(model)
        self.fence = Fence(
            ports.store, spec.places, member, ports.clock, spec.config.membership.heartbeat_timeout_seconds
        )
        """Confirms that this process still holds its rank, before whatever it writes."""
        self.newcomers = Newcomers(spec, member.rank, ports.store, ports.exchange.admit)
        self.trust = Trust(ports.key, member, self.frame_rules, spec.config.trust.rejections, self._find_member)
        self.records = Records(
            ports.store, spec.places, self.me, fence=self.fence.check, sign=ports.key.sign, vouch=self.trust.vouch
        )
        self.shelf = WeightsShelf(ports.store, spec.places, self.layout, self.me)
        whole = MAX_HEADER_BYTES + 4 * self.layout.elements + self.layout.buffers_bytes  # with any codec
        self.spool = Spool(spool_folder, memory_bytes=whole)
        self.update = self.fresh_update(*self._first_weights())
        self.manifest = Manifest.from_json(ports.store.get(spec.places.manifest(member.rank)))
        self.pieces = Pieces(ports.store, spec.places, packing(spec.config.exchange.packing))
        self.contributions = Contributions(
            spec, self.layout, self.me, ports.store, self.spool, self.trust.signer.sign, self.trust.doubt, self.pieces
        )
        self.validator = Validator(spec, ports.store, model, self.layout)
        self.convergence = self.fresh_convergence()
        self.reception = Reception(ports.metrics)
        self.rounds_applied = 0
        self.left_out: Counter[int] = Counter()
        """In how many rounds aggregation took nothing of a rank's contribution."""
        self.clipped: Counter[int] = Counter()
        """In how many rounds it scaled a rank's gradient down."""
        self.bill = Bill(spec, ports)
        self.final_model = ""
        """Hash of the weights that the run hands over; empty until they are known."""
        self.best_loss: float | None = None
        self._own: _Own | None = None
        self._computing = 0  # gradients under way
        self._due: s.Compute | None = None  # what has to wait for one of them

    def _first_weights(self) -> tuple[NDArray[np.float32], Buffers]:
        """Those that the run starts from; where it goes on from another and nobody has put them, those of the
        checkpoint that leads there."""
        if self.spec.origin is None or self.ports.store.head(self.spec.places.weights(self.spec.initial_weights)):
            return self.shelf.get(self.spec.initial_weights)
        start = History(self.ports.store, self.spec).start()
        return self.shelf.get(start.weights_sha256, start.places)

    def fresh_update(self, flat: NDArray[np.float32], buffers: Buffers) -> Update:
        """Weights without a history."""
        config = self.spec.config
        step = self.algorithm.peers_step(config)
        return Update(self.layout, flat, buffers, step, config.aggregation, self.spool.folder)

    def fresh_convergence(self) -> Convergence:
        """Nothing validated yet, for the optimizer of `update`, or that of the workers where they take steps."""
        config = self.spec.config
        optimizer = idle(config.optimizer.lr) if self.algorithm.local else self.update.optimizer
        return Convergence(optimizer, config.scheduler, config.early_stopping, self.spec.rounds_limit)

    @property
    def algorithm(self) -> Algorithm:
        """What the workers compute and the peers do with it."""
        return algorithm(self.spec.config)

    @property
    def frame_rules(self) -> FrameRules:
        """What all contributions of this run have in common."""
        return FrameRules(
            run=self.spec.run,
            codec=self.spec.config.exchange.codec,
            elements=self.layout.elements,
            buffers_bytes=self.layout.buffers_bytes,
            samples_max=max(self.spec.samples[: self.spec.config.peers]),
            joined=self.newcomers.samples,
            sharded=self.topology.shards([0]) > 0,
            payload_max=self._payload_max,
        )

    @property
    def _others(self) -> int:
        """Peers that a message to everyone goes to."""
        return len({*range(self.spec.config.peers), *self.newcomers.admitted} - {self.me.rank})

    @property
    def topology(self) -> Topology:
        """How contributions come together."""
        return topology(self.spec.config.exchange.topology)

    @property
    def _payload_max(self) -> int:
        """Bytes of the longest contribution: each shard has a header and a rounded end of its own."""
        whole = codec(self.spec.config.exchange.codec).encoded_bytes(self.layout.elements)
        return whole if self.topology.shards([0]) == 0 else whole + MAX_SHARDS * SHARD_OVERHEAD

    @property
    def members(self) -> Sequence[MemberRef]:
        """Those of this round in rank order, where contributions are cut for them."""
        return ()

    def sharding(self) -> Sharding | None:
        """How this round's contributions are cut; None where they stay whole."""
        return None

    def recipient(self) -> int | None:
        """Whom this round's contributions are announced to; None for everyone."""
        return None

    def execute(self, command: s.Command) -> Iterable[s.Event]:
        """Carry out a command."""
        match command:
            case s.FindMembers(ranks):
                return self.find_members(ranks)
            case s.FindStop():
                stop = self.records.stop()
                return [] if stop is None else [s.StopFound(stop)]
            case s.Compute():
                return self.compute(command)
            case s.Hold(header, body, sender):
                return self.hold(header, body, sender)
            case s.Reject(reason, sender, round, header, other):
                return self.reject(reason, sender, round, header, other)
            case _:
                raise TypeError(f"{type(command).__name__} is no command of this mode")

    def compute(self, command: s.Compute) -> Iterable[s.Event]:
        """Start the gradient, and the validation that is due, beside the loop; then store and announce both.

        Others may go on without this peer (a quorum below all). Then the round at hand waits until no more than
        AT_ONCE computations are under way; rounds that went by meanwhile are left out.
        """
        if self._computing >= AT_ONCE[self.spec.config.compute.service]:
            self._due = command
            return []
        self._computing += 1
        own = self._own = _Own(command.round, command.base_weights, command.validate)
        flat, buffers = self.update.flat, self.update.buffers
        steps = local_steps(self.spec.config, self.convergence.rate(own.round))

        def gradient_done(gradient: RoundGradient) -> Iterable[s.Event]:
            self.bill.charge_round(gradient, len(self.spec.batches_for_round(self.me.rank, own.round)))
            own.gradient = gradient
            self._computing -= 1
            if own.round < self.machine.round:
                self._late(own, gradient)
            due, self._due = self._due, None
            if due is not None and due.round == self.machine.round:
                return self.compute(due)
            return self._contribute(own)

        def validation_done(validation: Evaluation) -> Iterable[s.Event]:
            own.validation = validation
            return self._contribute(own)

        fields = {"epoch": self.spec.epoch(own.round), "base_weights": own.base_weights}
        self.ports.events.emit("round_started", round=own.round, fields=fields)
        invocations = 1 if steps is not None else len(self.spec.batches_for_round(self.me.rank, own.round))
        self.bill.begin(invocations, planned_reducers(self.spec.config.compute, flat.size, invocations))
        if own.validate:
            self.ports.background.start(lambda: self.evaluate(own.round, flat, buffers), validation_done)
        self.ports.background.start(lambda: self._gradient(own, flat, buffers, steps), gradient_done)
        return []

    def _late(self, own: _Own, gradient: RoundGradient) -> None:
        """A gradient of a round that others have committed: it is kept where error feedback can send it later."""
        feedback = self.contributions.feedback
        if feedback is not None:
            feedback.owe(gradient.gradient)
        fields = {"kept": feedback is not None, "samples": gradient.samples}
        self.ports.events.emit("gradient_late", round=own.round, fields=fields)

    def _gradient(
        self, own: _Own, flat: NDArray[np.float32], buffers: Buffers, steps: LocalSteps | None
    ) -> RoundGradient:
        rank = self.me.rank
        with self.ports.metrics.stage("compute", own.round) as stage:
            gradient = self.ports.gradients.compute(
                round=own.round,
                incarnation=self.me.incarnation,
                weights_sha256=own.base_weights,
                flat=flat,
                buffers=buffers,
                batches=[self.manifest.batches[i] for i in self.spec.batches_for_round(rank, own.round)],
                seed=public_seed(self.spec.config.seed, "batches", rank, own.round),
                steps=steps,
            )
            stage.bytes_in += gradient.bytes_in
            stage.bytes_out += gradient.bytes_out
        if gradient.failures:
            causes = list(gradient.failures[:TOLD_FAILURES])
            failed = {"failed": gradient.batches_failed, "samples": gradient.samples, "causes": causes}
            self.ports.events.emit("batches_failed", round=own.round, fields=failed)
        if gradient.not_reduced:
            self.ports.events.emit("not_reduced", round=own.round, fields={"cause": gradient.not_reduced})
        if gradient.work is not None:
            fields = {"invocations": gradient.invocations, "loss": gradient.loss, **asdict(gradient.work)}
            self.ports.events.emit("worked", round=own.round, fields=fields)
        return gradient

    def evaluate(self, round: int, flat: NDArray[np.float32], buffers: Buffers) -> Evaluation:
        """What the weights that `round` starts from are worth on the validation set."""
        with self.ports.metrics.stage("convergence", round):
            found = self.validator.evaluate(flat, buffers)
        fields = {"validation_loss": found.loss, "validation_accuracy": found.accuracy, "samples": found.samples}
        self.ports.events.emit("validated", round=round, fields=fields)
        return found

    def _contribute(self, own: _Own) -> Iterable[s.Event]:
        """Once all parts are there: create the contribution in S3, then announce it (invariant 3)."""
        if own is not self._own or own.gradient is None or (own.validate and own.validation is None):
            return []
        if own.round < self.machine.round:
            return []
        self._own = None
        with self.ports.metrics.stage("send", own.round) as stage:
            made = self.contributions.make(own.round, own.base_weights, own.gradient, own.validation, self.sharding())
            self.fence.check()
            header, frame = self.contributions.store_own(made, self.members)
            message = self.contributions.announcement(frame)
            to = self.recipient()
            if to != self.me.rank:
                self.ports.exchange.publish("frame", message, to)
            stage.bytes_out += len(frame) + len(message) * (self._others if to is None else 1)
        self.reception.begin(own.round)
        return [s.ContributionHeld(header)]

    def hold(self, header: FrameHeader, body: bytes, sender: int | None) -> Sequence[s.Event]:
        """Spool a frame that fits; one that S3 turns out not to hold as announced is rejected after all."""
        try:
            frame_bytes = self.contributions.keep(header, body)
        except (ObjectMissing, CorruptObject) as error:
            reason = "missing" if isinstance(error, ObjectMissing) else "corrupt"
            if isinstance(error, UnusableContent):
                reason = CONTENT
            return [*self.reject(reason, sender, header.round, header), s.HoldFailed(header)]
        self.reception.received(frame_bytes)
        return [s.ContributionHeld(header)]

    def reject(
        self,
        reason: str,
        sender: int | None,
        round: int | None,
        header: FrameHeader | None = None,
        other: FrameHeader | None = None,
    ) -> Sequence[s.Event]:
        """Count a message that does not fit, and show it; Guilty where its signer has given evidence enough."""
        attributable = self.trust.conduct.reject(reason, sender, header, other=other)
        self.ports.events.emit("frame_rejected", round=round, fields={"reason": reason, "sender": sender})
        guilty = self.trust.guilty(()) if attributable else frozenset()
        return [s.Guilty(guilty)] if guilty else []

    def find_members(self, ranks: Iterable[int]) -> Sequence[s.Event]:
        """Look for the claims on these ranks; whoever joined after the start is heard from here on."""
        found = [member for member in map(self.trust.seek, ranks) if member is not None]
        for member in found:
            self.newcomers.admit(member)
        return [s.MemberSeen(member) for member in found]

    def find_newcomers(self) -> Sequence[s.Event]:
        """Look whether anybody has joined the run since the last look."""
        return self.find_members(self.newcomers.look())

    def _find_member(self, rank: int) -> Member | None:
        found = self.records.member(rank)
        if found is None or self.newcomers.may_hold(rank):
            return found
        self.reject(UNJOINED, rank, None)
        return None

    def tell_aggregated(self, round: int) -> None:
        """Count and show whom the step just taken left out or clipped, and what its aggregate lacks, if any."""
        remarks = self.update.remarks
        if remarks == Remarks():
            return
        self.left_out.update(remarks.left_out)
        self.clipped.update(remarks.clipped)
        fields = {"aggregator": self.spec.config.aggregation.name, "left_out": list(remarks.left_out)}
        fields |= {"clipped": list(remarks.clipped), "note": remarks.note}
        self.ports.events.emit("aggregated", round=round, fields=fields)

    def decide(self, round: int, weights_sha256: str, loss: float) -> str:
        """Feed a validation loss to convergence; a reason to stop, or an empty string."""
        decision = self.convergence.observe(weights_sha256, loss)
        if decision.lr_reduced:
            self.ports.events.emit("lr_reduced", round=round, fields={"lr": decision.lr})
        return decision.stop

    def conclude(self) -> None:
        """The run has ended: settle which weights it hands over."""
        self.reception.end()
        self.final_model = self.convergence.best_weights or self.update.weights_sha256
        self.best_loss = self.convergence.best_loss

    def close(self) -> None:
        """Remove what is on disk."""
        self.reception.end()
        self.pieces.early.close()
        self.spool.close()
