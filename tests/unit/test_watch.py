"""From heartbeats and the clock to events: silence, hearsay beyond 16 peers, deadlines, and one's own pauses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from contract.config import MembershipConfig
from contract.records import Heartbeat, MemberRef
from contract.signing import SigningKey
from peer_agent import signals as s
from peer_agent.liveness import watched
from peer_agent.ports import Beat
from peer_agent.watch import Watch


@dataclass
class Air:
    """An exchange's heartbeats, made by hand."""

    up_since: float | None = 0.0
    said: list[bytes] = field(default_factory=list)
    published: list[tuple[int | None, Heartbeat]] = field(default_factory=list)
    waiting: list[Beat] = field(default_factory=list)

    def beat(self, body: bytes) -> None:
        self.said.append(body)

    def beats(self) -> list[Beat]:
        found, self.waiting = self.waiting, []
        return found

    def publish(self, kind: str, body: bytes, to: int | None = None) -> None:
        assert kind == "silent"
        self.published.append((to, Heartbeat.from_json(body)))

    def told(self) -> list[tuple[int | None, tuple[int, ...]]]:
        found, self.published = self.published, []
        return [(to, word.silent) for to, word in found]

    def hear(self, rank: int, at: float, round: int = 0, incarnation: int = 1) -> None:
        word = Heartbeat(run="run", rank=rank, incarnation=incarnation, round=round)
        self.waiting.append(Beat(rank, word.to_json(), at))


@dataclass
class Machine:
    members: tuple[MemberRef, ...]
    round: int = 0
    succession: tuple[int, ...] | None = (30,)
    leaving: bool = False


class Faith:
    """Believes everybody."""

    key = SigningKey.generate()

    def doubt(self, what: object) -> None:
        return None


def watch(peers: int, **options: Any) -> tuple[Watch, Air, Machine]:
    air, me = Air(), MemberRef(rank=0, incarnation=1)
    machine = Machine(tuple(MemberRef(rank=rank, incarnation=1) for rank in range(peers)))
    config = MembershipConfig(**options)
    return Watch("run", me, machine, air, Faith(), config, peers), air, machine  # type: ignore[arg-type]


def silent(found: list[s.Event]) -> list[set[int]]:
    return [set(event.ranks) for event in found if isinstance(event, s.Silent)]


def test_silence_is_told_when_it_changes_and_ends_with_a_word() -> None:
    eye, air, _ = watch(3)
    assert list(eye.events(0.0)) == []
    air.hear(1, 2.0)
    assert list(eye.events(2.0)) == [s.Heard(1, 1, 0)]
    assert silent(list(eye.events(5.5))) == [{2}], "never heard, for as long as it was expected"
    assert silent(list(eye.events(7.5))) == [{1, 2}]
    assert silent(list(eye.events(8.0))) == []
    air.hear(1, 8.2, round=3)
    found = list(eye.events(8.2))
    assert found == [s.Heard(1, 1, 3), s.Silent(frozenset({2}))]


def test_nobody_is_silent_while_the_own_connection_is_down() -> None:
    eye, air, _ = watch(3)
    list(eye.events(0.0))
    air.up_since = None
    assert silent(list(eye.events(60.0))) == []
    air.up_since = 61.0
    assert silent(list(eye.events(61.0))) == []
    assert silent(list(eye.events(65.9))) == []
    assert silent(list(eye.events(66.1))) == [{1, 2}]


def test_a_process_that_stood_still_gives_everyone_their_time_again() -> None:
    eye, _, _ = watch(2)
    assert not eye.paused(0.0)
    list(eye.events(0.0))
    assert eye.paused(9.0)
    assert silent(list(eye.events(9.0))) == []
    assert not eye.paused(9.2)
    assert silent(list(eye.events(14.1))) == [{1}]


def test_a_new_round_is_told_once_and_its_deadline_follows_the_rounds_before() -> None:
    eye, air, machine = watch(2, deadline_floor_seconds=1.0, deadline_ceiling_seconds=50.0)
    now = 0.0
    for _ in range(4):
        for _ in range(4):
            air.hear(1, now, machine.round)
            assert not [e for e in eye.events(now) if isinstance(e, s.RoundDeadline)]
            now += 0.5
        machine.round += 1
    assert [Heartbeat.from_json(body).round for body in air.said] == [0, 1, 2, 3]
    air.hear(1, now)
    list(eye.events(now))
    assert [e for e in eye.events(now + 1.9) if isinstance(e, s.RoundDeadline)] == []
    assert [e for e in eye.events(now + 2.1) if isinstance(e, s.RoundDeadline)] == [s.RoundDeadline(4)]
    assert [e for e in eye.events(now + 2.5) if isinstance(e, s.RoundDeadline)] == []


def test_beyond_sixteen_peers_two_witnesses_are_believed_and_one_is_not() -> None:
    eye, air, _ = watch(40)
    mine = watched(0, range(40))
    unheard = next(rank for rank in range(1, 40) if rank not in mine)

    def everybody(at: float, but: int = -1) -> None:
        for rank in mine:
            if rank != but:
                air.hear(rank, at)

    def says(rank: int, *silent: int) -> None:
        eye.reported(Heartbeat(run="run", rank=rank, incarnation=1, round=0, silent=silent))

    everybody(0.0)
    list(eye.events(0.0))
    says(11, unheard)
    everybody(1.0)
    assert silent(list(eye.events(1.0))) == []
    says(12, unheard)
    assert silent(list(eye.events(1.1))) == [{unheard}]
    says(12)
    assert silent(list(eye.events(1.2))) == [set()]
    says(11, mine[0])
    says(12, mine[0])
    assert silent(list(eye.events(1.3))) == [], "this peer hears it itself"
    everybody(5.9, but=mine[0])
    assert silent(list(eye.events(6.1))) == [{mine[0]}]
    assert air.told() == [(30, (mine[0],))], "and tells the leader"


def hear(eye: Watch, air: Air, at: float, but: int | None = None, peers: int = 40) -> list[s.Event]:
    """Everyone whom rank 0 listens to says something, but for one."""
    for rank in watched(0, range(peers)):
        if rank != but:
            air.hear(rank, at)
    return list(eye.events(at))


def test_a_word_is_taken_back_said_again_to_another_leader_and_in_another_round() -> None:
    eye, air, machine = watch(40)
    gone = watched(0, range(40))[0]
    hear(eye, air, 0.0)
    hear(eye, air, 4.0, but=gone)
    hear(eye, air, 6.0, but=gone)
    hear(eye, air, 7.0, but=gone)
    assert air.told() == [(30, (gone,))], "once"
    machine.succession = (30, 31)  # two others say that 30 is gone
    hear(eye, air, 8.0, but=gone)
    assert air.told() == [(31, (gone,))]
    machine.round, machine.succession = 1, (31,)
    hear(eye, air, 9.0, but=gone)
    assert air.told() == [(31, (gone,))]
    hear(eye, air, 10.0)
    hear(eye, air, 11.0)
    assert air.told() == [(31, ())]
    machine.round, machine.succession = 2, (0,)
    hear(eye, air, 12.0, but=gone)
    assert silent(hear(eye, air, 16.5, but=gone)) == [{gone}]
    assert air.told() == [], "the leader is this peer"


def test_everyone_is_told_where_the_leader_is_silent_or_the_round_lasts_too_long() -> None:
    gone = watched(0, range(40))[0]
    eye, air, machine = watch(40)
    machine.succession = (gone,)
    hear(eye, air, 0.0)
    hear(eye, air, 4.0, but=gone)
    hear(eye, air, 6.0, but=gone)
    machine.succession = (gone, gone + 1)
    hear(eye, air, 6.2, but=gone)
    hear(eye, air, 7.0)
    assert air.told() == [(None, (gone,)), (None, ())]

    eye, air, _ = watch(40, deadline_ceiling_seconds=8.0)
    hear(eye, air, 0.0)
    hear(eye, air, 4.0, but=gone)
    hear(eye, air, 6.0, but=gone)
    assert air.told() == [(30, (gone,))]
    hear(eye, air, 8.1, but=gone)
    hear(eye, air, 8.3, but=gone)
    assert air.told() == [(None, (gone,))]


def test_whoever_is_no_member_says_in_each_round_that_it_is_there_and_the_leader_hears_it() -> None:
    eye, air, machine = watch(40)
    machine.members = machine.members[1:]
    for machine.round in (3, 4):
        hear(eye, air, float(machine.round))
        hear(eye, air, machine.round + 0.5)
    assert [(to, word.round, word.incarnation) for to, word in air.published] == [(30, 3, 1), (30, 4, 1)]
    eye, air, _ = watch(40)
    far = next(rank for rank in range(1, 40) if rank not in watched(0, range(40)))
    eye.reported(Heartbeat(run="run", rank=far, incarnation=2, round=5))
    assert s.Heard(far, 2, 5) in list(eye.events(0.0))


def test_what_was_said_in_an_earlier_round_holds_no_more() -> None:
    eye, air, machine = watch(40)
    far = next(rank for rank in range(1, 40) if rank not in watched(0, range(40)))
    hear(eye, air, 0.0)
    for rank in (11, 12):
        eye.reported(Heartbeat(run="run", rank=rank, incarnation=1, round=1, silent=(far,)))
    assert silent(hear(eye, air, 1.0)) == [{far}], "ahead of this peer"
    machine.round = 1
    assert silent(hear(eye, air, 2.0)) == []
    machine.round = 2
    assert silent(hear(eye, air, 3.0)) == [set()]


def test_nobody_is_told_anything_where_everyone_hears_everyone_or_nobody_leads() -> None:
    for peers, succession in ((3, (1,)), (40, ())):
        eye, air, machine = watch(peers)
        machine.succession = succession
        machine.members = machine.members[1:]
        list(eye.events(0.0))
        assert silent(list(eye.events(6.0)))
        assert air.told() == []


@pytest.mark.parametrize("body", [b"", b"{}", b"nonsense"])
def test_garbage_says_nothing(body: bytes) -> None:
    eye, air, _ = watch(2)
    air.waiting.append(Beat(1, body, 0.0))
    assert list(eye.events(0.0)) == []
    assert silent(list(eye.events(5.1))) == [{1}]


def test_where_nobody_leads_everyone_is_told_once_and_it_holds_until_it_is_taken_back() -> None:
    """Asynchronous mode."""
    eye, air, machine = watch(40)
    machine.succession = None
    gone, far = watched(0, range(40))[0], next(r for r in range(1, 40) if r not in watched(0, range(40)))
    hear(eye, air, 0.0)
    for rank in (11, 12):
        eye.reported(Heartbeat(run="run", rank=rank, incarnation=1, round=0, silent=(far,)))
    assert silent(hear(eye, air, 4.0, but=gone)) == [{far}]
    for machine.round in (1, 2, 3):
        hear(eye, air, 6.0 + machine.round, but=gone)
    assert air.told() == [(None, (gone,))]
    hear(eye, air, 10.0)
    assert air.told() == [(None, ())]
    eye.reported(Heartbeat(run="run", rank=11, incarnation=1, round=0))
    assert silent(hear(eye, air, 11.0)) == [set()]


def test_whoever_wants_to_go_tells_the_leader() -> None:
    eye, air, machine = watch(40)
    hear(eye, air, 0.0)
    machine.leaving = True
    hear(eye, air, 1.0)
    hear(eye, air, 2.0)
    assert [(to, word.leaving) for to, word in air.published] == [(30, True)]
    far = next(r for r in range(1, 40) if r not in watched(0, range(40)))
    eye.reported(Heartbeat(run="run", rank=far, incarnation=1, round=0, leaving=True))
    assert s.Heard(far, 1, 0, leaving=True) in list(eye.events(3.0))
