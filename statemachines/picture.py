"""What there is to see of a definition: states in the order of their execution, machines inside states, failures.

`parse` reads any definition of the forms that statemachines.gradients makes; `mermaid` writes it as text, and
statemachines.svg draws it. Of many branches that are alike only the first and the last are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: Branches of a parallel state that are shown before the rest is summed up.
SHOWN_BRANCHES = 2


@dataclass(frozen=True)
class State:
    """One state: a box, or a frame around the machines inside."""

    name: str
    lines: tuple[str, ...]
    """What it does, in a few words a line."""
    inner: tuple[tuple[State, ...], ...] = ()
    """The machines inside, each as its states in order; side by side."""
    left_out: int = 0
    """Machines inside that are not shown, before the last one."""
    caught: State | None = None
    """Where it goes on when it fails for good."""


def parse(machine: Mapping[str, Any], batches: int | None = None) -> tuple[State, ...]:
    """The states of a machine from its start to its end. `batches` is the count that a map is shown with."""
    found, name = [], str(machine["StartAt"])
    while name:
        state = machine["States"][name]
        found.append(_state(name, state, machine["States"], batches))
        name = str(state.get("Next", "")) or _chosen(state)
    return tuple(found)


def _chosen(state: Mapping[str, Any]) -> str:
    """Where a choice goes on that is not the end."""
    return str(state["Choices"][0]["Next"]) if state["Type"] == "Choice" else ""


def _state(name: str, state: Mapping[str, Any], states: Mapping[str, Any], batches: int | None) -> State:
    kind = state["Type"]
    catch = state.get("Catch") or [None]
    caught = None if catch[0] is None else _state(catch[0]["Next"], states[catch[0]["Next"]], states, batches)
    if kind == "Map":
        return State(name, tuple(_map_lines(state, batches)), (parse(state["ItemProcessor"]),), caught=caught)
    if kind == "Parallel":
        branches = state["Branches"]
        shown = [*branches[:SHOWN_BRANCHES], *branches[SHOWN_BRANCHES:][-1:]]
        inner = tuple(parse(branch) for branch in shown)
        line = f"parallel, {_counted(len(branches), 'branch', 'branches')}"
        return State(name, (line,), inner, len(branches) - len(shown), caught)
    if kind == "Task":
        return State(name, tuple(_task_lines(state)), caught=caught)
    if kind == "Choice":
        condition = state["Choices"][0]
        if "IsPresent" in condition:
            return State(name, (f"ends here without {condition['Variable']} in its input",))
        most = condition["NumericLessThan"]
        return State(name, ("its error becomes its output,", f"with its cause in the first {most} batches"))
    if "Parameters" in state:
        fields = ", ".join(field.removesuffix(".$") for field in state["Parameters"])
        return State(name, (f"its output has {fields}",))
    return State(name, ("its error becomes its output",) if "OutputPath" in state else (kind.lower(),), caught=caught)


def _map_lines(state: Mapping[str, Any], batches: int | None) -> Iterator[str]:
    mode = state["ItemProcessor"].get("ProcessorConfig", {}).get("Mode", "INLINE").lower()
    over_batches = "batch.$" in state["ItemSelector"]
    over = f" over {_counted(batches, 'batch', 'batches')}" if batches and over_batches else ""
    yield f"{mode} map{over if over_batches else ' over groups of gradients'}"
    if "ItemReader" in state:
        yield "items from S3, a child execution each"
    most = state.get("MaxConcurrency", 0)
    yield f"{most:,} at once" if most else "as many at once as the service allows"
    if "ToleratedFailureCount" in state:
        yield f"ends early beyond {_counted(state['ToleratedFailureCount'], 'failure', 'failures')}"
    if "ToleratedFailurePercentage" in state:
        yield f"ends early beyond {state['ToleratedFailurePercentage']:g}% failures"


def _task_lines(state: Mapping[str, Any]) -> Iterator[str]:
    yield f"invokes {_function(state['Parameters']['FunctionName'])}"
    yield f"within {state['TimeoutSeconds']:,} s, waiting included"
    for rule in state.get("Retry", ()):
        first, *more = rule["ErrorEquals"]
        attempts = rule.get("MaxAttempts", 3)
        often = f"tries {attempts} times more after" if attempts else "never tries again after"
        yield f"{often} {first}" + (f" and {len(more)} others" if more else "")


def _function(arn: str) -> str:
    """The function's name, which is what a long ARN is recognised by."""
    parts = arn.split(":")
    name = parts[parts.index("function") + 1] if "function" in parts[:-1] else arn
    return name if len(name) <= 40 else f"{name[:39]}…"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def mermaid(machine: Mapping[str, Any], batches: int | None = None) -> str:
    """A Mermaid flow chart, which GitHub and many editors draw (https://mermaid.js.org/syntax/flowchart.html)."""
    writer = _Mermaid()
    writer.chain(parse(machine, batches), "start((start))", "finish((end))")
    return "\n".join(["flowchart TD", *writer.lines]) + "\n"


class _Mermaid:
    """Lines of a flow chart, with a number for each box."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._boxes = 0
        self._depth = 1

    def chain(self, states: tuple[State, ...], before: str = "", after: str = "") -> None:
        """States one after another, between two boxes where they are given."""
        previous = before
        for state in states:
            name = self._box(state)
            if previous:
                self._line(f"{previous} --> {name}")
            previous = name
        if after:
            self._line(f"{previous} --> {after}")

    def _box(self, state: State) -> str:
        self._boxes += 1
        name = f"s{self._boxes}"
        label = "<br/>".join(_escaped(line) for line in (state.name, *state.lines))
        if not state.inner:
            self._line(f'{name}["{label}"]')
        else:
            self._line(f'subgraph {name}["{label}"]')
            self._depth += 1
            for position, machine in enumerate(state.inner):
                if state.left_out and position == len(state.inner) - 1:
                    self._line(f'{name}more["… {state.left_out:,} more …"]')
                self.chain(machine)
            self._depth -= 1
            self._line("end")
        if state.caught is not None:
            self._line(f'{name} -. "fails for good" .-> {self._box(state.caught)}')
        return name

    def _line(self, text: str) -> None:
        self.lines.append("  " * self._depth + text)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
