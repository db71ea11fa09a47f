"""Case 6: a stranger with peer 1's account on the broker sends what peer 1 never would; a peer signs what is of no use.

What cannot be proven to be peer 1's is held against nobody: the run ends with all its members.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from contract import wire
from contract.errors import EXIT_SUPERSEDED
from contract.records import Commit, Member, MemberRef, Stop
from contract.signing import SigningKey
from infra.local.cloud import LocalCloud
from tests.chaos.conftest import Prepare
from tests.chaos.faults import Fault, Plan, plan
from tests.chaos.fleet import Fleet
from tests.chaos.rogue import Rogue

ROUND, VICTIM = 3, 1


class Forger:
    """Makes messages out of what lies in S3, which everybody with an account may read."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self._places = fleet, fleet.spec.places
        self._key = SigningKey.generate()

    def frame(self, round: int, rank: int) -> bytes:
        """A genuine one."""
        return self._fleet.store.get(self._places.contribution(round, rank, 1))

    def altered(self) -> bytes:
        """The victim's, with the last bit of its content the other way round."""
        genuine = self.frame(ROUND, VICTIM)
        return genuine[:-1] + bytes([genuine[-1] ^ 1])

    def forged(self, **changes: object) -> bytes:
        """A frame in the victim's name whose digest is right, signed by a key of the forger's own."""
        genuine = wire.decode(self.frame(ROUND, VICTIM), expected_elements=None, expected_buffers_bytes=None)
        header = replace(genuine.header, signature=bytes(64), **changes)  # type: ignore[arg-type]
        return self._key.sign_frame(wire.encode(header, bytes(genuine.payload), bytes(genuine.buffers)))

    def commit(self) -> bytes:
        """Would end the round with the victim's contribution alone."""
        genuine = self._fleet.commits()[ROUND - 1]
        mine = tuple(
            replace(c, key=self._places.contribution(ROUND, VICTIM, 1).key)
            for c in genuine.contributors
            if c.rank == VICTIM
        )
        base = self._fleet.result(ROUND - 1).weights_sha256
        forged = Commit(
            run=genuine.run,
            round=ROUND,
            base_weights={"0": base},
            contributors=mine,
            members=(self._me,),
            writer=self._me,
            nonce="0" * 32,
        )
        return self._key.sign(forged).to_json()

    def result(self) -> bytes:
        """Names the initial weights as those that round 3 led to."""
        genuine = self._fleet.result(ROUND - 1)
        forged = replace(genuine, round=ROUND, weights_sha256=self._fleet.spec.initial_weights, writer=self._me)
        return self._key.sign(forged).to_json()

    def stop(self) -> bytes:
        """Would end the run."""
        forged = Stop(
            run=self._fleet.spec.run, reason="forged", round=ROUND, weights_sha256="", writer=self._me, nonce="0"
        )
        return self._key.sign(forged).to_json()

    def claim(self, rank: int) -> bytes:
        """Would fence the process that holds `rank`."""
        forged = Member(
            run=self._fleet.spec.run,
            rank=rank,
            peer_id="rogue",
            incarnation=99,
            public_keys={"ed25519": self._key.public},
            nonce="0" * 32,
        )
        return self._key.sign(forged).to_json()

    @property
    def _me(self) -> MemberRef:
        return MemberRef(rank=VICTIM, incarnation=1)


def messages(forger: Forger) -> list[tuple[str, str, bytes]]:
    """Reason for which each must be rejected, kind, body. Everybody stands in round 3, and holds peer 1's frame."""
    return [
        ("corrupt", "frame", forger.altered()),
        ("corrupt", "frame", b"PRL1 and then nothing"),
        ("corrupt", "frame", forger.frame(ROUND, VICTIM)[:-7]),
        ("corrupt", "commit", b'{"version": 1}'),
        ("corrupt", "result", b"\xff" * 100),
        ("kind", "poem", b"roses are red"),
        ("signature", "frame", forger.forged(seed=7)),
        ("signature", "frame", forger.forged(samples=1_000_000)),
        ("corrupt", "frame", forger.forged(elements=2**40)),
        ("signature", "frame", wire.header_part(forger.forged(elements=2**40))),
        ("signature", "frame", wire.header_part(forger.forged(round=ROUND + 1, base_round=ROUND + 1))),
        ("run", "frame", forger.forged(run="another")),
        ("unknown_key", "frame", forger.forged(incarnation=99)),
        ("sender", "frame", forger.frame(ROUND, 2)),
        ("stale", "frame", forger.frame(ROUND - 2, VICTIM)),
        ("signature", "commit", forger.commit()),
        ("signature", "result", forger.result()),
        ("signature", "stop", forger.stop()),
        ("sender", "hello", forger.claim(2)),
        ("unknown_key", "hello", forger.claim(VICTIM)),
    ]


def test_a_stranger_with_a_peer_s_account_changes_nothing(
    prepare: Prepare, undisturbed: str, local_cloud: LocalCloud
) -> None:
    fleet = prepare()
    gate = Fault(rank=0, round=ROUND, at="after_compute", do="wait")  # beside the thread that reads messages
    fleet.start(plan(gate))
    fleet.until_struck(gate)
    places = [fleet.spec.places.contribution(ROUND, rank, 1) for rank in (VICTIM, 2, 3)]
    fleet.until(lambda: all(map(fleet.exists, places)), "somebody contributes nothing")

    forger = Forger(fleet)
    sent = messages(forger)
    with Rogue(local_cloud.broker_url, fleet.spec.run, VICTIM) as rogue:
        for _, kind, body in sent:
            rogue.send(kind, body)
    receivers = [0, 2, 3]
    fleet.until(
        lambda: all(len(fleet.events("frame_rejected", rank)) >= len(sent) for rank in receivers),
        "not everything is rejected by everybody",
    )
    assert len(fleet.commits()) == ROUND
    fleet.release(gate)

    reports = fleet.end()
    assert {report.weights_sha256 for report in reports} == {undisturbed}
    expected = Counter(reason for reason, *_ in sent)
    for rank in receivers:
        assert Counter(e["reason"] for e in fleet.events("frame_rejected", rank) if e["sender"] == VICTIM) == expected
        assert reports[rank].frames_rejected == {str(VICTIM): expected}
    assert all([c.rank for c in commit.contributors] == [0, 1, 2, 3] for commit in fleet.commits()[:-1])
    assert not any(commit.extensions for commit in fleet.commits()[:-1])


def test_who_signs_what_nobody_can_use_is_excluded_with_that_as_evidence(prepare: Prepare) -> None:
    """Peer 2 claims to have computed on no sample at all, from round 3 on."""
    liar, others = 2, [0, 1, 3]
    fleet = prepare(trust={"rejections": 1})
    fleet.start(Plan(unusable={liar: ROUND}))
    reports = fleet.end({liar: EXIT_SUPERSEDED})
    assert [report.rank for report in reports] == others
    excluding = [commit for commit in fleet.commits() if commit.extensions.get("excluded")]
    assert [commit.round for commit in excluding] == [ROUND]
    (exclusion,) = excluding[0].extensions["excluded"]
    assert (exclusion["rank"], exclusion["incarnation"], exclusion["reason"]) == (liar, 1, "samples")
    assert [[c.rank for c in commit.contributors] for commit in fleet.commits()[:-1]] == (
        [[0, 1, 2, 3]] * ROUND + [others] * (fleet.spec.rounds_limit - ROUND)
    )
    assert "excludes rank 2" in fleet.process(liar).errors
    assert len({report.weights_sha256 for report in reports}) == 1
    assert all(report.frames_rejected[str(liar)]["samples"] >= 1 for report in reports)
