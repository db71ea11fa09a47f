"""What befell a run, in sentences: what happened, and what was done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peerless.report.story import Incident, Story


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happened once, or in several rounds alike."""

    t: float
    """Seconds since the epoch, the first time."""
    first: int | None
    """Round, as `last`; None where it belongs to none."""
    last: int | None
    times: int
    what: str
    done: str


def faults(story: Story) -> list[Fault]:
    """In the order in which they began; what comes again in the same words is counted."""
    found: dict[tuple[str, str], Fault] = {}
    for one in sorted(story.incidents, key=lambda each: each.t):
        what, done = _sentences(one)
        before = found.get((what, done))
        found[what, done] = Fault(
            t=before.t if before else one.t,
            first=before.first if before else one.round,
            last=one.round if one.round is not None or before is None else before.last,
            times=before.times + 1 if before else 1,
            what=what,
            done=done,
        )
    return list(found.values())


def _sentences(one: Incident) -> tuple[str, str]:
    event, peer = one.event, f"peer {one.rank}"
    match one.kind:
        case "dropped":
            if event.get("reason") == "left":
                return f"{peer} left, as it wished", "the others went on"
            return f"{peer} was dropped: {event.get('reason')}", "the others went on without it"
        case "joined":
            return f"{peer} takes part (incarnation {event.get('incarnation')})", "its gradients count from then on"
        case "excluded":
            return f"{peer} was proven to cheat: {event.get('reason')}", "the others excluded it"
        case "restarted":
            why = event.get("reason") or f"had to be given another instance (attempt {event.get('attempt')})"
            return f"{peer} {why}", "it was started again"
        case "failed":
            done = "the others went on" if event.get("alone") else "the run ended"
            return f"{peer} failed: {event.get('error')}", done
        case "waiting":
            awaited = ", ".join(str(rank) for rank in event.get("for") or ()) or "others"
            return f"too few contributions: waiting for peer {awaited}", "the round waited for them"
        case "adopted":
            return f"{peer} computed weights that differ from the recorded ones", "it adopted the recorded ones"
        case "batches failed":
            cause = next(iter(event.get("causes") or ()), "no cause was told")
            return f"{event['failed']} batches of {peer} failed for good: {cause}", "the mean is of the others"
        case "not reduced":
            return f"the gradients of {peer} were not added up: {event.get('cause')}", "it did that itself"
        case "late":
            kept = "error feedback sends it later" if event.get("kept") else "it was left out"
            return f"a gradient of {peer} came after the commit", kept
        case "residual lost":
            return f"{peer} lost its error feedback", "it began again from nothing"
        case "caught up":
            return f"{peer} came back behind the others", _caught_up(event)
        case "shard conflict":
            return f"{peer} averaged a shard otherwise than another member", "the other's was there first and counts"
        case "rate reduced":
            return "the validation loss stopped falling", f"learning rate {event['lr']:g}"
        case _:
            return _aggregated(event)


def _caught_up(event: Mapping[str, Any]) -> str:
    if event.get("from") is not None:
        return f"it took over the weights of peer {event['from']}"
    return f"it replayed {event.get('replayed', 0)} rounds"


def _aggregated(event: Mapping[str, Any]) -> tuple[str, str]:
    name = event.get("aggregator") or "the aggregator"
    left, clipped = event.get("left_out") or [], event.get("clipped") or []
    told = []
    if left:
        told.append(f"took nothing of peer {', '.join(map(str, left))}")
    if clipped:
        told.append(f"scaled the gradients of peer {', '.join(map(str, clipped))} down")
    what = f"{name} {' and '.join(told)}" if told else f"{name} had to bear less than configured"
    return what, str(event.get("note") or "the others' gradients make the mean")
