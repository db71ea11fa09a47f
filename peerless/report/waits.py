"""Who waited for whom: from the moments of the stages, for synchronous rounds.

A round ends together, so whoever is ready early waits: first until the last contribution has come, then at the barrier
until the last peer holds the new weights. Clocks of several machines differ by some milliseconds, and so may this.
"""

from __future__ import annotations

from dataclasses import dataclass

from peerless.report.story import Span, Story


@dataclass(frozen=True, kw_only=True)
class Wait:
    """One peer, over all rounds."""

    rank: int
    seconds: float
    """That it waited (stage `receive`)."""
    share: float
    """Of the time of its stages that was waiting, 0 to 1."""
    awaited: int
    """Rounds in which its contribution was the last to come."""
    counted: int
    """Rounds in which one was the last: those with two contributions or more."""
    for_whom: int | None
    """For whom it waited longest, in seconds over all rounds; None where it was never kept waiting."""


def last_ready(story: Story, round: int) -> int | None:
    """Whose contribution departed last in a round; None where fewer than two did, or their moments are not known."""
    ready = {rank: _departed(story.spans[rank, round]) for rank in story.ranks if (rank, round) in story.spans}
    moments = {rank: moment for rank, moment in ready.items() if moment is not None}
    return max(moments, key=lambda rank: moments[rank]) if len(moments) > 1 else None


def waits(story: Story) -> list[Wait]:
    """By rank, of those that had a part in a round."""
    last = {round: last_ready(story, round) for round in {round for _, round in story.spans}}
    found = []
    for rank in story.ranks:
        own = {round: spans for (who, round), spans in story.spans.items() if who == rank}
        if not own:
            continue
        every = [span for spans in own.values() for span in spans]
        waited = sum(span.seconds for span in every if span.stage == "receive")
        total = sum(span.seconds for span in every)
        whom: dict[int, float] = {}
        for round, spans in own.items():
            slowest = last[round]
            if slowest is not None and slowest != rank:
                departed = _departed(story.spans[slowest, round])
                ready = _departed(spans)
                if departed is not None and ready is not None:
                    whom[slowest] = whom.get(slowest, 0.0) + departed - ready
        found.append(
            Wait(
                rank=rank,
                seconds=waited,
                share=waited / total if total else 0.0,
                awaited=sum(1 for slowest in last.values() if slowest == rank),
                counted=sum(1 for slowest in last.values() if slowest is not None),
                for_whom=max(whom, key=lambda each: whom[each]) if whom else None,
            )
        )
    return found


def _departed(spans: list[Span]) -> float | None:
    """When the peer's contribution of a round was on its way: the end of its first sending."""
    sent = [span.ended for span in spans if span.stage == "send"]
    computed = [span.ended for span in spans if span.stage == "compute"]
    after = [moment for moment in sent if computed and moment >= computed[0]]
    return min(after) if after else None
