"""Conduct: what proves something about its signer, and what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from contract import wire
from contract.errors import CorruptObject, NonFiniteGradient, StoreUnavailable, WeightsMismatch
from contract.header import Extension, FrameHeader, Kind, pack_header
from peer_agent.conduct import CONTENT, EQUIVOCATION, HEADER_OFFENCES, MAX_HEADER_BYTES, spoiled
from tests.fakes.signed_frames import BAD, KEYS, LIMIT, RULES, SHA, agreed, blob, conduct, excluded, frame

# -------------------------------------------------------------------------------------------------- header offences


@pytest.mark.parametrize("reason", BAD)
def test_signed_contributions_that_fit_no_round_exclude_their_signer(reason: str) -> None:
    judge = conduct()
    for round in range(LIMIT):
        assert excluded(judge) == []
        header = frame(round=round + 10, **BAD[reason])
        assert RULES.misfit(header) == reason
        assert judge.reject(reason, 1, header)
    assert judge.counts == {(1, reason): LIMIT}
    (exclusion,) = excluded(judge)
    assert (exclusion["rank"], exclusion["incarnation"], exclusion["reason"]) == (1, 1, reason)
    assert len(exclusion["evidence"]) == LIMIT
    assert agreed(exclusion)
    assert judge.due([0, 2, 3]) == ()


def test_the_evidence_is_the_signed_headers_themselves() -> None:
    judge = conduct(1)
    bad = blob(**BAD["samples"])
    judge.reject("samples", 1, wire.decode_header(bad))
    (exclusion,) = excluded(judge)
    assert exclusion == {
        "rank": 1,
        "incarnation": 1,
        "reason": "samples",
        "evidence": [{"reason": "samples", "headers": [wire.header_part(bad).hex()]}],
    }


def test_different_offences_add_up() -> None:
    judge = conduct()
    judge.reject("codec", 1, frame(**BAD["codec"]))
    judge.reject("conflict", 1, frame(), other=frame(payload=b"efgh"))
    judge.reject(CONTENT, 1, frame(round=5))
    (exclusion,) = excluded(judge)
    assert exclusion["reason"] == "codec, content, equivocation"
    assert agreed(exclusion, lambda header: header.round == 5)
    assert not agreed(exclusion, lambda header: False)


def test_the_same_offence_sent_again_is_still_one() -> None:
    """Anybody can send again what another has signed."""
    judge = conduct()
    for _ in range(20):
        assert judge.reject("codec", 3, frame(**BAD["codec"]))
    assert judge.counts == {(1, "codec"): 20}
    assert excluded(judge) == []


# ----------------------------------------------------------------------------------------------- not attributable


@pytest.mark.parametrize(
    "header",
    [
        frame(signer=KEYS[2], **BAD["codec"]),
        dataclasses.replace(frame(), samples=0),
        dataclasses.replace(frame(**BAD["codec"]), signature=bytes(64)),
        dataclasses.replace(frame(**BAD["codec"]), digest=SHA),
        dataclasses.replace(frame(**BAD["codec"]), digest=""),
        frame(incarnation=2, **BAD["codec"]),
        frame(rank=1, run="earlier", **BAD["codec"]),
    ],
)
def test_what_its_signer_did_not_sign_is_the_senders(header: FrameHeader) -> None:
    judge = conduct(1)
    for reason in ("codec", "samples"):
        assert not judge.reject(reason, 2, header)
    assert judge.counts == {(2, "codec"): 1, (2, "samples"): 1}
    assert judge.due(range(4)) == ()


@pytest.mark.parametrize("reason", ["signature", "unknown_key", "corrupt", "sender", "missing", "run", "kind"])
def test_garbage_never_excludes_anybody(reason: str) -> None:
    judge = conduct(1)
    for sender in (1, 1, 1, None):
        assert not judge.reject(reason, sender)
    assert judge.due(range(4)) == ()
    assert judge.by_sender() == {"1": {reason: 3}, "unknown": {reason: 1}}


@pytest.mark.parametrize(
    ("reason", "header"),
    [("run", frame(run="earlier")), ("stale", frame(round=0)), ("late", frame()), ("ahead", frame(round=99))],
)
def test_a_replayed_frame_is_no_offence_of_its_signer(reason: str, header: FrameHeader) -> None:
    judge = conduct(1)
    for _ in range(5):
        assert not judge.reject(reason, 2, header)
    assert judge.counts == {(2, reason): 5}
    assert judge.due(range(4)) == ()


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.UPDATE])
def test_a_frame_of_another_kind_may_have_been_passed_off_by_anybody(kind: Kind) -> None:
    """Owners sign shards, for example, which anyone can announce as contributions."""
    judge = conduct(1)
    header = frame(kind=kind)
    assert RULES.misfit(header) == "kind"
    assert not judge.reject("kind", 2, header)
    assert not judge.reject(CONTENT, 2, header)
    assert judge.due(range(4)) == ()


@pytest.mark.parametrize("reason", sorted(HEADER_OFFENCES | {"conflict", EQUIVOCATION}))
def test_a_reason_must_be_borne_out_by_the_header(reason: str) -> None:
    """A mistaken or lying caller makes no evidence."""
    judge = conduct(1)
    assert not judge.reject(reason, 1, frame())
    assert not judge.reject(CONTENT, 1, frame(**BAD["samples"]))
    assert judge.due(range(4)) == ()


def test_a_header_that_is_too_long_for_evidence_is_just_counted() -> None:
    judge = conduct(1)
    padding = (Extension(900, False, bytes(MAX_HEADER_BYTES)),)
    assert not judge.reject("samples", 1, frame(extensions=padding, **BAD["samples"]))
    fits = (Extension(900, False, bytes(MAX_HEADER_BYTES - 300)),)
    assert judge.reject("samples", 1, frame(extensions=fits, **BAD["samples"]))


# ---------------------------------------------------------------------------------------------------- equivocation


def test_two_signed_frames_for_one_round_are_equivocation() -> None:
    judge = conduct(1)
    first, second = frame(), frame(payload=b"efgh")
    assert judge.reject("conflict", 1, second, other=first)
    (exclusion,) = excluded(judge)
    assert exclusion["reason"] == EQUIVOCATION
    assert exclusion["evidence"][0]["headers"] == sorted(pack_header(h).hex() for h in (first, second))
    assert agreed(exclusion, rejections=1)
    exclusion["evidence"][0]["headers"].reverse()
    assert not agreed(exclusion, rejections=1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (frame(), frame()),
        (frame(), frame(round=4)),
        (frame(), frame(group=1)),
        (frame(), frame(kind=Kind.SHARD)),
        (frame(kind=Kind.SHARD, shards=2), frame(kind=Kind.SHARD, shards=2, shard=1)),
        (frame(), frame(rank=2)),
        (frame(), frame(payload=b"efgh", signer=KEYS[2])),
        (frame(), dataclasses.replace(frame(), signature=bytes(64))),
        (frame(), dataclasses.replace(frame(), digest=SHA)),
        (frame(run="earlier"), frame(run="earlier", payload=b"efgh")),
        (frame(kind=Kind.WEIGHTS), frame(kind=Kind.WEIGHTS, payload=b"efgh")),
    ],
)
def test_frames_that_may_both_be_honest_are_not(first: FrameHeader, second: FrameHeader) -> None:
    judge = conduct(1)
    for one, other in ((first, second), (second, first)):
        assert not judge.reject("conflict", 1, one, other=other)
        parts = sorted(pack_header(header).hex() for header in (one, other))
        forged = {"rank": 1, "incarnation": 1, "reason": EQUIVOCATION}
        assert not agreed(forged | {"evidence": [{"reason": EQUIVOCATION, "headers": parts}]}, rejections=1)
    assert judge.due(range(4)) == ()


def test_shards_can_be_equivocated_too() -> None:
    judge = conduct(1)
    first, second = (frame(kind=Kind.SHARD, shards=2, shard=1, payload=payload) for payload in (b"abcd", b"efgh"))
    assert judge.reject("conflict", None, first, other=second)
    assert agreed(excluded(judge)[0], rejections=1)


def test_many_frames_for_one_round_are_one_equivocation() -> None:
    judge = conduct()
    for payload in (b"0000", b"1111", b"2222", b"3333"):
        assert judge.reject("conflict", 1, frame(payload=payload), other=frame())
    assert judge.due(range(4)) == ()
    pairs = [sorted(pack_header(h).hex() for h in (frame(), frame(payload=p))) for p in (b"0000", b"1111", b"2222")]
    evidence = sorted(({"reason": EQUIVOCATION, "headers": pair} for pair in pairs), key=lambda e: e["headers"])
    claimed = {"rank": 1, "incarnation": 1, "reason": EQUIVOCATION, "evidence": evidence}
    assert not agreed(claimed)


# --------------------------------------------------------------------------------------------------------- content


def use(decoded: wire.Frame) -> None:
    if bytes(decoded.payload) == b"nan!":
        raise CorruptObject("holds NaN")
    if bytes(decoded.payload) == b"inf!":
        raise NonFiniteGradient("infinite")
    if bytes(decoded.payload) == b"bool":
        raise WeightsMismatch("buffers")


@pytest.mark.parametrize("payload", [b"nan!", b"inf!", b"bool"])
def test_unusable_content_is_read_by_every_peer(payload: bytes) -> None:
    judge = conduct()
    stored = {round: blob(round=round, payload=payload) for round in range(LIMIT)}
    for found in stored.values():
        assert judge.reject(CONTENT, 1, wire.decode_header(found))
    (exclusion,) = excluded(judge)

    def reads(objects: dict[int, bytes]) -> Callable[[FrameHeader], bool]:
        return lambda header: spoiled(objects.get(header.round), header, RULES, use)

    assert agreed(exclusion, reads(stored))
    assert not agreed(exclusion, reads({}))
    assert not agreed(exclusion, reads(stored | {1: blob(round=1)}))
    assert not agreed(exclusion, reads(stored | {1: b"garbage"}))


def test_content_that_is_not_what_was_signed_proves_nothing() -> None:
    header = frame(payload=b"nan!")
    assert spoiled(blob(payload=b"nan!"), header, RULES, use)
    assert not spoiled(None, header, RULES, use)
    assert not spoiled(blob(payload=b"inf!"), header, RULES, use)
    assert not spoiled(blob(payload=b"nan!")[:-1], header, RULES, use)
    assert not spoiled(blob(payload=b"nan!") + b"x", header, RULES, use)
    assert not spoiled(blob(), frame(), RULES, use)


def test_whoever_cannot_read_the_content_does_not_guess() -> None:
    judge = conduct(1)
    judge.reject(CONTENT, 1, frame(payload=b"nan!"))

    def down(header: FrameHeader) -> bool:
        raise StoreUnavailable("S3 does not answer")

    with pytest.raises(StoreUnavailable):
        agreed(excluded(judge)[0], down, rejections=1)
