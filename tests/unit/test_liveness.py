"""Who watches whom, and whose silence counts."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer_agent.liveness import ALL_TO_ALL, Liveness, watched, watchers

RANKS = st.sets(st.integers(0, 2_000), min_size=1, max_size=60)


@given(RANKS)
def test_whom_i_watch_is_who_has_me_among_its_watchers(ranks: set[int]) -> None:
    for rank in ranks:
        assert watched(rank, ranks) == tuple(sorted(other for other in ranks if rank in watchers(other, ranks)))


@given(RANKS)
def test_everyone_is_watched_by_enough_others(ranks: set[int]) -> None:
    peers = len(ranks)
    expected = peers - 1 if peers <= ALL_TO_ALL else math.ceil(math.log2(peers)) + 1
    for rank in ranks:
        assert len(watchers(rank, ranks)) == len(watched(rank, ranks)) == expected
        assert rank not in watchers(rank, ranks)


@pytest.mark.parametrize(("peers", "each"), [(1, 0), (2, 1), (16, 15), (17, 6), (100, 8), (1_000, 11)])
def test_heartbeats_per_peer_grow_with_the_logarithm(peers: int, each: int) -> None:
    assert len(watched(peers // 2, range(peers))) == each


def test_watchers_are_the_next_on_the_ring() -> None:
    assert watchers(15, range(20)) == (0, 1, 16, 17, 18, 19)
    assert watched(2, range(20)) == (0, 1, 16, 17, 18, 19)


@pytest.fixture
def liveness() -> Liveness:
    """Up since 0 and watching ranks 1 to 3, with a timeout of five seconds."""
    made = Liveness(5.0, heartbeat_seconds=1.0)
    made.watch([1, 2, 3], 0.0)
    made.link(True, 0.0)
    return made


def test_silence_counts_after_the_timeout(liveness: Liveness) -> None:
    liveness.heard(1, 1, 4, 3.0)
    liveness.heard(2, 1, 4, 1.0)
    assert liveness.silent(4.9) == ()
    assert liveness.silent(5.0) == (3,)
    assert liveness.silent(6.0) == (2, 3)
    assert liveness.silent(8.0) == (1, 2, 3)
    liveness.heard(3, 1, 4, 8.0)
    assert liveness.silent(8.0) == (1, 2)
    assert liveness.standing == {1: (1, 4), 2: (1, 4), 3: (1, 4)}


def test_nobody_is_silent_while_the_own_link_is_down_and_all_have_the_timeout_again(liveness: Liveness) -> None:
    liveness.link(False, 4.0)
    assert liveness.silent(100.0) == ()
    liveness.link(True, 100.0)
    assert liveness.silent(104.9) == ()
    assert liveness.silent(105.0) == (1, 2, 3)


def test_an_outage_that_was_over_before_anybody_looked_counts_too(liveness: Liveness) -> None:
    liveness.link(True, 4.0)
    assert liveness.silent(8.9) == ()
    liveness.link(True, 4.0)
    assert liveness.silent(9.0) == (1, 2, 3)


def test_a_process_that_stood_still_has_not_heard_others_be_silent(liveness: Liveness) -> None:
    liveness.woke(60.0, 61.0)
    assert liveness.silent(61.0) == ()
    liveness.link(True, 0.0)
    assert liveness.silent(65.9) == ()
    assert liveness.silent(66.0) == (1, 2, 3)


def test_a_loop_that_comes_round_in_time_takes_nothing_back(liveness: Liveness) -> None:
    for tenth in range(50):
        liveness.woke(0.1, tenth / 10)
    assert liveness.silent(5.0) == (1, 2, 3)


def test_a_loop_that_is_busy_in_every_round_still_finds_out_who_is_silent() -> None:
    """Longer than a heartbeat each time, and not so long that the others' silence might be its own."""
    liveness = Liveness(5.0, heartbeat_seconds=1.0)
    liveness.watch([1, 2], 0.0)
    liveness.link(True, 0.0)
    for now in (2.5, 5.0, 7.5):
        liveness.heard(1, 1, 0, now - 1.0)
        liveness.woke(2.5, now)
    assert liveness.silent(7.5) == (2,)


@pytest.mark.parametrize(("heartbeat", "gap"), [(1.0, 3.0), (0.25, 4.5), (2.5, 2.5)])
def test_after_the_longest_gap_without_doubt_nobody_who_lives_seems_silent(heartbeat: float, gap: float) -> None:
    liveness = Liveness(5.0, heartbeat_seconds=heartbeat)
    liveness.watch([1], 0.0)
    liveness.link(True, 0.0)
    for begun in (0.0, 10.0, 20.0):  # the word that comes meanwhile is read only afterwards
        liveness.heard(1, 1, 0, begun - 0.9 * heartbeat)
        liveness.woke(gap, begun + gap)
        assert liveness.silent(begun + gap) == ()


def test_an_earlier_incarnation_proves_nothing(liveness: Liveness) -> None:
    liveness.heard(1, 2, 7, 1.0)
    liveness.heard(1, 1, 9, 4.0)
    assert liveness.standing[1] == (2, 7)
    assert 1 in liveness.silent(6.0)
    liveness.heard(1, 3, 2, 6.0)
    assert liveness.standing[1] == (3, 2)


def test_a_round_does_not_go_back(liveness: Liveness) -> None:
    liveness.heard(1, 1, 7, 1.0)
    liveness.heard(1, 1, 6, 2.0)
    assert liveness.standing[1] == (1, 7)


def test_only_the_watched_are_judged_and_a_new_one_has_the_whole_timeout(liveness: Liveness) -> None:
    liveness.heard(9, 1, 1, 4.0)
    liveness.watch([1, 4], 4.0)
    assert liveness.silent(5.0) == (1,)
    assert liveness.silent(9.0) == (1, 4)
    assert 9 not in liveness.standing


TIMES = st.lists(st.floats(0, 100), min_size=1, max_size=30).map(sorted)


@given(TIMES, st.floats(0, 200))
def test_silence_is_the_time_since_the_last_word_and_no_more(times: list[float], wait: float) -> None:
    liveness = Liveness(5.0)
    liveness.watch([1], 0.0)
    liveness.link(True, 0.0)
    for (before, now), round in zip(itertools.pairwise([0.0, *times]), itertools.count(), strict=False):
        if now - before >= 5.0:
            assert liveness.silent(now) == (1,)
        liveness.heard(1, 1, round, now)
    assert bool(liveness.silent(times[-1] + wait)) == (times[-1] + wait - times[-1] >= 5.0)
