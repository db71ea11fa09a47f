"""Signatures: what the key's holder signed verifies, and nothing else does; the private key never shows."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import pickle
import string
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import jsonform, signing, wire
from contract.errors import CorruptObject
from contract.records import (
    Checkpoint,
    Commit,
    Contributor,
    Heartbeat,
    Member,
    MemberRef,
    Reduced,
    Result,
    Stop,
    Wanted,
)
from contract.signing import Signed, SigningKey, usable, verify, verify_frame
from contract.wire import Extension, FrameHeader, Kind

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
HEADER = FrameHeader(
    kind=Kind.UPDATE,
    run="mnist-1",
    round=7,
    base_round=7,
    base_weights="ab" * 32,
    rank=3,
    incarnation=2,
    samples=256,
    loss=0.5,
    validation_loss=0.25,
    codec="qsgd4",
    seed=2**63 + 1,
    elements=12,
    extensions=(wire.accuracy_extension(0.75), Extension(900, False, b"hello")),
)
PAYLOAD, BUFFERS = b"payload bytes", b"buffers"
FRAME = wire.encode(HEADER, PAYLOAD, BUFFERS)
SIGNED = KEY.sign_frame(FRAME)
HEADER_END = len(wire.header_part(SIGNED))
SIGNATURE = range(176, 240)

WRITER = MemberRef(rank=0, incarnation=2)
SHA = "ab" * 32
RECORDS: list[Any] = [
    Commit(
        run="r",
        round=3,
        base_weights={"0": SHA},
        contributors=(Contributor(rank=0, incarnation=2, key="k", digest=SHA, samples=128, loss=0.5),),
        members=(WRITER,),
        validation_loss=0.25,
        extensions={"excluded": [{"rank": 1, "x": None}]},
        writer=WRITER,
        nonce="n",
    ),
    Result(run="r", round=3, weights_sha256=SHA, bucket="b", key="k", writer=WRITER, nonce="n"),
    Member(run="r", rank=0, peer_id="p", incarnation=2, public_keys={"ed25519": KEY.public}, nonce="n"),
    Stop(run="r", reason="x", round=3, weights_sha256=SHA, writer=WRITER, nonce="n"),
    Heartbeat(run="r", rank=0, incarnation=2, round=3),
    Checkpoint(run="r", round=3, weights_sha256=SHA, key="k", digest=SHA, members=(WRITER,), writer=WRITER, nonce="n"),
    Reduced(run="r", round=3, writer=WRITER),
    Wanted(run="r", round=3, weights_sha256=SHA, writer=WRITER),
]
by_class = pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)


def accepted(blob: bytes, public: str = KEY.public) -> bool:
    """What a receiver of a whole frame, or of its header alone, finds; False where it cannot even be read."""
    try:
        return verify_frame(wire.decode_header(blob), public)
    except CorruptObject:
        return False


# --------------------------------------------------------------------------------------------------------- frames


def test_a_signed_frame_is_the_frame_with_its_signature_filled_in() -> None:
    assert SIGNED[:176] == FRAME[:176]
    assert SIGNED[240:] == FRAME[240:]
    frame = wire.decode(SIGNED, expected_elements=12, expected_buffers_bytes=len(BUFFERS))
    assert frame.header == dataclasses.replace(wire.decode_header(FRAME), signature=SIGNED[176:240])
    assert accepted(SIGNED)
    assert accepted(wire.header_part(SIGNED))
    assert not accepted(SIGNED, OTHER.public)
    assert not accepted(FRAME)
    assert KEY.sign_frame(SIGNED) == SIGNED
    assert KEY.sign_frame(memoryview(bytearray(FRAME))) == SIGNED


def test_the_signed_bytes_are_the_ones_that_are_written_down() -> None:
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    frame = SigningKey(private).sign_frame(FRAME)
    header = wire.header_part(FRAME)
    assert frame[176:240] == private.sign(b"peerless frame 1\0" + header[:176] + bytes(64) + header[240:])
    record = RECORDS[4]
    text = b'{"incarnation":2,"leaving":false,"rank":0,"round":3,"run":"r","signature":"","silent":[],"version":1}'
    assert SigningKey(private).sign(record).signature == private.sign(b"peerless heartbeat 1\0" + text).hex()


@pytest.mark.parametrize("at", range(HEADER_END))
def test_no_byte_of_the_header_can_be_changed(at: int) -> None:
    for bit in range(8):
        changed = bytearray(SIGNED[:HEADER_END])
        changed[at] ^= 1 << bit
        assert not accepted(bytes(changed)), (at, bit)


@pytest.mark.parametrize("at", [at for at in range(HEADER_END) if at not in range(144, 240)])
def test_a_new_digest_for_a_changed_header_does_not_help(at: int) -> None:
    changed = bytearray(SIGNED)
    changed[at] ^= 1
    zeroed = bytes(changed[:144]) + bytes(96) + bytes(changed[240:])
    changed[144:176] = hashlib.sha256(zeroed).digest()
    assert not accepted(bytes(changed))


def test_changed_content_has_another_digest() -> None:
    """The header still verifies, and says with which content it would."""
    for at in range(HEADER_END, len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[at] ^= 1
        assert accepted(bytes(changed))
        with pytest.raises(CorruptObject, match="digest"):
            wire.decode(bytes(changed), expected_elements=None, expected_buffers_bytes=None)


def test_a_signature_is_good_for_its_own_frame_only() -> None:
    second = KEY.sign_frame(wire.encode(dataclasses.replace(HEADER, round=8), PAYLOAD, BUFFERS))
    swapped = SIGNED[:176] + second[176:240] + SIGNED[240:]
    assert accepted(second)
    assert not accepted(swapped)


def test_only_a_frame_is_signed_as_one() -> None:
    for blob in (b"", b"PRL1", FRAME[:100], b"x" * 400):
        with pytest.raises(CorruptObject):
            KEY.sign_frame(blob)


headers = st.builds(
    FrameHeader,
    kind=st.sampled_from(Kind),
    run=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True, alphabet=string.printable),
    round=st.integers(0, 2**64 - 1),
    base_round=st.integers(0, 2**64 - 1),
    base_weights=st.binary(min_size=32, max_size=32).map(bytes.hex),
    rank=st.integers(0, 2**32 - 1),
    incarnation=st.integers(0, 2**32 - 1),
    shard=st.integers(0, 5),
    shards=st.integers(6, 2**32 - 1),
    group=st.integers(0, 2**32 - 1),
    samples=st.integers(0, 2**64 - 1),
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    validation_loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    codec=st.from_regex(r"[a-z0-9_]{1,32}", fullmatch=True),
    seed=st.integers(0, 2**64 - 1),
    elements=st.integers(0, 2**64 - 1),
    extensions=st.lists(
        st.builds(Extension, st.integers(1_000, 65_535), st.just(False), st.binary(max_size=20)), max_size=3
    ).map(tuple),
)


@given(header=headers, payload=st.binary(max_size=30), buffers=st.binary(max_size=10))
@settings(max_examples=200, deadline=None)
def test_any_frame_can_be_signed_and_its_header_put_together_again(
    header: FrameHeader, payload: bytes, buffers: bytes
) -> None:
    frame = KEY.sign_frame(wire.encode(header, payload, buffers))
    found = wire.decode(frame, expected_elements=None, expected_buffers_bytes=None).header
    assert wire.pack_header(found) == wire.header_part(frame)
    assert verify_frame(found, KEY.public)
    assert not verify_frame(found, OTHER.public)


@pytest.mark.parametrize(
    "changes",
    [{"digest": ""}, {"digest": "zz" * 32}, {"signature": b""}, {"loss": float("nan")}, {"round": -1}, {"run": "/"}],
)
def test_what_never_was_a_frames_header_does_not_verify(changes: dict[str, Any]) -> None:
    assert not verify_frame(dataclasses.replace(wire.decode_header(SIGNED), **changes), KEY.public)


def test_there_is_one_encoding_of_a_loss_of_zero() -> None:
    """A negative zero could be signed by hand; then it is no signature of a frame that anyone would encode."""
    frame = bytearray(wire.encode(dataclasses.replace(HEADER, loss=0.0), PAYLOAD, BUFFERS))
    frame[103] ^= 0x80
    assert not accepted(KEY.sign_frame(bytes(frame)))


# -------------------------------------------------------------------------------------------------------- records


@by_class
def test_a_signed_record_verifies_and_survives_its_json(record: Signed) -> None:
    signed = KEY.sign(record)  # type: ignore[type-var]
    assert dataclasses.replace(signed, signature="") == record
    assert verify(signed, KEY.public)
    assert verify(type(signed).from_json(signed.to_json()), KEY.public)
    assert KEY.sign(signed) == signed
    assert not verify(signed, OTHER.public)
    assert not verify(record, KEY.public)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a record's JSON that can be changed."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [found for key, item in items for found in leaves(item, (*path, key))]
    return below or [path]


@by_class
def test_no_field_of_a_record_can_be_changed(record: Signed) -> None:
    signed = KEY.sign(record)  # type: ignore[type-var]
    read = 0
    for path in leaves(jsonform.to_dict(signed)):
        for value in (None, True, "", "other", 0, 7, 0.125, [], {}):
            form = copy.deepcopy(jsonform.to_dict(signed))
            place = form
            for key in path[:-1]:
                place = place[key]
            if json.dumps(place[path[-1]]) == json.dumps(value):
                continue
            place[path[-1]] = value
            try:
                changed = type(signed).from_json(json.dumps(form))
            except CorruptObject:
                continue
            read += 1
            assert not verify(changed, KEY.public), (path, value)
    assert read >= 3


@by_class
def test_a_signature_has_one_form(record: Signed) -> None:
    signature = KEY.sign(record).signature  # type: ignore[type-var]
    for other in (
        signature.upper(),
        f" {signature}",
        signature + "\n",
        signature[:-2],
        signature + "00",
        "zz" * 64,
        "",
    ):
        assert not verify(dataclasses.replace(record, signature=other), KEY.public)


def test_a_signature_of_one_domain_is_none_of_another() -> None:
    """Heartbeat and Member, or a frame, may hold the same bytes one day; the domain tells them apart."""
    names = [type(record).NAME for record in RECORDS]
    assert len(set(names)) == len(names)
    for signer in RECORDS:
        signature = KEY.sign(signer).signature
        for record in RECORDS:
            if record is not signer:
                assert not verify(dataclasses.replace(record, signature=signature), KEY.public)
        frame = SIGNED[:176] + bytes.fromhex(signature) + SIGNED[240:]
        assert not accepted(frame)
    heartbeat = dataclasses.replace(RECORDS[4], signature=SIGNED[176:240].hex())
    assert not verify(heartbeat, KEY.public)


def test_equal_contents_of_two_classes_have_different_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    first = KEY.sign(RECORDS[4])
    monkeypatch.setattr(Heartbeat, "NAME", "another record")
    assert KEY.sign(RECORDS[4]) != first
    assert not verify(first, KEY.public)


def test_every_record_with_a_signature_can_be_signed() -> None:
    """A new record that carries a signature must be known here."""
    from contract import records

    found = {
        value
        for value in vars(records).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and "signature" in value.__dataclass_fields__
    }
    assert found == {type(record) for record in RECORDS} == set(signing.Signed.__args__)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
refs = st.builds(MemberRef, rank=st.integers(0, 999), incarnation=st.integers(0, 2**40))
ordered = st.lists(refs, max_size=4, unique_by=lambda ref: ref.rank).map(
    lambda found: sorted(found, key=lambda r: r.rank)
)
commits = st.builds(
    Commit,
    run=st.text(),
    round=st.integers(),
    base_weights=st.dictionaries(st.text(), st.text(), max_size=2),
    contributors=st.just(()),
    members=ordered.map(tuple),
    validation_loss=st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
    final=st.booleans(),
    extensions=st.dictionaries(st.text(), json_values, max_size=3),
    writer=refs,
    nonce=st.text(),
)
members = st.builds(
    Member,
    run=st.text(),
    rank=st.integers(0, 999),
    peer_id=st.text(),
    incarnation=st.integers(),
    public_keys=st.dictionaries(st.text(), st.text(), max_size=3),
    nonce=st.text(),
    resources=st.dictionaries(st.text(), json_values, max_size=3),
)
heartbeats = st.builds(Heartbeat, run=st.text(), rank=st.integers(0), incarnation=st.integers(0), round=st.integers(0))


@given(record=st.one_of(commits, members, heartbeats))
@settings(max_examples=200, deadline=None)
def test_any_record_can_be_signed_and_read_back(record: Signed) -> None:
    signed = KEY.sign(record)  # type: ignore[type-var]
    read = type(signed).from_json(signed.to_json())
    assert verify(read, KEY.public)
    assert not verify(read, OTHER.public)


@given(record=st.one_of(commits, heartbeats), other=st.one_of(commits, heartbeats))
@settings(max_examples=100, deadline=None)
def test_a_signature_fits_one_record(record: Any, other: Any) -> None:
    signature = KEY.sign(record).signature
    same = type(record) is type(other) and record.to_json() == other.to_json()
    assert verify(dataclasses.replace(other, signature=signature), KEY.public) == same


# ----------------------------------------------------------------------------------------------------------- keys


def test_a_public_key_has_one_form() -> None:
    assert usable(KEY.public)
    signed = KEY.sign(RECORDS[4])
    for public in ("", "00", KEY.public.upper(), KEY.public + "\n", KEY.public + "00", "zz" * 32, "ff" * 32):
        assert not verify(signed, public)
        assert not verify_frame(wire.decode_header(SIGNED), public)


def test_a_key_that_anybody_can_sign_for_is_none() -> None:
    """With the neutral element as key, R = the neutral element and s = 0 satisfy the equation for any message."""
    neutral = b"\x01" + bytes(31)
    forged = dataclasses.replace(RECORDS[4], signature=(neutral + bytes(32)).hex())
    assert not verify(forged, neutral.hex())
    assert not accepted(FRAME[:176] + neutral + bytes(32) + FRAME[240:], neutral.hex())
    for point in signing._SMALL_ORDER:
        assert not usable(point.hex())
        assert not usable((point[:-1] + bytes([point[-1] | 0x80])).hex())


def test_the_private_key_shows_nowhere() -> None:
    private = Ed25519PrivateKey.generate()
    key = SigningKey(private)
    secret = private.private_bytes_raw()
    member = key.sign(dataclasses.replace(RECORDS[2], public_keys={"ed25519": key.public}))
    frame = key.sign_frame(FRAME)
    shown = [repr(key), str(key), f"{key}", repr([key]), repr({"key": key}), repr(member), key.public]
    for text in shown:
        assert secret.hex() not in text.lower()
        assert repr(secret)[2:-1] not in text
    for blob in (member.to_json(), frame, key.sign(RECORDS[0]).to_json()):
        assert secret not in blob
        assert secret.hex().encode() not in blob.lower()
    assert repr(key) == f"SigningKey(public='{key.public}')"


def test_the_private_key_leaves_the_process_in_no_form() -> None:
    for leave in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            leave(KEY)  # type: ignore[operator]
    with pytest.raises(TypeError):
        json.dumps(KEY)
    with pytest.raises(TypeError):
        vars(KEY)
    assert not dataclasses.is_dataclass(KEY)


def test_every_process_has_a_key_of_its_own() -> None:
    assert len({SigningKey.generate().public for _ in range(20)}) == 20
