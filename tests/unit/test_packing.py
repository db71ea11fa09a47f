"""Objects that are packed for S3, and what is refused when they are read."""

from __future__ import annotations

import typing

import numpy as np
import pytest
import zstandard

from contract.codec import codec
from contract.config import ExchangeConfig
from contract.errors import CorruptObject
from contract.packing import packing

NAMES = typing.get_args(ExchangeConfig.model_fields["packing"].annotation)


def test_every_packing_that_can_be_configured_gives_back_what_it_got() -> None:
    assert NAMES == ("none", "zstd")
    for name in NAMES:
        for data in (b"", b"x", bytes(1_000_000), np.random.default_rng(1).bytes(300_000)):
            stored = packing(name).pack(memoryview(data))
            assert packing(name).unpack(stored, len(data)) == data
            assert len(stored) <= packing(name).room(len(data))


def test_a_normal_gradient_at_four_bits_becomes_a_fifth_smaller() -> None:
    frame = codec("qsgd4").encode(np.random.default_rng(1).standard_normal(1_000_000, np.float32), 1)
    assert 0.78 < len(packing("zstd").pack(frame)) / len(frame) < 0.84
    assert packing("none").pack(frame) == frame


@pytest.mark.parametrize("name", NAMES)
def test_more_than_may_be_is_refused(name: str) -> None:
    stored = packing(name).pack(bytes(1_001))
    assert len(packing(name).unpack(stored, 1_001)) == 1_001
    with pytest.raises(CorruptObject, match="1000 are the most"):
        packing(name).unpack(stored, 1_000)


def unsized(data: bytes) -> bytes:
    """A zstd frame that does not say how much it holds."""
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"PRL1 is no packed object",
        packing("zstd").pack(b"much ado" * 90)[:-3],
        packing("zstd").pack(b"much ado" * 90) + b"more",
        unsized(b"much ado" * 90),
    ],
    ids=["empty", "not packed", "cut off", "followed by more", "of unknown size"],
)
def test_what_is_not_packed_is_refused(stored: bytes) -> None:
    with pytest.raises(CorruptObject):
        packing("zstd").unpack(stored, 10_000)


def test_a_frame_that_lies_about_its_size_is_refused() -> None:
    """It says a thousand bytes and holds a million: no more than it says is ever made of it."""
    stored = bytearray(packing("zstd").pack(bytes(1_000_000)))
    assert zstandard.frame_content_size(bytes(stored)) == 1_000_000
    at = bytes(stored).index((1_000_000).to_bytes(4, "little"))
    stored[at : at + 4] = (1_000).to_bytes(4, "little")
    with pytest.raises(CorruptObject):
        packing("zstd").unpack(bytes(stored), 10_000)
