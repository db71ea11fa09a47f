"""How a round's batches become invocations."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.batches import BatchRef, Share, divide, share_count
from contract.computing import local_workers
from contract.config import RunConfig, with_overrides
from contract.errors import ConfigError
from peer_agent.compute.division import MOST_BATCHES, ROUNDS, Division, lanes
from peerless.launch.workload import invocations_per_round
from tests.fakes.gradient_run import prepare
from tests.fakes.store import MemoryStore


def batches(count: int) -> list[BatchRef]:
    return [BatchRef(index=index, key="k", samples=index + 1, sha256="0" * 64) for index in range(count)]


def sizes(shares: tuple[Share, ...]) -> list[int]:
    return [len(share.batches) for share in shares]


@given(count=st.integers(1, 300), per_worker=st.integers(1, 400))
def test_every_batch_is_in_one_share_and_none_is_too_large(count: int, per_worker: int) -> None:
    given = batches(count)
    shares = divide(given, share_count(count, per_worker))
    assert [batch for share in shares for batch in share.batches] == given
    assert max(sizes(shares)) <= per_worker
    assert max(sizes(shares)) - min(sizes(shares)) <= 1
    assert sum(share.samples for share in shares) == sum(batch.samples for batch in given)


def test_a_share_of_one_is_its_batch() -> None:
    (batch,) = batches(1)
    assert Share((batch,)).to_dict() == batch.to_dict()
    with pytest.raises(ValueError, match="at least one"):
        Share(())


def auto(seconds: list[float], lanes: int | None = None, result_bytes: int = 0) -> Division:
    division = Division("auto", result_bytes=result_bytes, lanes=lanes)
    for each in seconds:
        division.measured([each])
    return division


@pytest.mark.parametrize(
    ("seconds", "lanes", "count", "expected"),
    [
        ([], None, 5, [1] * 5),  # nothing is known
        ([0.06], None, 34, [17, 17]),
        ([0.5], None, 5, [2, 2, 1]),
        ([3.0], None, 3, [1, 1, 1]),
        ([0.001], 2, 8, [4, 4]),  # both are busy
        ([0.001], 3, 2, [1, 1]),
        ([0.06], 2, 100, [17, 17, 17, 17, 16, 16]),
        ([0.1], 2, 50, [9, 9, 8, 8, 8, 8]),  # five would leave one idle at the end
        ([0.4], 4, 5, [2, 2, 1]),
        ([0.0], None, 1_000, [MOST_BATCHES] * 2),
    ],
)  # fmt: skip
def test_auto_gives_a_second_of_work_and_keeps_all_workers_busy(
    seconds: list[float], lanes: int | None, count: int, expected: list[int]
) -> None:
    assert sizes(auto(seconds, lanes).divide(batches(count))) == expected


@pytest.mark.parametrize(
    ("result_bytes", "lanes", "seconds", "expected"),
    [
        (3_000_000, 2, 0.6, [2] * 16),  # SqueezeNet's: a second
        (36_900_000, 2, 0.6, [16] * 2),  # VGG-11's: twelve seconds
        (20_000_000, 2, 0.6, [8] * 4),
        (36_900_000, 2, 3.0, [4] * 8),
        (36_900_000, None, 0.6, [2] * 16),  # nothing waits, so all begin at once
        (500_000_000, 2, 0.6, [16] * 2),  # no share is larger than keeps both busy
        (500_000_000, 1, 0.6, [16] * 2),  # twelve seconds at most
    ],
)
def test_large_results_are_fewer_where_batches_wait_for_workers(
    result_bytes: int, lanes: int | None, seconds: float, expected: list[int]
) -> None:
    division = Division("auto", lanes=lanes, result_bytes=result_bytes)
    division.measured([seconds])
    assert sizes(division.divide(batches(32))) == expected


def test_auto_follows_the_median_of_the_last_rounds() -> None:
    division = auto([9.0] * ROUNDS)
    for _ in range(ROUNDS):
        division.measured([0.05, 0.1, 7.0])  # one slow worker
    assert sizes(division.divide(batches(20))) == [10, 10]
    division.measured([])
    assert sizes(division.divide(batches(20))) == [10, 10]


def test_a_fixed_number_does_not_follow_anything() -> None:
    division = Division(4, result_bytes=0, lanes=2)
    division.measured([0.001])
    assert sizes(division.divide(batches(9))) == [3, 3, 3]


@pytest.mark.parametrize(
    ("settings", "threads", "workers"),
    [
        ({}, 1, 8),
        ({"threads": 0}, 1, 8),  # 1,769 MB
        ({"threads": 0, "memory_mb": 3_537}, 1, 8),
        ({"threads": 0, "memory_mb": 3_538}, 2, 4),
        ({"threads": 0, "memory_mb": 10_240}, 5, 1),
        ({"threads": 0, "memory_mb": 512}, 1, 8),
        ({"threads": 3, "memory_mb": 10_240}, 3, 2),
        ({"threads": 16}, 16, 1),
        ({"threads": 2, "local_workers": 5}, 2, 5),
    ],
)
def test_threads_follow_from_memory_and_local_workers_from_threads(
    settings: dict[str, Any], threads: int, workers: int
) -> None:
    compute = RunConfig.model_validate({"compute": settings}).compute
    assert compute.threads == threads
    assert local_workers(compute, cores=8) == workers
    assert RunConfig.model_validate(tomllib.loads(RunConfig(compute=compute).to_toml())).compute == compute


@pytest.mark.parametrize("threads", ["-1", "false", "many"])
def test_a_number_of_threads_that_cannot_be_is_refused(threads: str) -> None:
    with pytest.raises(ConfigError, match=r"compute\.threads"):
        with_overrides({}, [f"compute.threads={threads}"], "configuration")


@pytest.mark.parametrize(
    ("settings", "local", "expected"),
    [
        ({}, False, None),
        ({"concurrency": 7}, False, 7),
        ({"local_workers": 6}, True, 6),
        ({"local_workers": 6, "concurrency": 4}, True, 4),
    ],
)
def test_lanes_are_what_runs_at_once(settings: dict[str, Any], local: bool, expected: int | None) -> None:
    assert lanes(prepare(MemoryStore(), "cnn", **settings).spec, local=local) == expected


def test_a_parallel_machine_has_a_branch_per_share() -> None:
    config = prepare(MemoryStore(), "cnn", batches_per_worker=3).spec.config
    assert invocations_per_round(config, (7, 9)) == (3, 3)
    config = prepare(MemoryStore(), "cnn", batches_per_worker="auto").spec.config
    assert invocations_per_round(config, (7, 9)) == (7, 9)


@pytest.mark.parametrize("setting", ["compute.batches_per_worker=0", "compute.batches_per_worker=many"])
def test_a_number_that_cannot_be_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"compute\.batches_per_worker = .*: must be a whole number from 1, or auto$"):
        with_overrides({}, [setting], "configuration")


def test_parallel_needs_a_number() -> None:
    overrides = ["compute.batches_per_worker=auto", "compute.state_machine=parallel"]
    with pytest.raises(ConfigError, match="compute: state_machine = 'parallel' needs a number for batches_per_worker"):
        with_overrides({}, overrides, "configuration")
