"""Calibration: how steps are timed (by a clock that the test moves), interpolated, kept, and refined by a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from contract.config import RunConfig
from contract.errors import UserError
from peerless.planner import local, measure, refine
from peerless.planner.assumptions import assumptions
from peerless.planner.calibration import Calibration, Point, identity, path_of
from peerless.planner.planning import comparison, configured_plan
from peerless.planner.terms import total
from tests.fakes.clock import FakeClock
from tests.fakes.planning import calibration, job


def test_the_median_of_steps_without_the_first() -> None:
    clock, takes = FakeClock(), iter([9.0, 0.5, 0.7, 0.6, 0.6, 0.5])
    found = measure.timed(lambda: clock.use_cpu(next(takes)), clock)
    assert found.seconds == pytest.approx(0.6)  # of 0.5, 0.7, 0.6 and 0.6: then two seconds are over
    assert found.spread == pytest.approx(1.4826 * 0.05 / 0.6)
    assert (found.cpu_seconds, found.cpu_spread) == (pytest.approx(0.6), pytest.approx(found.spread))


def test_what_else_the_machine_does_is_no_processor_time() -> None:
    clock, others = FakeClock(), iter([0.0, 1.0, 5.0, 2.0])

    def step() -> None:
        clock.use_cpu(0.25)
        clock.advance(next(others))

    found = measure.timed(step, clock)
    assert (found.seconds, found.cpu_seconds) == (pytest.approx(2.25), pytest.approx(0.25))
    assert found.spread > 0.5
    assert found.cpu_spread == pytest.approx(0.0, abs=1e-9)
    busy = Point(batch_size=100, threads=1, crowd=1, seconds=found.seconds, spread=found.spread,
                 cpu_seconds=found.cpu_seconds, cpu_spread=found.cpu_spread)  # fmt: skip
    kept = calibration(points=(busy,))
    assert kept.step(100, 1) == (pytest.approx(0.25), 0.03)


def test_slow_steps_are_timed_three_times_and_fast_ones_no_more_than_fifteen() -> None:
    for each, expected in ((5.0, 1 + measure.LEAST), (1e-3, 1 + measure.MOST)):
        clock, count = FakeClock(), [0]

        def step(clock: FakeClock = clock, count: list[int] = count, each: float = each) -> None:
            count[0] += 1
            clock.sleep(each)

        found = measure.timed(step, clock)
        assert (found.seconds, found.spread) == (pytest.approx(each), pytest.approx(0, abs=1e-9))
        assert count[0] == expected


def test_what_is_timed() -> None:
    assert measure.sizes(128) == (32, 128, 256)
    assert measure.sizes(2) == (2, 4)
    assert measure.thread_counts(1) == (1,)
    assert measure.thread_counts(4) == (1, 2, 4)
    assert measure.thread_counts(64) == (1, 2, 4, 5)


def test_a_busy_machine_is_seen() -> None:
    alone = point(100, 0.5)
    assert measure.undisturbed([alone, dataclasses.replace(alone, threads=2, cpu_seconds=0.1)])
    assert not measure.undisturbed([alone, dataclasses.replace(alone, batch_size=50, cpu_seconds=0.3)])


def point(batch_size: int, seconds: float, threads: int = 1, crowd: int = 1) -> Point:
    return Point(
        batch_size=batch_size, threads=threads, crowd=crowd, seconds=seconds, spread=0.05,
        cpu_seconds=seconds * threads, cpu_spread=0.05,
    )  # fmt: skip


def test_between_sizes_and_beyond_them_time_is_a_straight_line() -> None:
    found = calibration(points=(point(32, 0.5), point(128, 1.1), point(256, 2.1)))
    assert found.step(32, 1)[0] == pytest.approx(0.5)
    assert found.step(80, 1)[0] == pytest.approx(0.8)
    assert found.step(512, 1)[0] == pytest.approx(4.1)
    assert found.step(16, 1)[0] == pytest.approx(0.4)
    assert found.step(80, 1)[1] == pytest.approx(0.05)
    assert found.step(512, 1)[1] == pytest.approx(0.1)  # beyond what was measured
    steep = calibration(points=(point(32, 0.1), point(64, 1.0)))
    assert steep.step(16, 1)[0] == pytest.approx(0.05)  # the line would end below nothing
    one = calibration(points=(point(64, 1.0),))
    with pytest.raises(ValueError, match="one thread"):
        calibration(points=(point(64, 1.0, threads=2),))
    assert one.step(32, 1) == (pytest.approx(0.5), 0.15)


def test_threads_shrink_a_step_by_what_they_were_measured_to() -> None:
    found = calibration()  # two threads take 60%: a share of 0.8 is divided
    assert found.parallel()[0] == pytest.approx(0.8)
    assert found.step(100, 2)[0] == pytest.approx(0.3)
    assert found.step(100, 4)[0] == pytest.approx(0.5 * (0.2 + 0.8 / 4))
    assert found.step(100, 4)[1] > found.step(100, 2)[1] == pytest.approx(0.05)
    assert found.step(100, 0.5)[0] == pytest.approx(1.0)
    disturbed = tuple(dataclasses.replace(each, cpu_seconds=0.5 * each.seconds) for each in found.points)
    assert calibration(points=disturbed).parallel() == (0.8, 0.25)  # as if two threads had not been timed
    slow = tuple(dataclasses.replace(each, seconds=0.9) if each.threads == 2 else each for each in found.points)
    assert calibration(points=slow).parallel()[0] == 0.0  # threads that only get in each other's way
    unknown = calibration(points=(point(100, 0.5),))
    assert unknown.parallel()[0] == 0.8
    assert unknown.parallel()[1] == 0.25


def test_batches_at_once_disturb_each_other() -> None:
    found = calibration(points=(point(50, 0.25), point(100, 0.5), point(50, 0.3, crowd=2), point(100, 0.6, crowd=2)))
    assert found.step(100, 1, crowd=2)[0] == pytest.approx(0.6)
    assert found.step(75, 1, crowd=2)[0] == pytest.approx(0.45)
    assert found.step(100, 1)[0] == pytest.approx(0.5)
    # At one size only: the crowd slows every size as much as that one.
    single = calibration(points=(point(50, 0.25), point(100, 0.5), point(100, 0.6, crowd=2)))
    assert single.step(50, 1, crowd=2)[0] == pytest.approx(0.3)


def test_it_is_kept_and_read_back(tmp_path: Path) -> None:
    found, path = calibration(accuracy=((3.0, 0.9),), accuracy_run="seen"), tmp_path / "deep" / "one.json"
    found.save(path)
    assert Calibration.load(path) == found
    assert Calibration.load(tmp_path / "other.json") is None
    dataclasses.replace(found, version=0).save(path)
    assert Calibration.load(path) is None
    path.write_text("{")
    with pytest.raises(UserError, match="measure anew with --calibrate"):
        Calibration.load(path)


def test_each_model_and_machine_has_its_own_file(tmp_path: Path) -> None:
    def one(shape: tuple[int, ...] = (1, 28, 28), machine: str = "Xeon", **changes: Any) -> Path:
        return path_of(identity(RunConfig.model_validate(changes), shape), machine, {"XDG_CACHE_HOME": str(tmp_path)})

    same = [one(), one(peers=8), one(batch_size=64), one(exchange={"codec": "none"})]
    assert len(set(same)) == 1
    other = [
        one(model="mlp"), one((3, 32, 32)), one(machine="Graviton"), one(compute={"channels_last": True}),
        one(model="vgg11"), one(model="vgg11", model_options={"head": "cifar"}),
    ]  # fmt: skip
    assert len({*same, *other}) == 7
    assert all(path.is_relative_to(tmp_path) for path in other)


def events(*, step: float = 0.5, compute: float = 2.0, each: float = 3.0, rounds: int = 6) -> list[dict[str, Any]]:
    """Of two peers; the first rounds are ten times as slow."""
    told: list[dict[str, Any]] = []
    moment = 100.0
    for number in range(rounds):
        slow = 10 if number < refine.WARM else 1
        for rank in range(2):
            told.append({"event": "worked", "rank": rank, "round": number, "step_seconds": slow * step})
            told.append(
                {"event": "stage", "stage": "compute", "rank": rank, "round": number, "seconds": slow * compute}
            )
            late = {"t": moment + 0.1 * rank, "contributors": [0, 1]}
            told.append({"event": "commit", "rank": rank, "round": number, **late})
        moment += slow * each
    told.append({"event": "validated", "rank": 0, "round": 4, "validation_accuracy": 0.9})
    return [*told, {"event": "commit", "rank": 0, "round": rounds, "t": moment, "contributors": []}]


def test_what_a_run_shows() -> None:
    config = job().config
    found = refine.measured("seen", config, events(), "local.lambda")
    assert found.rounds == 3  # from the third to the sixth
    assert found.round_seconds == pytest.approx(3.0)
    assert (found.step_seconds, found.compute_seconds) == (0.5, 2.0)
    assert found.accuracy == ((5.0, 0.9),)
    with pytest.raises(UserError, match=r"it has 2 rounds, and 4 are needed"):
        refine.measured("seen", config, events(rounds=2), "local.lambda")


def test_a_run_predicted_after_it_was_seen_takes_what_it_took() -> None:
    work, plain = job(batches_per_round=2), calibration()
    plan = configured_plan(work, plain)
    terms = local.round_terms(work, plan, plain, assumptions())
    step = local.step_seconds(work, plan, plain)
    seen = refine.measured("seen", work.config, events(step=2 * step, compute=9.0, each=12.0), "local.lambda")
    better = refine.refined(plain, seen, terms, step)
    after = local.predicted(work, plan, better, assumptions())
    parts = {part: total([term for term in after if term.part == part]) for part in ("step", "compute", "exchange")}
    assert parts["step"] == pytest.approx(2 * total([term for term in terms if term.part == "step"]))
    assert parts["step"] + parts["compute"] == pytest.approx(9.0)
    assert parts["exchange"] == pytest.approx(3.0)
    assert better.rounds_to(0.85) == 5
    assert better.rounds_to(0.95) is None
    told = comparison(seen, terms)
    assert told.startswith("seen: a round took 12 s (median of 3); predicted before it was known: ")
    assert told.endswith("less")
    assert f"{total(terms):.3g} s" in told
    # Another run of the same kind takes its place; one of another kind stands beside it.
    again = refine.refined(better, seen, terms, step)
    assert again.corrections == better.corrections
    there = dataclasses.replace(seen, where="aws.lambda", run="there")
    assert len(refine.refined(better, there, terms, step).corrections) == 6


def test_peers_that_compute_themselves_tell_of_their_steps_by_the_stage() -> None:
    work, plain = job(compute={"service": "local"}), calibration()
    plan = configured_plan(work, plain)
    terms = local.round_terms(work, plan, plain, assumptions())
    told = [event for event in events(compute=40.0, each=41.0) if event["event"] != "worked"]
    seen = refine.measured("seen", work.config, told, "local.local")
    better = refine.refined(plain, seen, terms, local.step_seconds(work, plan, plain))
    assert total(local.predicted(work, plan, better, assumptions())) == pytest.approx(41.0)


@pytest.mark.parametrize("name", ["absent", ""])
def test_a_run_that_there_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--from-run"):
        refine.read(name)


def test_the_local_stack_shares_its_cores() -> None:
    known, plain = assumptions(), calibration(cores=2)

    def step(**config: Any) -> float:
        work = job(batches_per_round=4, **config)
        plan = configured_plan(work, plain)
        return total([term for term in local.round_terms(work, plan, plain, known) if term.part == "step"])

    assert step(peers=4) == pytest.approx(16 * 0.5 / 2)
    assert step(peers=2) == pytest.approx(8 * 0.5 / 2)
    assert step(peers=1, compute={"batches_per_worker": 4}) == pytest.approx(4 * 0.5)  # one invocation, one worker
    assert step(peers=3, compute={"batches_per_worker": 4}) == pytest.approx(2 * 4 * 0.5)  # the third one waits
    assert step(peers=4, compute={"service": "local"}) == pytest.approx(16 * 0.5 / 2)


def test_a_slower_machine_pays_more_for_everything_but_waits() -> None:
    work = job(batches_per_round=4)
    plan = configured_plan(work, calibration())
    fast, slow = (
        {
            term.name: term.value
            for term in local.round_terms(work, plan, calibration(probe_seconds=pace), assumptions())
        }
        for pace in (0.01, 0.03)
    )
    for name, seconds in fast.items():
        fixed = name in ("forward and backward", "state machine")
        assert slow[name] == pytest.approx(seconds if fixed else 3 * seconds)
