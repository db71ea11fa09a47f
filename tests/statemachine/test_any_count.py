"""Any count of batches from 1 to 10,000: valid definitions, and payloads that fit at every step.

Valid is what statelint says, the validator of the States Language that AWS Labs wrote. Two things it does not know: the
fields that a `ReaderConfig` has on AWS, and percentages with a point, which moto insists on.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statelint.linter import Linter

from contract.batches import BatchRef
from contract.errors import PERMANENT_NAMES, TRANSIENT_NAMES, ConfigError
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.reduce_tasks import groups, shared_dict
from contract.tasks import PAYLOAD_LIMIT_BYTES, GradientTask, distributed_input, inline_input, items_json
from peer_agent.compute.reduced import Tree
from statemachines import Mode, choose_mode, definition, render
from statemachines.gradients import (
    CAUGHT_LIMITS,
    DEFINITION_LIMIT_BYTES,
    INLINE_LIMIT,
    KEPT_CAUSES,
    LIMITS,
    PARALLEL_LIMIT,
)
from statemachines.retry import SANDBOX, SERVICE, THROTTLED

#: 64 characters of name are Lambda's most.
ARN = f"arn:aws:lambda:ap-southeast-3:123456789012:function:{'f' * 64}"
REDUCER = f"arn:aws:lambda:ap-southeast-3:123456789012:function:{'r' * 64}"
UNKNOWN_TO_STATELINT = (
    'Field "InputType" not allowed in State Machine.States.Gradients.ItemReader.ReaderConfig',
    'Field "InputType" not allowed in State Machine.States.Reduce 1.ItemReader.ReaderConfig',
    "State Machine.States.Gradients.ToleratedFailurePercentage is ",
)
#: A message and a stack trace: more than an error of the gradient worker has.
CAUSE = json.dumps({"errorMessage": "m" * 600, "errorType": "StoreUnavailable", "stackTrace": ["s" * 300] * 4})
#: Buffers of five hundred batch normalisations.
KINDS = ("float32:2048", "int64:1") * 500
TOLERATED = st.one_of(st.just(0), st.integers(1, 10_000), st.floats(0.001, 0.999))


def made(
    mode: Mode, batches: int, tolerated: float = 0, concurrency: int = 0, seconds: int = 120, reducer: str = REDUCER
) -> dict[str, Any]:
    return definition(
        mode,
        function_arn=ARN,
        batches=batches,
        concurrency=concurrency,
        timeout_seconds=seconds,
        tolerated=tolerated,
        reducer_arn=reducer,
    )


def problems(machine: dict[str, Any]) -> list[str]:
    found = Linter.validate(machine)
    return [problem for problem in found if not any(problem.startswith(known) for known in UNKNOWN_TO_STATELINT)]


def references(count: int) -> list[BatchRef]:
    """Descriptions as long as they get: a range of a shared object under a run's longest name."""
    key = places().batch(0, 999_999).key
    return [
        BatchRef(index=i, key=key, samples=99_999, sha256="f" * 64, offset=10**12 + i, length=10**9)
        for i in range(count)
    ]


def places() -> Places:
    bucket = "b" * 63
    return Places(
        run="r" * 63, run_bucket=bucket, peer_buckets=(bucket,) * 16, region="ap-southeast-3", account="1" * 12
    )


def common() -> dict[str, Any]:
    return task().common_dict()


def task() -> GradientTask:
    return GradientTask(
        places=places(),
        rank=0,
        round=999_999,
        incarnation=99,
        model=ModelSpec(name="package.module:callable", classes=1_000, channels=3, image_size=224),
        weights_sha256="f" * 64,
        loss="cross_entropy",
        codec="none",
        seed=2**62,
        threads=6,
        batch=references(1)[0],
    )


@settings(deadline=None)
@given(
    count=st.integers(1, 10_000),
    tolerated=TOLERATED,
    concurrency=st.integers(0, 1_000),
    seconds=st.integers(1, 900),
    reducer=st.sampled_from(["", REDUCER]),
)
def test_auto_makes_a_valid_definition_of_any_count(
    count: int, tolerated: float, concurrency: int, seconds: int, reducer: str
) -> None:
    machine = made(choose_mode("auto", count, tolerated), count, tolerated, concurrency, seconds, reducer)
    assert problems(machine) == []
    assert len(render(machine).encode()) <= DEFINITION_LIMIT_BYTES


@pytest.mark.parametrize("mode", Mode)
@settings(deadline=None, max_examples=40)  # a definition of hundreds of branches takes the validator a while
@given(count=st.integers(1, 10_000), tolerated=TOLERATED)
def test_a_mode_makes_a_valid_definition_or_says_that_it_cannot(mode: Mode, count: int, tolerated: float) -> None:
    most = (CAUGHT_LIMITS if tolerated else LIMITS)[mode]
    if count > most:
        with pytest.raises(ConfigError, match=f"at most {most:,} batches a round, not {count:,}"):
            choose_mode(mode, count, tolerated)
        return
    machine = made(choose_mode(mode, count, tolerated), count, tolerated)
    assert problems(machine) == []
    assert len(render(machine).encode()) <= DEFINITION_LIMIT_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"StartAt": "Nowhere"},
        {"States": {"Gradients": {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke"}}},
        {"States": {"Gradients": {"Type": "Parallel", "Branches": [], "End": True, "Iterator": {}}}},
    ],
)
def test_the_validator_finds_mistakes(change: dict[str, Any]) -> None:
    assert problems({**made(Mode.INLINE_MAP, 3), **change})


@pytest.mark.parametrize("count", [1, 40, 41, 10_000])
def test_the_payload_of_auto_fits_at_every_step(count: int) -> None:
    check_payloads(choose_mode("auto", count), count)


@pytest.mark.parametrize("mode", Mode)
def test_the_payload_of_each_mode_fits_at_its_limit(mode: Mode) -> None:
    """At 900 batches of the longest description an input would not: the peer then says so before it starts anything."""
    check_payloads(mode, LIMITS[mode] if mode is Mode.DISTRIBUTED_MAP else 500)


def check_payloads(mode: Mode, count: int) -> None:
    batches, distributed = references(count), mode is Mode.DISTRIBUTED_MAP
    reduce = reduction(mode, batches)
    if distributed:
        given = distributed_input(common(), places().items(0, 999_999, 99), reduce)
        assert len(items_json(batches)) < 10 * 2**30, "what an ItemReader takes as one JSON file"
    else:
        given = inline_input(common(), batches, reduce)
    longest = batches[-1].to_dict()
    item = {"common": common(), "batch": longest}
    payload = {**item, "retries": 99}
    output = {"retries": [99] * count}
    check_steps(given, item, payload, output)
    if reduce is not None:
        check_reducing(mode, count, reduce, output)


def reduction(mode: Mode, batches: list[BatchRef]) -> dict[str, Any] | None:
    """The largest description of how so many gradients are added up."""
    if len(batches) < 2:
        return None
    tree = Tree(task(), groups(batches, lambda index: 99), shared_dict(elements=10**9, buffers=KINDS, tolerant=True))
    return tree.part(mode is Mode.DISTRIBUTED_MAP)


def check_reducing(mode: Mode, count: int, reduce: dict[str, Any], output: dict[str, Any]) -> None:
    """The outputs of all states after the gradients, the last one of which is the execution's."""
    levels = groups(references(count), lambda index: 99)
    names = ("level1", "level2", "level3")
    ends = {name: {"retries": [99] * len(level)} for name, level in zip(names, levels, strict=False)}
    state = {"common": common(), "reduce": reduce, "batches": output, **ends}
    child = {"common": common(), "shared": reduce["shared"], "group": levels[0][0].to_dict(), "retries": 99}
    failure = {"Error": "States.ExceedToleratedFailureThreshold", "Cause": CAUSE}
    check_steps(json.dumps(state), {**state, "failure": failure}, child, {**output, "not_reduced": failure})


def check_steps(*steps: str | dict[str, Any]) -> None:
    for step in steps:
        text = step if isinstance(step, str) else json.dumps(step)
        assert len(text.encode()) < PAYLOAD_LIMIT_BYTES


def test_the_output_fits_when_everything_fails_that_may() -> None:
    longest = max((*PERMANENT_NAMES, *TRANSIENT_NAMES, *THROTTLED, *SERVICE, *SANDBOX), key=len)
    early, late = {"Error": longest, "Cause": CAUSE}, {"Error": longest}
    caught = {"retries": [early] * KEPT_CAUSES + [late] * (max(INLINE_LIMIT, PARALLEL_LIMIT) - KEPT_CAUSES)}
    nothing = {"retries": [None] * LIMITS[Mode.DISTRIBUTED_MAP]}
    check_steps(caught, nothing)
    for mode, output in ((Mode.INLINE_MAP, caught), (Mode.DISTRIBUTED_MAP, nothing)):
        count = len(output["retries"])
        reduce = reduction(mode, references(count))
        assert reduce is not None
        check_reducing(mode, count, reduce, output)
