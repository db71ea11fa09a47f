"""Batches and manifests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
import safetensors.torch
import torch

from contract.batches import BatchRef, Manifest, decode_batch, encode_batch
from contract.errors import CorruptObject

REF = BatchRef(index=0, key="k", samples=4, sha256="ab" * 32)
MANIFEST = Manifest(rank=3, batches=(REF, BatchRef(index=1, key="k", samples=2, sha256="cd" * 32, offset=9, length=5)))


def images(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(samples * 12.0).reshape(samples, 3, 2, 2), torch.arange(samples)


@pytest.mark.parametrize("samples", [1, 5])
def test_a_batch_comes_back_as_it_was(samples: int) -> None:
    x, y = images(samples)
    blob = encode_batch(x, y)
    for back_x, back_y in (decode_batch(blob), decode_batch(blob, hashlib.sha256(blob).hexdigest())):
        assert back_x.dtype == x.dtype
        assert back_y.dtype == y.dtype
        assert torch.equal(back_x, x)
        assert torch.equal(back_y, y)


def test_a_view_is_stored_as_what_it_shows() -> None:
    x, y = images(6)
    blob = encode_batch(x.transpose(2, 3)[::2], y[::2])
    back_x, back_y = decode_batch(blob)
    assert torch.equal(back_x, x.transpose(2, 3)[::2])
    assert torch.equal(back_y, y[::2])


def test_the_same_batch_has_the_same_bytes() -> None:
    assert encode_batch(*images(3)) == encode_batch(*images(3))


def test_every_damage_is_a_corrupt_object() -> None:
    blob = encode_batch(*images(2))
    digest = hashlib.sha256(blob).hexdigest()
    for position in range(len(blob)):
        flipped = blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]
        with pytest.raises(CorruptObject, match="does not have the digest"):
            decode_batch(flipped, digest)
    for end in range(len(blob)):
        with pytest.raises(CorruptObject):
            decode_batch(blob[:end])
    with pytest.raises(CorruptObject):
        decode_batch(blob + b"\0")


@pytest.mark.parametrize(
    "tensors",
    [
        {"x": torch.zeros(2)},
        {"x": torch.zeros(2), "y": torch.zeros(2), "z": torch.zeros(2)},
        {"x": torch.zeros(2), "y": torch.zeros(3)},
        {"x": torch.tensor(1.0), "y": torch.tensor(1.0)},
        {"x": torch.zeros(0), "y": torch.zeros(0)},
    ],
)
def test_tensors_that_are_no_batch_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(CorruptObject, match="a batch"):
        decode_batch(safetensors.torch.save(tensors))
    if tensors.keys() == {"x", "y"}:
        with pytest.raises(ValueError, match="as many inputs as targets"):
            encode_batch(**tensors)


def test_manifest_round_trip() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert MANIFEST.samples == 6
    assert BatchRef.from_dict(json.loads(json.dumps(REF.to_dict()))) == REF


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "has version 2"),
        ({"batches": [REF.to_dict(), REF.to_dict()]}, "without gaps"),
        ({"batches": [REF.to_dict() | {"samples": 0}]}, "no range"),
        ({"batches": [REF.to_dict() | {"offset": -1, "length": 1}]}, "no range"),
        ({"batches": [REF.to_dict() | {"offset": 1}]}, "needs a length"),
        ({"batches": [REF.to_dict() | {"length": 0}]}, "no range"),
        ({"batches": 1}, "batches is int"),
        ({"rank": None}, "rank is NoneType"),
    ],
)
def test_a_damaged_manifest_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CorruptObject, match=sentence):
        Manifest.from_json(json.dumps(json.loads(MANIFEST.to_json()) | change))


def test_a_manifest_numbers_its_batches() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        Manifest(rank=0, batches=(dataclasses.replace(REF, index=1),))
