"""Machines, records and headers for tests of the round's state machine."""

from __future__ import annotations

from typing import Any

from contract.records import Commit, Contributor, Member, MemberRef, Result, Stop
from contract.wire import FrameHeader, Kind
from peer_agent import signals as s
from peer_agent.admission import FrameRules
from peer_agent.outcome import Phase
from peer_agent.round import RoundMachine
from peer_agent.rules import RoundRules

W0, W1, W2 = "0" * 64, "1" * 64, "2" * 64


def member(rank: int, incarnation: int = 1) -> MemberRef:
    return MemberRef(rank=rank, incarnation=incarnation)


def claim(rank: int, incarnation: int = 1) -> Member:
    return Member(run="run", rank=rank, peer_id=f"peer-{rank}", incarnation=incarnation, nonce="n")


def machine(
    rank: int = 0, peers: int = 3, rounds: int = 4, validated: tuple[int, ...] = (), read_by_workers: bool = False
) -> RoundMachine:
    return RoundMachine(
        RoundRules(
            me=member(rank),
            peers=peers,
            rounds=rounds,
            validation=lambda t: t if t in (*validated, rounds) else None,
            key=lambda t, r, i: f"contributions/{t}/{r}-{i}",
            frames=FrameRules(run="run", codec="none", elements=5, buffers_bytes=0),
            read_by_workers=read_by_workers,
        )
    )


def header(rank: int, round: int = 0, base: str = W0, **changes: Any) -> FrameHeader:
    values: dict[str, Any] = {
        "kind": Kind.UPDATE,
        "run": "run",
        "round": round,
        "base_round": round,
        "base_weights": base,
        "rank": rank,
        "incarnation": 1,
        "samples": 10,
        "loss": 0.5,
        "codec": "none",
        "seed": 0,
        "elements": 5,
        "payload_bytes": 20,
        "digest": f"{rank:02}{round:02}" * 16,
    }
    return FrameHeader(**{**values, **changes})


def joined(rank: int = 0, peers: int = 3, **options: Any) -> RoundMachine:
    found = machine(rank, peers, **options)
    found.handle(s.Started())
    found.handle(s.CaughtUp(0, W0, None))
    for other in range(peers):
        if other != rank:
            found.handle(s.MemberSeen(claim(other)))
    assert found.phase is Phase.COLLECTING
    return found


def hold(peer: RoundMachine, *ranks: int, round: int = 0, base: str = W0) -> list[s.Command]:
    return [c for rank in ranks for c in peer.handle(s.ContributionHeld(header(rank, round, base)))]


def commit(round: int = 0, base: str = W0, ranks: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Commit:
    values: dict[str, Any] = {
        "run": "run",
        "round": round,
        "base_weights": {"0": base},
        "contributors": tuple(
            Contributor(
                rank=r, incarnation=1, key=f"contributions/{round}/{r}-1", digest=header(r, round).digest, samples=10
            )
            for r in ranks
        ),
        "members": tuple(member(r) for r in range(3)),
        "writer": member(1),
        "nonce": "n",
    }
    return Commit(**{**values, **changes})


def result(round: int = 0, weights: str = W1) -> Result:
    return Result(run="run", round=round, weights_sha256=weights, bucket="b", key="k", writer=member(1), nonce="n")


def stop(reason: str = "interrupted") -> Stop:
    return Stop(run="run", reason=reason, round=0, weights_sha256="", writer=member(1), nonce="n")


def applied(peer: RoundMachine, round: int = 0, base: str = W0, weights: str = W1, reason: str = "") -> list[s.Command]:
    """Bring `peer` from collecting to applied."""
    hold(peer, 0, 1, 2, round=round, base=base)
    peer.handle(s.CommitFound(commit(round, base)))
    return peer.handle(s.Applied(round, weights, reason))
