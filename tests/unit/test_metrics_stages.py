"""Stages one after another, nested, side by side, and failing."""

from __future__ import annotations

import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.events import EventLog
from peer_agent.metrics import TRACED_RUNS, StageMetrics
from peer_agent.ports import Metrics
from tests.fakes.clock import FakeClock

MIB = 2**20


class Resident:
    """A resident set that a test sets, in bytes."""

    def __init__(self) -> None:
        self.bytes = 100 * MIB

    def __call__(self) -> int:
        return self.bytes


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def resident() -> Resident:
    return Resident()


@pytest.fixture
def events(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]


@pytest.fixture
def metrics(tmp_path: Path, clock: FakeClock, resident: Resident) -> Iterator[StageMetrics]:
    log = EventLog(tmp_path / "events.jsonl", "run", 2, clock)
    made = StageMetrics(log, clock, resident)
    yield made
    made.close()
    log.close()


def test_a_stage_emits_what_it_cost(
    metrics: StageMetrics, clock: FakeClock, events: Callable[[], list[dict[str, Any]]]
) -> None:
    port: Metrics = metrics
    with port.stage("compute", 7) as stage:
        clock.use_cpu(1.5)
        clock.advance(0.5)
        stage.bytes_in += 10
        stage.bytes_out += 3
    (event,) = events()
    assert (event["event"], event["rank"], event["round"], event["stage"]) == ("stage", 2, 7, "compute")
    assert (event["seconds"], event["cpu_percent"]) == (2.0, 75.0)
    assert (event["bytes_in"], event["bytes_out"], event["rss_bytes"]) == (10, 3, 100 * MIB)


def test_totals_add_up_and_keep_the_highest_peak(metrics: StageMetrics, clock: FakeClock, resident: Resident) -> None:
    for seconds, cpu, size in ((3.0, 3.0, 300), (1.0, 0.0, 200)):
        with metrics.stage("send", 0) as stage:
            resident.bytes = size * MIB
            clock.use_cpu(cpu)
            clock.advance(seconds - cpu)
            stage.bytes_out += 5
    total = metrics.totals()["send"]
    assert (total["seconds"], total["cpu_percent"]) == (4.0, 75.0)
    assert (total["bytes_out"], total["bytes_in"]) == (10, 0)
    assert total["peak_rss_bytes"] == 300 * MIB
    assert metrics.totals().keys() == {"send"}


def test_peak_memory_is_the_stage_s_own(metrics: StageMetrics) -> None:
    with metrics.stage("compute", 0) as large:
        block = np.ones(8 * MIB, np.uint8)
        del block
    with metrics.stage("update", 0) as small:
        block = np.ones(1 * MIB, np.uint8)
        del block
    assert large.peak_bytes >= 8 * MIB
    assert MIB <= small.peak_bytes < 8 * MIB


def test_a_nested_stage_does_not_hide_the_outer_one_s_peak(metrics: StageMetrics, clock: FakeClock) -> None:
    with metrics.stage("receive", 0) as outer:
        block = np.ones(8 * MIB, np.uint8)
        del block
        with metrics.stage("update", 0) as inner:
            clock.advance(1.0)
        clock.advance(1.0)
    assert outer.peak_bytes >= 8 * MIB > inner.peak_bytes
    assert metrics.totals()["receive"]["seconds"] == 2.0
    assert metrics.totals()["update"]["seconds"] == 1.0


def test_stages_of_several_threads_keep_apart(
    metrics: StageMetrics, events: Callable[[], list[dict[str, Any]]]
) -> None:
    together = threading.Barrier(4)

    def work(number: int) -> None:
        for round in range(25):
            together.wait(20)
            with metrics.stage("compute" if number % 2 else "send", round) as stage:
                together.wait(20)
                stage.bytes_in += number

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    totals = metrics.totals()
    assert (totals["compute"]["bytes_in"], totals["send"]["bytes_in"]) == (25 * (1 + 3), 25 * (0 + 2))
    assert len(events()) == 100


def test_a_stage_that_overlaps_sees_the_peak_of_another_thread(metrics: StageMetrics) -> None:
    with metrics.stage("compute", 0) as long:

        def work() -> None:
            with metrics.stage("send", 0):
                np.ones(8 * MIB, np.uint8)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
    assert long.peak_bytes >= 8 * MIB


def test_a_resident_peak_between_begin_and_end_is_seen(metrics: StageMetrics, resident: Resident) -> None:
    seen = threading.Event()
    resident_of = metrics._resident

    def looked() -> int:
        size = resident_of()
        if size == 900 * MIB:
            seen.set()
        return size

    metrics._resident = looked
    with metrics.stage("compute", 0) as stage:
        resident.bytes = 900 * MIB
        assert seen.wait(20)
        resident.bytes = 100 * MIB
    assert stage.rss_bytes == 900 * MIB


def test_a_stage_that_raises_is_measured_too(
    metrics: StageMetrics, clock: FakeClock, events: Callable[[], list[dict[str, Any]]]
) -> None:
    def fail() -> None:
        with metrics.stage("update", 1):
            clock.advance(2.0)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert events()[0]["seconds"] == 2.0
    assert metrics.totals()["update"]["seconds"] == 2.0


def test_only_the_paper_s_stages_exist(metrics: StageMetrics) -> None:
    with pytest.raises(ValueError, match="'recieve' is no stage; stages are compute, send, receive"):
        metrics.stage("recieve", 0).__enter__()


def test_a_stage_of_no_length_uses_no_cpu(metrics: StageMetrics, events: Callable[[], list[dict[str, Any]]]) -> None:
    with metrics.stage("send", 0):
        pass
    assert events()[0]["cpu_percent"] == 0.0


def test_tracing_stops_after_some_rounds_and_its_peaks_stand(
    metrics: StageMetrics, events: Callable[[], list[dict[str, Any]]]
) -> None:
    for round in range(TRACED_RUNS + 2):
        for name in ("compute", "send", "receive", "update"):
            assert tracemalloc.is_tracing() == (round < TRACED_RUNS)
            with metrics.stage(name, round):
                np.ones((8 if round < TRACED_RUNS else 16) * MIB, np.uint8)
    for event in events():
        assert 8 * MIB <= event["peak_bytes"] < 16 * MIB
    assert metrics.totals()["send"]["peak_bytes"] == max(e["peak_bytes"] for e in events() if e["stage"] == "send")


def test_a_stage_that_comes_later_is_traced_for_itself(metrics: StageMetrics) -> None:
    for round in range(TRACED_RUNS):
        for name in ("compute", "send", "receive", "update"):
            with metrics.stage(name, round):
                pass
    assert not tracemalloc.is_tracing()
    for _ in range(TRACED_RUNS):
        with metrics.stage("compute", TRACED_RUNS) as beside, metrics.stage("convergence", TRACED_RUNS) as seldom:
            np.ones(8 * MIB, np.uint8)
        assert seldom.peak_bytes >= 8 * MIB
        assert beside.peak_bytes == 0
        assert not tracemalloc.is_tracing()
    with metrics.stage("convergence", TRACED_RUNS):
        assert not tracemalloc.is_tracing()


def test_tracing_ends_with_the_one_who_began_it(clock: FakeClock) -> None:
    nowhere = EventLog(None, "run", 0, clock)
    assert not tracemalloc.is_tracing()
    first = StageMetrics(nowhere, clock)
    second = StageMetrics(nowhere, clock)
    with second.stage("compute", 0) as stage:
        pass
    second.close()
    assert tracemalloc.is_tracing()
    first.close()
    first.close()
    assert not tracemalloc.is_tracing()
    assert stage.rss_bytes > MIB, "psutil's own figure"
