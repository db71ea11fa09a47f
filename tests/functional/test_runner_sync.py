"""Whole synchronous runs over an object store and a broker in memory: stepped, with virtual time.

The weights of rank r are pulled towards the point r (QuadraticGradients), so every expectation is a formula: with SGD
without momentum and learning rate a, W' = W - a (W - m), where m is the mean of the ranks weighted by samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import wire
from contract.config import RunConfig
from contract.errors import CorruptObject, GradientFailed, ObjectMissing, RunFailed, Superseded
from contract.records import Commit, Result, Stop
from contract.tensors import decode_weights
from contract.wire import decode_header
from peer_agent import membership
from peer_agent import signals as s
from peer_agent.background import Finished
from peer_agent.ports import Delivery
from tests.fakes.peers import Cast, Peer, QuadraticGradients, TorchGradients

LR = 0.25


def configuration(**changes: Any) -> RunConfig:
    values: dict[str, Any] = {
        "peers": 3,
        "epochs": 3,
        "batch_size": 8,
        "batches_per_round": 1,
        "optimizer": {"lr": LR, "momentum": 0.0},
        "exchange": {
            "codec": "none",
            "poll_seconds": 1.0,
            "round_timeout_seconds": 30.0,
            "start_timeout_seconds": 20.0,
        },
        "compute": {"service": "local"},
    }
    return RunConfig.model_validate({**values, **changes})


def exchange(**changes: Any) -> dict[str, Any]:
    return {**configuration().exchange.model_dump(), **changes}


def play(config: RunConfig | None = None, samples: tuple[int, ...] = (24, 24, 12), **options: Any) -> Cast:
    cast = Cast(config or configuration(), samples, **options)
    cast.play()
    cast.close()
    return cast


def weights(cast: Cast, sha256: str) -> np.ndarray:
    layout = cast.peers[0].actions.layout
    return decode_weights(layout, cast.store.get(cast.spec.places.weights(sha256)), sha256)[0]


def commits(cast: Cast) -> list[Commit]:
    return [Commit.from_json(cast.store.get(cast.spec.places.commit(t))) for t in range(len(cast.keys("commits/")))]


def test_three_peers_end_with_the_weighted_mean_and_the_same_weights() -> None:
    cast = play()
    reports = cast.reports()
    assert [(r.rounds, r.epochs, r.reason, r.error) for r in reports] == [(9, 3, "epoch_limit", None)] * 3
    assert len({r.weights_sha256 for r in reports}) == 1
    assert len({r.model_sha256 for r in reports}) == 1

    # Batches of rank 2 (12 samples) have 8 and 4 samples, but its gradients stand for 12 each time.
    start = weights(cast, cast.spec.initial_weights)
    target = (0 * 24 + 1 * 24 + 2 * 12) / 60
    expected = target + (start - target) * (1 - LR) ** 9
    np.testing.assert_allclose(weights(cast, reports[0].weights_sha256), expected, rtol=0, atol=9 * 2e-7)


def test_every_round_has_one_commit_and_one_result_and_the_last_commit_closes() -> None:
    cast = play()
    records = commits(cast)
    assert [c.final for c in records] == [False] * 9 + [True]
    assert [[x.rank for x in c.contributors] for c in records] == [[0, 1, 2]] * 9 + [[]]
    assert [c.writer.rank for c in records[:9]] == [(t + 1) % 3 for t in range(9)]
    results = [Result.from_json(cast.store.get(cast.spec.places.result(t))) for t in range(9)]
    assert len(cast.keys("results/")) == 9
    assert [c.base_weights["0"] for c in records[1:]] == [r.weights_sha256 for r in results]


def test_each_epoch_and_the_end_are_validated_in_turn_and_decided_alike() -> None:
    cast = play()
    validated = [c.round for c in commits(cast) if c.validation_loss is not None]
    assert validated == [3, 6, 9]
    assert [len([s for s in p.metrics.entered if s[0] == "convergence"]) for p in cast.peers] == [1, 1, 1]
    losses = {c.base_weights["0"]: c.validation_loss for c in commits(cast) if c.validation_loss is not None}
    for report in cast.reports():
        assert report.best_validation_loss == min(losses.values())
        assert losses[report.model_sha256] == min(losses.values())


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    config = configuration(exchange=exchange(codec="qsgd4"))
    first, second = play(config).reports(), play(config).reports()
    assert first[0].weights_sha256 == second[0].weights_sha256
    other = play(config.model_copy(update={"seed": 2})).reports()
    assert other[0].weights_sha256 != first[0].weights_sha256


def test_the_rounding_differs_between_peers_and_rounds_but_not_between_runs() -> None:
    def seeds(cast: Cast) -> list[int]:
        places = [cast.spec.places.contribution(t, rank, 1) for t in (7, 8) for rank in range(3)]
        return [decode_header(cast.store.get(place)).seed for place in places]

    config = configuration(exchange=exchange(codec="qsgd4"))
    first = seeds(play(config))
    assert len(set(first)) == 6
    assert seeds(play(config)) == first
    assert not set(first) & set(seeds(play(config.model_copy(update={"seed": 2}))))


def test_peers_in_threads_end_with_the_weights_of_the_stepped_run() -> None:
    cast = Cast(configuration(), (24, 24, 12), threads=True)
    cast.play_in_threads()
    assert [peer.error for peer in cast.peers] == [None] * 3
    assert {r.weights_sha256 for r in cast.reports()} == {play().reports()[0].weights_sha256}


def test_messages_that_come_twice_or_in_another_order_change_nothing() -> None:
    plain = play().reports()[0].weights_sha256
    cast = Cast(configuration(), (24, 24, 12))
    for peer in cast.peers:
        peer.exchange.twice = True
    cast.play(order=lambda turn: [(2, 1, 0), (1, 2), (0, 2, 1)][turn % 3])
    assert {r.weights_sha256 for r in cast.reports()} == {plain}
    cast.close()


@pytest.mark.parametrize("kind", ["hello", "frame", "commit", "result"])
def test_a_lost_message_costs_time_and_nothing_else(kind: str) -> None:
    plain = play()
    cast = Cast(configuration(), (24, 24, 12))
    for peer in cast.peers:
        peer.exchange.loses = lambda sent, _: sent == kind
    cast.play()
    assert {r.weights_sha256 for r in cast.reports()} == {plain.reports()[0].weights_sha256}
    assert cast.clock.monotonic() > plain.clock.monotonic()
    cast.close()


def test_s3_alone_carries_a_run_to_the_same_weights() -> None:
    cast = play(broker=False)
    assert {r.weights_sha256 for r in cast.reports()} == {play().reports()[0].weights_sha256}
    assert all(peer.exchange.counts.messages_received == 0 for peer in cast.peers)


def test_s3_alone_carries_early_stopping_and_claim_checks_too() -> None:
    config = configuration(
        epochs=40, validate_every=2, early_stopping={"patience": 2}, optimizer={"lr": 0.9},
        exchange=exchange(codec="qsgd4", inline_bytes=0),
    )  # fmt: skip
    with_messages, alone = play(config), play(config, broker=False)
    for cast in (with_messages, alone):
        assert {r.reason for r in cast.reports()} == {"early_stopping"}
        assert len({(r.rounds, r.weights_sha256, r.model_sha256) for r in cast.reports()}) == 1
        assert all(r.frames_rejected == {} for r in cast.reports())
    assert alone.reports()[0].weights_sha256 == with_messages.reports()[0].weights_sha256
    assert alone.reports()[0].model_sha256 == with_messages.reports()[0].model_sha256


def test_frames_found_in_s3_are_spooled_one_by_one() -> None:
    """Memory must not grow with the number of peers (invariant 12)."""
    cast = Cast(configuration(peers=6), (24,) * 6, broker=False)
    contributions = cast.peers[0].actions.contributions
    find, keep = contributions.find, contributions.keep
    calls: list[str] = []

    def finding(round: int, member: Any) -> Any:
        found = find(round, member)
        calls.extend(["find"] if found else [])
        return found

    def keeping(header: Any, frame: bytes) -> int:
        calls.append("keep")
        return keep(header, frame)

    contributions.find = finding  # type: ignore[method-assign]
    contributions.keep = keeping  # type: ignore[method-assign]
    cast.play()
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    assert calls == ["find", "keep"] * (len(calls) // 2)
    assert len(calls) > 9
    cast.close()


def test_large_frames_travel_by_claim_check_to_the_same_weights() -> None:
    inline = play()
    claimed = play(configuration(exchange=exchange(codec="none", inline_bytes=0)))
    assert claimed.reports()[0].weights_sha256 == inline.reports()[0].weights_sha256
    assert all(r.frames_rejected == {} for r in claimed.reports())
    assert claimed.clock.monotonic() == inline.clock.monotonic()
    frame_bytes = 51 * 4  # parameters of the model, as float32
    assert (
        claimed.peers[0].exchange.counts.bytes_sent <= inline.peers[0].exchange.counts.bytes_sent - 9 * 2 * frame_bytes
    )


def test_one_peer_alone_trains() -> None:
    cast = play(configuration(peers=1), (24,))
    assert [(r.rounds, r.reason) for r in cast.reports()] == [(9, "epoch_limit")]


def test_a_message_is_acknowledged_once_its_effect_is_durable() -> None:
    cast = Cast(configuration(), (24, 24, 12))
    acknowledged: list[str] = []

    def watch(peer: Peer) -> None:
        acknowledge = peer.exchange.acknowledge

        def watched(delivery: Delivery) -> None:
            acknowledged.append(delivery.kind)
            if delivery.kind == "frame":
                header = decode_header(delivery.body)
                if header.round >= peer.runner.machine.round:
                    assert (
                        wire.decode(
                            peer.actions.spool.read(header), expected_elements=51, expected_buffers_bytes=0
                        ).header
                        == header
                    )
            acknowledge(delivery)

        peer.exchange.acknowledge = watched  # type: ignore[method-assign]

    for peer in cast.peers:
        watch(peer)
    cast.play()
    assert [peer.error for peer in cast.peers] == [None] * 3
    assert acknowledged.count("frame") == 9 * 3 * 2
    assert len(acknowledged) == sum(peer.exchange.counts.messages_received for peer in cast.peers)
    cast.close()


def test_storage_stays_bounded() -> None:
    cast = play(configuration(epochs=8))
    assert cast.store.counts.deletes <= 2 * 24  # by the round's result writer alone, weights and contributions
    assert len({key.split("/")[0] for key in cast.keys("contributions/")}) == 2
    report = cast.reports()[0]
    kept = set(cast.keys("weights/"))
    assert {cast.spec.initial_weights, report.weights_sha256, report.model_sha256} <= kept
    assert len(kept) <= 5


def test_the_figures_of_a_report_are_counted() -> None:
    cast = play()
    for rank, (report, peer) in enumerate(zip(cast.reports(), cast.peers, strict=True)):
        assert report.rank == rank
        assert (report.lambda_invocations, report.state_machine_executions) == (9, 9)
        assert report.gradient_bytes_raw == 9 * 51 * 4
        assert 9 * 51 * 4 < report.gradient_bytes_encoded < 9 * (51 * 4 + 400)
        assert report.bytes_sent >= peer.exchange.counts.bytes_sent > 0
        assert report.frames_rejected == {}
        assert set(report.stages) >= {"compute", "send", "receive", "update"}
        assert report.stages["receive"]["bytes_in"] >= 9 * 2 * 51 * 4


# ------------------------------------------------------------------------------------------------ how a run ends


def test_early_stopping_ends_all_at_the_same_round_with_the_best_weights() -> None:
    # The points pull the weights away from anything useful, so the validation loss only rises.
    config = configuration(epochs=40, validate_every=1, early_stopping={"patience": 2}, optimizer={"lr": 0.9})
    cast = play(config)
    reports = cast.reports()
    assert {r.reason for r in reports} == {"early_stopping"}
    assert len({(r.rounds, r.weights_sha256, r.model_sha256) for r in reports}) == 1
    losses = [c.validation_loss for c in commits(cast) if c.validation_loss is not None]
    assert reports[0].best_validation_loss == min(losses)
    assert reports[0].rounds == len(commits(cast))  # the update of the commit that decided it still applied
    assert weights(cast, reports[0].model_sha256).shape == (51,)


def test_a_plateau_lowers_the_learning_rate_for_all(tmp_path: Path) -> None:
    scheduler = {"factor": 0.5, "patience": 0, "min_lr": 1e-4}
    config = configuration(
        epochs=8, validate_every=1, early_stopping={"patience": 0}, scheduler=scheduler, optimizer={"lr": 0.9}
    )
    cast = play(config, events=tmp_path / "events.jsonl")
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    reduced = [e for e in events(tmp_path) if e["event"] == "lr_reduced"]
    assert reduced
    assert reduced[0]["lr"] == 0.45
    by_rank = [[(e["round"], e["lr"]) for e in reduced if e["rank"] == rank] for rank in range(3)]
    assert by_rank[0] == by_rank[1] == by_rank[2]


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("turn", [0, 1, 2, 5, 9])
def test_an_interrupt_ends_all_after_the_same_round(turn: int, broker: bool) -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 12), broker=broker)

    def interrupt(now: int) -> None:
        if now == turn:
            cast.peers[1].runner.request_end("interrupted")

    cast.play(each_turn=interrupt)
    reports = cast.reports()
    assert {r.reason for r in reports} == {"interrupted"}
    assert len({(r.rounds, r.weights_sha256, r.model_sha256) for r in reports}) == 1
    assert reports[0].rounds < 20
    assert weights(cast, reports[0].model_sha256).shape == (51,)
    assert Stop.from_json(cast.store.get(cast.spec.places.stop())).writer.rank == 1
    cast.close()


def test_when_all_are_interrupted_at_once_they_end_together() -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 12))

    def interrupt(now: int) -> None:
        if now == 4:
            for peer in cast.peers:
                peer.runner.request_end("interrupted")

    cast.play(each_turn=interrupt)
    assert len({(r.rounds, r.weights_sha256, r.reason) for r in cast.reports()}) == 1
    cast.close()


def test_nobody_waits_for_a_computation_once_the_end_is_wanted() -> None:
    cast = Cast(configuration(epochs=50), (24, 24, 12))
    interrupted_at = 0.0

    def interrupt(now: int) -> None:
        nonlocal interrupted_at
        if now == 6:
            cast.peers[0].runner.request_end("interrupted")
            interrupted_at = cast.clock.monotonic()

    # From turn 6 on peer 2 answers messages, but its gradient never comes.
    real = cast.peers[2].runner.ports.background.finished
    turn = 0

    def stuck(timeout_seconds: float) -> list[Any]:
        return real(timeout_seconds) if turn < 6 else []

    def each(now: int) -> None:
        nonlocal turn
        turn = now
        interrupt(now)

    cast.peers[2].runner.ports.background.finished = stuck  # type: ignore[method-assign]
    cast.play(each_turn=each)
    assert len({(r.rounds, r.weights_sha256, r.reason) for r in cast.reports()}) == 1
    assert cast.clock.monotonic() - interrupted_at < 5
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
def test_a_failed_gradient_ends_all_with_its_cause(broker: bool) -> None:
    cast = Cast(configuration(), (24, 24, 12), broker=broker)
    cast.peers[2].gradients.fails_in_round = 4
    cast.play()
    assert isinstance(cast.peers[2].error, GradientFailed)
    for rank in (0, 1):
        error = cast.peers[rank].error
        assert isinstance(error, RunFailed)
        assert str(error).startswith("peer 2: batch")
    reports = cast.reports()
    assert [r.reason for r in reports] == ["failed"] * 3
    assert all("round 4 failed" in (r.error or "") for r in reports)
    assert {r.rounds for r in reports} == {4}
    assert len({r.weights_sha256 for r in reports}) == 1
    cast.close()


def test_a_bug_is_reported_like_a_failure() -> None:
    class Broken(QuadraticGradients):
        def compute(self, **_: Any) -> Any:
            raise ZeroDivisionError("division by zero")

    cast = Cast(configuration(), (24, 24, 12), gradients=lambda spec, store, rank: Broken(rank, 24, 51))
    cast.play()
    assert {type(p.error) for p in cast.peers} <= {ZeroDivisionError, RunFailed}
    assert any("ZeroDivisionError: division by zero" in (r.error or "") for r in cast.reports())
    cast.close()


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


def test_a_peer_that_falls_silent_is_named_after_the_round_timeout() -> None:
    cast = Cast(configuration(), (24, 24, 12))

    def order(turn: int) -> Sequence[int]:
        return (0, 1, 2) if turn < 4 else (0, 1)

    def each(turn: int) -> None:
        if cast.peers[0].error and cast.peers[1].error:
            cast.peers[2].error = RunFailed("never stepped again")

    cast.play(order=order, each_turn=each)
    texts = [str(cast.peers[rank].error) for rank in (0, 1)]
    assert any("nothing from peer 2 for 30 s" in text for text in texts), texts
    assert all("peer 2" in text for text in texts)
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
    assert {ref for c in commits(cast) for ref in c.members if ref.rank == 1} == {
        membership.MemberRef(rank=1, incarnation=kept.incarnation)
    }
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
    broker = cast.memory_broker

    replayed: list[int] = []

    def each(turn: int) -> None:
        if turn == 2:
            broker.put(1, "frame", b"nonsense")
            broker.put(1, "commit", b"{}")
            broker.put(1, "gossip", b"who knows")
            foreign = Stop(
                run="another", reason="mischief", round=0, weights_sha256="", writer=cast.peers[1].actions.me, nonce="n"
            )
            broker.put(1, "stop", foreign.to_json())
        if not replayed and min(peer.runner.machine.round for peer in cast.peers) == 2:
            replayed.append(turn)
            broker.put(0, "frame", cast.store.get(cast.spec.places.contribution(0, 0, 1)))

    cast.play(each_turn=each)
    reports = cast.reports()
    assert {r.weights_sha256 for r in reports} == {plain}
    assert [r.frames_rejected.get("corrupt", 0) for r in reports] == [2, 0, 2]
    assert [r.frames_rejected.get("kind", 0) for r in reports] == [1, 0, 1]
    assert [r.frames_rejected.get("run", 0) for r in reports] == [1, 0, 1]
    assert [r.frames_rejected.get("stale", 0) for r in reports] == [0, 1, 1]
    cast.close()


def test_an_announcement_that_says_other_than_the_frame_in_s3_is_rejected() -> None:
    """A header alone is unchecked: its samples, say, would become the weight in the mean."""
    config = configuration(exchange=exchange(codec="none", inline_bytes=0))
    cast = Cast(config, (24, 24, 12))
    honest = cast.peers[2].exchange.inner
    publish = honest.publish

    def exaggerate(kind: str, body: bytes) -> None:
        if kind == "frame" and decode_header(body).round in (1, 2):
            samples_at = 40  # contract/wire.py
            publish(kind, body[:samples_at] + (99).to_bytes(8, "little") + body[samples_at + 8 :])
        publish(kind, body)

    honest.publish = exaggerate  # type: ignore[method-assign]
    cast.play()
    assert {r.weights_sha256 for r in cast.reports()} == {play(config).reports()[0].weights_sha256}
    assert [r.frames_rejected for r in cast.reports()] == [{"corrupt": 2}, {"corrupt": 2}, {}]
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
    assert list(actions.execute(s.WriteResult(8, own))) == [s.ResultFound(recorded)]
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

    def late(place: Any) -> bytes:
        nonlocal failures
        if "contributions/000001/0002" in place.key and failures < 2:
            failures += 1
            raise ObjectMissing(f"{place} does not exist")
        return get(place)

    cast.store.get = late  # type: ignore[method-assign]
    cast.play()
    assert failures == 2
    assert sum(r.frames_rejected.get("missing", 0) for r in cast.reports()) == 2
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    cast.close()


# --------------------------------------------------------------------------------------- real models, real gradients


@pytest.mark.parametrize("norm", [False, True])
def test_a_run_equals_a_plain_torch_loop(norm: bool) -> None:
    """Four peers, unequal partitions, momentum: against torch.optim on one model with the union of the batches."""
    import copy

    import torch

    from contract import models
    from contract.batches import decode_batch
    from contract.tensors import Layout, flatten, load

    config = configuration(
        peers=4, epochs=2, batches_per_round=2, optimizer={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    )
    cast = Cast(config, (40, 33, 17, 10), norm=norm, gradients=TorchGradients)
    model = models.build(cast.spec.model)
    layout = Layout.of(model)
    flat, buffers = decode_weights(
        layout, cast.store.get(cast.spec.places.weights(cast.spec.initial_weights)), cast.spec.initial_weights
    )
    load(model, layout, flat, buffers)
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for t in range(cast.spec.rounds_limit):
        parts = [
            decode_batch(cast.store.get(cast.spec.places.batch(rank, index)))
            for rank in range(4)
            for index in cast.spec.batches_for_round(rank, t)
        ]
        total = sum(len(y) for _, y in parts)
        optimizer.zero_grad()
        before = copy.deepcopy(model.state_dict())
        after: dict[str, torch.Tensor] = {}
        for x, y in parts:
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    buffer.copy_(before[name])
            loss = torch.nn.functional.cross_entropy(model(x.double()), y) * (len(y) / total)
            loss.backward()
            for name, buffer in model.named_buffers():
                after[name] = after.get(name, 0) + buffer.detach().double() * (len(y) / total)
        optimizer.step()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(after[name] if buffer.is_floating_point() else before[name] + 1)

    cast.play()
    reports = cast.reports()
    assert len({r.weights_sha256 for r in reports}) == 1
    found = cast.peers[0].actions.update
    # float32 against float64 over at most 20 steps: some 1e-7 per step, amplified by momentum (10x).
    np.testing.assert_allclose(found.flat, flatten(model.float(), layout), rtol=0, atol=2e-5)
    for name, buffer in model.named_buffers():
        np.testing.assert_allclose(found.buffers[name], buffer.numpy(), rtol=2e-5, atol=2e-6)
    cast.close()
