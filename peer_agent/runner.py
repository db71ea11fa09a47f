"""Where things meet: feeds the protocol's state machine with events and executes its commands against the ports.

One thread answers messages, timers and finished jobs, one event at a time; gradients and validations are computed
beside it. A message is acknowledged when everything that followed from it is done.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from contract import wire
from contract.errors import CorruptObject, GradientFailed, PeerlessError, RunFailed, Superseded, TransientError
from contract.records import Commit, Heartbeat, Member, PeerReport, Reduced, Result, Stop, Wanted
from peer_agent import signals as s
from peer_agent.actions import Actions
from peer_agent.ports import Delivery
from peer_agent.watch import Watch

#: A wait is cut into slices of so many seconds, so that a signal or a finished job is noticed soon.
SLICE_SECONDS = 0.2
#: A stop record whose reason starts so ends the run as a failure; the cause follows.
FAILED = "failed: "

#: Events that show that others, or this peer, are getting on: they put the deadline off.
_PROGRESS = (s.ContributionHeld, s.Validated, s.CommitFound, s.Applied, s.ResultFound)

#: The records that travel as messages, and the events that they make.
_RECORDS: dict[str, tuple[Any, Any]] = {
    "hello": (Member, s.MemberSeen),
    "commit": (Commit, s.CommitFound),
    "result": (Result, s.ResultFound),
    "stop": (Stop, s.StopFound),
    "reduced": (Reduced, lambda word: s.AllReduced(word.round)),
    "wanted": (Wanted, lambda word: s.Wanted(word.weights_sha256)),
}


def is_alone(error: Exception) -> bool:
    """Whether this is a reason for this process to end and none for the others."""
    return isinstance(error, Superseded | TransientError | OSError | MemoryError)


class Runner:
    """One peer's run, from the claimed rank to the report."""

    def __init__(self, actions: Actions) -> None:
        self.machine, self.actions = actions.machine, actions
        self.spec, self.ports = actions.spec, actions.ports
        self.ended = False
        self.reason = ""
        self._end_wanted = ""
        self._spent = False
        self._training_since: float | None = None  # monotonic seconds; None until all members were seen
        self.watch = Watch(
            self.spec.run,
            actions.me,
            self.machine,
            self.ports.exchange,
            actions.trust,
            self.spec.config.membership,
            self.spec.config.peers,
            actions.newcomers.admitted,
        )
        self._waiting = self.machine.waiting
        self._looked_at = self._heard_at = self._welcomed_at = self.ports.clock.monotonic()

    def run(self) -> PeerReport:
        """Take part until the end, leave a report in S3 either way, and return it.

        Raises what made this peer fail, and RunFailed when another one did.
        """
        try:
            try:
                self.start()
                while not self.ended:
                    self.step()
            except Exception as error:
                self.give_up(error)
                raise
            return self.conclude()
        finally:
            self.actions.close()

    def request_end(self, reason: str) -> None:
        """Ask for an orderly end of the whole run; safe to call from a signal handler."""
        self._end_wanted = reason

    # -------------------------------------------------------------------------------------------------- the loop

    def start(self) -> None:
        """Greet the others: the beginning of `run`."""
        member = self.actions.member
        fields = {"incarnation": member.incarnation, "peer_id": member.peer_id}
        self.ports.events.emit("member_claimed", fields=fields)
        self.ports.exchange.publish("hello", member.to_json())
        self.feed(s.Started())

    def step(self) -> None:
        """Answer what is due: a signal, finished jobs, messages, the clock. Waits a little where nothing is."""
        now = self.ports.clock.monotonic()
        if self.watch.paused(now):
            self.actions.fence.check()
        if self._end_wanted:
            reason, self._end_wanted = self._end_wanted, ""
            self.feed(s.LeaveRequested() if self._came_later else s.EndRequested(reason))
        self.feed(*self.watch.events(now))
        background, exchange = self.ports.background, self.ports.exchange
        for job in background.finished(SLICE_SECONDS if background.busy else 0.0):
            if self.ended:  # by what came before it; nobody needs this one, nor its failure
                break
            if job.error is not None:
                raise job.error
            self.feed(*job.then(job.value))
        for delivery in exchange.poll(0.0 if self.ended or background.busy else SLICE_SECONDS):
            event = self._read(delivery)
            if event is not None:
                self.feed(event)
            exchange.acknowledge(delivery)
        if not (self._spent or self.ended) and self.actions.bill.spent:
            self._spent = True  # said once; a stop record that exists already ends the run anyway
            self.feed(s.LeaveRequested() if self._came_later else s.EndRequested(s.MAX_USD))
        self._look_at_the_clock()

    def feed(self, *events: s.Event) -> None:
        """Handle events, and those that the machine's commands are answered with, until none is left.

        Answers are taken one by one, so that of all frames found in S3 only one is in memory at a time.
        """
        due = deque([iter(events)])
        while due and not self.ended:
            event = next(due[0], None)
            if event is None:
                due.popleft()
                continue
            if isinstance(event, _PROGRESS):
                self._heard_at = self.ports.clock.monotonic()
            for command in self.machine.handle(event):
                due.append(iter(self._execute(command)))

    def _execute(self, command: s.Command) -> Iterable[s.Event]:
        match command:
            case s.Finish(reason):
                self.ended, self.reason = True, reason
                return ()
            case s.Fail(error):
                raise error
            case s.Compute() if self._training_since is None:
                self._training_since = self.ports.clock.monotonic()
        return self.actions.execute(command)

    def _read(self, delivery: Delivery) -> s.Event | None:
        """What a message says; None, and counted, for one that says nothing here."""
        event: s.Event | str | None
        try:
            event = self._parse(delivery)
        except CorruptObject:
            event = "corrupt"
        if isinstance(event, str):
            self.actions.reject(event, delivery.sender, None)
            return None
        return event

    def _parse(self, delivery: Delivery) -> s.Event | str | None:
        """The event that a message makes, why it is of no use, or None where there is nothing to handle.

        Raises CorruptObject.
        """
        if delivery.kind == "frame":
            header, body = self.actions.contributions.read_message(delivery.body)
            if header.rank != delivery.sender:
                return "sender"
            return self.actions.trust.doubt(header) or s.FrameArrived(header, body, delivery.sender)
        if delivery.kind == "silent":
            word = Heartbeat.from_json(delivery.body)
            if word.run != self.spec.run or word.rank != delivery.sender:
                return "sender"
            if reason := self.actions.trust.doubt(word):
                return reason
            self.watch.reported(word)
            return None
        if delivery.kind == "shard":  # a hint: whoever needs the average checks what S3 holds
            average = wire.decode_header(delivery.body)
            return s.ShardsSeen(average.round, frozenset({average.shard})) if average.run == self.spec.run else "run"
        if delivery.kind not in _RECORDS:
            return "kind"
        record_class, event_class = _RECORDS[delivery.kind]
        record = record_class.from_json(delivery.body)
        if record.run != self.spec.run:
            return "run"
        # Whoever creates a record announces it; only what ends a run is passed on by others too.
        author = record.rank if isinstance(record, Member) else record.writer.rank
        if author != delivery.sender and not isinstance(record, Stop):
            return "sender"
        if isinstance(record, Member):
            claim = self.actions.trust.greeted(record)
            return claim if isinstance(claim, str) else s.MemberSeen(claim)
        event: s.Event = event_class(record)
        return self.actions.trust.doubt(record) or event

    def _look_at_the_clock(self) -> None:
        """A look into S3 comes after each `poll_seconds` of an unchanged wait; deadlines run while others are due."""
        now, config = self.ports.clock.monotonic(), self.spec.config.exchange
        if self.spec.config.mode == "sync" and now - self._welcomed_at >= config.poll_seconds:
            self._welcomed_at = now
            self.feed(*self.actions.find_newcomers())
        if self.machine.waiting != self._waiting:
            self._waiting, self._looked_at = self.machine.waiting, now
        elif now - self._looked_at >= config.poll_seconds:
            self._looked_at = now
            self.actions.trust.keyring.refresh()
            self.feed(s.PollDue())
        if self._training_since is None:
            limit = config.start_timeout_seconds
        else:
            limit = config.round_timeout_seconds
            if not self.machine.contributed or self.ports.exchange.away_seconds:
                self._heard_at = now
        if now - self._heard_at >= limit:
            self._heard_at = now
            self.feed(s.DeadlineReached(limit))

    # ---------------------------------------------------------------------------------------------------- the end

    def conclude(self) -> PeerReport:
        """Leave the report of a run that ended in order, and the broker for good.

        Raises RunFailed where the run ended because another peer failed.
        """
        if self.reason != s.LEFT:
            self.actions.conclude()
        failure = self.reason.removeprefix(FAILED) if self.reason.startswith(FAILED) else None
        report = self._report("failed" if failure else self.reason, failure)
        self.actions.records.put_report(report)
        self.ports.exchange.close(retire=True)
        self.ports.events.emit("finished", round=self._round, fields={"reason": report.reason, "error": failure})
        if failure is not None:
            raise RunFailed(failure)
        return report

    def give_up(self, error: Exception) -> None:
        """Say what happened: to the log, and where every peer would meet it (a mistake in the model, a damaged batch)
        to the others, so that they end within seconds, and in the report.

        What befell this process alone, or its way to storage and broker, is no reason for the others to end: they go
        on without it, and it may be started again. Of one that joined after the start nothing is. A superseded process
        says nothing to anybody either: the rank, and its report, are another's.
        """
        text = str(error) if isinstance(error, PeerlessError) else f"{type(error).__name__}: {error}"
        if isinstance(error, GradientFailed):
            self.actions.bill.charge(error.invocations, error.executions)
        alone = is_alone(error) or self._came_later
        self.ports.events.emit(
            "failed", round=self._round, fields={"error": text, **({"alone": True} if alone else {})}
        )
        if alone:
            return
        reason = f"{FAILED}peer {self.actions.me.rank}: {text}"
        with contextlib.suppress(PeerlessError):
            stop, _ = self.actions.records.create_stop(reason, max(self.machine.round, 0))
            self.ports.exchange.publish("stop", stop.to_json())
        with contextlib.suppress(PeerlessError):
            self.actions.conclude()
            self.actions.records.put_report(self._report("failed", text))

    @property
    def _came_later(self) -> bool:
        """Whether the run began without this rank: then it can end without it, too."""
        return self.actions.me.rank >= self.spec.config.peers

    @property
    def _round(self) -> int | None:
        return self.machine.round if self.machine.round >= 0 else None

    def _report(self, reason: str, error: str | None) -> PeerReport:
        actions, counts, stored = self.actions, self.ports.exchange.counts, self.ports.store.counts
        since = self._training_since
        return PeerReport(
            run=self.spec.run,
            rank=actions.me.rank,
            incarnation=actions.me.incarnation,
            rounds=actions.rounds_applied,
            epochs=actions.rounds_applied // self.spec.rounds_per_epoch,
            reason=reason,
            weights_sha256=actions.update.weights_sha256,
            model_sha256=actions.final_model,
            best_validation_loss=actions.best_loss,
            seconds_training=0.0 if since is None else self.ports.clock.monotonic() - since,
            bytes_sent=counts.bytes_sent + stored.bytes_out,
            bytes_received=counts.bytes_received + stored.bytes_in,
            gradient_bytes_raw=actions.contributions.raw_bytes,
            gradient_bytes_encoded=actions.contributions.encoded_bytes,
            lambda_invocations=actions.bill.invocations,
            state_machine_executions=actions.bill.executions,
            frames_rejected=actions.trust.conduct.by_sender(),
            left_out={str(rank): rounds for rank, rounds in actions.left_out.items()},
            clipped={str(rank): rounds for rank, rounds in actions.clipped.items()},
            stages=self.ports.metrics.totals(),
            estimated_usd=actions.bill.usd,
            used=actions.bill.used,
            error=error,
        )
