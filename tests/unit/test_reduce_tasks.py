"""What a reducer is asked and answers: events as the state machine makes them, and what is no such event."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from contract.errors import CorruptObject
from contract.gradient_frames import checked
from contract.keys import Place
from contract.reduce_tasks import Group, ReduceAnswer, ReduceTask, groups, shared_dict
from contract.wire import FrameHeader, Kind, encode
from tests.fakes.gradient_round import PLACES
from tests.statemachine.test_any_count import task as gradient_task


def event(level: int = 1) -> dict[str, Any]:
    """As a map over twenty gradients makes it."""
    made = groups(list(gradients(20)), lambda index: 4)[level - 1][1 if level == 1 else 0]
    shared = shared_dict(elements=5, buffers=("float32:2", "int64:1"), tolerant=False)
    whole = {"common": gradient_task().common_dict(), "shared": shared, "group": made.to_dict(), "retries": 1}
    return json.loads(json.dumps(whole))


def gradients(count: int) -> Any:
    first = gradient_task().batch
    return (dataclasses.replace(first, index=2 * index, samples=10 + index) for index in range(count))


def test_a_group_of_gradients_comes_back_from_its_event() -> None:
    task = ReduceTask.from_event(event())
    assert (task.run, task.rank, task.round, task.incarnation) == ("r" * 63, 0, 999_999, 99)
    assert task.group.items == tuple((2 * i, 10 + i, 4) for i in range(7, 14))
    assert task.group.samples == sum(range(17, 24))
    assert task.output.key.endswith("/partials/999999-99/1-0001")
    assert task.gradient(14, 4).key.endswith("/gradients/999999-4/000014")
    assert task.name == "group 1 of level 1 of rank 0 in round 999999"


def test_a_group_of_means_names_those_below() -> None:
    task = ReduceTask.from_event(event(level=2))
    assert (task.group.first, task.group.count, task.group.items) == (0, 3, ())
    assert task.group.samples == sum(range(10, 30))
    assert [task.below(number).key[-6:] for number in range(3)] == ["1-0000", "1-0001", "1-0002"]
    assert task.output.key.endswith("/2-0000")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda e: e.pop("common"), "lacks `common`"),
        (lambda e: e.pop("shared"), "lacks `shared`"),
        (lambda e: e.update(group=[]), "lacks `group`"),
        (lambda e: e["shared"].pop("elements"), "lacks the field 'elements'"),
        (lambda e: e["shared"].update(elements=0), "at least one element"),
        (lambda e: e["shared"].update(surprise=1), "unknown field 'surprise'"),
        (lambda e: e["common"].update(rank=99), "rank 99 has no bucket"),
        (lambda e: e["group"].update(items=[[1, 2]]), "nothing to add up"),
        (lambda e: e["group"].update(items=[]), "nothing to add up"),
        (lambda e: e["group"].update(level=2), "nothing to add up"),
        (lambda e: e["group"].update(count=3), "nothing to add up"),
        (lambda e: e["group"].update(samples=0), "nothing to add up"),
    ],
)
def test_what_is_no_event_of_a_reducer_is_refused(change: Any, told: str) -> None:
    given = event()
    change(given)
    with pytest.raises(CorruptObject, match=told):
        ReduceTask.from_event(given)


def test_an_event_is_an_object() -> None:
    with pytest.raises(CorruptObject, match="lacks `common`"):
        ReduceTask.from_event("no object")


def test_a_description_holds_nothing_that_is_empty() -> None:
    one = Group(level=1, number=0, samples=3, items=((7, 3, 0),)).to_dict()
    assert one == {"level": 1, "number": 0, "samples": 3, "items": [[7, 3, 0]], "first": 0}
    two = Group(level=2, number=1, samples=9, first=3, count=2).to_dict()
    assert two == {"level": 2, "number": 1, "samples": 9, "first": 3, "count": 2}


def test_the_answer_is_small() -> None:
    answer = ReduceAnswer(level=3, group=454, items=10_000, samples=10**9, bytes_in=10**12, seconds=899.9, retries=9)
    assert len(json.dumps(answer.to_dict())) < 200


def test_a_frame_over_any_number_of_samples_will_do_where_some_may_be_missing() -> None:
    task = dataclasses.replace(ReduceTask.from_event(event()), places=PLACES, codec="none")
    header = FrameHeader(
        kind=Kind.GRADIENT, run=task.run, round=task.round, base_round=task.round, base_weights=task.weights_sha256,
        rank=0, incarnation=5, samples=3, codec="none", seed=0, elements=5,
    )  # fmt: skip
    blob, place = encode(header, bytes(20)), Place("b", "k")
    assert checked(blob, place, task, None, elements=5, buffers_bytes=0).header.samples == 3
    with pytest.raises(CorruptObject, match="s3://b/k holds a frame whose samples is 3, asked was for 4"):
        checked(blob, place, task, 4, elements=5, buffers_bytes=0)
