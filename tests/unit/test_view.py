"""What a person sees of a run while it goes on: the picture on a terminal, lines through a pipe."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peerless.report.progress import Lines, observer
from peerless.report.view import View, drawn, sparkline
from peerless.report.view_lines import StateLines
from peerless.report.view_state import State, bill, number, size, span
from tests.fakes.clock import FakeClock
from tests.fakes.run_folders import RUN, START, event

RECORDED = Path(__file__).resolve().parents[1] / "golden/events/two-peers.jsonl"


def stage(rank: int, round: int, t: float, name: str, into: int = 0, out: int = 0) -> dict[str, Any]:
    return event("stage", rank, round, t, stage=name, seconds=1.0, bytes_in=into, bytes_out=out)


def began(rank: int) -> list[dict[str, Any]]:
    return [
        event("peer_started", rank, None, 0.0, pid=1, mode="sync", rounds_limit=4),
        event("member_claimed", rank, None, 0.5, incarnation=1),
    ]


def round_of(rank: int, round: int, t: float, loss: float, **fields: Any) -> list[dict[str, Any]]:
    """A whole round of two peers, as one of them tells it, that ends at `t`."""
    return [
        event("round_started", rank, round, t - 4, epoch=0),
        stage(rank, round, t - 3, "compute", 2_000, 10),
        stage(rank, round, t - 2, "send", 0, 500_000),
        stage(rank, round, t - 1, "receive", 250_000, 0),
        event("commit", rank, round, t, contributors=[0, 1], loss=loss, final=False, **fields),
        stage(rank, round, t, "update"),
    ]


#: Two of four rounds, and the beginning of the third.
TWO_ROUNDS = [
    *began(0),
    *began(1),
    *round_of(0, 0, 10.0, 2.0, validation_loss=1.75, validation_accuracy=0.25),
    *round_of(1, 0, 10.1, 2.0, validation_loss=1.75, validation_accuracy=0.25),
    *round_of(0, 1, 20.0, 1.0, validation_loss=0.875, validation_accuracy=0.75),
    *round_of(1, 1, 20.1, 1.0, validation_loss=0.875, validation_accuracy=0.75),
    event("round_started", 0, 2, 21.0),
    event("round_started", 1, 2, 21.0),
    stage(1, 2, 24.0, "compute", 2_000, 10),
]


def state_of(events: Iterable[dict[str, Any]]) -> State:
    state = State()
    for item in events:
        assert state.add(item)
    return state


def shown(state: State, now: float, width: int = 100, height: int = 40, terminal: bool = False) -> list[str]:
    """The picture as lines, `now` seconds after the start."""
    text = io.StringIO()
    console = Console(file=text, width=width, height=height, force_terminal=terminal, color_system=None)
    console.print(drawn(state, START + now))
    return [line.rstrip() for line in text.getvalue().splitlines()]


def test_the_picture_shows_peers_rounds_stages_curves_and_bytes() -> None:
    lines = shown(state_of(TWO_ROUNDS), 24.5)
    assert lines[0] == f"run {RUN} · sync  round 2 of 4  0:00:24"
    assert [line.split() for line in lines[1:4]] == [
        ["peer", "state", "round", "stage", "loss", "in", "out"],
        ["0", "training", "3", "compute", "4", "s", "1.0000", "504.0", "kB", "1.0", "MB"],
        ["1", "training", "3", "send", "1.0000", "506.0", "kB", "1.0", "MB"],
    ]
    assert [line.split() for line in lines[4:]] == [
        ["training", "loss", "2.0000", "→", "1.0000", "█▁"],
        ["validation", "loss", "1.7500", "→", "0.8750", "█▁"],
        ["accuracy", "25.00%", "→", "75.00%", "▁█"],
        ["bytes", "1.0", "MB", "in,", "2.0", "MB", "out"],
    ]


def test_a_recorded_run_is_shown_as_it_stood() -> None:
    events = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    state, start = state_of(events), events[0]["t"]
    lines = shown(state, events[-1]["t"] - START)
    assert lines[0].startswith("run recorded · sync  round 3 of 1000  0:00:35")
    moved = {
        rank: [
            size(sum(item.get(name, 0) for item in events if item["rank"] == rank))
            for name in ("bytes_in", "bytes_out")
        ]
        for rank in (0, 1)
    }
    assert [line.split() for line in lines[2:4]] == [
        ["0", "training", "4", "receive", "0.3867", *" ".join(moved[0]).split()],
        ["1", "training", "4", "update", "0.3867", *" ".join(moved[1]).split()],
    ], "what was told of round 3 after round 4 had begun changes no stage"
    assert lines[4].split() == ["training", "loss", "1.1727", "→", "0.3867", "█▅▁"]
    assert lines[5].split() == ["validation", "loss", "0.3894", "▅"]
    started = next(index for index, item in enumerate(events) if item["event"] == "round_started")
    assert "starting" in shown(state_of(events[:started]), events[started]["t"] - start)[2]


def test_a_terminal_has_a_bar_whose_length_is_what_is_done() -> None:
    assert "━" * 12 in shown(state_of(TWO_ROUNDS), 24.5, terminal=True)[0]
    assert "━" not in shown(state_of(TWO_ROUNDS), 24.5)[0], "without colours one could not tell done from open"


def test_bill_rejections_and_faults_are_shown_once_there_are_any() -> None:
    bad = {"sender": 1, "reason": "stale"}
    more = [
        event("bill", 0, 1, 20.0, usd=0.25, limit_usd=1.5),
        event("bill", 1, 1, 20.0, usd=0.5, limit_usd=1.5),
        event("frame_rejected", 0, 2, 21.0, **bad),
        event("frame_rejected", 0, 2, 21.0, **{**bad, "reason": "corrupt"}),
        event("frame_rejected", 1, 2, 21.0, sender=None, reason="run"),
        event("peer_restarted", 1, None, 21.5, reason="was killed by signal 9", attempt=1),
        event("batches_failed", 0, 2, 22.0, failed=3, samples=8, causes=["too hot"]),
        *(event("member_dropped", rank, 2, 23.0, member=3, reason="silent") for rank in (0, 1)),
    ]
    text = "\n".join(shown(state_of([*TWO_ROUNDS, *more]), 24.5))
    assert "at most 0.7500 USD of at most 3.0000" in text
    assert "2 of peer 1 (corrupt 1, stale 1); 1 of an unknown sender (run 1)" in text
    assert "1 restarts, 3 batches left out, 1 peers dropped" in text
    silent = next(line.split() for line in text.splitlines() if line.strip().startswith("3 "))
    assert silent[1] == "silent"


def test_a_local_bill_is_told_as_what_it_would_be_on_aws() -> None:
    state = state_of([*TWO_ROUNDS, event("bill", 0, 1, 20.0, usd=0.25, limit_usd=None, as_if_on_aws=True)])
    assert bill(state) == "nothing is billed; on AWS at most 0.2500 USD"


def test_in_a_low_window_the_peers_that_do_not_train_are_shown_first() -> None:
    started = [item for rank in range(12) for item in (*began(rank), event("round_started", rank, 0, 1.0))]
    state = state_of([*started, event("failed", 7, 0, 2.0, error="too hot")])
    lines = shown(state, 5.0, height=20, terminal=True)
    assert lines[2].split()[:2] == ["7", "failed"]
    assert lines[7] == "and 7 more"
    assert len(shown(state, 5.0, height=20)) == len(lines) + 6, "a pipe gets all twelve"


def test_asynchronous_peers_are_as_far_as_the_slowest() -> None:
    events = [
        *(event("peer_started", rank, None, 0.0, mode="async", rounds_limit=9) for rank in (0, 1)),
        *(event("round_started", rank, 0, 0.5) for rank in (0, 1)),
        *(event("averaged", 0, round, 1.0 + round, contributors=[0], staleness=[0], loss=1.0) for round in range(5)),
        event("averaged", 1, 0, 5.0, contributors=[0, 1], staleness=[3, 0], loss=1.0),
    ]
    assert "round 1 of 9" in shown(state_of(events), 6.0)[0]
    silent = event("member_dropped", 0, 5, 6.0, member=1, reason="silent")
    assert "round 5 of 9" in shown(state_of([*events, silent]), 6.0)[0]


def test_a_run_of_a_version_that_told_no_limit_has_no_bar() -> None:
    state = state_of([event("peer_started", 0, None, mode="sync"), *round_of(0, 0, 10.0, 2.0)])
    assert "  1 rounds  " in shown(state, 11.0, terminal=True)[0]


def test_a_run_that_nobody_works_on_stands_still() -> None:
    state = state_of(TWO_ROUNDS)
    state.over = True
    lines = shown(state, 5_000.0)
    assert lines[0].endswith("0:00:24")
    assert lines[2].split()[:4] == ["0", "gone", "3", "1.0000"]


def test_the_closing_commit_takes_nothing_from_the_picture() -> None:
    closing = event("commit", 0, 4, 40.0, contributors=[], loss=None, validation_loss=0.5, final=True)
    lines = shown(state_of([*TWO_ROUNDS, closing, event("finished", 0, 4, 41.0, reason="epoch_limit")]), 42.0)
    assert lines[2].split()[:5] == ["0", "finished:", "epoch_limit", "4", "1.0000"]


def test_a_damaged_event_changes_nothing() -> None:
    state = state_of(TWO_ROUNDS)
    before = shown(state, 24.5)
    for damaged in ({"event": "commit"}, {"rank": 0}, event("commit", 0, 3, 30.0), event("stage", 0, None, 30.0)):
        assert not state.add(damaged)
    assert shown(state, 24.5) == before


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([3.0], 5, "▅"),
        ([1.0, 1.0], 5, "▅▅"),
        ([0.0, 7.0, 3.0], 5, "▁█▄"),
        ([0.0, 2.0, 8.0, 8.0, 7.0, 9.0], 3, "▁██"),
        ([float(value) for value in range(7)], 3, "▁▄█"),
    ],
)
def test_a_sparkline_rises_with_its_values(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_terminal_without_unicode_gets_ascii() -> None:
    assert sparkline([0.0, 6.0], 5, ascii_only=True) == "_#"


def test_sizes_and_spans_are_for_people() -> None:
    assert [size(count) for count in (0, 999, 1_000, 12_345_678, 5 * 10**12)] == [
        "0 B", "999 B", "1.0 kB", "12.3 MB", "5.0 TB",
    ]  # fmt: skip
    assert [number(loss) for loss in (0.0, 0.000_012_34, 0.5)] == ["0.0000", "1.23e-05", "0.5000"]
    assert [span(seconds) for seconds in (0.9, 61, 36_061)] == ["0:00:00", "0:01:01", "10:01:01"]


def test_the_view_draws_and_tells_faults_above_its_picture() -> None:
    text = io.StringIO()
    console = Console(file=text, width=100, height=30, force_terminal=True, color_system=None)
    with View(console, FakeClock(START + 24.5)) as view:
        view.note("starting RabbitMQ")
        assert "\x1b[?25l" not in text.getvalue(), "nothing is drawn before training: a question may be asked"
        view.training(2, 4)
        for item in TWO_ROUNDS:
            view.event(item)
        view.event(event("frame_rejected", 0, 2, 22.0, sender=1, reason="stale"))
        view.event(event("frame_rejected", 0, 2, 22.0, sender=1, reason="stale"))
        view.event({"event": "note", "rank": None, "round": None})
    seen = text.getvalue()
    assert seen.startswith("starting RabbitMQ")
    assert seen.count("peer 0: rejected a message of peer 1: stale") == 1
    last = seen[seen.rindex(f"run {RUN}") :]
    assert "round 2 of 4" in last
    assert "2 of peer 1 (stale 2)" in last
    assert seen.endswith("\x1b[?25h"), "the cursor is back"


def test_the_observer_fits_the_console() -> None:
    with observer(Console(file=io.StringIO(), force_terminal=True)) as view:
        assert isinstance(view, View)
    with observer(Console(file=io.StringIO())) as view:
        assert isinstance(view, Lines)


def test_through_a_pipe_there_is_a_picture_and_then_a_line_for_what_is_new() -> None:
    text = io.StringIO()
    view = StateLines(Console(file=text, width=200), FakeClock(START + 24.5))
    restarted = event("peer_restarted", 1, None, 21.0, reason="was killed by signal 9", attempt=1)
    view.recall([*TWO_ROUNDS, restarted])
    assert text.getvalue() == "", "what was before is in the picture"
    view.training(2, 0)
    picture = text.getvalue()
    assert "round 2 of 4" in picture
    for item in [*round_of(0, 2, 30.0, 0.5), *round_of(1, 2, 30.0, 0.5), *round_of(0, 3, 31.0, 0.25)]:
        view.event(item)
    view.event(event("commit", 0, 4, 32.0, contributors=[], loss=None, validation_loss=0.125, final=True))
    view.event(event("finished", 0, 4, 33.0, reason="epoch_limit"))
    lines = text.getvalue()[len(picture) :].splitlines()
    assert lines == [
        "round 3 of 4, training loss 0.5000, validation loss 0.8750, accuracy 75.00%, 1.3 MB in, 2.5 MB out",
        "round 4 of 4, training loss 0.2500, validation loss 0.1250, accuracy 75.00%, 1.8 MB in, 3.5 MB out",
        "peer 0: finished (epoch_limit)",
    ], "at most a line in five seconds, where nothing was validated"
