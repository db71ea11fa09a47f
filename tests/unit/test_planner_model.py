"""The planner's model against figures worked out by hand, and against the code whose costs it predicts."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from contract.errors import UserError
from infra.settings import Settings
from peer_agent import meter
from peer_agent.compute import division
from peerless import cost
from peerless.planner import planning, terms, workers
from peerless.planner.assumptions import GIVEN, assumptions
from peerless.planner.calibration import Correction
from peerless.planner.model import Model, band
from peerless.planner.plan import Plan
from peerless.planner.planning import configured_plan
from peerless.planner.terms import Term
from tests.fakes.planning import calibration, job

#: Every latency and line out of the way, so that what is left can be worked out by hand.
NOTHING = [
    f"aws.{name}=1e-18"
    for name in (
        "execution_seconds", "invocation_seconds", "request_seconds", "message_seconds", "cold_start_seconds",
        "instance_start_seconds", "update_seconds_per_value", "decode_seconds_per_value",
    )
] + ["aws.line_bytes_per_second=1e21", "speed.lambda_arm64=1", "speed.t4g=1"]  # fmt: skip


def test_state_transitions_are_never_more_than_a_peers_meter_counts() -> None:
    plan = configured_plan(job(), calibration())
    assert workers.of_a_round(plan, 64, 0) == 4 + 64
    assert workers.of_a_round(dataclasses.replace(plan, state_machine="distributed_map"), 64, 0) == 4 + 2 * 64
    assert workers.of_a_round(plan, 64, 8) == 4 * (1 + 1 + 3 + 1) + 64 + 8  # a choice, three levels, their end
    for mode in ("inline_map", "distributed_map", "parallel"):
        for reducers in (0, 8):
            most = 4 * (meter.EXECUTION_TRANSITIONS + (meter.REDUCE_TRANSITIONS if reducers else 0))
            most += (64 + reducers) * meter.TASK_TRANSITIONS
            assert workers.of_a_round(dataclasses.replace(plan, state_machine=mode), 64, reducers) <= most


def test_auto_is_what_a_peer_makes_of_it() -> None:
    assert planning.AUTO_SECONDS == division.WORTH_SECONDS


def test_batches_of_a_round_run_side_by_side_or_one_after_the_other() -> None:
    known = assumptions().replaced(NOTHING)
    found = dataclasses.replace(job(), validation_samples=0)
    model = Model(found, calibration(), known)
    configured = configured_plan(found, calibration())
    assert model.predict(configured).round_seconds == pytest.approx(0.5)  # 16 workers, a batch each
    four = dataclasses.replace(configured, batches_per_worker=4)
    assert model.predict(four).round_seconds == pytest.approx(2.0)
    large = dataclasses.replace(configured, memory_mb=2 * 1_769, threads=2)
    assert model.predict(large).round_seconds == pytest.approx(0.3)  # as measured with two threads
    pinned = dataclasses.replace(configured, memory_mb=2 * 1_769, threads=1)
    assert model.predict(pinned).round_seconds == pytest.approx(0.5)  # a vCPU that no thread uses
    half = dataclasses.replace(configured, memory_mb=1_769 // 2)
    assert model.predict(half).round_seconds == pytest.approx(0.5 * 1_769 / 884)
    here = dataclasses.replace(configured, service="local", threads=1)
    assert model.predict(here).round_seconds == pytest.approx(8.0)
    assert model.predict(dataclasses.replace(here, threads=2)).round_seconds == pytest.approx(4.8)


def test_more_workers_than_may_run_at_once_wait_for_each_other() -> None:
    known = assumptions().replaced(NOTHING)
    found = dataclasses.replace(job(batches_per_round=100), validation_samples=0)
    configured = configured_plan(found, calibration())
    assert configured.state_machine == "distributed_map"
    inline = dataclasses.replace(configured, state_machine="inline_map")
    assert Model(found, calibration(), known).predict(inline).round_seconds == pytest.approx(3 * 0.5)  # 40 at once
    limited = dataclasses.replace(found, config=found.config.model_copy(
        update={"compute": found.config.compute.model_copy(update={"concurrency": 10})}
    ))  # fmt: skip
    assert Model(limited, calibration(), known).predict(inline).round_seconds == pytest.approx(10 * 0.5)


def test_the_bill_of_a_round_worked_out_by_hand() -> None:
    known = assumptions().replaced(NOTHING)
    found = dataclasses.replace(job(), validation_samples=0)
    configured = configured_plan(found, calibration())
    prediction = Model(found, calibration(), known).predict(configured)
    batches = 4 * 16
    gb_seconds = batches * 0.5 * 1_769 / 1_024
    pieces = gb_seconds * 0.0000133334 + batches * 0.0000002 + (4 + batches) * 0.000025
    hour = sum(cost.hourly(Settings(peers=4)).values())
    # The rest are S3's requests: three GETs and a PUT per worker, and a few of the peers.
    expected = pieces + batches * (3 * 0.0000004 + 0.000005) + hour / 3_600 * 0.5
    assert prediction.round_usd == pytest.approx(expected, rel=0.03)
    assert prediction.round_usd > expected
    assert prediction.rounds == 2 * 10
    assert prediction.seconds == pytest.approx(20 * 0.5)
    assert prediction.usd == pytest.approx(20 * prediction.round_usd)
    assert sum(term.value for term in prediction.parts) == pytest.approx(prediction.usd)


def test_what_instances_cost_beyond_their_baseline() -> None:
    known = assumptions().replaced(NOTHING)
    found = dataclasses.replace(job(), validation_samples=0)
    plan = dataclasses.replace(configured_plan(found, calibration()), service="local", threads=2)
    surplus = {term.name: term.value for term in Model(found, calibration(), known).predict(plan).parts}
    busy_hours = 20 * 4.8 / 3_600
    # Two vCPUs, of which a T4g's hour covers a fifth each; four peers.
    assert surplus["forward and backward"] == pytest.approx(4 * (2 - 0.4) * 0.04 * busy_hours)
    steady = dataclasses.replace(plan, instance_type="c7g.large")
    assert "forward and backward" not in {t.name for t in Model(found, calibration(), known).predict(steady).parts}


def test_time_moves_with_bytes_codecs_and_topology() -> None:
    found = job(elements=25_000_000, peers=16)
    model = Model(found, calibration(), assumptions())
    plan = dataclasses.replace(configured_plan(found, calibration()), codec="none")
    seconds = {
        (codec, topology): model.predict(dataclasses.replace(plan, codec=codec, topology=topology)).round_seconds
        for codec in ("none", "fp16", "qsgd8", "qsgd4")
        for topology in ("all_gather", "reduce_scatter")
    }
    assert seconds["none", "all_gather"] > seconds["fp16", "all_gather"] > seconds["qsgd8", "all_gather"]
    assert seconds["qsgd8", "all_gather"] > seconds["qsgd4", "all_gather"]
    assert seconds["none", "all_gather"] > seconds["none", "reduce_scatter"]


def test_cold_starts_come_once_and_from_a_snapshot_they_are_short() -> None:
    plain = job()
    snap = job(aws={"snap_start": True})
    slow, fast = (
        Model(each, calibration(), assumptions()).predict(configured_plan(each, calibration()))
        for each in (plain, snap)
    )
    assert slow.seconds - fast.seconds == pytest.approx(20.0 - 1.2)
    assert slow.round_seconds == fast.round_seconds


def test_bands_add_up_as_independent_errors() -> None:
    made = [
        Term(name=str(n), part="step", value=v, spread=s, source="") for n, (v, s) in enumerate([(3, 0.1), (4, 0.1)])
    ]
    assert terms.spread(made) == pytest.approx(0.5 / 7)
    assert terms.least_sure(made) is made[1]
    assert terms.spread([]) == 0.0
    assert band(10, 0.2) == [8, 12]
    assert band(10, 1.5) == [0, 25]


def test_a_guess_that_is_given_has_no_band_and_says_so() -> None:
    known = assumptions().replaced(["speed.lambda_arm64=2"])
    found = job()
    plan = configured_plan(found, calibration())
    term = workers.step(found, plan, calibration(), known)
    assert term.value == pytest.approx(0.25)
    assert term.spread == pytest.approx(0.05)
    assert GIVEN in term.source
    assert workers.step(found, plan, calibration(), assumptions()).spread == pytest.approx(math.hypot(0.05, 0.3))


@pytest.mark.parametrize("text", ["speed.lambda_arm64", "speed.m5=1", "gpu.g5.xlarge=0", "gpu.g5.xlarge=nan"])
def test_an_assumption_that_is_none(text: str) -> None:
    with pytest.raises(UserError, match="--assume"):
        assumptions().replaced([text])


def test_every_assumption_is_named_dated_and_sourced() -> None:
    for name, figure in assumptions().figures.items():
        assert figure.value > 0, name
        assert 0 <= figure.spread < 1, name
        assert figure.date.startswith("202"), name
        assert len(figure.source) > 10, name
    priced = cost.book()["instance_hour"]
    for name in assumptions().instances:
        assert name in priced
        assert workers.speed_of(name) in assumptions().figures


def test_a_run_on_aws_corrects_what_was_assumed() -> None:
    corrections = tuple(
        Correction(where="aws.lambda", part=part, factor=factor, spread=0.1, run="seen")
        for part, factor in (("step", 2.0), ("compute", 3.0), ("exchange", 4.0))
    )
    found, plain = job(), calibration()
    plan = configured_plan(found, plain)
    before = Model(found, plain, assumptions()).predict(plan)
    after = Model(found, calibration(corrections=corrections), assumptions()).predict(plan)
    factors = {"step": 2.0, "compute": 3.0, "exchange": 4.0}
    for old, new in zip(before.terms, after.terms, strict=True):
        assert new.value == pytest.approx(old.value * factors[old.part])
        assert "seen" in new.source
    here = dataclasses.replace(plan, service="local")
    untouched = Model(found, calibration(corrections=corrections), assumptions()).predict(here)
    assert untouched.round_seconds == Model(found, plain, assumptions()).predict(here).round_seconds


def test_rounds_until_an_accuracy() -> None:
    seen = calibration(accuracy=((5.0, 0.9), (10.0, 0.97), (15.0, 0.98)), accuracy_run="seen")
    found = job()
    plan = configured_plan(found, seen)
    assert Model(found, seen, assumptions(), accuracy=0.95).predict(plan).rounds == 10
    with pytest.raises(UserError, match=r"seen reached 98\.00%"):
        Model(found, seen, assumptions(), accuracy=0.99).predict(plan)
    with pytest.raises(UserError, match="configured peers alone"):
        Model(found, seen, assumptions(), accuracy=0.95).predict(dataclasses.replace(plan, peers=8))
    with pytest.raises(UserError, match="--from-run"):
        Model(found, calibration(), assumptions(), accuracy=0.5).predict(plan)


def test_an_instance_type_that_the_planner_does_not_know() -> None:
    found = job(aws={"instance_type": "m8g.medium"})
    plan = configured_plan(found, calibration())
    with pytest.raises(UserError, match=r"m8g\.medium: the planner knows"):
        Model(found, calibration(), assumptions()).predict(plan)


def test_memory_that_a_model_was_measured_to_need() -> None:
    large = calibration(peak_bytes=3 * 2**30)
    found = job()
    plan = configured_plan(found, large)
    model = Model(found, large, assumptions())
    assert not model.fits(plan)
    assert model.fits(dataclasses.replace(plan, memory_mb=3_538))
    assert model.fits(dataclasses.replace(plan, service="local", instance_type="t4g.medium"))
    assert not model.fits(dataclasses.replace(plan, service="local", instance_type="t4g.small"))


def test_reducers_are_counted_where_a_round_has_them() -> None:
    found = job(elements=25_000_000, batches_per_round=40, compute={"reduce": "always"})
    plan = configured_plan(found, calibration())
    model = Model(found, calibration(), assumptions())
    names = [term.name for term in model.predict(plan).terms]
    assert names.count("adding up") == 2  # 40 gradients in groups of eight: five means, then one
    without = job(elements=25_000_000, batches_per_round=40, compute={"reduce": "never"})
    assert "adding up" not in [t.name for t in Model(without, calibration(), assumptions()).predict(plan).terms]


def test_a_worker_that_takes_steps_is_one_invocation() -> None:
    steps = {"name": "local_sgd", "local_epochs": 3}
    found = job(algorithm=steps)
    plan = configured_plan(found, calibration())
    shares = workers.shares(found, plan, assumptions())
    assert (shares.largest, shares.everyone, shares.passes, shares.passes_everyone) == (1, 4, 48, 192)


def test_the_plan_of_a_configuration() -> None:
    found = job(compute={"batches_per_worker": "auto"})
    plan = configured_plan(found, calibration(seconds=0.3))
    assert plan.batches_per_worker == 4  # a second of work
    assert plan == Plan.of(found.config, batches=16, per_worker=4)
    other = dataclasses.replace(plan, service="local", memory_mb=10_240, threads=2, codec="none")
    assert other.changes(plan) == {"compute.service": "local", "compute.threads": 2, "exchange.codec": "none"}
    assert plan.changes(plan) == {}


def test_the_users_own_prices_count(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    price = '{ usd = 1.0, date = "2026-11-01", sure = "H", source = "contract" }'
    mine.write_text(f"[us-east-1.lambda]\nrequest = {price}\n")
    priced = job(cost={"prices": str(mine)})
    plain, own = (Model(each, calibration(), assumptions()) for each in (job(), priced))
    plan = configured_plan(priced, calibration())
    more = own.predict(plan).usd - plain.predict(plan).usd
    invocations = own.rounds(4) * 4 * 16
    assert more == pytest.approx(invocations, rel=1e-3)
