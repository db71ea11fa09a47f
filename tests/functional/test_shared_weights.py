"""Weights arrive once per warm process and version, and once per machine where its workers share files."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.clock import SystemClock
from contract.env import WorkerEnv
from contract.errors import CorruptObject, ObjectMissing, WeightsMismatch
from contract.keys import Place
from contract.tasks import GradientAnswer
from lambdas.gradient_worker.handler import GradientWorker
from lambdas.gradient_worker.shared import KEPT, SharedFiles
from tests.fakes.gradient_round import PLAIN, prepare
from tests.fakes.store import MemoryStore

WORKERS = 6


class CountingStore(MemoryStore):
    """Counts reads of weights; the first ones wait for each other, so that cold starts overlap where they can."""

    def __init__(self, together: int) -> None:
        super().__init__(before=self._look)
        self.downloads = 0
        self._meeting = threading.Barrier(together)

    def _look(self, operation: str, place: Place) -> None:
        if operation == "get" and "/weights/" in place.key:
            self.downloads += 1
            if self.downloads <= self._meeting.parties:
                self._meeting.wait(timeout=60)


def start(store: MemoryStore, folder: Path | None) -> list[GradientWorker]:
    env = WorkerEnv(endpoint_url=None, region="us-east-1", code_dir=None, shared_dir=folder)
    return [GradientWorker(env, store, SystemClock()) for _ in range(WORKERS)]


@pytest.mark.parametrize(("shared", "expected"), [(True, 1), (False, WORKERS)])
def test_weights_downloaded_per_round_by_workers_that_start_at_once(
    tmp_path: Path, shared: bool, expected: int
) -> None:
    store = CountingStore(together=expected)
    rounds = [prepare(store, PLAIN, sizes=(2,) * WORKERS, seed=seed) for seed in (5, 6)]
    workers = start(store, tmp_path if shared else None)
    for number, made in enumerate(rounds):
        with ThreadPoolExecutor(WORKERS) as pool:
            calls = [
                pool.submit(worker, task.to_event()) for worker, task in zip(workers, made.tasks, strict=True)
            ]  # all at once: each is cold, or knows only the weights of the round before
            answers: list[GradientAnswer] = [call.result(timeout=60) for call in calls]
        assert store.downloads == expected * (number + 1)
        assert sum(answer.weights_fetched for answer in answers) == expected
        for worker, task in zip(workers, made.tasks, strict=True):  # warm: nothing more comes
            assert not worker(task.to_event()).weights_fetched
        assert store.downloads == expected * (number + 1)


def test_what_lies_in_the_folder_is_checked_like_what_comes_from_s3(tmp_path: Path) -> None:
    store = MemoryStore()
    made = prepare(store, PLAIN)
    first, second, third, *_ = start(store, tmp_path)
    assert first(made.tasks[0].to_event()).weights_fetched
    (file,) = (path for path in tmp_path.iterdir() if path.suffix != ".lock")
    file.write_bytes(b"half of it")
    assert second(made.tasks[0].to_event()).weights_fetched, "S3 has the right ones"
    other = prepare(store, PLAIN, seed=6)
    file.write_bytes(store.get(other.tasks[0].weights))
    assert third(made.tasks[0].to_event()).weights_fetched
    assert not file.exists()


def test_wrong_weights_in_s3_are_refused_by_name_and_not_kept(tmp_path: Path) -> None:
    store = MemoryStore()
    made, other = (prepare(store, PLAIN, seed=seed) for seed in (5, 6))
    good = store.get(made.tasks[0].weights)
    workers = iter(start(store, tmp_path))
    store.put(made.tasks[0].weights, store.get(other.tasks[0].weights))
    with pytest.raises(WeightsMismatch, match="were asked for"):
        next(workers)(made.tasks[0].to_event())
    store.put(made.tasks[0].weights, good[:-1])
    with pytest.raises(CorruptObject):
        next(workers)(made.tasks[0].to_event())
    store.delete([made.tasks[0].weights])
    with pytest.raises(ObjectMissing):
        next(workers)(made.tasks[0].to_event())
    store.put(made.tasks[0].weights, good)
    assert next(workers)(made.tasks[0].to_event()).weights_fetched
    assert not next(workers)(made.tasks[0].to_event()).weights_fetched


def test_only_the_latest_files_stay(tmp_path: Path) -> None:
    files = SharedFiles(tmp_path)
    for number in range(3 * KEPT):
        assert files.read(str(number), lambda number=number: bytes([number])) == (bytes([number]), True)
    kept = [path.read_bytes()[0] for path in tmp_path.iterdir() if path.suffix != ".lock"]
    assert sorted(kept) == list(range(2 * KEPT, 3 * KEPT))
    assert files.read(str(3 * KEPT - 1), lambda: b"again") == (bytes([3 * KEPT - 1]), False)


def test_a_folder_that_is_gone_costs_the_sharing_only(tmp_path: Path) -> None:
    files = SharedFiles(tmp_path / "gone")
    for _ in range(2):
        assert files.read("name", lambda: b"content") == (b"content", True)
    files.forget("name")


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_bytes(b"kept")
    (tmp_path / "inside").mkdir()
    files = SharedFiles(tmp_path / "inside")
    assert files.read("../secret", lambda: b"fetched") == (b"fetched", True)
    files.forget("../secret")
    assert outside.read_bytes() == b"kept"
