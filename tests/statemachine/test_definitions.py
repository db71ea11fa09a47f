"""The generated definitions as text: golden files, structure, limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contract import errors
from contract.errors import ConfigError, PermanentError, TransientError, UserError
from statemachines import Mode, choose_mode, definition, render
from statemachines.gradients import CAUGHT_LIMITS, DEFINITION_LIMIT_BYTES, KEPT_CAUSES, LIMITS, QUEUE_SECONDS
from statemachines.retry import rules

GOLDEN = Path(__file__).parents[1] / "golden" / "statemachines"
ARN = "arn:aws:lambda:us-east-1:123456789012:function:peerless-gradient-worker"
#: The longest that Lambda allows: 64 characters of name, and a qualifier of 128.
LONG_ARN = f"arn:aws:lambda:ap-southeast-3:123456789012:function:{'f' * 64}:{'q' * 128}"


REDUCER = "arn:aws:lambda:us-east-1:123456789012:function:peerless-gradient-reducer"


def made(
    mode: Mode,
    batches: int | None = 3,
    concurrency: int = 0,
    arn: str = ARN,
    tolerated: float = 0,
    reducer: str = "",
) -> dict[str, Any]:
    return definition(
        mode,
        function_arn=arn,
        batches=batches,
        concurrency=concurrency,
        timeout_seconds=120,
        tolerated=tolerated,
        reducer_arn=reducer,
    )


def machines(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The machines inside a state."""
    yield from state.get("Branches", ())
    if "ItemProcessor" in state:
        yield state["ItemProcessor"]


def states(machine: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All states of a machine, those of inner machines included."""
    for name, state in machine["States"].items():
        yield name, state
        for inner in machines(state):
            yield from states(inner)


def paths(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested objects with its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(
    ("tolerated", "reducer", "name"), [(0, "", ""), (0.05, "", "-tolerant"), (0, REDUCER, "-reduced")]
)
def test_the_definition_is_the_golden_one(mode: Mode, tolerated: float, reducer: str, name: str) -> None:
    path = GOLDEN / f"{mode}{name}.json"
    text = json.dumps(made(mode, concurrency=16, tolerated=tolerated, reducer=reducer), indent=2) + "\n"
    if os.environ.get("PEERLESS_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def leads_to(state: dict[str, Any]) -> set[str]:
    """The states that come after one."""
    following = [state, *state.get("Catch", ()), *state.get("Choices", ())]
    return {each["Next"] for each in following if "Next" in each} | (
        {state["Default"]} if "Default" in state else set()
    )


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("tolerated", [0, 2])
@pytest.mark.parametrize("reducer", ["", REDUCER])
def test_every_machine_starts_at_a_state_of_its_own_and_ends(mode: Mode, tolerated: int, reducer: str) -> None:
    def check(machine: dict[str, Any]) -> None:
        reached = {name for state in machine["States"].values() for name in leads_to(state)}
        assert set(machine["States"]) == {machine["StartAt"]} | reached, "nothing is unreachable"
        for state in machine["States"].values():
            assert state.get("End", False) is not ("Next" in state or "Default" in state)
            for inner in machines(state):
                check(inner)

    whole = made(mode, tolerated=tolerated, reducer=reducer)
    check(whole)
    names = [name for name, _ in states(whole)]
    assert len(names) == len(set(names)), "names are unique in the whole machine"
    assert all(len(name) <= 80 for name in names)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("tolerated", [0, 2, 0.5])
@pytest.mark.parametrize("reducer", ["", REDUCER])
def test_only_fields_that_all_three_executors_know(mode: Mode, tolerated: float, reducer: str) -> None:
    tolerance = {"ToleratedFailureCount", "ToleratedFailurePercentage"}
    items = {"ItemsPath", "ItemReader", "ItemSelector", "ItemProcessor", "MaxConcurrency"}
    further = {"Next", "Catch", "ResultPath"} if reducer else set()
    known = {
        "Choice": {"Choices", "Default"},
        "Map": items | tolerance | further,
        "Parallel": {"Branches"} | further,
        "Pass": {"OutputPath", "Parameters"},
        "Task": {"Resource", "Parameters", "TimeoutSeconds", "Retry", "Catch", "OutputPath"},
    }
    for _, state in states(made(mode, concurrency=5, tolerated=tolerated, reducer=reducer)):
        assert set(state) <= known[state["Type"]] | {"Type", "ResultSelector", "End"}


@pytest.mark.parametrize("mode", Mode)
def test_dynamic_values_are_json_paths_and_nothing_else_is(mode: Mode) -> None:
    for key, value in paths(made(mode, reducer=REDUCER)):
        if key.endswith(".$"):
            assert value.startswith("$")
        elif isinstance(value, str):
            assert not value.startswith("$") or key in ("ItemsPath", "OutputPath", "ResultPath", "Variable")
            assert "{%" not in value


@pytest.mark.parametrize("mode", Mode)
def test_the_task_invokes_the_function_that_was_named_and_waits_long_enough(mode: Mode) -> None:
    tasks = [state for _, state in states(made(mode)) if state["Type"] == "Task"]
    assert len(tasks) == (3 if mode is Mode.PARALLEL else 1)
    for task in tasks:
        assert task["Resource"] == "arn:aws:states:::lambda:invoke"
        assert task["Parameters"]["FunctionName"] == ARN
        assert task["TimeoutSeconds"] == QUEUE_SECONDS + 120


def test_a_branch_takes_its_own_batch() -> None:
    tasks = [state for _, state in states(made(Mode.PARALLEL, 4)) if state["Type"] == "Task"]
    assert [task["Parameters"]["Payload"]["batch.$"] for task in tasks] == [f"$.batches[{i}]" for i in range(4)]


@pytest.mark.parametrize(
    ("mode", "given", "expected"),
    [
        (Mode.INLINE_MAP, 0, 40),
        (Mode.INLINE_MAP, 7, 7),
        (Mode.INLINE_MAP, 400, 40),
        (Mode.DISTRIBUTED_MAP, 0, None),
        (Mode.DISTRIBUTED_MAP, 400, 400),
        (Mode.PARALLEL, 7, None),
    ],
)
def test_concurrency_is_what_the_mode_can_do(mode: Mode, given: int, expected: int | None) -> None:
    assert made(mode, concurrency=given)["States"]["Gradients"].get("MaxConcurrency") == expected


def test_auto_takes_the_inline_map_as_long_as_all_run_at_once() -> None:
    assert [choose_mode("auto", n) for n in (1, 40, 41, 10_000)] == [
        Mode.INLINE_MAP,
        Mode.INLINE_MAP,
        Mode.DISTRIBUTED_MAP,
        Mode.DISTRIBUTED_MAP,
    ]


@pytest.mark.parametrize(
    ("batches", "concurrency", "expected"),
    [
        (41, 40, Mode.INLINE_MAP),
        (900, 7, Mode.INLINE_MAP),
        (901, 7, Mode.DISTRIBUTED_MAP),
        (41, 41, Mode.DISTRIBUTED_MAP),
        (40, 400, Mode.INLINE_MAP),
    ],
)
def test_auto_takes_it_too_where_no_more_may_run_at_once(batches: int, concurrency: int, expected: Mode) -> None:
    assert choose_mode("auto", batches, concurrency=concurrency) is expected


@pytest.mark.parametrize("mode", Mode)
def test_a_mode_can_be_asked_for_by_name(mode: Mode) -> None:
    assert choose_mode(str(mode), 3) is mode


@pytest.mark.parametrize("mode", Mode)
def test_at_its_limit_a_mode_fits_what_step_functions_takes(mode: Mode) -> None:
    assert choose_mode(mode, LIMITS[mode]) is mode
    assert len(render(made(mode, LIMITS[mode], reducer=REDUCER)).encode()) <= DEFINITION_LIMIT_BYTES


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("beyond", [0, 1])
def test_outside_its_limits_a_mode_is_refused_in_one_sentence(mode: Mode, beyond: int) -> None:
    batches = LIMITS[mode] + 1 if beyond else 0
    sentence = rf"at most {LIMITS[mode]:,} batches a round, not {batches:,}; use a larger" if beyond else "at least one"
    for attempt in (lambda: choose_mode(mode, batches), lambda: made(mode, batches)):
        with pytest.raises(ConfigError, match=sentence):
            attempt()


@pytest.mark.parametrize("mode", Mode)
def test_reducers_are_invoked_under_the_workers_rules_and_never_fail_an_execution(mode: Mode) -> None:
    whole = made(mode, concurrency=400, reducer=REDUCER)
    plain = made(mode, concurrency=400)["States"]["Gradients"]
    gradients = whole["States"]["Gradients"]
    assert {name: value for name, value in gradients.items() if name not in ("Next", "ResultPath")} == {
        name: value for name, value in plain.items() if name != "End"
    }
    levels = [state for name, state in whole["States"].items() if name.startswith("Reduce ")]
    assert len(levels) == 3
    for number, state in enumerate(levels, start=1):
        ((_, task),) = states(state["ItemProcessor"])
        assert task["Parameters"]["FunctionName"] == REDUCER
        assert (task["Retry"], task["TimeoutSeconds"]) == (rules(), QUEUE_SECONDS + 120)
        (catch,) = state["Catch"]
        assert (catch["ErrorEquals"], catch["Next"]) == (["States.ALL"], "Not reduced")
        children = mode is Mode.DISTRIBUTED_MAP and number == 1
        assert state["ItemProcessor"]["ProcessorConfig"]["Mode"] == ("DISTRIBUTED" if children else "INLINE")
        assert state["MaxConcurrency"] == (400 if children else 40)
    assert whole["States"]["Not reduced"]["End"] is True


def test_a_definition_that_grows_too_large_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 1,\d{3},\d{3} bytes, but Step Functions takes 1,000,000"):
        made(Mode.PARALLEL, LIMITS[Mode.PARALLEL], arn=LONG_ARN)


def test_a_parallel_machine_needs_a_count_and_a_map_does_not() -> None:
    with pytest.raises(ConfigError, match="count of batches"):
        made(Mode.PARALLEL, None)
    assert made(Mode.INLINE_MAP, None) == made(Mode.INLINE_MAP, 3)


@pytest.mark.parametrize(
    ("tolerated", "expected"),
    [
        (0, {}),
        (1, {"ToleratedFailureCount": 1}),
        (12, {"ToleratedFailureCount": 12}),
        (0.05, {"ToleratedFailurePercentage": 5.0}),
        (0.29, {"ToleratedFailurePercentage": 29.0}),
    ],
)
def test_a_distributed_map_counts_failures_itself(tolerated: float, expected: dict[str, float]) -> None:
    state = made(Mode.DISTRIBUTED_MAP, tolerated=tolerated)["States"]["Gradients"]
    assert {name: value for name, value in state.items() if name.startswith("Tolerated")} == expected
    assert all(isinstance(value, float) for name, value in state.items() if name.endswith("Percentage"))


@pytest.mark.parametrize("mode", [Mode.INLINE_MAP, Mode.PARALLEL])
def test_elsewhere_a_failure_becomes_the_items_output(mode: Mode) -> None:
    tasks = [state for _, state in states(made(mode, tolerated=0.5)) if state["Type"] == "Task"]
    for task in tasks:
        (catch,) = task["Catch"]
        assert (catch["ErrorEquals"], catch["ResultPath"]) == (["States.ALL"], "$.failure")


def test_a_branch_beyond_the_first_ones_tells_the_errors_name_alone() -> None:
    passing = [
        state for _, state in states(made(Mode.PARALLEL, KEPT_CAUSES + 2, tolerated=1)) if state["Type"] == "Pass"
    ]
    assert [state.get("OutputPath") for state in passing] == ["$.failure"] * KEPT_CAUSES + [None] * 2
    assert [state.get("Parameters") for state in passing[-2:]] == [{"Error.$": "$.failure.Error"}] * 2


def test_an_item_beyond_the_first_ones_tells_the_errors_name_alone() -> None:
    made_ = made(Mode.INLINE_MAP, tolerated=1)["States"]["Gradients"]
    assert made_["ItemSelector"]["place.$"] == "$$.Map.Item.Index"
    inner = made_["ItemProcessor"]["States"]
    (early,) = inner["Failed"]["Choices"]
    assert (early["Variable"], early["NumericLessThan"]) == ("$.place", KEPT_CAUSES)
    assert inner[early["Next"]]["OutputPath"] == "$.failure"
    assert inner[inner["Failed"]["Default"]]["Parameters"] == {"Error.$": "$.failure.Error"}


@pytest.mark.parametrize("mode", Mode)
def test_with_tolerance_too_a_mode_fits_at_its_limit(mode: Mode) -> None:
    most = CAUGHT_LIMITS[mode]
    assert len(render(made(mode, most, tolerated=1)).encode()) <= DEFINITION_LIMIT_BYTES
    why = "with compute.tolerated_failures " if most < LIMITS[mode] else ""
    for attempt in (lambda: choose_mode(mode, most + 1, 1), lambda: made(mode, most + 1, tolerated=1)):
        with pytest.raises(ConfigError, match=f"machine {why}takes at most {most:,} batches .*, not {most + 1:,}"):
            attempt()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'express' is none of auto, inline_map, distributed_map, parallel"):
        choose_mode("express", 3)


def test_what_never_works_is_never_tried_again() -> None:
    first = rules()[0]
    assert first["MaxAttempts"] == 0
    for name in first["ErrorEquals"]:
        assert issubclass(getattr(errors, name), PermanentError | UserError)


def test_no_error_stands_in_two_rules_and_the_last_takes_the_rest() -> None:
    names = [name for rule in rules() for name in rule["ErrorEquals"]]
    assert len(names) == len(set(names))
    assert rules()[-1]["ErrorEquals"] == ["States.TaskFailed"]


def test_our_own_names_are_classes_that_say_whether_to_try_again() -> None:
    ours = [name for rule in rules()[1:] for name in rule["ErrorEquals"] if "." not in name]
    assert ours
    assert all(issubclass(getattr(errors, name), TransientError) for name in ours)


def test_retries_back_off_with_full_jitter() -> None:
    for rule in rules()[1:]:
        assert rule["BackoffRate"] > 1
        assert rule["JitterStrategy"] == "FULL"
        assert 0 < rule["IntervalSeconds"] <= rule["MaxDelaySeconds"] <= 60
        assert 1 <= rule["MaxAttempts"] <= 10
