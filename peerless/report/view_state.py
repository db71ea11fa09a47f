"""What a live view knows of a run: its story so far, and the few things that only somebody who watches asks for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from peerless.report.story import DamagedEvent, Member, Story

#: The stage that begins when another has ended. Which one is under way no event says.
_NEXT = {"compute": "send", "send": "receive", "receive": "update", "update": "receive"}
#: The stage of a peer is shown with its seconds from so many on.
_LONG_SECONDS = 2.0


class State:
    """Folds events; changes nothing that it is given."""

    def __init__(self) -> None:
        self.story = Story()
        self.rounds_limit: int | None = None
        """The most rounds that there can be; None until somebody has said so."""
        self.as_if_on_aws = False
        """Whether the bill is what a local run would cost on AWS."""
        self.over = False
        """Whether nobody works on the run any more."""
        self._ranks: set[int] = set()
        self._in: Counter[int] = Counter()
        self._out: Counter[int] = Counter()
        self._done: dict[int, int] = {}  # rounds, by rank
        self._losses: dict[int, float] = {}  # the latest of each rank; the closing commit has none
        self._now: dict[int, tuple[int, str, float]] = {}  # by rank: its round, the stage under way, and since when

    def begin(self, peers: int, rounds: int | None) -> None:
        """So many peers start, for so many rounds at most, where that is known already."""
        self._ranks |= set(range(peers))
        self.rounds_limit = rounds or self.rounds_limit

    def add(self, event: Mapping[str, Any]) -> bool:
        """Take one event in; gives whether it was whole, for a damaged one changes nothing."""
        try:
            self.story.add(event)
        except DamagedEvent:
            return False
        self._notice(event["event"], event["rank"], event)
        return True

    def _notice(self, name: str, rank: int, event: Mapping[str, Any]) -> None:
        self._ranks.add(rank)
        if name == "peer_started":
            limit = event.get("rounds_limit")
            self.rounds_limit = limit if isinstance(limit, int) else self.rounds_limit
            self._now.pop(rank, None)
        elif name == "bill":
            self.as_if_on_aws = bool(event.get("as_if_on_aws"))
        elif name == "round_started":
            self._now[rank] = event["round"], "compute", event["t"]
        elif name == "stage":
            self._in[rank] += int(event.get("bytes_in") or 0)
            self._out[rank] += int(event.get("bytes_out") or 0)
            round, *_ = self._now.get(rank, (event["round"],))
            if event["stage"] in _NEXT and event["round"] >= round:  # a barrier's end is told after the next beginning
                self._now[rank] = event["round"], _NEXT[event["stage"]], event["t"]
        elif name in ("commit", "averaged") and event["contributors"]:
            self._done[rank] = max(self._done.get(rank, 0), event["round"] + 1)
            if event.get("loss") is not None:
                self._losses[rank] = event["loss"]
        elif name in ("finished", "failed"):
            self._now.pop(rank, None)

    @property
    def rounds_done(self) -> int:
        """Rounds that are over: for all in synchronous mode, in asynchronous mode for the slowest that trains."""
        if self.story.mode != "async":
            return max(self._done.values(), default=0)
        members = self.story.members.values()
        return min(
            (self._done.get(each.rank, 0) for each in members if each.state in ("training", "finished")), default=0
        )

    def seconds(self, now: float) -> float:
        """From the first event to `now`, or to the last event where all have ended."""
        story = self.story
        if story.start is None or story.end is None:
            return 0.0
        ended = all(each.state in ("finished", "failed") for each in story.members.values())
        return max(0.0, (story.end if ended or self.over else now) - story.start)

    def peer_rows(self, now: float) -> Iterator[tuple[str, ...]]:
        """Per rank: number, state, round, stage, loss, bytes in and out."""
        for rank in sorted(self._ranks | self.story.members.keys()):
            member = self.story.members.get(rank, Member(rank=rank))
            state = f"{member.state}: {member.ended}" if member.state == "finished" and member.ended else member.state
            if self.over and member.state in ("starting", "training"):
                state = "gone"
            yield (
                str(rank),
                state,
                "" if member.round is None else str(min(member.round + 1, self.rounds_limit or math.inf)),
                self._stage(member, now),
                number(self._losses[rank]) if rank in self._losses else "",
                size(self._in[rank]),
                size(self._out[rank]),
            )

    def curves(self) -> Iterator[tuple[str, str, tuple[float, ...]]]:
        """Name, first and last value as text, and all values in the order of rounds, of what has any."""
        rounds = self.story.series()
        losses = _finite(each.loss for each in rounds)
        validated = _finite(each.validation_loss for each in rounds)
        accuracies = _finite(each.validation_accuracy for each in rounds)
        for name, values, form in (
            ("training loss", losses, number),
            ("validation loss", validated, number),
            ("accuracy", accuracies, "{:.2%}".format),
        ):
            if values:
                told = form(values[-1])
                yield name, f"{form(values[0])} → {told}" if len(values) > 1 else told, values

    def totals(self) -> tuple[int, int]:
        """Bytes in and out of all peers, over all stages."""
        return sum(self._in.values()), sum(self._out.values())

    def _stage(self, member: Member, now: float) -> str:
        _, stage, since = self._now.get(member.rank, (0, "", now))
        if self.over or member.state != "training" or not stage:
            return ""
        return f"{stage} {now - since:.0f} s" if now - since >= _LONG_SECONDS else stage


def head(state: State) -> str:
    """Which run it is."""
    story = state.story
    return " · ".join(part for part in (f"run {story.run}" if story.run else "starting", story.mode) if part)


def brief(state: State) -> str:
    """How far the run is, in one line."""
    done, limit = state.rounds_done, state.rounds_limit
    curves = {name: values[-1] for name, _, values in state.curves()}
    told = [f"round {done} of {limit}" if limit else f"{done} rounds"]
    told += [f"{name} {number(value)}" for name, value in curves.items() if name != "accuracy"]
    told += [f"accuracy {curves['accuracy']:.2%}"] if "accuracy" in curves else []
    return ", ".join(part for part in (*told, figures(state), bill(state)) if part)


def figures(state: State) -> str:
    """Bytes of all peers."""
    received, sent = state.totals()
    return f"{size(received)} in, {size(sent)} out" if received or sent else ""


def bill(state: State) -> str:
    """What the run has cost so far, where the peers count."""
    usd, limit = state.story.usd(), state.story.limit_usd
    if usd is None:
        return ""
    if state.as_if_on_aws:
        return f"nothing is billed; on AWS at most {usd:.4f} USD"
    most = f" of at most {limit * len(state.story.bills()):.4f}" if limit is not None else ""
    return f"at most {usd:.4f} USD{most}"


def rejected(state: State) -> str:
    """Messages that could not be used, by sender and reason."""
    told = []
    for sender, reasons in sorted(state.story.rejected.items()):
        whose = "an unknown sender" if sender == "unknown" else f"peer {sender}"
        each = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        told.append(f"{reasons.total()} of {whose} ({each})")
    return "; ".join(told)


def faults(state: State) -> str:
    """What was tried again, left out or lost, in numbers."""
    story = state.story
    failed = sum(story.batches_failed.values())
    kinds = Counter(incident.kind for incident in story.incidents)
    restarts = sum(member.restarts for member in story.members.values())
    told = {
        "restarts": restarts,
        "batches left out": failed,
        "peers dropped": kinds["dropped"],
        "peers joined": kinds["joined"],
        "peers excluded": kinds["excluded"],
        "means made again by a peer": kinds["not reduced"],
        "late gradients": kinds["late"],
        "weights adopted": kinds["adopted"],
    }
    return ", ".join(f"{count} {name}" for name, count in told.items() if count)


def number(value: float) -> str:
    """A loss for people."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2e}"


def size(count: int) -> str:
    """Bytes for people, in decimal units."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1_000:
            break
        value, unit = value / 1_000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def span(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = int(seconds)
    return f"{whole // 3_600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _finite(values: Iterator[float | None]) -> tuple[float, ...]:
    return tuple(value for value in values if value is not None and math.isfinite(value))
