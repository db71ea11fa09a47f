"""Synchronous runs with peers that are missing, doubled or different, and messages that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import CorruptObject, GradientFailed, ObjectMissing, RunFailed, Superseded
from contract.records import Result, Stop
from contract.signing import SigningKey
from contract.wire import decode_header
from peer_agent import membership
from peer_agent import signals as s
from peer_agent.background import Finished
from peer_agent.keyring import USE
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events, exchange, play

# ----------------------------------------------------------------------------------------- who is missing, and claims


def test_a_peer_that_never_starts_is_named() -> None:
    cast = Cast(configuration(), (24, 24, 12))
    place = cast.spec.places.member(2)
    cast.store.delete([place])
    silent = cast.peers.pop()
    cast.play()
    assert any("peer 2 did not arrive within 20 s" in str(p.error) for p in cast.peers)
    assert all(isinstance(p.error, RunFailed) for p in cast.peers)
    silent.actions.close()
    cast.close()


def test_a_peer_that_falls_silent_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    cast = Cast(configuration(), (24, 24, 12), events=tmp_path / "events.jsonl")

    def each(turn: int) -> None:
        if turn == 4:
            cast.memory_broker.silence(2)
            cast.peers[2].error = RunFailed("never stepped again")

    cast.play(each_turn=each)
    reports = [cast.peers[rank].report for rank in (0, 1)]
    assert [report.reason for report in reports if report] == ["epoch_limit"] * 2
    assert len({report.weights_sha256 for report in reports if report}) == 1
    dropped = {(e["round"], e["member"], e["reason"]) for e in events(tmp_path) if e["event"] == "member_dropped"}
    ((round, member, reason),) = dropped
    assert (member, reason) == (2, "silent")
    listed = [[c.rank for c in commit.contributors] for commit in commits(cast)]
    assert listed == [[0, 1, 2]] * round + [[0, 1]] * (9 - round) + [[]]
    cast.close()


def test_a_rank_is_claimed_once_and_the_same_identity_takes_it_over() -> None:
    cast = Cast(configuration(), (24, 24, 12))
    with pytest.raises(Superseded, match="rank 1 of run trial is held by 'peer-1'"):
        cast.claim(1, "somebody-else")
    assert cast.claim(1, "peer-1").incarnation == membership.FIRST_INCARNATION + 1
    cast.close()


def test_a_process_whose_rank_is_taken_over_before_the_start_stops_and_its_successor_trains() -> None:
    cast = Cast(configuration(), (24, 24, 12))
    first = cast.peers[1]
    cast.advance(1, first.runner.start)
    cast.peers[1] = cast.add(1, "peer-1")
    cast.play()
    assert [(r.reason, r.rank, r.incarnation) for r in cast.reports()] == [
        ("epoch_limit", 0, 1),
        ("epoch_limit", 1, 2),
        ("epoch_limit", 2, 1),
    ]
    first.actions.close()
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_of_two_processes_with_one_rank_one_trains_and_the_other_stops(turn: int, broker: bool) -> None:
    """The first one goes on as if nothing had happened, as a process does that was stopped and continued."""
    cast = Cast(configuration(), (24, 24, 12), broker=broker)

    def take_over(now: int) -> None:
        if now == turn:
            cast.peers.append(cast.add(1, "peer-1"))
            cast.advance(3, cast.peers[3].runner.start)

    cast.play(each_turn=take_over)
    twins = [cast.peers[1], cast.peers[3]]
    assert sorted(type(twin.error) for twin in twins if twin.error) == [Superseded]
    (kept,) = (twin.report for twin in twins if twin.report)
    assert kept is not None
    assert {(r.reason, r.weights_sha256) for r in cast.reports()} == {("epoch_limit", kept.weights_sha256)}
    seats = [ref.incarnation for c in commits(cast) for ref in c.members if ref.rank == 1]
    assert seats == sorted(seats), "never back to the one before"
    assert seats[-1] == kept.incarnation
    cast.close()


def test_a_restart_that_finds_its_own_bytes_uses_them() -> None:
    cast = Cast(configuration(exchange=exchange(codec="qsgd4")), (24, 24, 12))
    plain = play(configuration(exchange=exchange(codec="qsgd4")))
    contributions = cast.peers[0].actions.contributions
    create = cast.store.create

    def lose_the_answer(place: Any, data: Any) -> Any:
        stored = create(place, data)
        return None if "contributions/000002/0000" in place.key else stored

    cast.store.create = lose_the_answer  # type: ignore[method-assign]
    cast.play()
    assert {r.weights_sha256 for r in cast.reports()} == {plain.reports()[0].weights_sha256}
    assert contributions.raw_bytes == 9 * 51 * 4
    cast.close()


# ---------------------------------------------------------------------------------------------- what does not fit


def test_a_peer_that_computes_differently_adopts_the_recorded_weights(tmp_path: Path) -> None:
    cast = Cast(configuration(), (24, 24, 12), events=tmp_path / "events.jsonl")
    update = cast.peers[2].actions.update
    step = update.step

    def other_arithmetic(headers: Any, frames: Any) -> str:
        step(headers, frames)
        update.adopt(np.nextafter(update.flat, np.float32(9)), update.buffers)
        return update.weights_sha256

    update.step = other_arithmetic  # type: ignore[method-assign]
    cast.play()
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    adopted = [e for e in events(tmp_path) if e["event"] == "weights_adopted"]
    # The results whose turn is rank 2's are the differing ones: then the two others adopt.
    assert sorted((e["round"], e["rank"]) for e in adopted) == sorted(
        (t, rank) for t in range(9) for rank in ((0, 1) if (t + 1) % 3 == 2 else (2,))
    )
    assert all(e["own_weights"] != e["recorded_weights"] for e in adopted)
    cast.close()


def test_damaged_and_foreign_messages_are_counted_and_harmless() -> None:
    plain = play().reports()[0].weights_sha256
    cast = Cast(configuration(), (24, 24, 12))

    replayed: list[int] = []

    def each(turn: int) -> None:
        if turn == 2:
            cast.peers[1].exchange.inner.publish("frame", b"nonsense")
            cast.peers[1].exchange.inner.publish("commit", b"{}")
            cast.peers[1].exchange.inner.publish("gossip", b"who knows")
            foreign = Stop(
                run="another", reason="mischief", round=0, weights_sha256="", writer=cast.peers[1].actions.me, nonce="n"
            )
            cast.peers[1].exchange.inner.publish("stop", foreign.to_json())
        if not replayed and min(peer.runner.machine.round for peer in cast.peers) == 2:
            replayed.append(turn)
            cast.peers[0].exchange.inner.publish("frame", cast.store.get(cast.spec.places.contribution(0, 0, 1)))

    cast.play(each_turn=each)
    reports = cast.reports()
    assert {r.weights_sha256 for r in reports} == {plain}
    assert [r.frames_rejected.get("1", {}).get("corrupt", 0) for r in reports] == [2, 0, 2]
    assert [r.frames_rejected.get("1", {}).get("kind", 0) for r in reports] == [1, 0, 1]
    assert [r.frames_rejected.get("1", {}).get("run", 0) for r in reports] == [1, 0, 1]
    assert [r.frames_rejected.get("0", {}).get("stale", 0) for r in reports] == [0, 1, 1]
    cast.close()


def test_nobody_speaks_in_another_s_name() -> None:
    """A claim on peer 2's rank that would stop it, and its frame and a commit: all of them announced by peer 1."""
    plain = play().reports()[0].weights_sha256
    cast = Cast(configuration(), (24, 24, 12))
    forged: list[int] = []

    def each(turn: int) -> None:
        if not forged and min(peer.runner.machine.round for peer in cast.peers) == 2:
            forged.append(turn)
            claim = replace(cast.peers[2].actions.member, incarnation=9, nonce="n")
            cast.peers[1].exchange.inner.publish("hello", claim.to_json())
            cast.peers[1].exchange.inner.publish("frame", cast.store.get(cast.spec.places.contribution(1, 2, 1)))
            other = next(c for c in commits(cast) if c.writer.rank == 2)
            cast.peers[1].exchange.inner.publish("commit", other.to_json())

    cast.play(each_turn=each)
    assert {r.weights_sha256 for r in cast.reports()} == {plain}
    assert [r.frames_rejected for r in cast.reports()] == [{"1": {"sender": 3}}, {}, {"1": {"sender": 3}}]
    cast.close()


def test_a_forged_greeting_is_counted_under_whoever_sent_it(tmp_path: Path) -> None:
    """Peer 1's own exchange is the way; the claims in S3 are what counts."""
    plain = play().reports()[0].weights_sha256
    cast = Cast(configuration(), (24, 24, 12), events=tmp_path / "events.jsonl")
    forged: list[int] = []

    def each(turn: int) -> None:
        if not forged and min(peer.runner.machine.round for peer in cast.peers) == 2:
            forged.append(turn)
            genuine, stranger = cast.peers[1].actions.member, SigningKey.generate()
            others = replace(genuine, public_keys={USE: stranger.public}, nonce="n", signature="")
            greetings = (
                replace(genuine, resources={"cores": 512}),  # altered
                stranger.sign(others),  # in its place
                stranger.sign(replace(others, incarnation=9)),  # after it
                genuine,
            )
            for greeting in greetings:
                cast.peers[1].exchange.inner.publish("hello", greeting.to_json())

    cast.play(each_turn=each)
    counted = {"signature": 1, "conflict": 1, "unknown_key": 1}
    assert [r.frames_rejected for r in cast.reports()] == [{"1": counted}, {}, {"1": counted}]
    assert {r.weights_sha256 for r in cast.reports()} == {plain}
    told = [(e["rank"], e["sender"], e["reason"]) for e in events(tmp_path) if e["event"] == "frame_rejected"]
    assert sorted(told) == sorted((rank, 1, reason) for rank in (0, 2) for reason in counted)
    cast.close()


def test_an_announcement_that_says_other_than_the_frame_in_s3_is_rejected() -> None:
    """A header alone is unchecked: its samples, say, would become the weight in the mean."""
    config = configuration(exchange=exchange(codec="none", inline_bytes=0))
    cast = Cast(config, (24, 24, 12))
    honest = cast.peers[2].exchange.inner
    publish = honest.publish

    def exaggerate(kind: str, body: bytes, to: int | None = None) -> None:
        if kind == "frame" and decode_header(body).round in (1, 2):
            samples_at = 40  # contract/wire.py
            publish(kind, body[:samples_at] + (9).to_bytes(8, "little") + body[samples_at + 8 :])
        publish(kind, body, to)

    honest.publish = exaggerate  # type: ignore[method-assign]
    cast.play()
    assert {r.weights_sha256 for r in cast.reports()} == {play(config).reports()[0].weights_sha256}
    assert [r.frames_rejected for r in cast.reports()] == [{"2": {"signature": 2}}] * 2 + [{}]
    cast.close()


def test_what_a_commit_lists_must_be_what_s3_holds() -> None:
    cast = play()
    contributions = cast.peers[0].actions.contributions
    (listed,) = (c for c in commits(cast)[8].contributors if c.rank == 2)
    with pytest.raises(CorruptObject, match="not the contribution that commit 8 describes"):
        contributions.fetch(replace(listed, samples=listed.samples + 1), 8)
    with pytest.raises(CorruptObject, match="digest"):
        contributions.fetch(replace(listed, digest="0" * 64), 8)
    with pytest.raises(CorruptObject, match="belongs"):
        contributions.fetch(replace(listed, rank=1), 8)


def test_weights_that_were_not_recorded_do_not_stay_in_storage() -> None:
    cast = play()
    actions = cast.peers[0].actions
    recorded = Result.from_json(cast.store.get(cast.spec.places.result(8)))
    actions.update.adopt(np.nextafter(actions.update.flat, np.float32(9)), actions.update.buffers)
    own = actions.update.weights_sha256
    before = cast.keys("weights/")
    assert list(actions.execute(s.WriteResult(8, own, store=True))) == [s.ResultFound(recorded)]
    assert own not in before
    assert cast.keys("weights/") == before


def test_a_computation_that_fails_after_the_end_fails_nobody() -> None:
    cast = Cast(configuration(), (24, 24, 12))
    runner = cast.peers[0].runner
    runner.start()
    stop = Stop(
        run="trial", reason="interrupted", round=0, weights_sha256="", writer=cast.peers[1].actions.me, nonce="n"
    )
    runner.ports.background.finished = lambda timeout_seconds: [  # type: ignore[method-assign]
        Finished(lambda value: [s.StopFound(stop)]),
        Finished(lambda value: [], error=GradientFailed("too late to matter")),
    ]
    runner.step()
    assert (runner.ended, runner.reason) == (True, "interrupted")
    cast.close()


def test_peers_that_end_in_order_leave_no_inbox_behind() -> None:
    assert play().memory_broker.inboxes == {}
    cast = Cast(configuration(), (24, 24, 12))
    cast.peers[2].gradients.fails_in_round = 4
    cast.play()
    assert set(cast.memory_broker.inboxes) == {2}, "a successor of the one that failed may still come"
    cast.close()


def test_an_announced_frame_that_s3_does_not_hold_is_rejected_and_found_later() -> None:
    cast = Cast(configuration(exchange=exchange(codec="none", inline_bytes=0)), (24, 24, 12))
    failures = 0
    get = cast.store.get

    def late(place: Any, most: int | None = None) -> bytes:
        nonlocal failures
        if "contributions/000001/0002" in place.key and failures < 2:
            failures += 1
            raise ObjectMissing(f"{place} does not exist")
        return get(place, most)

    cast.store.get = late  # type: ignore[method-assign]
    cast.play()
    assert failures == 2
    assert sum(r.rejected("missing") for r in cast.reports()) == 2
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    cast.close()
