"""Whole runs whose contributions are averaged in shards (reduce_scatter); virtual time, no sockets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from contract.errors import RunFailed
from tests.fakes.peers import Cast
from tests.fakes.sync_runs import commits, configuration, events, exchange, play
from tests.functional.test_runner_membership import SAMPLES, come_back, die, listed, rounds

#: What is packed: whole contributions; pieces of those that are cut, and averages.
PACKED = {
    "all_gather": re.compile(r"/contributions/\d+/\d+-\d+\Z"),
    "reduce_scatter": re.compile(r"/contributions/\d+/\d+-\d+\.\d+\Z|/shards/\d+/\d+\Z"),
}
ZSTD = bytes.fromhex("28b52ffd")


@pytest.mark.parametrize("norm", [False, True])
def test_without_compression_shards_lead_to_all_gathers_weights(norm: bool, tmp_path: Path) -> None:
    whole = play(configuration(exchange=exchange(codec="none")), norm=norm)
    cast = Cast(
        configuration(exchange=exchange(codec="none", topology="reduce_scatter")),
        SAMPLES,
        norm=norm,
        events=tmp_path / "events.jsonl",
    )
    cast.play()
    assert [peer.error for peer in cast.peers] == [None] * 3
    assert {r.weights_sha256 for r in cast.reports()} == {whole.reports()[0].weights_sha256}
    made = [e for e in events(tmp_path) if e["event"] == "shard_averaged"]
    assert sorted((e["round"], e["shard"]) for e in made) == [(t, i) for t in range(9) for i in range(3)], "once each"
    assert all(e["rank"] == e["shard"] for e in made), "each its own"
    assert {e["relative_error"] for e in made} == {0.0}
    cast.close()


@pytest.mark.parametrize("broker", [True, False])
@pytest.mark.parametrize("feedback", [False, True])
def test_with_compression_all_peers_hold_the_same_weights(broker: bool, feedback: bool) -> None:
    settings = exchange(codec="qsgd4", topology="reduce_scatter", error_feedback=feedback)
    cast = Cast(configuration(exchange=settings), SAMPLES, broker=broker)
    cast.play()
    assert [peer.error for peer in cast.peers] == [None] * 3
    assert len({r.weights_sha256 for r in cast.reports()}) == 1
    assert all(commit.extensions["shards"] == 3 for commit in commits(cast)[:-1])
    cast.close()


@pytest.mark.parametrize("topology", ["all_gather", "reduce_scatter"])
def test_packed_objects_lead_to_the_same_weights(topology: str) -> None:
    found = set()
    for packing in ("none", "zstd"):
        cast = Cast(configuration(exchange=exchange(codec="qsgd4", topology=topology, packing=packing)), SAMPLES)
        cast.play()
        found |= {report.weights_sha256 for report in cast.reports()}
        stored = [cast.store.objects[key] for key in cast.store.objects if PACKED[topology].search(key[1])]
        assert stored
        assert all((blob[:4] == ZSTD) == (packing == "zstd") for blob in stored)
        cast.close()
    assert len(found) == 1


@pytest.mark.parametrize("packing", ["none", "zstd"])
def test_a_dead_owners_shard_is_made_by_the_next_and_the_owner_comes_back(packing: str, tmp_path: Path) -> None:
    config = configuration(epochs=5, exchange=exchange(codec="qsgd4", topology="reduce_scatter", packing=packing))
    cast = Cast(config, SAMPLES, events=tmp_path / "events.jsonl")
    state = {"dead": False, "back": False}

    def each(turn: int) -> None:
        machine = cast.peers[0].runner.machine
        if not state["dead"] and machine.round >= 3 and machine.phase.value == "reducing":
            state["dead"] = True
            die(cast, 2)
        if state["dead"] and not state["back"] and rounds(cast) == 9:
            state["back"] = True
            come_back(cast, 2)

    cast.play(each_turn=each)
    assert all(state.values())
    assert {(r.reason, r.weights_sha256) for r in cast.reports()} == {("epoch_limit", cast.reports()[0].weights_sha256)}
    assert [0, 1] in listed(cast)
    assert listed(cast)[-2] == [0, 1, 2]
    assert "weights_adopted" not in {e["event"] for e in events(tmp_path)}
    cast.close()


def test_contributions_are_announced_to_the_leader_alone() -> None:
    cast = Cast(configuration(exchange=exchange(codec="qsgd4", topology="reduce_scatter")), SAMPLES)
    told: list[tuple[int, str, int | None]] = []
    for peer in cast.peers:
        inner, rank = peer.exchange.inner, peer.actions.me.rank
        publish = inner.publish

        def note(kind: str, body: bytes, to: int | None = None, rank: int = rank, publish=publish) -> None:  # type: ignore[no-untyped-def]
            told.append((rank, kind, to))
            publish(kind, body, to)

        inner.publish = note  # type: ignore[method-assign]
    cast.play()
    frames = [entry for entry in told if entry[1] == "frame"]
    assert len(frames) == 9 * 2, "the leader tells nobody"
    assert all(to is not None for _, _, to in frames)
    assert len([entry for entry in told if entry[1] == "reduced"]) == 9
    assert RunFailed not in {type(peer.error) for peer in cast.peers}
    cast.close()
