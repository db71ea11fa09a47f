"""The keyring: whose key is whose, and what each kind of stranger is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from contract import wire
from contract.errors import PermanentError
from contract.header import FrameHeader, Kind
from contract.records import Checkpoint, Commit, Heartbeat, Member, MemberRef, Result, Stop
from contract.signing import SigningKey, verify_frame
from peer_agent.keyring import PREDECESSORS, USE, VAIN_LOOKS, FrameSigner, Keyring, LookUp, author, inherit, slot

ALICE, BOB, LATER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
SHA = "ab" * 32


def member(key: SigningKey, rank: int = 0, incarnation: int = 1, **changes: Any) -> Member:
    fields = {"public_keys": {USE: key.public}, "run": "run"} | changes
    return key.sign(Member(rank=rank, incarnation=incarnation, peer_id=f"host-{rank}", nonce="n", **fields))


def heartbeat(key: SigningKey, rank: int = 0, incarnation: int = 1, run: str = "run") -> Heartbeat:
    return key.sign(Heartbeat(run=run, rank=rank, incarnation=incarnation, round=3))


def frame(key: SigningKey, rank: int = 0, incarnation: int = 1, run: str = "run", **changes: Any) -> FrameHeader:
    fields: dict[str, Any] = {"kind": Kind.UPDATE, "round": 3, "base_round": 3} | changes
    header = FrameHeader(
        run=run, rank=rank, incarnation=incarnation, base_weights=SHA, samples=1, codec="none", seed=0, elements=1,
        **fields,
    )  # fmt: skip
    return wire.decode_header(key.sign_frame(wire.encode(header, b"abcd")))


def keyring(*records: Member) -> Keyring:
    ring = Keyring("run", 4)
    for record in records or (member(ALICE), member(BOB, rank=1)):
        assert ring.learn(record.rank, record) is None
    return ring


def test_who_registered_a_key_is_believed_and_nobody_in_his_name() -> None:
    ring = keyring()
    assert ring.key(MemberRef(rank=1, incarnation=1)) == BOB.public
    assert ring.key(MemberRef(rank=2, incarnation=1)) is None
    assert ring.check(heartbeat(ALICE)) is None
    assert ring.check_frame(frame(BOB, rank=1)) is None
    assert ring.check(heartbeat(BOB)) == "signature"
    assert ring.check_frame(frame(ALICE, rank=1)) == "signature"
    assert ring.check(dataclasses.replace(heartbeat(ALICE), signature="")) == "signature"
    assert ring.check(dataclasses.replace(heartbeat(ALICE), round=4)) == "signature"
    assert ring.check_frame(dataclasses.replace(frame(ALICE), samples=2)) == "signature"


WRITER = MemberRef(rank=1, incarnation=1)
WRITTEN = [
    Commit(run="run", round=0, base_weights={"0": SHA}, contributors=(), members=(), writer=WRITER, nonce="n"),
    Result(run="run", round=0, weights_sha256=SHA, bucket="b", key="k", writer=WRITER, nonce="n"),
    Stop(run="run", reason="x", round=0, weights_sha256="", writer=WRITER, nonce="n"),
    Checkpoint(run="run", round=0, weights_sha256=SHA, key="k", digest=SHA, members=(), writer=WRITER, nonce="n"),
]


@pytest.mark.parametrize("record", WRITTEN, ids=lambda record: type(record).__name__)
def test_records_are_by_their_writers(record: Any) -> None:
    ring = keyring()
    assert author(record) == WRITER
    assert ring.check(BOB.sign(record)) is None
    assert ring.check(ALICE.sign(record)) == "signature"
    assert ring.check(record) == "signature"
    assert ring.check(dataclasses.replace(BOB.sign(record), nonce="other")) == "signature"
    assert ring.check(BOB.sign(dataclasses.replace(record, writer=MemberRef(rank=2, incarnation=1)))) == LookUp(2)


def test_what_was_signed_for_another_run_is_told_apart() -> None:
    ring = keyring()
    assert ring.check(heartbeat(ALICE, run="earlier")) == "run"
    assert ring.check_frame(frame(ALICE, run="earlier")) == "run"
    assert ring.check(member(ALICE, run="earlier")) == "run"
    assert ring.learn(2, member(ALICE, rank=2, run="earlier")) == "run"


# --------------------------------------------------------------------------------------------------- registration


def test_a_second_key_for_the_same_process_is_refused() -> None:
    ring = keyring()
    assert ring.learn(0, member(BOB)) == "conflict"
    assert ring.check(member(BOB)) == "conflict"
    assert ring.check(heartbeat(ALICE)) is None
    assert ring.check(heartbeat(BOB)) == "signature"
    assert ring.learn(0, member(ALICE)) is None


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (member(ALICE, public_keys={}), "key"),
        (member(ALICE, public_keys={"x25519": ALICE.public}), "key"),
        (member(ALICE, public_keys={USE: ALICE.public[:-2]}), "key"),
        (member(ALICE, public_keys={USE: "01" + "00" * 31}), "key"),
        (member(ALICE, incarnation=2, public_keys={USE: ALICE.public, f"{USE}.1": "none"}), "key"),
        (dataclasses.replace(member(ALICE), signature=""), "signature"),
        (dataclasses.replace(member(ALICE), peer_id="mallory"), "signature"),
        (member(ALICE, public_keys={USE: BOB.public}), "signature"),
        (member(ALICE, rank=1), "corrupt"),
        (member(ALICE, incarnation=-1), "corrupt"),
    ],
)
def test_a_key_is_registered_by_whoever_can_sign_with_it(record: Member, reason: str) -> None:
    ring = Keyring("run", 4)
    assert ring.learn(0, record) == reason
    assert ring.key(MemberRef(rank=0, incarnation=record.incarnation)) is None
    if record.rank == 0:
        assert ring.check(record) == reason


def test_ranks_that_no_run_has_are_not_looked_up() -> None:
    ring = Keyring("run", 4)
    assert ring.check(heartbeat(ALICE, rank=4)) == "unknown_key"
    assert ring.check_frame(frame(ALICE, rank=2**32 - 1)) == "unknown_key"
    assert ring.check(heartbeat(ALICE, rank=-1)) == "unknown_key"
    assert ring.check(member(ALICE, rank=4)) == "corrupt"
    assert ring.learn(4, member(ALICE, rank=4)) == "corrupt"


# ------------------------------------------------------------------------------------------------- newer processes


def test_a_newer_process_is_looked_up_and_then_believed() -> None:
    ring = keyring()
    newer = [heartbeat(LATER, incarnation=2), member(LATER, incarnation=2)]
    for record in newer:
        assert ring.check(record) == LookUp(0)
    assert ring.check_frame(frame(LATER, incarnation=2)) == LookUp(0)
    assert ring.lacks(MemberRef(rank=0, incarnation=2)) == LookUp(0)
    assert ring.learn(0, member(LATER, incarnation=2)) is None
    for record in newer:
        assert ring.check(record) is None
    assert ring.check_frame(frame(LATER, incarnation=2)) is None
    assert ring.check(heartbeat(ALICE)) is None  # what the earlier one signed stays its own: evidence may need it
    assert ring.lacks(MemberRef(rank=0, incarnation=2)) is None


def test_a_greeting_alone_registers_nothing() -> None:
    """Anybody can greet in another's name where the broker lets him; only the rank's holder writes its record in S3."""
    ring = keyring()
    assert ring.check(member(BOB, rank=2)) == LookUp(2)
    assert ring.key(MemberRef(rank=2, incarnation=1)) is None
    assert ring.learn(2, member(ALICE, rank=2)) is None
    assert ring.check(member(BOB, rank=2)) == "conflict"


def test_an_older_process_whose_record_is_gone_is_not_looked_up() -> None:
    ring = keyring(member(LATER, incarnation=5))
    assert ring.check(heartbeat(ALICE, incarnation=4)) == "unknown_key"
    assert ring.check_frame(frame(ALICE, incarnation=1)) == "unknown_key"
    assert ring.learn(0, member(ALICE, incarnation=4)) is None  # an older look that was overtaken does no harm
    assert ring.check(heartbeat(ALICE, incarnation=3)) == "unknown_key"
    assert ring.check(heartbeat(ALICE, incarnation=6)) == LookUp(0)


def test_garbage_makes_nobody_ask_s3_without_end() -> None:
    ring = keyring()
    asked = 0
    for incarnation in range(2, 100):
        if isinstance(ring.check(heartbeat(BOB, incarnation=incarnation)), LookUp):
            asked += 1
            assert ring.learn(0, member(ALICE)) is None
    assert asked == VAIN_LOOKS
    assert ring.check(heartbeat(LATER, incarnation=2)) == "unknown_key"
    assert ring.check(heartbeat(ALICE)) is None
    assert ring.check(heartbeat(BOB, rank=2)) == LookUp(2)
    ring.refresh()
    assert ring.check(heartbeat(LATER, incarnation=2)) == LookUp(0)
    assert ring.learn(0, member(LATER, incarnation=2)) is None
    assert ring.check(heartbeat(BOB, incarnation=3)) == LookUp(0)


def test_a_rank_that_nobody_holds_yet_is_looked_up_a_few_times() -> None:
    ring = Keyring("run", 4)
    for _ in range(VAIN_LOOKS):
        assert ring.check(heartbeat(ALICE)) == LookUp(0)
        assert ring.learn(0, None) is None
    assert ring.check(heartbeat(ALICE)) == "unknown_key"


# ---------------------------------------------------------------------------------------------------- predecessors


def test_keys_of_predecessors_reach_whoever_joins_late() -> None:
    first = member(ALICE)
    second = member(BOB, incarnation=2, public_keys=inherit({USE: BOB.public}, first))
    third = member(LATER, incarnation=3, public_keys=inherit({USE: LATER.public}, second))
    assert third.public_keys == {"ed25519.1": ALICE.public, "ed25519.2": BOB.public, USE: LATER.public}
    late = keyring(third)
    assert late.check(heartbeat(ALICE)) is None
    assert late.check(heartbeat(BOB, incarnation=2)) is None
    assert late.check(heartbeat(BOB)) == "signature"


def test_a_successor_cannot_give_its_predecessor_another_key() -> None:
    ring = keyring()
    lying = member(LATER, incarnation=2, public_keys={USE: LATER.public, "ed25519.1": BOB.public})
    assert ring.learn(0, lying) == "conflict"
    assert ring.check(heartbeat(ALICE)) is None
    assert ring.key(MemberRef(rank=0, incarnation=2)) is None


@pytest.mark.parametrize("use", ["ed25519.2", "ed25519.3", "ed25519.01", "ed25519.-1", "ed25519.x", "ed25519.", "x.1"])
def test_no_record_names_keys_of_others(use: str) -> None:
    ring = keyring(member(LATER, incarnation=2, public_keys={USE: LATER.public, use: BOB.public}))
    for incarnation in (0, 1, 3):
        assert ring.key(MemberRef(rank=0, incarnation=incarnation)) is None
    assert ring.key(MemberRef(rank=0, incarnation=2)) == LATER.public


def test_a_record_does_not_grow_with_restarts() -> None:
    held = member(ALICE)
    for incarnation in range(2, PREDECESSORS + 20):
        held = member(BOB, incarnation=incarnation, public_keys=inherit({USE: BOB.public}, held))
    assert len(held.public_keys) == PREDECESSORS + 1
    assert f"{USE}.{held.incarnation - 1}" in held.public_keys
    assert f"{USE}.1" not in held.public_keys


# ------------------------------------------------------------------------------------------------------ own frames


def encoded(**changes: Any) -> bytes:
    fields: dict[str, Any] = {"kind": Kind.UPDATE, "round": 3, "base_round": 3, "samples": 1} | changes
    header = FrameHeader(
        run="run", rank=0, incarnation=1, base_weights=SHA, codec="none", seed=0, elements=1, **fields
    )  # fmt: skip
    return wire.encode(header, b"abcd")


def test_a_process_never_signs_two_frames_for_one_place() -> None:
    signer = FrameSigner(ALICE)
    signed = signer.sign(encoded())
    assert verify_frame(wire.decode_header(signed), ALICE.public)
    assert signer.sign(encoded()) == signed
    for other in (encoded(samples=2), encoded(loss=0.5)):
        with pytest.raises(PermanentError, match="another update frame for round 3"):
            signer.sign(other)
    signer.sign(encoded(round=4))
    signer.sign(encoded(group=1))
    signer.sign(encoded(kind=Kind.SHARD, shards=2))
    signer.sign(encoded(kind=Kind.SHARD, shards=2, shard=1))
    with pytest.raises(PermanentError, match="another shard frame"):
        signer.sign(encoded(kind=Kind.SHARD, shards=2, samples=5))
    signer.sign(encoded(kind=Kind.WEIGHTS))
    signer.sign(encoded(kind=Kind.WEIGHTS, samples=2))


def test_what_a_process_remembers_of_its_frames_is_bounded() -> None:
    signer = FrameSigner(ALICE)
    for round in range(600):
        signer.sign(encoded(round=round))
    assert len(signer._signed) < 300
    with pytest.raises(PermanentError):
        signer.sign(encoded(round=599, samples=2))


def test_a_place_is_kind_round_shard_and_group() -> None:
    header = wire.decode_header(encoded(round=7, shard=1, shards=3, group=2))
    assert slot(header) == (int(Kind.UPDATE), 7, 1, 2)
