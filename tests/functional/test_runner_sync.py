"""Whole synchronous runs over an object store and a broker in memory: stepped, with virtual time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract import wire
from contract.records import Result
from contract.tensors import decode_weights
from contract.wire import decode_header
from peer_agent.ports import Delivery
from tests.fakes.peer_ports import TorchGradients
from tests.fakes.peers import Cast, Peer
from tests.fakes.sync_runs import LR, commits, configuration, exchange, play, weights


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


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_who_starts_late_waits_for_no_look_into_s3(mode: str) -> None:
    """It has missed the others' greetings, as it had no inbox, and finds their claims once it holds its rank."""
    cast = Cast(configuration(mode=mode, exchange=exchange(poll_seconds=3_600.0)), (24, 24, 12), late=1)

    def come(now: int) -> None:
        if now == 3:
            assert not cast.keys("contributions/"), "nobody computes before all are there"
            cast.peers.append(cast.add(2))
            cast.advance(2, cast.peers[2].runner.start)

    cast.play(each_turn=come)
    assert [report.error for report in cast.reports()] == [None] * 3
    assert cast.clock.monotonic() < 3_600.0
    cast.close()


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
    cast = play(configuration(epochs=8, checkpoint={"every_rounds": 4}))
    assert cast.store.counts.deletes <= 2 * 24 / 4  # by a result writer alone, once per checkpoint
    kept = {int(key.split("/")[0]) for key in cast.keys("contributions/")}
    assert min(kept) in (12, 16), "since the last checkpoint but one; the latest may have come after the last sweep"
    report = cast.reports()[0]
    kept = set(cast.keys("weights/"))
    assert {cast.spec.initial_weights, report.weights_sha256, report.model_sha256} <= kept
    assert len(kept) <= 12 + 3


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
