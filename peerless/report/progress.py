"""The view of a run while it goes on: a bar per peer on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Observer(Protocol):
    """What the launcher tells whoever watches."""

    def note(self, text: str) -> None:
        """One line about what happens now, for example 'starting RabbitMQ'."""
        ...

    def training(self, peers: int, rounds: int) -> None:
        """The peers start; `rounds` is the most that there can be."""
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
    """One line per note, and one per validated or every tenth round: for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rounds = 0
        self._printed = -1

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def training(self, peers: int, rounds: int) -> None:
        self._rounds = rounds
        self.note(f"training: {peers} peers, at most {rounds} rounds")

    def event(self, event: Mapping[str, Any]) -> None:
        line = describe(event, self._rounds)
        if line is None:
            return
        validated = event.get("validation_loss") is not None
        if event["event"] == "commit" and not validated and event["round"] % 10:
            return
        if event["event"] == "commit" and event["round"] <= self._printed:
            return  # each peer reports the commit that it applies; one line is enough
        if event["event"] == "commit":
            self._printed = event["round"]
        self.note(line)


class Bars:
    """A progress bar per peer, with the loss and the last validation beside it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=console,
        )
        self._tasks: dict[int, TaskID] = {}
        self._rounds = 0
        self._validation = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def training(self, peers: int, rounds: int) -> None:
        self._rounds = rounds
        for rank in range(peers):
            self._tasks[rank] = self._progress.add_task(f"peer {rank}", total=rounds, detail="starting")

    def event(self, event: Mapping[str, Any]) -> None:
        task = self._tasks.get(event["rank"])
        if task is None:
            return
        name = event["event"]
        if name == "commit":
            if event.get("validation_loss") is not None:
                self._validation = _validation(event)
            loss = event.get("loss")
            detail = " · ".join(
                part for part in (f"loss {loss:.4f}" if loss is not None else "", self._validation) if part
            )
            self._progress.update(task, completed=min(event["round"] + 1, self._rounds), detail=detail)
        elif name == "stage":
            self._progress.update(task, detail=self._progress.tasks[task].fields["detail"])
        elif name in ("finished", "failed"):
            self._progress.update(task, detail=f"{name}: {event.get('reason') or event.get('error', '')}")
        elif (line := describe(event, self._rounds)) is not None:
            self.note(line)


def describe(event: Mapping[str, Any], rounds: int) -> str | None:
    """A sentence for an event that a person wants to read; None for the others."""
    peer, name = f"peer {event['rank']}", event["event"]
    if name == "commit":
        parts = [f"loss {event['loss']:.4f}"] if event.get("loss") is not None else []
        if event.get("validation_loss") is not None:
            parts.append(_validation(event))
        when = f"round {event['round'] + 1} of {rounds}" if event["round"] < rounds else "final weights"
        return f"{when}: {', '.join(parts)}"
    if name == "lr_reduced":
        return f"{peer}: learning rate reduced to {event.get('lr')}" if event["rank"] == 0 else None
    if name == "weights_adopted":
        return f"{peer}: round {event['round'] + 1}: its own weights differed; adopted the recorded ones"
    if name == "frame_rejected":
        return f"{peer}: rejected a frame of peer {event.get('sender')}: {event.get('reason')}"
    if name == "finished":
        return f"{peer}: finished ({event.get('reason')})"
    if name == "failed":
        return f"{peer}: failed: {event.get('error')}"
    return None


def _validation(event: Mapping[str, Any]) -> str:
    text = f"validation loss {event['validation_loss']:.4f}"
    accuracy = event.get("validation_accuracy")
    return f"{text}, accuracy {accuracy:.2%}" if accuracy is not None else text


@contextlib.contextmanager
def observer(console: Console) -> Any:
    """The view that fits the console: bars on a terminal, lines otherwise."""
    if console.is_terminal:
        with Bars(console) as bars:
            yield bars
    else:
        yield Lines(console)
