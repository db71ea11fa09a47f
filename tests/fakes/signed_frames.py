"""Frames as four processes sign them, the keyring that knows all four, and what a commit record says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contract import wire
from contract.header import FrameHeader, Kind
from contract.records import Commit, Member, MemberRef
from contract.signing import SigningKey
from peer_agent.admission import FrameRules
from peer_agent.conduct import EXCLUDED, Conduct, proven
from peer_agent.keyring import USE, Keyring

KEYS = [SigningKey.generate() for _ in range(4)]
RULES = FrameRules(run="run", codec="none", elements=1, buffers_bytes=0)
SHA = "ab" * 32
LIMIT = 3
#: What a contribution's header alone can show, and how.
BAD: dict[str, dict[str, Any]] = {
    "kind": {"shards": 2},
    "codec": {"codec": "fp16"},
    "shape": {"elements": 2},
    "samples": {"samples": 0},
    "base_round": {"base_round": 9},
}


def keyring() -> Keyring:
    ring = Keyring("run", len(KEYS))
    for rank, key in enumerate(KEYS):
        claim = Member(run="run", rank=rank, incarnation=1, peer_id="p", nonce="n", public_keys={USE: key.public})
        assert ring.learn(rank, key.sign(claim)) is None
    return ring


def blob(
    rank: int = 1, round: int = 3, payload: bytes = b"abcd", signer: SigningKey | None = None, **changes: Any
) -> bytes:
    fields: dict[str, Any] = {
        "kind": Kind.UPDATE, "run": "run", "base_round": round, "base_weights": SHA, "incarnation": 1, "samples": 1,
        "codec": "none", "seed": 0, "elements": 1,
    } | changes  # fmt: skip
    return (signer or KEYS[rank]).sign_frame(wire.encode(FrameHeader(rank=rank, round=round, **fields), payload))


def frame(rank: int = 1, round: int = 3, payload: bytes = b"abcd", **changes: Any) -> FrameHeader:
    return wire.decode_header(blob(rank, round, payload, **changes))


def conduct(rejections: int = LIMIT) -> Conduct:
    return Conduct(keyring(), RULES, rejections)


def never(header: FrameHeader) -> bool:
    raise AssertionError("no content needs to be read for this evidence")


def excluded(judge: Conduct) -> list[dict[str, Any]]:
    """What a commit record would say, as every peer reads it."""
    commit = Commit(
        run="run",
        round=3,
        base_weights={"0": SHA},
        contributors=(),
        members=(),
        extensions={EXCLUDED: [exclusion.to_dict() for exclusion in judge.due(range(4))]},
        writer=MemberRef(rank=0, incarnation=1),
        nonce="n",
    )
    entries: list[dict[str, Any]] = Commit.from_json(commit.to_json()).extensions[EXCLUDED]
    return entries


def agreed(exclusion: object, content: Callable[[FrameHeader], bool] = never, rejections: int = LIMIT) -> bool:
    """What a peer finds that knows the keys and nothing else."""
    return proven(exclusion, keyring(), RULES, rejections, content)
