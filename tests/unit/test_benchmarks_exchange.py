"""Parts of `python -m benchmarks exchange`: the meeting by which both sides are timed, the vectors, and the figures."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import links
from benchmarks.crew import configuration, finish
from benchmarks.exchange import Measured, figures
from benchmarks.meeting import Attendance, Meeting
from benchmarks.vectors import Vector, exact_mean, gradient, relative_error
from contract.errors import RunFailed
from infra.local.processes import Child
from tests.fakes.clock import FakeClock


def attend(meeting: Meeting, rank: int, arrivals: list[float]) -> threading.Thread:
    """A process that arrives at one meeting after another, by its own clock."""

    def run() -> None:
        attendance = Attendance(meeting.path, rank)
        for number, at in enumerate(arrivals):
            attendance.meet(number, {"bytes": 10.0 * number + rank}, at)
        attendance.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_a_round_lasts_from_being_let_go_to_the_last_arrival(tmp_path: Path) -> None:
    clock = FakeClock()  # all are let go at its one moment, whatever their own clocks say
    with Meeting(tmp_path / "m", 2, clock) as meeting:
        let_go = clock.monotonic()
        threads = [attend(meeting, 0, [0.0, let_go + 3.0, let_go + 5.0]), attend(meeting, 1, [0.0, let_go + 4.0, 1.0])]
        for thread in threads:
            thread.join(20)
        assert meeting.seconds() == [4.0, 5.0]
        assert meeting.seconds(1) == [5.0]
        assert meeting.seconds(0, step=2) == [4.0]
        assert meeting.counted() == {"bytes": 10.0}
        assert meeting.gatherings[2].counts == {0: {"bytes": 20.0}, 1: {"bytes": 21.0}}


def test_a_meeting_that_is_called_off_lets_nobody_wait_for_ever(tmp_path: Path) -> None:
    meeting = Meeting(tmp_path / "m", 2)
    failures: list[OSError] = []

    def run() -> None:
        attendance = Attendance(meeting.path, 0)
        try:
            attendance.meet(0)
        except OSError as error:
            failures.append(error)
        attendance.close()

    thread = threading.Thread(target=run)
    thread.start()
    while not meeting.gatherings:
        assert thread.is_alive()
    meeting.close()
    thread.join(20)
    assert not thread.is_alive()
    assert len(failures) == 1
    assert meeting.seconds() == []


def test_vectors_are_a_ranks_own_and_the_same_everywhere() -> None:
    size = 200_000
    assert np.array_equal(gradient(1, size), gradient(1, size))
    cosine = np.dot(gradient(0, size), gradient(1, size)) / np.prod([np.linalg.norm(gradient(r, size)) for r in (0, 1)])
    assert abs(cosine) < 0.05
    mean = exact_mean(2, size)
    assert np.array_equal(mean, (gradient(0, size).astype(np.float64) + gradient(1, size)) / 2)
    assert relative_error(mean, mean) == 0
    assert relative_error(1.5 * mean, mean) == pytest.approx(0.5)


def test_the_model_is_its_vector() -> None:
    model = Vector(classes=2, elements=10)
    assert [p.numel() for p in model.parameters()] == [10]
    assert model(torch.zeros(3, 2)).shape == (3, 2)


def test_a_run_has_one_round_per_epoch_and_validates_at_its_end() -> None:
    config = configuration(4, 30, 1_000, exchange={"topology": "reduce_scatter"})
    assert (config.epochs, config.validate_every, config.batches_per_round) == (30, 30, 0)
    assert config.exchange.codec == "qsgd4"
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("sgd", 1.0, 0.0)


def test_ratios_are_of_medians_and_slow_links_are_told_as_a_speedup() -> None:
    counts = {"bytes_sent": 3e6, "bytes_received": 9e6, "requests": 5.0, "cpu_seconds": 0.08}
    here = Measured(
        gloo=[0.1, 0.1, 9.0],
        peers=[0.3, 0.2, 0.4],
        error=0.2,
        stages={"send": 0.1},
        counts=counts,
        gloo_cpu_seconds=0.02,
    )
    shaped = Measured(gloo=[3.0], peers=[1.0, 0.5, 0.75], error=0.2, stages={}, counts=counts, gloo_cpu_seconds=0.02)
    found = {
        figure.name: figure
        for figure in figures(
            {"all_gather": here, "reduce_scatter": shaped}, {"all_gather": shaped, "reduce_scatter": shaped}
        )
    }
    assert found["exchange_over_gloo"].value == pytest.approx(3.0)
    assert (found["exchange_over_gloo"].must, found["exchange_over_gloo"].aim) == (4.0, 1.7)
    assert found["gloo_over_exchange_100_mbit"].value == pytest.approx(4.0)
    assert found["gloo_over_exchange_100_mbit"].better == "higher"
    assert [name for name, figure in found.items() if figure.must is not None] == [
        "exchange_over_gloo",
        "gloo_over_exchange_100_mbit_reduce_scatter",
    ]
    assert found["seconds_send"].value == 0.1
    assert (found["megabytes_sent"].value, found["megabytes_received"].value) == (3.0, 9.0)
    assert (found["requests"].value, found["cpu_seconds"].value, found["cpu_seconds_gloo"].value) == (5.0, 0.08, 0.02)
    assert found["exchange_over_gloo_reduce_scatter"].value == pytest.approx(0.25)
    assert not [figure.name for figure in figures({"all_gather": here}, {}) if "mbit" in figure.name]


def test_a_process_that_fails_or_hangs_ends_the_benchmark(tmp_path: Path) -> None:
    log = tmp_path / "log"
    commands = {"failing": [sys.executable, "-c", "raise SystemExit('no luck')"], "hanging": ["sleep", "100"]}
    children = [Child.start(name, words, log_path=log) for name, words in commands.items()]
    try:
        with pytest.raises(RunFailed, match="failing ended with status 1: no luck"):
            finish(children, 20)
        with pytest.raises(RunFailed, match="hanging did not end within 0 s"):
            finish(children[1:], 0)
    finally:
        for child in children:
            child.kill()


def test_where_links_cannot_be_shaped_one_sentence_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("unshare", "nsenter", "ip", "tc"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2; exit 1\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert links.refusal().endswith("cannot be made here (unshare failed: Operation not permitted).")
    (tmp_path / "tc").unlink()
    assert links.refusal() == "there is no program tc on this machine."
