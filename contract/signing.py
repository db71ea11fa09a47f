"""Signatures: which process made a frame or a record. Ed25519; the only importer of `cryptography`.

What is signed starts with a domain, so that no signature is ever good for anything else:

    frame     "peerless frame 1", a zero byte, the frame's header part (contract/wire.py) with zeros as its signature
    record    "peerless ", the record's name, " ", its version, a zero byte, its canonical JSON with an empty signature

The header part holds the digest, hence all of the frame is signed; and because all of the header is signed beside it, a
header that travels alone (claim check) can be trusted before anyone has read the content.

A private key lives in the memory of the process that made it, and nowhere else: nothing here writes, shows, copies or
pickles one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NoReturn, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from contract import wire
from contract.errors import NonFiniteGradient
from contract.header import SIGNATURE_AT, SIGNATURE_BYTES, FrameHeader, pack_header
from contract.records import Checkpoint, Commit, Heartbeat, Member, Reduced, Result, Stop, Wanted

Signed = Commit | Result | Stop | Checkpoint | Member | Heartbeat | Reduced | Wanted
"""Records that carry a signature."""
R = TypeVar("R", Commit, Result, Stop, Checkpoint, Member, Heartbeat, Reduced, Wanted)

_FRAME_DOMAIN = b"peerless frame 1\0"
_SIGNATURE_END = SIGNATURE_AT + SIGNATURE_BYTES
_PUBLIC = re.compile(r"[0-9a-f]{64}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{128}\Z")
#: Points of small order, sign bit aside. With such a "key" anybody signs anything, so it proves nothing about anybody.
_SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


class SigningKey:
    """A process's own key. Only its public half can be had from it."""

    __slots__ = ("_private", "public")

    public: str
    """The public key, 64 lower-case hexadecimal digits."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key, of the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    def sign_frame(self, frame: wire.Blob) -> bytes:
        """An encoded frame with its signature filled in. Raises CorruptObject for bytes that do not begin as one.

        The digest must be right already (`wire.encode` sees to that); it is not computed again.
        """
        part = wire.header_part(frame)
        blank = part[:SIGNATURE_AT] + bytes(SIGNATURE_BYTES) + part[_SIGNATURE_END:]
        view = memoryview(frame).cast("B")
        return b"".join((view[:SIGNATURE_AT], self._private.sign(_FRAME_DOMAIN + blank), view[_SIGNATURE_END:]))

    def sign(self, record: R) -> R:
        """The record with its signature filled in. Raises NonFiniteGradient for NaN or infinity."""
        return replace(record, signature=self._private.sign(_record_message(record)).hex())

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key stays in the process that made it: it is neither copied nor pickled")


def verify_frame(header: FrameHeader, public: str) -> bool:
    """Whether the holder of `public` signed this header, and with it the frame that has its digest.

    That the content has this digest is for `wire.decode` to say.
    """
    try:
        blank = pack_header(replace(header, signature=bytes(SIGNATURE_BYTES)))
    except ValueError:
        return False  # such a header cannot have come out of a frame
    return _verify(public, header.signature, _FRAME_DOMAIN + blank)


def verify(record: Signed, public: str) -> bool:
    """Whether the holder of `public` signed this record."""
    if not _SIGNATURE.match(record.signature):
        return False
    try:
        message = _record_message(record)
    except NonFiniteGradient:
        return False
    return _verify(public, bytes.fromhex(record.signature), message)


def usable(public: str) -> bool:
    """Whether `public` has the form of a public key that only the holder of a private one can sign for."""
    if not _PUBLIC.match(public):
        return False
    raw = bytes.fromhex(public)
    return raw[:-1] + bytes([raw[-1] & 0x7F]) not in _SMALL_ORDER


def _record_message(record: Signed) -> bytes:
    return f"peerless {record.NAME} {record.VERSION}\0".encode() + replace(record, signature="").to_json()


def _verify(public: str, signature: bytes, message: bytes) -> bool:
    if not usable(public):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
