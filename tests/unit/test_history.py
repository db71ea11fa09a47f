"""Where a peer starts and where a run can be taken up: through chains of runs, and with what is left of them."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.config import RunConfig
from contract.errors import CorruptObject, ObjectMissing
from contract.history import History, Start, replayed, residual_survives
from contract.keys import Places
from contract.modelspec import ModelSpec
from contract.records import Checkpoint, Commit, Contributor, MemberRef, Result
from contract.runspec import Origin, RunSpec, ValidationSet
from tests.fakes.store import MemoryStore

PLACES = Places(run="a", run_bucket="bucket", peer_buckets=("p0", "p1"), region="local")
MEMBERS = (MemberRef(rank=0, incarnation=1), MemberRef(rank=1, incarnation=1))


def sha(run: str, round: int) -> str:
    """The name of the weights that a round starts from; equal in all runs of a chain where these repeat each other."""
    return f"{run}{round}-".ljust(64, "0")


class Runs:
    """Runs of which only the records are real."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.specs: dict[str, RunSpec] = {}

    def begin(self, run: str, origin: Origin | None = None, initial: str = "") -> History:
        first = 0 if origin is None else origin.round
        places = PLACES.of_run(run)
        spec = RunSpec(
            run=run,
            config=RunConfig(peers=2),
            places=places,
            model=ModelSpec(name="cnn", classes=10, channels=1, image_size=28, options={}),
            samples=(1, 1),
            batches=(1, 1),
            rounds_per_epoch=1,
            initial_weights=initial or sha(run, first),
            validation=ValidationSet(sha256="0" * 64, samples=1),
            state_machines=("", ""),
            origin=origin,
        )
        self.specs[run] = spec
        self.store.put(places.spec(), spec.to_json())
        self.store.put(places.weights(spec.initial_weights), b"")
        return self.history(run)

    def play(self, run: str, first: int, end: int, *checkpoints: int, result: bool = True) -> None:
        places = self.specs[run].places
        for round in range(first, end):
            contributors = tuple(
                Contributor(
                    rank=m.rank, incarnation=1, key=places.contribution(round, m.rank, 1).key, digest="d", samples=1
                )
                for m in MEMBERS
            )
            commit = Commit(
                run=run, round=round, base_weights={"0": sha(run, round)}, contributors=contributors, members=MEMBERS,
                writer=MEMBERS[0], nonce="n",
            )  # fmt: skip
            for member in MEMBERS:
                self.store.put(places.contribution(round, member.rank, 1), b"")
            self.store.create(places.commit(round), commit.to_json())
            if result:
                weights = places.weights(sha(run, round + 1))
                self.store.put(weights, b"")
                record = Result(
                    run=run, round=round, weights_sha256=sha(run, round + 1), bucket="bucket", key=weights.key,
                    writer=MEMBERS[0], nonce="n",
                )  # fmt: skip
                self.store.create(places.result(round), record.to_json())
            if round + 1 in checkpoints:
                self.checkpoint(run, round + 1)

    def checkpoint(self, run: str, round: int, weights: str = "") -> None:
        places = self.specs[run].places
        name = weights or sha(run, round)
        self.store.put(places.checkpoint_common(round), b"")
        record = Checkpoint(
            run=run, round=round, weights_sha256=name, key=places.checkpoint_common(round).key, digest="d",
            members=MEMBERS, writer=MEMBERS[0], nonce="n",
        )  # fmt: skip
        self.store.create(places.checkpoint(round), record.to_json())

    def history(self, run: str) -> History:
        return History(self.store, self.specs[run])

    def start(self, run: str) -> Start:
        return self.history(run).start()

    def drop_contributions(self, run: str, *rounds: int) -> None:
        places = self.specs[run].places
        self.store.delete([places.contribution(round, m.rank, 1) for round in rounds for m in MEMBERS])


def steps(start: Start) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    inherited, own = ([(s.places.run, s.round) for s in part] for part in (start.inherited, start.own))
    return inherited, own


# ------------------------------------------------------------------------------------------------------------- pure


@given(st.sets(st.integers(0, 30)), st.integers(0, 30), st.none() | st.integers(0, 30))
def test_what_is_replayed_is_there_begins_at_the_state_and_has_no_gap(
    present: set[int], first: int, end: int | None
) -> None:
    rounds = replayed(first, end, present)
    assert list(rounds) == list(range(first, first + len(rounds)))
    assert set(rounds) <= present
    assert end is None or all(round < end for round in rounds)
    assert rounds.stop not in present or (end is not None and rounds.stop >= end)


def test_a_residual_survives_until_a_commit_takes_its_ranks_contribution() -> None:
    def commit(*ranks: int) -> Commit:
        listed = tuple(Contributor(rank=r, incarnation=1, key="k", digest="d", samples=1) for r in ranks)
        return Commit(
            run="a", round=1, base_weights={}, contributors=listed, members=MEMBERS, writer=MEMBERS[0], nonce="n"
        )

    assert residual_survives(0, [])
    assert residual_survives(0, [commit(1), commit()])
    assert not residual_survives(0, [commit(1), commit(0, 1)])


# ----------------------------------------------------------------------------------------------------- where to start


def test_a_new_run_starts_at_its_beginning() -> None:
    runs = Runs()
    runs.begin("a")
    start = runs.start("a")
    assert (start.places, start.round, start.checkpoint) == (PLACES, 0, None)
    assert start.weights_sha256 == sha("a", 0)
    assert steps(start) == ([], [])


def test_one_that_comes_back_starts_at_the_newest_checkpoint_and_replays_the_commits_since() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 3)
    assert steps(runs.start("a")) == ([], [("a", 0), ("a", 1), ("a", 2)])
    runs.play("a", 3, 25, 10, 20)
    start = runs.start("a")
    assert (start.round, start.weights_sha256) == (20, sha("a", 20))
    assert start.checkpoint is not None
    assert start.checkpoint.round == 20
    assert steps(start) == ([], [("a", round) for round in range(20, 25)])
    runs.store.delete([PLACES.checkpoint_common(20)])
    assert runs.start("a").round == 10
    assert len(runs.start("a").own) == 15


def test_a_resumed_run_replays_its_origin_up_to_its_first_round_and_then_its_own() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 25, 10, 20)
    runs.begin("b", Origin(run="a", round=23))
    start = runs.start("b")
    assert (start.places.run, start.round) == ("a", 20)
    assert steps(start) == ([("a", 20), ("a", 21), ("a", 22)], [])
    runs.play("b", 23, 26)
    assert steps(runs.start("b"))[1] == [("b", 23), ("b", 24), ("b", 25)]
    runs.play("b", 26, 31, 30)
    start = runs.start("b")
    assert (start.places.run, start.round) == ("b", 30)
    assert steps(start) == ([], [("b", 30)])


def test_the_chain_is_followed_to_the_newest_checkpoint_that_is_not_too_late() -> None:
    """b died before its first checkpoint; what a did after b's first round is not part of the chain."""
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 45, 10, 20, 40)
    runs.begin("b", Origin(run="a", round=23))
    runs.play("b", 23, 26)
    runs.begin("c", Origin(run="b", round=25))
    runs.play("c", 25, 27)
    history = runs.history("c")
    assert [(leg.places.run, leg.first, leg.end) for leg in history.legs] == [
        ("c", 25, None),
        ("b", 23, 25),
        ("a", 0, 23),
    ]
    start = history.start()
    assert (start.places.run, start.round) == ("a", 20)
    assert steps(start) == ([("a", 20), ("a", 21), ("a", 22), ("b", 23), ("b", 24)], [("c", 25), ("c", 26)])


def test_a_checkpoint_at_the_very_round_that_a_run_goes_on_from_is_enough() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 23, 20, 23)
    runs.begin("b", Origin(run="a", round=23))
    start = runs.start("b")
    assert (start.places.run, start.round) == ("a", 23)
    assert steps(start) == ([], [])


def test_a_chain_without_any_checkpoint_starts_at_its_beginning() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 3)
    runs.begin("b", Origin(run="a", round=3))
    start = runs.start("b")
    assert (start.places.run, start.round, start.checkpoint, start.weights_sha256) == ("a", 0, None, sha("a", 0))
    assert steps(start) == ([("a", 0), ("a", 1), ("a", 2)], [])


def test_a_chain_with_a_hole_or_a_circle_is_told() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 3)
    runs.begin("b", Origin(run="a", round=5))
    with pytest.raises(CorruptObject, match="run a lacks commit 3"):
        runs.start("b")
    with pytest.raises(CorruptObject, match="not what a run can go on from at round 2"):
        runs.begin("a", Origin(run="b", round=2))
    with pytest.raises(CorruptObject, match="goes on from itself"):
        runs.begin("b", Origin(run="a", round=2))
    runs.store.delete([PLACES.spec()])
    with pytest.raises(ObjectMissing, match=r"runs/a/run\.json"):
        runs.history("b")


# --------------------------------------------------------------------------------------------- where to take a run up


def test_after_an_orderly_end_nothing_is_replayed() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 23, 20, 23)
    point = runs.history("a").resume_point()
    assert (point.origin, point.weights_sha256, point.places) == (Origin(run="a", round=23), sha("a", 23), PLACES)
    assert (point.checkpoint_round, point.replayed_rounds, point.repeated_rounds) == (23, 0, 0)


def test_a_closing_commit_of_an_orderly_end_is_no_round_that_was_made() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 23, 20, 23)
    runs.play("a", 23, 24, result=False)
    assert runs.history("a").resume_point().origin == Origin(run="a", round=23)


def test_after_a_crash_the_commits_since_the_checkpoint_are_replayed() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 25, 10, 20)
    runs.play("a", 25, 26, result=False)
    point = runs.history("a").resume_point()
    assert point.origin == Origin(run="a", round=25)
    assert (point.checkpoint_round, point.replayed_rounds, point.repeated_rounds) == (20, 5, 0)
    runs.begin("b", point.origin, point.weights_sha256)
    assert [step.round for step in runs.start("b").inherited] == list(range(20, 25))


def test_a_run_that_ended_before_its_first_round_begins_where_it_began() -> None:
    runs = Runs()
    runs.begin("a")
    point = runs.history("a").resume_point()
    assert (point.origin, point.weights_sha256) == (Origin(run="a", round=0), sha("a", 0))
    runs.begin("b", point.origin, point.weights_sha256)
    start = runs.start("b")
    assert (start.round, start.weights_sha256, start.checkpoint) == (0, sha("a", 0), None)
    assert runs.history("b").resume_point().origin == Origin(run="b", round=0)


def test_where_contributions_are_gone_rounds_are_computed_again() -> None:
    """From the checkpoint; without one (`checkpoint.every_rounds = 0`) from the beginning."""
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 25, 20)
    runs.drop_contributions("a", 22)
    point = runs.history("a").resume_point()
    assert (point.origin, point.weights_sha256) == (Origin(run="a", round=20), sha("a", 20))
    assert (point.checkpoint_round, point.replayed_rounds, point.repeated_rounds) == (20, 0, 5)
    runs.store.delete([PLACES.checkpoint(20), PLACES.checkpoint_common(20)])
    point = runs.history("a").resume_point()
    assert (point.origin, point.weights_sha256, point.repeated_rounds) == (Origin(run="a", round=0), sha("a", 0), 25)
    runs.store.delete([PLACES.weights(sha("a", 0))])
    with pytest.raises(ObjectMissing, match="cannot be taken up"):
        runs.history("a").resume_point()


def test_where_even_the_origins_contributions_are_gone_the_new_run_goes_on_from_the_origin() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 25, 20)
    runs.begin("b", Origin(run="a", round=23))
    runs.play("b", 23, 26)
    assert runs.history("b").resume_point().origin == Origin(run="b", round=26)
    runs.drop_contributions("a", 21)
    point = runs.history("b").resume_point()
    assert (point.origin, point.places) == (Origin(run="a", round=20), PLACES)
    assert (point.weights_sha256, point.repeated_rounds) == (sha("a", 20), 6)
    runs.begin("c", point.origin, point.weights_sha256)
    assert steps(runs.start("c")) == ([], [])


def test_weights_that_are_gone_are_no_place_to_go_on_from() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 25, 20)
    runs.store.delete([PLACES.weights(sha("a", 25))])
    point = runs.history("a").resume_point()
    assert (point.origin, point.stored) == (Origin(run="a", round=25), False), "replaying leads there all the same"
    runs.store.delete([PLACES.weights(sha("a", 20))])
    point = runs.history("a").resume_point()
    assert (point.origin, point.stored, point.checkpoint_round) == (Origin(run="a", round=25), False, 0)


def test_a_foreign_result_is_refused() -> None:
    runs = Runs()
    runs.begin("a")
    runs.play("a", 0, 1)
    found = Result.from_json(runs.store.get(PLACES.result(0)))
    runs.store.put(PLACES.result(0), dataclasses.replace(found, run="z").to_json())
    with pytest.raises(CorruptObject, match="of run 'z'"):
        runs.history("a").resume_point()
