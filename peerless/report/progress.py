"""What a run tells whoever watches it, and the lines that are read of it anywhere but on a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from rich.console import Console

#: What ends a peer's round: the commit that it applied, or in asynchronous mode the average that it took.
ROUND_EVENTS = ("commit", "averaged")
#: What every peer finds out for itself; one line is enough.
_TOLD_BY_ALL = ("member_dropped", "member_joined", "peer_excluded", "waiting", "resumed")


class Observer(Protocol):
    """What the launcher tells whoever watches."""

    def note(self, text: str) -> None:
        """One line about what happens now, for example 'starting RabbitMQ'."""
        ...

    def training(self, peers: int, rounds: int) -> None:
        """The peers start; `rounds` is the most that there can be. No peers: one that joined a run is followed."""
        ...

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of a peer, as in events.jsonl."""
        ...


class Silent:
    """Watches nothing."""

    def note(self, text: str) -> None: ...

    def training(self, peers: int, rounds: int) -> None: ...

    def event(self, event: Mapping[str, Any]) -> None: ...


class Lines:
    """One line per note, one per validation and one for every tenth round: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds = 0
        self._printed = -1
        self._asynchronous = False
        self._rejected = FirstOfItsKind()
        self._bill = RunningBill()

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def training(self, peers: int, rounds: int) -> None:
        self._rounds = rounds
        if peers:  # none: somebody follows one that joined
            self.note(f"training: {peers} peers, at most {rounds} rounds")

    def event(self, event: Mapping[str, Any]) -> None:
        name = event["event"]
        if name == "bill":
            self._bill.add(event)
        if name in ROUND_EVENTS:
            # In synchronous mode each peer reports the commit that it applies; one line is enough.
            news = event.get("validation_loss") is not None or event["round"] % 10 == 0
            if not news or event["round"] <= self._printed:
                return
            self._printed = event["round"]
            self._asynchronous = name == "averaged"
        elif not self._rejected.is_new(event) or (name == "validated" and not self._asynchronous):
            return  # a synchronous validation comes with its commit
        if (line := describe(event, self._rounds)) is not None:
            billed = name in ROUND_EVENTS and self._bill.text
            self.note(f"{line}; {billed}" if billed else line)


class RunningBill:
    """What a run has cost so far at most, as far as peers have told: the sum of each one's latest word."""

    def __init__(self) -> None:
        self._usd: dict[tuple[Any, int], float] = {}  # by part of the run and rank
        self._as_if = False

    def add(self, event: Mapping[str, Any]) -> None:
        """An event `bill`."""
        self._usd[event.get("run"), event["rank"]] = event["usd"]
        self._as_if = event.get("as_if_on_aws", False)

    @property
    def text(self) -> str:
        """For people; "" before the first bill."""
        if not self._usd:
            return ""
        return f"at most {sum(self._usd.values()):.4f} USD so far{', as if on AWS' if self._as_if else ''}"


class FirstOfItsKind:
    """Lets a rejection pass once per sender and reason, which summary.json counts, and once what all peers tell."""

    def __init__(self) -> None:
        self._seen: set[tuple[Any, ...]] = set()

    def is_new(self, event: Mapping[str, Any]) -> bool:
        """Always, for other events."""
        if event["event"] in _TOLD_BY_ALL:
            who = event.get("member"), tuple(event.get("for", ())), event.get("seconds")
            kind: tuple[Any, ...] = (event["event"], event["round"], *who)
        elif event["event"] == "frame_rejected":
            kind = (event["rank"], event.get("sender"), event.get("reason"))
        elif event["event"] == "aggregated":
            kind = (event["event"], event.get("note"))
        else:
            return True
        known = kind in self._seen
        self._seen.add(kind)
        return not known


def describe(event: Mapping[str, Any], rounds: int) -> str | None:
    """A sentence for an event that a person wants to read; None for the others."""
    peer, name = f"peer {event['rank']}", event["event"]
    if name in ROUND_EVENTS:
        parts = [f"loss {event['loss']:.4f}"] if event.get("loss") is not None else []
        if event.get("validation_loss") is not None:
            parts.append(_validation(event))
        if not parts:
            return None  # the closing round of a run that ends early brings neither
        when = f"round {event['round'] + 1} of {rounds}" if event["round"] < rounds else "final weights"
        return f"{when}: {', '.join(parts)}"
    if name == "validated":
        return f"{peer}: {_validation(event)}"
    if name == "lr_reduced":
        return f"{peer}: learning rate reduced to {event.get('lr')}" if event["rank"] == 0 else None
    if name == "weights_adopted":
        return f"{peer}: round {event['round'] + 1}: its own weights differed; adopted the recorded ones"
    if name == "batches_failed":
        lost, cause = event["failed"], event["causes"][0]
        return f"{peer}: round {event['round'] + 1}: went on without {lost} of its batches: {cause}"
    if name == "not_reduced":
        return f"{peer}: round {event['round'] + 1}: added its gradients up itself: {event['cause']}"
    if name == "frame_rejected":
        sender = "an unknown sender" if event.get("sender") is None else f"peer {event['sender']}"
        return f"{peer}: rejected a message of {sender}: {event.get('reason')}"
    if name == "aggregated" and event.get("note"):
        return f"{peer}: {event['note']}"
    if name == "peer_restarted":
        return f"{peer} {event.get('reason')}; started again"
    if (line := _of_members(event)) is not None:
        return line
    if name == "finished":
        return f"{peer}: finished ({event.get('reason')})"
    if name == "failed":
        return f"{peer}: failed: {event.get('error')}"
    return None


def _of_members(event: Mapping[str, Any]) -> str | None:
    """Who takes part: the same for all peers that tell of it, so nobody is named who does."""
    name, member = event["event"], event.get("member")
    if name == "member_dropped":
        return f"round {event['round'] + 1}: peer {member} was dropped ({event.get('reason')})"
    if name == "member_joined":
        return f"round {event['round'] + 1}: peer {member} takes part (incarnation {event.get('incarnation')})"
    if name == "peer_excluded":
        return f"round {event['round'] + 1}: peer {member} was excluded: {event.get('reason')}"
    if name == "waiting":
        since = f" for {event['seconds']:.0f} s" if event.get("seconds") is not None else ""
        awaited = ", ".join(str(rank) for rank in event.get("for", ())) or "others"
        return f"waiting{since} for peer {awaited}"
    if name == "resumed":
        return f"going on with round {event['round'] + 1}"
    return None


def _validation(event: Mapping[str, Any]) -> str:
    text = f"validation loss {event['validation_loss']:.4f}"
    accuracy = event.get("validation_accuracy")
    return f"{text}, accuracy {accuracy:.2%}" if accuracy is not None else text


@contextlib.contextmanager
def observer(console: Console) -> Iterator[Observer]:
    """The view that fits the console: a picture on a terminal, lines otherwise."""
    from peerless.report.view import View

    if console.is_terminal:
        with View(console) as view:
            yield view
    else:
        yield Lines(console)
