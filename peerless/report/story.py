"""What the events of a run tell, folded one by one: rounds, who did what when, who came and went, what went wrong.

    story = Story()
    for event in events:
        story.add(event)

Pure: no file, no clock. Whoever reads `events.jsonl` (`peerless.report.reading`) and whoever follows a run that goes on
feed it alike, and may look at it at any time. Of a round that is computed again, by a peer that was started again or
in a later part of a resumed run, the later losses count; the stages of all attempts stay, since all took their time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contract.errors import PermanentError

#: The stages of a round, in the order of the paper's Table I.
STAGES = ("compute", "send", "receive", "update", "convergence")
#: Events of members that every peer tells of once it applies the commit; one is enough.
_OF_MEMBERS = {
    "member_dropped": "dropped",
    "member_joined": "joined",
    "peer_excluded": "excluded",
    "waiting": "waiting",
    "aggregated": "aggregated",
}
#: Events that befall one peer, and are kept as they come.
_OF_ONE = {
    "peer_restarted": "restarted",
    "failed": "failed",
    "weights_adopted": "adopted",
    "batches_failed": "batches failed",
    "not_reduced": "not reduced",
    "gradient_late": "late",
    "residual_lost": "residual lost",
    "caught_up": "caught up",
    "shard_conflict": "shard conflict",
}


class DamagedEvent(PermanentError):
    """An event that lacks what every event has, or has something else in its place."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """One stage of one peer's round."""

    rank: int
    round: int
    stage: str
    began: float
    """Seconds since the epoch, as `ended`; `ended` is when the event was written, `began` so many seconds before."""
    ended: float
    bytes_in: int
    bytes_out: int
    cpu_percent: float
    peak_bytes: int
    rss_bytes: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass(kw_only=True)
class Round:
    """What is known of one round. In asynchronous mode peers pass it at moments of their own, with their own losses."""

    number: int
    t: float
    """Seconds since the epoch: when the first peer applied the commit, or took its average."""
    contributors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By the rank that tells of it, whose gradients it took: in synchronous mode the same for all."""
    staleness: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Asynchronous mode: rounds by which each of those lay behind, in the same order."""
    losses: dict[int, float] = field(default_factory=dict)
    """Training loss by the rank that tells of it: in synchronous mode the mean over the contributors, else the own."""
    validation: dict[int, tuple[float, float | None]] = field(default_factory=dict)
    """Validation loss and accuracy by the rank that tells of it."""
    writer: int | None = None
    samples: int | None = None
    final: bool = False

    @property
    def loss(self) -> float | None:
        """Training loss: the mean over those who tell one."""
        return _mean(list(self.losses.values()))

    @property
    def validation_loss(self) -> float | None:
        """The mean over those who tell one; in synchronous mode all tell the same."""
        return _mean([loss for loss, _ in self.validation.values()])

    @property
    def validation_accuracy(self) -> float | None:
        """As `validation_loss`; None for targets that have no accuracy."""
        return _mean([accuracy for _, accuracy in self.validation.values() if accuracy is not None])


@dataclass(kw_only=True)
class Member:
    """One rank, and how it fares now."""

    rank: int
    state: str = "starting"
    """starting, training, finished, failed, or why a commit dropped it: silent, excluded, left."""
    round: int | None = None
    """The latest that an event of its own told of."""
    incarnation: int | None = None
    stage: str | None = None
    """The stage that it ended last."""
    t: float = 0.0
    """Seconds since the epoch of its latest event."""
    loss: float | None = None
    restarts: int = 0
    ended: str | None = None
    """Why it finished, or how it failed."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Something that a person wants to read: a member that came or went, a fault, and what was done about it."""

    t: float
    round: int | None
    kind: str
    """dropped, joined, excluded, waiting, aggregated, restarted, failed, adopted, batches failed, not reduced, late,
    residual lost, caught up, shard conflict, rate reduced."""
    rank: int | None
    """Whom it befell; None where that is no single peer."""
    event: Mapping[str, Any]
    """The event that told of it first."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the gradient workers of one peer's round told (event `worked`)."""

    invocations: int
    batches_per_worker: int
    step_seconds: float | None
    """Forward and backward pass of one batch, the median."""
    peak_bytes: int | None
    cold_starts: int
    weights_fetched: int


class Story:
    """A run so far."""

    def __init__(self) -> None:
        self.run: str | None = None
        self.mode: str | None = None
        """`sync` or `async`; None until a peer has said so."""
        self.start: float | None = None
        """Seconds since the epoch of the earliest event, as `end` of the latest; None without events."""
        self.end: float | None = None
        self.rounds: dict[int, Round] = {}
        self.spans: dict[tuple[int, int], list[Span]] = {}
        """By rank and round, in the order in which they ended."""
        self.members: dict[int, Member] = {}
        self.incidents: list[Incident] = []
        self.rejected: dict[str, Counter[str]] = {}
        """Messages that could not be used: by sender (a rank, or `unknown`), then by reason, over all receivers."""
        self.batches_failed: dict[tuple[int, int], int] = {}
        """By rank and round, how many batches it went on without."""
        self.work: dict[tuple[int, int], Work] = {}
        self.rates: dict[int, float] = {}
        """Learning rate by the round from which it holds, where it was reduced."""
        self.limit_usd: float | None = None
        """Where the bill of one peer ends the run."""
        self._bills: dict[tuple[str, int], dict[int, float]] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event in; one of a kind that is not known here only tells that its peer lives.

        Raises DamagedEvent, and then has taken nothing of it.
        """
        name, t, rank = event.get("event"), event.get("t"), event.get("rank")
        if not isinstance(name, str) or not _is_number(t) or not isinstance(rank, int):
            raise DamagedEvent("not an event: one has `event`, `t` and `rank`")
        round = event.get("round")
        if round is not None and not isinstance(round, int):
            raise DamagedEvent(f"the round of the event {name} is no number")
        try:
            self._fold(name, float(event["t"]), rank, round, event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedEvent(f"the event {name} lacks something, or has something else there: {error}") from error
        self._notice(name, float(event["t"]), rank, round, event)

    # ------------------------------------------------------------------------------------------------ what it answers

    def seconds(self, t: float) -> float:
        """Seconds from the start to `t` (seconds since the epoch)."""
        return t - (self.start if self.start is not None else t)

    @property
    def ranks(self) -> list[int]:
        """Everyone who ever was in it, in order."""
        return sorted(self.members)

    def series(self) -> list[Round]:
        """The rounds in order; the closing one, which has no contributors, too."""
        return [self.rounds[number] for number in sorted(self.rounds)]

    def usd(self, round: int | None = None) -> float | None:
        """At most so many US dollars were spent up to the end of `round`, or so far; None without prices."""
        bills = [self._bill_of(key, round) for key in self._bills]
        known = [bill for bill in bills if bill is not None]
        return sum(known) if known else None

    def bills(self) -> dict[int, float]:
        """The same so far, by rank."""
        each: dict[int, float] = {}
        for key in self._bills:
            each[key[1]] = each.get(key[1], 0.0) + (self._bill_of(key, None) or 0.0)
        return dict(sorted(each.items()))

    def stage_seconds(self, rank: int, round: int) -> dict[str, float]:
        """Seconds of each stage that the peer's round had; a stage that came several times is added up."""
        total: dict[str, float] = {}
        for span in self.spans.get((rank, round), []):
            total[span.stage] = total.get(span.stage, 0.0) + span.seconds
        return total

    def bytes(self, rank: int) -> tuple[int, int]:
        """Bytes in and out over all stages of a peer."""
        spans = [span for key, spans in self.spans.items() if key[0] == rank for span in spans]
        return sum(span.bytes_in for span in spans), sum(span.bytes_out for span in spans)

    # ------------------------------------------------------------------------------------------------------- folding

    def _fold(self, name: str, t: float, rank: int, round: int | None, event: Mapping[str, Any]) -> None:
        """Everything is read before anything is changed, so that a damaged event leaves no half."""
        if name == "stage":
            self._stage(t, rank, _whole(round), event)
        elif name in ("commit", "averaged"):
            self._round(t, rank, _whole(round), event)
        elif name == "validated":
            found = _float(event["validation_loss"]), _float_or_none(event.get("validation_accuracy"))
            if self.mode == "async":  # a synchronous one comes with its commit
                self.rounds.setdefault(_whole(round), Round(number=_whole(round), t=t)).validation[rank] = found
        elif name == "worked":
            self.work[rank, _whole(round)] = Work(
                invocations=int(event["invocations"]),
                batches_per_worker=int(event.get("batches_per_worker") or 1),
                step_seconds=_float_or_none(event.get("step_seconds")),
                peak_bytes=event.get("peak_bytes"),
                cold_starts=int(event.get("cold_starts") or 0),
                weights_fetched=int(event.get("weights_fetched") or 0),
            )
        elif name == "bill":
            usd, limit = _float(event["usd"]), _float_or_none(event.get("limit_usd"))
            self._bills.setdefault((str(event.get("run")), rank), {})[_whole(round)] = usd
            self.limit_usd = limit
        elif name == "frame_rejected":
            sender = "unknown" if event.get("sender") is None else str(event["sender"])
            reason = str(event["reason"])
            self.rejected.setdefault(sender, Counter())[reason] += 1
        elif name == "lr_reduced":
            rate, number = _float(event["lr"]), _whole(round)
            if number not in self.rates:
                self.incidents.append(Incident(t=t, round=number, kind="rate reduced", rank=None, event=event))
            self.rates[number] = rate
        elif name == "peer_started":
            self.mode = str(event["mode"])
        elif name in _OF_MEMBERS or name in _OF_ONE or _is_new_instance(name, event):
            self._incident(name, t, rank, round, event)

    def _stage(self, t: float, rank: int, round: int, event: Mapping[str, Any]) -> None:
        span = Span(
            rank=rank,
            round=round,
            stage=str(event["stage"]),
            began=t - _float(event["seconds"]),
            ended=t,
            bytes_in=int(event.get("bytes_in") or 0),
            bytes_out=int(event.get("bytes_out") or 0),
            cpu_percent=_float(event.get("cpu_percent") or 0.0),
            peak_bytes=int(event.get("peak_bytes") or 0),
            rss_bytes=int(event.get("rss_bytes") or 0),
        )
        self.spans.setdefault((rank, round), []).append(span)

    def _round(self, t: float, rank: int, round: int, event: Mapping[str, Any]) -> None:
        contributors = tuple(int(each) for each in event["contributors"])
        staleness = tuple(int(each) for each in event.get("staleness") or ())
        loss, validation_loss = _float_or_none(event.get("loss")), _float_or_none(event.get("validation_loss"))
        accuracy = _float_or_none(event.get("validation_accuracy"))
        known = self.rounds.setdefault(round, Round(number=round, t=t))
        known.t = min(known.t, t)
        known.contributors[rank] = contributors
        if staleness:
            known.staleness[rank] = staleness
        if loss is not None:
            known.losses[rank] = loss
        if validation_loss is not None:
            known.validation[rank] = (validation_loss, accuracy)
        if event["event"] == "commit":
            known.writer, known.samples = event.get("writer"), event.get("samples")
            known.final = bool(event.get("final"))

    def _incident(self, name: str, t: float, rank: int, round: int | None, event: Mapping[str, Any]) -> None:
        whom: int | None = rank
        if name in _OF_MEMBERS:
            whom = event.get("member")
            which = (name, round, whom, tuple(event.get("for", ())), event.get("note"), *_ranks(event))
            if which in self._seen:
                return
            self._seen.add(which)
        elif name == "batches_failed":
            # Whoever computes a round again tells of it again.
            self.batches_failed[rank, _whole(round)] = int(event["failed"])
        kind = _OF_MEMBERS.get(name) or _OF_ONE.get(name, "restarted")
        self.incidents.append(Incident(t=t, round=round, kind=kind, rank=whom, event=event))

    def _notice(self, name: str, t: float, rank: int, round: int | None, event: Mapping[str, Any]) -> None:
        """What any event tells of its run and its peer."""
        self.run = self.run or str(event.get("run"))
        self.start = t if self.start is None else min(self.start, t)
        self.end = t if self.end is None else max(self.end, t)
        member = self.members.setdefault(rank, Member(rank=rank))
        member.t = max(member.t, t)
        if name == "peer_restarted" or _is_new_instance(name, event):
            member.restarts += 1
            member.state = "starting"
            return
        if round is not None and name not in ("frame_rejected", "member_dropped", "member_joined"):
            member.round = round
        if name == "peer_started":
            member.state, member.ended = "starting", None
        elif name == "member_claimed":
            member.incarnation = event.get("incarnation")
        elif name == "round_started":
            member.state = "training"
        elif name == "stage":
            member.stage = str(event["stage"])
        elif name in ("commit", "averaged"):
            member.loss = _float_or_none(event.get("loss"))
        elif name in ("finished", "failed"):
            member.state = name
            member.ended = str(event.get("error") or event.get("reason") or "")
        elif name in ("member_dropped", "member_joined") and isinstance(event.get("member"), int):
            other = self.members.setdefault(event["member"], Member(rank=event["member"]))
            if other.state not in ("finished", "failed"):
                other.state = str(event.get("reason") or "dropped") if name == "member_dropped" else "training"

    def _bill_of(self, key: tuple[str, int], round: int | None) -> float | None:
        """Of one peer in one part of the run, which counts from nothing: the most up to the round."""
        told = [usd for number, usd in self._bills[key].items() if round is None or number <= round]
        return max(told, default=None)


def _is_new_instance(name: str, event: Mapping[str, Any]) -> bool:
    """Whether a peer's instance was replaced by another."""
    return name == "instance_started" and int(event.get("attempt") or 1) > 1


def _ranks(event: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Of whom an aggregator took nothing, or scaled the gradients down."""
    return tuple(tuple(event.get(name, ())) for name in ("left_out", "clipped"))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(round: int | None) -> int:
    if round is None:
        raise ValueError("no round")
    return round


def _float(value: Any) -> float:
    """A number as JSON has it; a loss that is none, of a run that diverges, stays what it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def _float_or_none(value: Any) -> float | None:
    return None if value is None else _float(value)


def _mean(values: list[float]) -> float | None:
    """Of equal values the very value, so that what all peers tell alike is not rounded."""
    if not values:
        return None
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)
