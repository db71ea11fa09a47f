"""Evidence in commit records: what every peer finds proven, and what nobody does."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from contract.header import Extension, pack_header
from contract.records import MemberRef
from peer_agent.conduct import (
    CONTENT,
    EQUIVOCATION,
    EXCLUDED,
    MAX_EVIDENCE,
    MAX_HEADER_BYTES,
    MAX_OFFENCES,
    accused,
    needed,
    proven,
    proven_ranks,
)
from peer_agent.keyring import Keyring
from tests.fakes.signed_frames import BAD, KEYS, LIMIT, RULES, agreed, blob, conduct, excluded, frame, keyring, never


def three() -> dict[str, Any]:
    judge = conduct()
    for round in range(LIMIT):
        judge.reject("codec", 1, frame(round=round, **BAD["codec"]))
    return excluded(judge)[0]


def test_evidence_cannot_be_padded_bent_or_moved() -> None:
    good = three()
    assert agreed(copy.deepcopy(good))
    one = good["evidence"][0]
    honest = {"reason": "codec", "headers": [pack_header(frame()).hex()]}
    theirs = {"reason": "codec", "headers": [pack_header(frame(rank=2, **BAD["codec"])).hex()]}
    wrong: list[object] = [
        good | {"rank": 2},
        good | {"incarnation": 2},
        good | {"reason": "because"},
        good | {"reason": ""},
        good | {"note": "x"},
        good | {"rank": "1"},
        good | {"evidence": good["evidence"][:-1]},
        good | {"evidence": []},
        good | {"evidence": [*good["evidence"], one]},
        good | {"evidence": [one, one, one]},
        good | {"evidence": list(reversed(good["evidence"]))},
        good | {"evidence": [*good["evidence"][:-1], honest]},
        good | {"evidence": [*good["evidence"][:-1], theirs]},
        good | {"evidence": [*good["evidence"][:-1], one | {"headers": []}]},
        good | {"evidence": [*good["evidence"][:-1], one | {"headers": one["headers"] * 2}]},
        good | {"evidence": [*good["evidence"][:-1], one | {"headers": [one["headers"][0].upper()]}]},
        good | {"evidence": [*good["evidence"][:-1], one | {"headers": [one["headers"][0] + " "]}]},
        good | {"evidence": [*good["evidence"][:-1], one | {"headers": ["zz"]}]},
        {},
        None,
        [good],
        "codec",
        7,
    ]
    for exclusion in wrong:
        assert not agreed(exclusion), exclusion


def test_a_whole_frame_is_no_header() -> None:
    good = three()
    good["evidence"][0]["headers"] = [blob(round=0, **BAD["codec"]).hex()]
    assert not agreed(good)


def test_no_digit_of_the_evidence_can_be_changed() -> None:
    judge = conduct(1)
    judge.reject("codec", 1, frame(**BAD["codec"]))
    (good,) = excluded(judge)
    text = good["evidence"][0]["headers"][0]
    for at, digit in enumerate(text):
        good["evidence"][0]["headers"] = [text[:at] + format(int(digit, 16) ^ 1, "x") + text[at + 1 :]]
        assert not agreed(good, rejections=1), at


def test_evidence_needs_the_signers_key() -> None:
    good, stranger = three(), Keyring("run", 4)
    assert not proven(good, stranger, RULES, LIMIT, never)
    assert stranger.lacks(MemberRef(rank=1, incarnation=1)) is not None


def test_evidence_of_another_run_or_configuration_proves_nothing_here() -> None:
    other = dataclasses.replace(RULES, codec="fp16")
    assert not proven(three(), keyring(), other, LIMIT, never)
    assert not proven(three(), keyring(), RULES, LIMIT + 1, never)
    assert not proven(three(), Keyring("later", 4), dataclasses.replace(RULES, run="later"), LIMIT, never)


def test_the_evidence_of_a_commit_is_bounded() -> None:
    """Eight processes with the longest evidence that there is: a commit record takes one at a time."""
    judge = conduct(1_000)
    padding = (Extension(900, False, bytes(MAX_HEADER_BYTES - 300)),)
    for rank in (2, 0, 1):
        for round in range(MAX_OFFENCES + 5):
            first, second = (frame(rank, round, payload, extensions=padding) for payload in (b"abcd", b"efgh"))
            assert judge.reject("conflict", rank, first, other=second)
    assert needed(1_000) == MAX_OFFENCES
    assert judge.counts[1, EQUIVOCATION] == MAX_OFFENCES + 5
    due = judge.due(range(4))
    assert len(due) == 1
    assert len(json.dumps([exclusion.to_dict() for exclusion in due])) < MAX_EVIDENCE + 2_000
    assert MAX_EVIDENCE <= 262_144
    assert agreed(due[0].to_dict(), rejections=1_000)
    left = judge.due({0, 1, 2} - {due[0].rank})
    assert len(left) == 1
    assert left[0].rank != due[0].rank


def test_a_commit_excludes_whom_it_proves_guilty_and_nobody_else() -> None:
    good = three()
    innocent = good | {"rank": 2}
    for entries in ([good, innocent], [good], [innocent, "x", None, good, good]):
        extensions = {EXCLUDED: entries, "excluded_ranks": [0, 1, 2, 3]}
        assert proven_ranks(extensions, keyring(), RULES, LIMIT, never) == {1}
        assert MemberRef(rank=1, incarnation=1) in accused(extensions)
    for entries in ([innocent], [], None, {"rank": 1}, "all", [[good]]):
        assert proven_ranks({EXCLUDED: entries}, keyring(), RULES, LIMIT, never) == frozenset()
    assert proven_ranks({"stop": "x"}, keyring(), RULES, LIMIT, never) == frozenset()
    assert accused({EXCLUDED: [good, innocent, 3]}) == tuple(MemberRef(rank=r, incarnation=1) for r in (1, 2))


def test_several_small_ones_go_together_in_rank_order() -> None:
    judge = conduct(2)
    for rank in (3, 1):
        for round in (4, 5):
            judge.reject("shape", rank, frame(rank, round, **BAD["shape"]))
    assert [exclusion.rank for exclusion in judge.due(range(4))] == [1, 3]


@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([*BAD, CONTENT, "conflict", "signature", "stale", "run"]),
            st.sampled_from([*BAD, "good", "other"]),
            st.integers(1, 2),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_one_peer_would_commit_all_others_accept(calls: list[tuple[str, str, int, int, bool]]) -> None:
    """Nobody is ever accused by a peer that follows the rules of what the others do not find proven."""
    judge = conduct(2)
    for reason, form, rank, round, forged in calls:
        changes = BAD.get(form, {"payload": b"efgh"} if form == "other" else {})
        header = frame(rank, round, **changes, signer=KEYS[0] if forged else None)
        judge.reject(reason, rank, header, other=frame(rank, round) if reason == "conflict" else None)
    assert sum(judge.counts.values()) == len(calls)
    due = judge.due(range(4))
    for exclusion in due:
        assert agreed(exclusion.to_dict(), lambda header: True, rejections=2)
    guilty = {rank for _, form, rank, _, forged in calls if form != "good" and not forged}
    called_unusable = {rank for reason, _, rank, _, forged in calls if reason == CONTENT and not forged}
    assert {exclusion.rank for exclusion in due} <= guilty | called_unusable


def test_random_bytes_are_never_proof() -> None:
    generator = random.Random(5)  # noqa: S311 - reproducible, not secret
    good = three()
    for _ in range(200):
        form = copy.deepcopy(good)
        part = bytearray.fromhex(form["evidence"][1]["headers"][0])
        for _ in range(generator.randrange(1, 4)):
            part[generator.randrange(len(part))] ^= generator.randrange(1, 256)
        form["evidence"][1]["headers"][0] = part.hex()
        assert not agreed(form) or form == good
