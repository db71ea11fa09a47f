"""What every executor of state machines must do with our definitions; held by moto and by MiniStack alike."""

from __future__ import annotations

import json
import threading
import uuid
from dataclasses import dataclass
from typing import Any

import pytest

from contract.batches import BatchRef
from contract.keys import Place
from contract.reduce_tasks import groups
from contract.tasks import Failure, distributed_input, inline_input, items_json
from contract.tree import reducers
from infra.local.lambda_client import LambdaService
from peer_agent.compute import attempts
from peer_agent.compute.diagnosis import Ending, of_children
from peer_agent.compute.reduced import LEVELS
from statemachines import Mode, definition, gradients, render
from statemachines.transitions import transitions

BUCKET = "executions"


@dataclass(frozen=True)
class Batch:
    """What a group is made of."""

    index: int
    samples: int = 1


class Executor:
    """AWS's clients of one executor, and functions whose tasks fail as told (tests.fakes.lambda_handlers)."""

    def __init__(
        self, sfn: Any, s3: Any, function_arn: str, service: LambdaService, function: str, reducer_arn: str = ""
    ) -> None:
        """`function` runs `item`, the one with `reducer_arn` runs `group`."""
        self.sfn, self.s3, self.arn, self.service, self.function = sfn, s3, function_arn, service, function
        self.reducer_arn = reducer_arn

    def run(
        self, mode: Mode, batches: int, failures: dict[int, tuple[str, int]] | None = None, tolerated: float = 0
    ) -> dict[str, Any]:
        """Execute with a function whose handler is `item`; gives what `execute` does."""
        return self.execute(mode, batches, self._input(mode, batches, failures or {}), tolerated)

    def reduce(self, mode: Mode, batches: int, failures: dict[int, tuple[str, int]] | None = None) -> dict[str, Any]:
        """The same, and a reducer afterwards that fails in some levels."""
        levels = groups([Batch(index) for index in range(batches)], lambda index: 0)
        told = [[group.to_dict() for group in level] for level in levels]
        named = dict(zip(LEVELS, told + [[]] * (len(LEVELS) - len(told)), strict=True))
        reduce: dict[str, Any] = {"shared": {"failures": failures or {}}, **named}
        if mode is Mode.DISTRIBUTED_MAP:
            reduce["groups"] = {"bucket": BUCKET, "key": f"items/{uuid.uuid4()}"}
            body = items_json(levels[0] if levels else [])
            self.s3.put_object(Bucket=BUCKET, Key=reduce["groups"]["key"], Body=body)
            del reduce["level1"]
        text = json.dumps({**json.loads(self.plain_input(mode, batches)), "reduce": reduce})
        return self.execute(mode, batches, text, reducer_arn=self.reducer_arn)

    def execute(
        self, mode: Mode, batches: int, text: str, tolerated: float = 0, reducer_arn: str = ""
    ) -> dict[str, Any]:
        """Execute once with this input; gives DescribeExecution's answer, and `invocations` that it took."""
        name = f"m-{uuid.uuid4()}"
        made = definition(
            mode, function_arn=self.arn, batches=batches, concurrency=8, timeout_seconds=30, tolerated=tolerated,
            reducer_arn=reducer_arn,
        )  # fmt: skip
        machine = self.sfn.create_state_machine(name=name, definition=render(made), roleArn=self._role("states"))
        before = self.service.counters(self.function)["invocations"]
        started = self.sfn.start_execution(stateMachineArn=machine["stateMachineArn"], name=name, input=text)
        while True:
            described = self.sfn.describe_execution(executionArn=started["executionArn"])
            if described["status"] != "RUNNING":
                break
            threading.Event().wait(0.01)
        after = self.service.counters(self.function)["invocations"]
        return {**described, "invocations": after - before}

    def plain_input(self, mode: Mode, batches: int) -> str:
        """Of a round in which nothing fails."""
        return self._input(mode, batches, {})

    def _input(self, mode: Mode, batches: int, failures: dict[int, tuple[str, int]]) -> str:
        common = {"failures": {str(batch): told for batch, told in failures.items()}, "text": "x" * 500}
        refs = [
            BatchRef(index=index, key=f"runs/r/peers/0000/batches/{index:06d}", samples=128, sha256="0" * 64)
            for index in range(batches)
        ]
        if mode is not Mode.DISTRIBUTED_MAP:
            return inline_input(common, refs)
        items = Place(BUCKET, f"items/{uuid.uuid4()}")
        self.s3.put_object(Bucket=items.bucket, Key=items.key, Body=items_json(refs))
        return distributed_input(common, items)

    def billed(self, execution: str) -> int:
        """State transitions by the history of an execution and of what its distributed maps started: states entered,
        attempts after the first, and one for each child."""
        pages = self.sfn.get_paginator("get_execution_history").paginate(executionArn=execution)
        types = [event["type"] for page in pages for event in page["events"]]
        again = types.count("TaskScheduled") - types.count("TaskStateEntered")
        return sum(type_.endswith("StateEntered") for type_ in types) + again + self._of_children(execution)

    def _of_children(self, execution: str) -> int:
        runs = self.sfn.list_map_runs(executionArn=execution)["mapRuns"]
        children = [
            child["executionArn"]
            for run in runs
            for child in self.sfn.list_executions(mapRunArn=run["mapRunArn"])["executions"]
        ]
        return sum(1 + self.billed(child) for child in children)

    @staticmethod
    def _role(name: str) -> str:
        return f"arn:aws:iam::123456789012:role/{name}"


class Executions:
    """Tests; a subclass gives the fixture `executor`."""

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("batches", [1, 9])
    def test_every_batch_is_invoked_once_and_the_output_stays_small(
        self, executor: Executor, mode: Mode, batches: int
    ) -> None:
        done = executor.run(mode, batches)
        assert (done["status"], done["invocations"]) == ("SUCCEEDED", batches)
        assert json.loads(done["output"]) == {"retries": [0] * batches}

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize(("batches", "levels"), [(3, (1, 0, 0)), (12, (2, 1, 0))])
    def test_gradients_are_added_up_level_by_level(
        self, executor: Executor, mode: Mode, batches: int, levels: tuple[int, ...]
    ) -> None:
        done = executor.reduce(mode, batches)
        assert (done["status"], done["invocations"]) == ("SUCCEEDED", batches)
        ends = {name: [0] * count for name, count in zip(LEVELS, levels, strict=True)}
        assert json.loads(done["output"]) == {"retries": [0] * batches, "reducers": ends}

    @pytest.mark.parametrize("mode", [Mode.INLINE_MAP, Mode.PARALLEL])
    def test_a_reducer_that_fails_fails_nothing_else(self, executor: Executor, mode: Mode) -> None:
        output = json.loads(executor.reduce(mode, 12, {2: ("CorruptObject", 99)})["output"])
        assert output["retries"] == [0] * 12
        told = Failure.parse(output["not_reduced"]["Error"], output["not_reduced"]["Cause"])
        assert told == Failure("CorruptObject", "group of level 2 failed as it was told")
        assert output.keys() == {"retries", "not_reduced"}

    @pytest.mark.parametrize("mode", Mode)
    def test_a_machine_with_reducers_takes_a_round_that_has_none(self, executor: Executor, mode: Mode) -> None:
        text = executor.plain_input(mode, 3)
        done = executor.execute(mode, 3, text, reducer_arn=executor.reducer_arn)
        assert json.loads(done["output"]) == {"retries": [0] * 3}

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("reducing", ["no reducer", "nothing to reduce", "reduced"])
    def test_what_is_billed_is_what_the_formula_says(self, executor: Executor, mode: Mode, reducing: str) -> None:
        children = mode is Mode.DISTRIBUTED_MAP
        if children and not self.children_are_told:
            pytest.skip("this executor does not tell of children; the other one does")
        if reducing == "no reducer":
            done = executor.run(mode, 3)
            expected = transitions(mode, executions=1, invocations=3, children=3 * children)
        elif reducing == "reduced":
            done = executor.reduce(mode, 9)
            expected = transitions(
                mode, executions=1, invocations=9 + reducers(9), children=(9 + 2) * children, reducer=True, reductions=1
            )
        else:
            done = executor.execute(mode, 3, executor.plain_input(mode, 3), reducer_arn=executor.reducer_arn)
            expected = transitions(mode, executions=1, invocations=3, children=3 * children, reducer=True)
        assert executor.billed(done["executionArn"]) == expected

    @pytest.mark.parametrize("mode", [Mode.INLINE_MAP, Mode.PARALLEL])
    def test_a_permanent_error_fails_the_execution(self, executor: Executor, mode: Mode) -> None:
        assert executor.run(mode, 2, {1: ("ModelError", 99)})["status"] == "FAILED"

    #: Whether it tells of a distributed map's children.
    children_are_told = True

    @pytest.mark.parametrize(
        ("mode", "tolerated"), [(Mode.INLINE_MAP, 1), (Mode.PARALLEL, 1), (Mode.DISTRIBUTED_MAP, 1), ("share", 0.5)]
    )
    def test_failures_that_are_tolerated_leave_the_others_alone(
        self, executor: Executor, mode: Mode | str, tolerated: float
    ) -> None:
        mode = Mode.DISTRIBUTED_MAP if mode == "share" else Mode(mode)
        done = executor.run(mode, 3, {1: ("ModelError", 99)}, tolerated)
        assert done["status"] == "SUCCEEDED"
        assert done["invocations"] >= 3, "where all errors have one name, this one is tried again"
        items = [BatchRef(index=index, key="k", samples=1, sha256="0" * 64) for index in (0, 1, 2)]
        ending = Ending.of(done, items)
        assert (ending.complete, ending.whole, ending.invocations) == (False, False, 3)
        failures = ending.failures
        if mode is Mode.DISTRIBUTED_MAP:
            assert failures == {}
            assert json.loads(done["output"])["retries"] == [0, None, 0]
            if not self.children_are_told:
                return
            failures = of_children(executor.sfn, done)
        distributed = mode is Mode.DISTRIBUTED_MAP
        told = attempts.completed(ending, executor.sfn, done, items, distributed=distributed)
        assert told.invocations == done["invocations"], "its history has all attempts"
        assert failures == {1: Failure("ModelError", "batch 1 failed as it was told")}

    @pytest.mark.parametrize("mode", [Mode.INLINE_MAP, Mode.PARALLEL])
    def test_of_late_batches_the_output_has_the_errors_name_and_the_history_the_cause(
        self, executor: Executor, mode: Mode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gradients, "KEPT_CAUSES", 1)
        done = executor.run(mode, 3, {0: ("ModelError", 99), 2: ("ModelError", 99)}, 2)
        early, fine, late = json.loads(done["output"])["retries"]
        assert (set(early), fine, set(late)) == ({"Error", "Cause"}, 0, {"Error"})
        items = [BatchRef(index=index, key="k", samples=1, sha256="0" * 64) for index in (0, 1, 2)]
        told = attempts.completed(Ending.of(done, items), executor.sfn, done, items, distributed=False)
        assert told.invocations == done["invocations"]
        assert told.failures == {n: Failure("ModelError", f"batch {n} failed as it was told") for n in (0, 2)}

    @pytest.mark.parametrize("mode", [Mode.INLINE_MAP, Mode.PARALLEL])
    def test_an_execution_that_fails_says_how_often_it_asked(self, executor: Executor, mode: Mode) -> None:
        done = executor.run(mode, 2, {1: ("ModelError", 99)})
        items = [BatchRef(index=index, key="k", samples=1, sha256="0" * 64) for index in (0, 1)]
        told = attempts.completed(Ending.of(done, items), executor.sfn, done, items, distributed=False)
        assert told.invocations == done["invocations"]
