"""The commands of synchronous mode: commit, apply, barrier."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from contract.errors import CorruptObject, ObjectMissing
from contract.history import History, Start, Step
from contract.keys import Places
from contract.objective import Evaluation
from contract.records import Commit, Contributor, Member, MemberRef, Record, Result
from contract.runspec import RunSpec
from contract.sharding import Sharding
from contract.wire import FrameHeader
from peer_agent import signals as s
from peer_agent.actions import Actions
from peer_agent.barrier import Retention
from peer_agent.checkpoint import Checkpoints, capture_common, capture_own, restore_common, restore_own
from peer_agent.convergence import ConvergenceState
from peer_agent.membership import ARITHMETIC
from peer_agent.ports import Ports
from peer_agent.recovery import Recovery
from peer_agent.reducing import Reducing
from peer_agent.round import RoundMachine
from peer_agent.rules import LEAVING, RoundRules, excluded_ranks, shards_of


class SyncActions(Actions):
    """What a peer does in synchronous mode."""

    machine: RoundMachine

    def __init__(self, spec: RunSpec, member: Member, ports: Ports, spool_folder: Path | None = None) -> None:
        super().__init__(spec, member, ports, spool_folder)
        every = spec.config.checkpoint.every_rounds
        self.retention = Retention(self.me, self.shelf, spec.initial_weights, every_rounds=every)
        self.checkpoints = Checkpoints(
            ports.store,
            spec.places,
            self.me,
            elements=self.layout.elements,
            own_states=self.contributions.feedback is not None,
            fence=self.fence.check,
            sign=ports.key.sign,
        )
        self.reducing = Reducing(
            spec,
            self.layout,
            self.me,
            store=ports.store,
            spool=self.spool,
            trust=self.trust,
            exchange=ports.exchange,
            events=ports.events,
            fence=self.fence.check,
            pieces=self.pieces,
        )
        self._stands_at = spec.first_round  # the round that starts from the weights as they are
        self._last: Commit | None = None
        self._before_closing: ConvergenceState | None = None
        self.machine = RoundMachine(
            RoundRules(
                me=self.me,
                peers=spec.config.peers,
                rounds=spec.rounds_limit,
                validation=spec.validation_number,
                key=lambda round, rank, incarnation: spec.places.contribution(round, rank, incarnation).key,
                frames=self.frame_rules,
                quorum=spec.config.membership.quorum,
                checkpoint_every=every,
                topology=self.topology,
                arithmetic=str(member.resources.get(ARITHMETIC, "")),
                read_by_workers=spec.config.compute.service == "lambda",
            )
        )

    def execute(self, command: s.Command) -> Iterable[s.Event]:
        match command:
            case s.CatchUp():
                return self._catch_up()
            case s.WriteCheckpoint(round, common):
                self._write_checkpoint(round, self.machine.members, common)
                return []
            case s.TellWaiting(round, ranks, needed):
                return self._tell_waiting(round, ranks, needed)
            case s.Validate(round):
                return self._validate(round)
            case s.FindContributions(round, members):
                return self._find_contributions(round, members)
            case s.Fetch(round, contributor):
                return self._fetch(round, contributor)
            case s.CreateCommit(draft):
                draft = replace(
                    draft, extensions={**draft.extensions, **self.trust.accuse(self.machine.attendance.excluded)}
                )
                commit, won = self.records.create_commit(draft)
                self._announce("commit", commit, won)
                return [s.CommitFound(commit)]
            case s.FindCommit(round):
                found = self.records.commit(round)
                return [s.CommitMissing(round) if found is None else s.CommitFound(found)]
            case s.MakeShard(commit, shard):
                return self.reducing.make(commit, shard, self.update)
            case s.FindShards(round, shards):
                return self.reducing.listed(round, shards)
            case s.AnnounceReduced(round):
                self.reducing.announce(round)
                return []
            case s.Apply(commit, headers):
                return self._apply(commit, headers)
            case s.WriteResult(round, weights_sha256, store):
                return self._write_result(round, weights_sha256, store)
            case s.FindResult(round):
                result = self.records.result(round)
                return [s.ResultMissing(round) if result is None else s.ResultFound(result)]
            case s.Passed(_, result):
                return self._passed(result)
            case s.Adopt(round, weights_sha256):
                return self._adopt(round, weights_sha256)
            case s.FindWanted(weights_sha256):
                return [s.Wanted(weights_sha256)] if self.records.is_wanted(weights_sha256) else []
            case s.Share(round):
                return self._share(round)
            case s.CreateStop(reason, round):
                stop, won = self.records.create_stop(reason, round)
                self._announce("stop", stop, won)
                return [s.StopFound(stop)]
            case _:
                return super().execute(command)

    def _announce(self, kind: str, record: Record, won: bool) -> None:
        """Whoever created a record says so; a record that others created they announce."""
        if won:
            self.ports.exchange.publish(kind, record.to_json())

    # ----------------------------------------------------------------------- catching up, and what that needs later

    def _catch_up(self) -> Iterable[s.Event]:
        caught_up, replayed = Recovery(self.spec, self.me.rank, self.ports.store, self, self.trust.vouch).catch_up()
        if self.spec.origin is not None:
            self._bring_weights()
        if caught_up.members is not None or replayed:
            fields = {"replayed": replayed, "base_weights": caught_up.base_weights}
            self.ports.events.emit("caught_up", round=caught_up.round, fields=fields)
        return [caught_up]

    def _bring_weights(self) -> None:
        """Have in this run what it may hand over of an earlier one: the best weights, and those that it starts from."""
        starts_from, best = self.spec.initial_weights, self.convergence.best_weights
        one_for_all = self.me.rank == 0 or self.machine.rules.read_by_workers
        if one_for_all and self.update.weights_sha256 == starts_from:
            self.shelf.ensure(self.spec.first_round, self.update)
        if best and best != starts_from:
            earlier = History(self.ports.store, self.spec).legs[1:]
            self.shelf.bring(best, [leg.places for leg in earlier])

    @property
    def base(self) -> str:
        """Hash of the weights as they are."""
        return self.update.weights_sha256

    def restore(self, start: Start, residual: bool) -> None:
        """Load a state (`recovery.Replica`)."""
        self._stands_at, feedback = start.round, self.contributions.feedback
        if feedback is not None:
            feedback.forget()
        if start.checkpoint is None and not residual and feedback is not None:
            self.ports.events.emit("residual_lost", round=start.round, fields={})
        if self._last is None and start.checkpoint is None and start.weights_sha256 == self.update.weights_sha256:
            return  # as it was made
        self.update = self.fresh_update(*self.shelf.get(start.weights_sha256, start.places))
        self.convergence = self.fresh_convergence()
        self.rounds_applied = 0
        if start.checkpoint is None:
            return
        blob = self.checkpoints.read_common(start.checkpoint)
        self.rounds_applied = restore_common(blob, start.checkpoint, self.update, self.convergence)
        self.retention.checkpointed(start.checkpoint)
        if feedback is None:
            return
        own = self.checkpoints.read_own(start.checkpoint, self.me.rank) if residual else None
        if own is not None:
            restore_own(own, start.checkpoint, self.me.rank, feedback)
        elif not residual or any(member.rank == self.me.rank for member in start.checkpoint.members):
            self.ports.events.emit("residual_lost", round=start.round, fields={})

    def replay(self, step: Step, commit: Commit, result: Result) -> str:
        """Apply a commit of the past (`recovery.Replica`)."""
        own_run = step.places.run == self.spec.run
        places = None if own_run else step.places
        whole = () if shards_of(commit) else commit.contributors
        headers = tuple(self.contributions.fetch(listed, commit.round, places) for listed in whole)
        loss, base = commit.validation_loss, commit.base_weights.get("0", self.update.weights_sha256)
        stop = "" if loss is None else self.decide(commit.round, base, loss)
        self._step(commit, headers, places)
        if self.update.weights_sha256 != result.weights_sha256:
            with contextlib.suppress(ObjectMissing):  # those of the last round alone must be had
                self.update.adopt(*self.shelf.get(result.weights_sha256, step.places))
        self.spool.forget_through(commit.round)
        if own_run:
            self.retention.passed(result, self.convergence.best_weights)
        return stop

    def _write_checkpoint(self, round: int, members: Sequence[MemberRef], common: bool) -> None:
        """Store the state from which `round` starts, which is where this peer stands."""
        feedback = self.contributions.feedback
        with self.ports.metrics.stage("send", round) as stage:
            if feedback is not None:
                includes_next = self.contributions.made == round
                own = capture_own(feedback, self.me, run=self.spec.run, round=round, includes_next=includes_next)
                stage.bytes_out += self.checkpoints.write_own(round, own)
            if common:
                stage.bytes_out += self.shelf.ensure(round, self.update)
                convergence = self._before_closing or self.convergence
                blob = capture_common(
                    self.update, convergence, run=self.spec.run, round=round, rounds_applied=self.rounds_applied
                )
                record = self.checkpoints.write_common(round, self.update.weights_sha256, members, blob)
                stage.bytes_out += len(blob)
                self.retention.checkpointed(record)
                self.ports.events.emit("checkpoint", round=round, fields={"weights": record.weights_sha256})

    def conclude(self) -> None:
        """The run has ended: keep what another run can go on from."""
        super().conclude()
        if self._last is not None:
            self._write_checkpoint(self._stands_at, self._last.members, self._last.writer.rank == self.me.rank)

    def _tell_waiting(self, round: int, ranks: Sequence[int], needed: int) -> Iterable[s.Event]:
        self.ports.events.emit("waiting", round=round, fields={"for": list(ranks), "needed": needed})
        return []

    def _validate(self, round: int) -> Iterable[s.Event]:
        """Evaluate the weights of the closing round beside the loop."""
        flat, buffers = self.update.flat, self.update.buffers

        def done(found: Evaluation) -> Iterable[s.Event]:
            return [s.Validated(round, found.loss, found.accuracy)]

        self.ports.background.start(lambda: self.evaluate(round, flat, buffers), done)
        return []

    def _fetch(self, round: int, contributor: Contributor) -> Iterable[s.Event]:
        """Lazily: what comes before it may have brought this peer to another round."""
        if round != self.machine.round:
            return
        try:
            header = self.contributions.fetch(contributor, round)
        except ObjectMissing:
            if self.machine.seated:
                raise
            yield from self._catch_up()  # an observer that is so far behind goes on from a later checkpoint
            return
        self.reception.received(header.payload_bytes + header.buffers_bytes)
        yield s.ContributionHeld(header)

    def _find_contributions(self, round: int, members: Sequence[MemberRef]) -> Iterable[s.Event]:
        sharding = self.sharding()
        for member in self.contributions.there(round, members):
            try:
                if sharding is None:
                    found = self.contributions.find(round, member)
                else:
                    header = self.reducing.find(round, member, sharding.shards)
                    found = None if header is None else (header, b"")
            except CorruptObject:
                self.reject("corrupt", member.rank, round)
                continue
            if found is not None:
                yield s.FrameArrived(*found, sender=member.rank)
        yield s.ContributionsSought(round, tuple(member.rank for member in members))

    def _apply(self, commit: Commit, headers: tuple[FrameHeader, ...]) -> Iterable[s.Event]:
        self.reception.end()
        base = self.update.weights_sha256
        listed = commit.contributors
        total = sum(contributor.samples for contributor in listed)
        losses = [c.loss * c.samples for c in listed if c.loss is not None]
        fields = {
            "contributors": [contributor.rank for contributor in listed],
            "writer": commit.writer.rank,
            "samples": total,
            "loss": sum(losses) / total if total and len(losses) == len(listed) else None,
            "validation_loss": commit.validation_loss,
            "validation_accuracy": commit.validation_accuracy,
            "final": commit.final,
        }
        self.ports.events.emit("commit", round=commit.round, fields=fields)
        # Whoever goes on from a closing commit validates the same weights once more.
        self._before_closing = None if commit.contributors else self.convergence.state()
        stop = "" if commit.validation_loss is None else self.decide(commit.round, base, commit.validation_loss)
        self._tell_members(commit)
        self._step(commit, headers)
        if commit.contributors:
            self.bill.tell(commit.round)
        self.reception.begin(commit.round)
        excluded = self.trust.proven(commit, self.contributions.read, self.contributions.use)
        self.spool.forget_through(commit.round)  # before the weights may be put: each is as large as the model
        return [s.Applied(commit.round, self.update.weights_sha256, stop, excluded)]

    @property
    def members(self) -> Sequence[MemberRef]:
        return self.machine.members

    def sharding(self) -> Sharding | None:
        """How this round's contributions are cut; None where they stay whole."""
        shards = self.topology.shards([member.rank for member in self.members])
        return self.reducing.sharding(shards) if shards else None

    def recipient(self) -> int | None:
        """Whom this round's contributions are announced to; None for everyone."""
        leader = self.machine.leader.rank
        return self.topology.recipient("frame", leader=leader, writer=leader)

    def hold(self, header: FrameHeader, body: bytes, sender: int | None) -> Sequence[s.Event]:
        """Keep a frame that fits; of one in shards, its header, once S3 is seen to hold it."""
        sharding = self.sharding()
        if sharding is None:
            return super().hold(header, body, sender)
        try:
            self.reception.received(self.reducing.confirm(header, sharding.shards))
        except (ObjectMissing, CorruptObject) as error:
            reason = "missing" if isinstance(error, ObjectMissing) else "corrupt"
            return [*self.reject(reason, sender, header.round), s.HoldFailed(header)]
        return [s.ContributionHeld(header)]

    def _step(self, commit: Commit, headers: tuple[FrameHeader, ...], places: Places | None = None) -> None:
        headers = self.contributions.usable(headers)
        self.convergence.pace(commit.round)
        if shards_of(commit):
            with self.ports.metrics.stage("update", commit.round) as stage:
                stage.bytes_in += self.reducing.apply(commit, self.update, places)
                own = self.contributions.own(commit)
                self.contributions.settle([] if own is None else [own])
        elif headers:
            with self.ports.metrics.stage("update", commit.round):
                self.update.step(headers, self.contributions.frames(headers))
                self.contributions.settle(headers)
            self.tell_aggregated(commit.round)
        if commit.contributors:
            self.rounds_applied += 1
            self._stands_at = commit.round + 1
        self._last = commit
        if commit.run == self.spec.run:
            self.retention.applied(commit)

    def _tell_members(self, commit: Commit) -> None:
        """Say who is a member no longer, and who is one now."""
        before = {member.rank: member.incarnation for member in self.machine.members}
        after = {member.rank: member.incarnation for member in commit.members}
        for rank in sorted(before.keys() - after.keys()):
            left = "left" if rank in commit.extensions.get(LEAVING, ()) else "silent"
            reason = "excluded" if rank in excluded_ranks(commit) else left
            self.ports.events.emit("member_dropped", round=commit.round, fields={"member": rank, "reason": reason})
        for rank, incarnation in sorted(after.items()):
            if before.get(rank) != incarnation:
                fields = {"member": rank, "incarnation": incarnation}
                self.ports.events.emit("member_joined", round=commit.round, fields=fields)

    def _write_result(self, round: int, weights_sha256: str, store: bool) -> Iterable[s.Event]:
        """The object first where anybody will read it, the record that names it afterwards."""
        self.reception.end()
        with self.ports.metrics.stage("send", round) as stage:
            if store:
                stage.bytes_out += self.shelf.put(round + 1, self.update)
            result, won = self.records.create_result(round, weights_sha256)
            self._announce("result", result, won)
        if store and result.weights_sha256 != weights_sha256:
            self.shelf.delete([weights_sha256])  # another's were recorded, so these are nobody's base
        return [s.ResultFound(result)]

    def _share(self, round: int) -> Iterable[s.Event]:
        """Put the weights that `round` starts from, for whoever rounds otherwise."""
        with self.ports.metrics.stage("send", round) as stage:
            stage.bytes_out += self.shelf.put(round, self.update)
        return []

    def _passed(self, result: Result) -> Iterable[s.Event]:
        self.reception.end()
        self.retention.passed(result, self.convergence.best_weights)
        return []

    def _adopt(self, round: int, weights_sha256: str) -> Iterable[s.Event]:
        """Another processor or kernel may round differently: go on from what is recorded, and say so (invariant 4)."""
        own = self.update.weights_sha256
        try:
            self.update.adopt(*self.shelf.get(weights_sha256))
        except ObjectMissing:
            self.ports.exchange.publish("wanted", self.records.want(round + 1, weights_sha256).to_json())
            return []
        fields = {"own_weights": own, "recorded_weights": weights_sha256}
        self.ports.events.emit("weights_adopted", round=round, fields=fields)
        return [s.Adopted(round, weights_sha256)]
