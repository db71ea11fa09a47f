"""Events, answers and inputs of gradient workers: what they hold, how large they get, how failures are read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from contract.batches import BatchRef, Share
from contract.errors import CorruptObject, PeerlessError
from contract.keys import Place, Places
from contract.local_steps import LocalSteps
from contract.modelspec import ModelSpec
from contract.optimizers import Described
from contract.tasks import (
    PAYLOAD_LIMIT_BYTES,
    Failure,
    GradientAnswer,
    GradientTask,
    distributed_input,
    gradient_seed,
    inline_input,
    items_json,
)
from statemachines.gradients import DISTRIBUTED_LIMIT, INLINE_LIMIT, PARALLEL_LIMIT

ADAM = Described(
    name="adam",
    lr=1e-3,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.0,
    options={"beta2": 0.95},
    clip_norm=1.0,
    clip_value=0.0,
)


def a_task(peers: int = 2, run: str = "r") -> GradientTask:
    buckets = tuple(f"{'b' * 58}-{rank:04d}" for rank in range(peers))
    places = Places(run=run, run_bucket="run-bucket", peer_buckets=buckets, region="us-east-1", account="123456789012")
    return GradientTask(
        places=places,
        rank=1,
        round=3,
        incarnation=2,
        model=ModelSpec(name="vgg11", classes=10, channels=3, image_size=32, options={"dropout": 0.5}),
        weights_sha256="ab" * 32,
        loss="nll",
        steps=LocalSteps(optimizer=ADAM, steps=0, epochs=5, batches=(4, 7)),
        precision="bfloat16",
        codec="fp16",
        seed=2**63 - 1,
        threads=2,
        code_digest="cd" * 32,
        batch=a_batch(places, 4),
    )


def a_batch(places: Places, index: int) -> BatchRef:
    key = places.batch(1, index).key
    return BatchRef(index=index, key=key, samples=100_000, sha256="ef" * 32, offset=2**40, length=2**40)


def test_a_task_survives_its_event() -> None:
    task = a_task()
    assert GradientTask.from_event(json.loads(json.dumps(task.to_event(retries=1)))) == task


def test_common_and_batch_make_the_event() -> None:
    """As the state machine puts it together from the execution's input."""
    task = a_task()
    whole = json.loads(inline_input(task.common_dict(), [task.batch, replace(task.batch, index=5)]))
    event = {"common": whole["common"], "batch": whole["batches"][1], "retries": 0}
    assert GradientTask.from_event(event) == replace(task, batch=replace(task.batch, index=5))


def test_several_batches_make_one_event() -> None:
    task = a_task()
    others = tuple(replace(task.batch, index=index) for index in (9, 2))
    several = replace(task, more=others)
    assert [batch.index for batch in several.batches] == [4, 9, 2]
    whole = json.loads(inline_input(task.common_dict(), [Share(several.batches), Share((task.batch,))]))
    assert "more" not in whole["common"]
    made = [GradientTask.from_event({"common": whole["common"], "batch": item}) for item in whole["batches"]]
    assert made == [several, task]
    assert GradientTask.from_event(json.loads(json.dumps(several.to_event()))) == several
    assert several.output == task.output
    assert whole["batches"][1] == task.batch.to_dict()


def test_places_follow_from_the_table() -> None:
    task = a_task()
    bucket = task.places.peer_buckets[1]
    assert task.weights == task.places.weights("ab" * 32)
    assert task.batch_place == Place(bucket, task.batch.key, "123456789012")
    assert task.output == task.places.gradient(1, 3, 2, 4)
    assert task.output.bucket == bucket


def test_batches_have_seeds_of_their_own() -> None:
    assert a_task().batch_seed == gradient_seed(2**63 - 1, 4)
    assert len({gradient_seed(1, batch) for batch in range(100)} | {gradient_seed(2, 0)}) == 101


@pytest.mark.parametrize("change", [{"threads": 0}, {"rank": 2}, {"rank": -1}])
def test_a_task_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    event = a_task().to_event()
    event["common"] |= change
    with pytest.raises(CorruptObject, match="task: "):
        GradientTask.from_event(event)


@pytest.mark.parametrize("field", ["places", "rank", "model", "weights_sha256", "codec", "seed", "threads"])
def test_a_missing_field_is_named(field: str) -> None:
    event = a_task().to_event()
    del event["common"][field]
    with pytest.raises(CorruptObject, match=f"task lacks the field '{field}'"):
        GradientTask.from_event(event)


def test_an_answer_survives_json() -> None:
    answer = GradientAnswer(
        batch=1, key="k", digest="ab" * 32, samples=3, loss=0.5, seconds=1.25, step_seconds=0.5, peak_bytes=2**30,
        cold_start=True, weights_fetched=False,
    )  # fmt: skip
    assert GradientAnswer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer
    with pytest.raises(CorruptObject):
        GradientAnswer.from_dict({"batch": 1})


@pytest.mark.parametrize("batches", [INLINE_LIMIT, PARALLEL_LIMIT])
def test_at_the_limit_of_a_mode_the_input_fits(batches: int) -> None:
    """With the longest keys, offsets and bucket names, for ten peers."""
    task = a_task(peers=10, run="r" * 40)
    text = inline_input(task.common_dict(), [a_batch(task.places, index) for index in range(batches)])
    assert len(text.encode()) <= PAYLOAD_LIMIT_BYTES


def test_an_input_beyond_256_kib_is_refused_with_the_remedy() -> None:
    task = a_task(run="r" * 40)
    with pytest.raises(PeerlessError, match=r"Step Functions takes 262,144; with 2000 batches .* distributed_map"):
        inline_input(task.common_dict(), [a_batch(task.places, index) for index in range(2000)])
    with pytest.raises(PeerlessError, match=r"takes 262,144$"):
        distributed_input(a_task(peers=9_999).common_dict(), Place("b", "k"))


def test_a_distributed_input_does_not_grow_with_the_batches() -> None:
    task = a_task(peers=1000)
    refs = [a_batch(task.places, index) for index in range(DISTRIBUTED_LIMIT)]
    assert json.loads(items_json(refs)) == [ref.to_dict() for ref in refs]
    text = distributed_input(task.common_dict(), task.places.items(1, 3, 2))
    assert json.loads(text)["items"] == {
        "bucket": task.places.peer_buckets[1],
        "key": "expiring/r/peers/0001/items/000003-2.json",
    }
    assert len(text) < 100_000


def test_outputs_stay_small_for_every_batch_count() -> None:
    worst = json.dumps({"retries": [10] * DISTRIBUTED_LIMIT})
    assert len(worst) < PAYLOAD_LIMIT_BYTES / 4


ANSWER = {"errorMessage": "batch 1: no", "errorType": "ModelError", "requestId": "r", "stackTrace": []}
SHORT = '{"errorType": "ModelError", "errorMessage": "batch 1: \\"no\\""}'


def told_by_ministack(answer: str) -> str:
    return json.dumps(
        {"errorMessage": f"Proxy target returned HTTP 502: {answer}", "errorType": "Runtime.HandlerError"}
    )


@pytest.mark.parametrize(
    ("error", "cause", "expected"),
    [
        ("ModelError", json.dumps(ANSWER), Failure("ModelError", "batch 1: no")),
        (
            "Runtime.HandlerError",
            told_by_ministack(SHORT),
            Failure("ModelError", 'batch 1: "no"'),
        ),
        (
            "Runtime.HandlerError",
            told_by_ministack(SHORT[:40]),
            Failure("Runtime.HandlerError", f"Proxy target returned HTTP 502: {SHORT[:40]}"),
        ),
        ("Sandbox.Timedout", "", Failure("Sandbox.Timedout", "")),
        ("States.Timeout", "no JSON", Failure("States.Timeout", "no JSON")),
        ("E", '{"errorType": "E"}', Failure("E", '{"errorType": "E"}')),
    ],
    ids=["aws", "ministack", "ministack cut short", "empty", "text", "no message"],
)
def test_failures_are_read_wherever_they_come_from(error: str, cause: str, expected: Failure) -> None:
    assert Failure.parse(error, cause) == expected
