"""Records: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from contract.errors import CorruptObject, NonFiniteGradient
from contract.records import Commit, Contributor, Current, Member, MemberRef, PeerReport, Record, Result, Stop

WRITER = MemberRef(rank=0, incarnation=2)
SHA = "ab" * 32
COMMIT = Commit(
    run="mnist-1",
    round=3,
    base_weights={"0": SHA},
    contributors=(
        Contributor(rank=0, incarnation=2, key="k0", digest=SHA, samples=128, loss=0.5),
        Contributor(rank=2, incarnation=0, key="k2", digest=SHA, samples=64),
    ),
    members=(WRITER, MemberRef(rank=2, incarnation=0)),
    validation_loss=0.25,
    validation_accuracy=0.9,
    final=True,
    extensions={"evidence": [1, {"a": None}]},
    writer=WRITER,
    nonce="n1",
)
RESULT = Result(run="mnist-1", round=3, weights_sha256=SHA, bucket="b", key="k", writer=WRITER, nonce="n2")
MEMBER = Member(run="mnist-1", rank=0, peer_id="alice", incarnation=2, nonce="n3", resources={"cores": 2})
STOP = Stop(run="mnist-1", reason="early_stopping", round=9, weights_sha256=SHA, writer=WRITER, nonce="n4")
REPORT = PeerReport(
    run="mnist-1",
    rank=1,
    incarnation=0,
    rounds=10,
    epochs=2,
    reason="epoch_limit",
    weights_sha256=SHA,
    model_sha256=SHA,
    best_validation_loss=None,
    seconds_training=12.5,
    bytes_sent=1,
    bytes_received=2,
    gradient_bytes_raw=8,
    gradient_bytes_encoded=1,
    lambda_invocations=20,
    state_machine_executions=10,
    frames_rejected={"1": {"stale": 2}, "unknown": {"stale": 1, "run": 1}},
    left_out={"3": 2},
    stages={"compute": {"seconds": 1.0, "cpu_percent": 50, "peak_bytes": 10}},
)
CURRENT = Current(run="mnist-1", created=1_700_000_000.5)
ALL: list[Record] = [COMMIT, RESULT, MEMBER, STOP, REPORT, CURRENT]


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_round_trip(record: Record) -> None:
    blob = record.to_json()
    assert type(record).from_json(blob) == record
    assert type(record).from_json(memoryview(blob)) == record
    assert type(record).from_json(blob.decode()) == record
    assert type(record).from_json(blob).to_json() == blob


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
@pytest.mark.parametrize("version", [0, 2, "1", None, True, 1.0])
def test_an_unknown_version_is_refused(record: Record, version: Any) -> None:
    value = json.loads(record.to_json()) | {"version": version}
    with pytest.raises(CorruptObject, match=r"has version .* this build reads version 1"):
        type(record).from_json(json.dumps(value))


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_every_field_without_a_default_is_needed(record: Record) -> None:
    value = json.loads(record.to_json())
    fields: list[dataclasses.Field[Any]] = list(dataclasses.fields(record))  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
    assert {"run"} < set(required)
    for name in required:
        rest = {key: item for key, item in value.items() if key != name}
        with pytest.raises(CorruptObject, match=f"lacks the field '{name}'"):
            type(record).from_json(json.dumps(rest))
    with pytest.raises(CorruptObject, match="unknown field 'more'"):
        type(record).from_json(json.dumps(value | {"more": 1}))


@pytest.mark.parametrize("record", ALL, ids=lambda record: type(record).__name__)
def test_a_damaged_record_is_refused(record: Record) -> None:
    blob = record.to_json()
    for end in range(len(blob)):
        with pytest.raises(CorruptObject):
            type(record).from_json(blob[:end])


@pytest.mark.parametrize("ranks", [(1, 0), (0, 0), (-1, 0)])
def test_contributors_and_members_are_in_rank_order_once_each(ranks: tuple[int, ...]) -> None:
    members = tuple(MemberRef(rank=rank, incarnation=0) for rank in ranks)
    with pytest.raises(ValueError, match="members must be in rank order"):
        dataclasses.replace(COMMIT, members=members)
    contributors = tuple(dataclasses.replace(COMMIT.contributors[0], rank=rank) for rank in ranks)
    with pytest.raises(ValueError, match="contributors must be in rank order"):
        dataclasses.replace(COMMIT, contributors=contributors)
    value = json.loads(COMMIT.to_json()) | {"members": [{"rank": rank, "incarnation": 0} for rank in ranks]}
    with pytest.raises(CorruptObject, match="members must be in rank order"):
        Commit.from_json(json.dumps(value))


def test_a_loss_that_is_not_finite_is_never_recorded() -> None:
    with pytest.raises(NonFiniteGradient):
        dataclasses.replace(COMMIT, validation_loss=float("nan")).to_json()
    text = COMMIT.to_json().decode().replace('"validation_loss":0.25', '"validation_loss":NaN')
    with pytest.raises(CorruptObject, match="NaN"):
        Commit.from_json(text)


def test_the_current_run_has_a_name_that_a_run_can_have() -> None:
    with pytest.raises(ValueError, match="run name"):
        Current(run="../other", created=0.0)
    with pytest.raises(CorruptObject, match="run name"):
        Current.from_json(CURRENT.to_json().replace(b"mnist-1", b"mnist/1"))
