"""Greetings: what S3 holds counts, and whoever greets in another way is told why it is not believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from contract.records import Member
from contract.signing import SigningKey
from peer_agent.admission import FrameRules
from peer_agent.keyring import USE, inherit
from peer_agent.trust import Trust

MINE, THEIRS, OTHER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()


def member(key: SigningKey, rank: int = 1, incarnation: int = 1, **changes: Any) -> Member:
    fields: dict[str, Any] = {"run": "run", "public_keys": {USE: key.public}, "nonce": "n", **changes}
    return key.sign(Member(rank=rank, incarnation=incarnation, peer_id=f"host-{rank}", **fields))


def trust(*claims: Member) -> tuple[Trust, list[int]]:
    """Of rank 0, with these claims in S3; and the ranks that it reads there."""
    held, read = {claim.rank: claim for claim in claims}, list[int]()

    def find(rank: int) -> Member | None:
        read.append(rank)
        return held.get(rank)

    rules = FrameRules(run="run", codec="none", elements=1, buffers_bytes=0)
    return Trust(MINE, member(MINE, rank=0), rules, 3, find), read


def test_a_greeting_gives_the_claim_as_s3_holds_it_for_one_look() -> None:
    claim = member(THEIRS)
    made, read = trust(claim)
    assert made.greeted(claim) == claim
    assert read == [1]


def test_a_greeting_that_was_overtaken_by_its_successor_s_claim_gives_that() -> None:
    first = member(THEIRS)
    keys = inherit({USE: OTHER.public}, first)
    second = member(OTHER, incarnation=2, public_keys=keys)
    assert trust(second)[0].greeted(first) == second


def test_a_greeting_without_a_claim_in_s3_is_missing() -> None:
    assert trust()[0].greeted(member(THEIRS)) == "missing"


def test_a_forged_greeting_is_none() -> None:
    claim = member(THEIRS)
    made, read = trust(claim)
    forgeries = {
        "signature": replace(claim, resources={"cores": 512}),
        "conflict": member(OTHER),
        "unknown_key": member(OTHER, incarnation=9),
        "key": replace(claim, public_keys={}),
        "run": member(THEIRS, run="another"),
    }
    for reason, greeting in forgeries.items():
        assert made.greeted(greeting) == reason
    assert len(read) == len(forgeries), "one look each, however often somebody greets"


def test_two_claims_of_one_process_do_not_go_together() -> None:
    """Whoever holds the key could say two things; S3 has one."""
    assert trust(member(THEIRS))[0].greeted(member(THEIRS, nonce="m")) == "conflict"
