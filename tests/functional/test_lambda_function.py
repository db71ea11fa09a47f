"""A function of the local Lambda service over fake workers: order, time limits, crashes and counters."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.local.lambda_function import PAYLOAD_LIMIT_BYTES, Function, FunctionSpec, Invocation, Outcome
from infra.local.lambda_service import Functions
from tests.fakes.clock import FakeClock


class FakeWorker:
    """A worker whose process the test plays: `take` is its poll, `exit` its end."""

    log_path = Path("worker.log")

    def __init__(self, function: Function) -> None:
        self.function = function
        self.started = threading.Event()
        self.killed = threading.Event()

    def start(self) -> None:
        self.started.set()

    def kill(self) -> None:
        self.killed.set()

    def join(self) -> None:
        assert self.killed.is_set()

    def mark(self) -> None:
        pass

    def tail(self) -> bytes:
        return b"its log"

    def take(self) -> Invocation:
        invocation = self.function.next(self)
        assert invocation is not None
        return invocation

    def answer(self, invocation: Invocation, body: bytes, error: str | None = None) -> bool:
        return self.function.answer(self, invocation.id, body, error)


class Bench:
    """A function with its fake workers, and threads that invoke it."""

    def __init__(self, workers: int, timeout_seconds: float = 60.0) -> None:
        self.clock = FakeClock()
        self.workers: list[FakeWorker] = []
        spec = FunctionSpec(name="f", handler="m.h", workers=workers, timeout_seconds=timeout_seconds, memory_mb=128)
        self.function = Function(spec, self._make, self.clock)
        self.threads = ThreadPoolExecutor(16)

    def _make(self, function: Function) -> FakeWorker:
        self.workers.append(FakeWorker(function))
        return self.workers[-1]

    def invoke(self, payload: bytes) -> Future[Outcome]:
        """Invoke in a thread; returns once the invocation waits or runs."""
        before = self._known()
        made = self.threads.submit(self.function.invoke, payload)
        wait_for(lambda: self._known() > before)
        return made

    def _known(self) -> int:
        return int(self.function.describe()["counters"]["invocations"])

    def counters(self) -> dict[str, object]:
        return dict(self.function.describe()["counters"])

    def close(self) -> None:
        """Fail whatever still waits, so that no thread stays behind."""
        self.function.close()
        self.threads.shutdown()


def wait_for(true: Callable[[], bool]) -> None:
    """Return once another thread has made it so."""
    for _ in range(20_000):
        if true():
            return
        threading.Event().wait(0.0005)
    raise AssertionError("it never came true")


def error_of(outcome: Outcome) -> tuple[str | None, str]:
    """The error's name and message."""
    value = json.loads(outcome.body)
    assert value["errorType"] == outcome.error
    return outcome.error, value["errorMessage"]


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(workers: int = 1, timeout_seconds: float = 60.0) -> Bench:
        made.append(Bench(workers, timeout_seconds))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def test_prewarming_starts_all_workers_at_once(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(workers=3)
    bench.function.prewarm()
    assert [worker.started.is_set() for worker in bench.workers] == [True, True, True]
    assert bench.function.wait_ready(0.0) is False


def test_invocations_are_taken_in_the_order_in_which_they_came(bench: Bench) -> None:
    made = [bench.invoke(str(number).encode()) for number in range(8)]
    (worker,) = bench.workers
    for _ in made:
        invocation = worker.take()
        assert worker.answer(invocation, b"answer to " + invocation.payload)
    assert [future.result(5).body for future in made] == [b"answer to %d" % number for number in range(8)]


def test_a_worker_has_one_invocation_at_a_time(bench: Bench) -> None:
    bench.invoke(b"1")
    bench.invoke(b"2")
    bench.workers[0].take()
    described = bench.function.describe()
    assert (described["workers_busy"], described["waiting"]) == (1, 1)


def test_an_answer_counts_once_and_only_for_the_current_invocation(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    invocation = worker.take()
    assert not bench.function.answer(worker, "another", b"wrong", None)
    assert worker.answer(invocation, b"right")
    assert not worker.answer(invocation, b"late")
    assert made.result(5) == Outcome(b"right", None, b"its log", "worker.log")


def test_a_handlers_error_is_an_outcome_and_leaves_the_worker_warm(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    worker.answer(worker.take(), b'{"errorType": "ModelError"}', "ModelError")
    assert made.result(5).error == "ModelError"
    assert bench.function.describe()["workers_ready"] == 1
    assert len(bench.workers) == 1
    assert bench.counters()["errors_by_name"] == {"ModelError": 1}


def test_a_crash_answers_as_aws_does_and_the_worker_is_replaced(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    invocation = worker.take()
    bench.function.exited(worker, "signal: killed")
    message = f"RequestId: {invocation.id} Error: Runtime exited with error: signal: killed"
    assert error_of(made.result(5)) == ("Runtime.ExitError", message)
    assert len(bench.workers) == 2
    again = bench.invoke(b"2")
    bench.workers[1].answer(bench.workers[1].take(), b"fine")
    assert again.result(5).body == b"fine"
    assert bench.counters()["cold_starts"] == 2


def test_a_worker_that_took_too_much_memory_says_how_much(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    invocation = worker.take()
    bench.function.exited(worker, "signal: killed", 1_300)
    name, message = error_of(made.result(5))
    assert name == "Runtime.OutOfMemory"
    assert message.endswith("error: signal: killed (out of memory: it took 1,300 MB of 128 MB)")
    assert message.startswith(f"RequestId: {invocation.id} Error: ")
    assert made.result(5).log_path == "worker.log"


def test_a_time_out_answers_as_aws_does_and_kills_the_worker(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(workers=1, timeout_seconds=0.02)
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    invocation = worker.take()
    message = f"RequestId: {invocation.id} Error: Task timed out after 0.02 seconds"
    assert error_of(made.result(5)) == ("Sandbox.Timedout", message)
    assert worker.killed.is_set()
    assert not worker.answer(invocation, b"too late")
    bench.function.exited(worker, "signal: killed")
    assert len(bench.workers) == 2


def test_waiting_for_a_worker_does_not_count_against_the_time_limit(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(workers=1, timeout_seconds=0.02)
    first = bench.invoke(b"1")
    second = bench.invoke(b"2")
    (worker,) = bench.workers
    worker.take()
    assert first.result(5).error == "Sandbox.Timedout"
    assert not second.done()
    bench.function.exited(worker, "signal: killed")
    bench.workers[1].answer(bench.workers[1].take(), b"in time")
    assert second.result(5).body == b"in time"


def test_a_handler_that_cannot_be_loaded_fails_those_who_wait_and_is_tried_again_by_the_next(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(workers=2)
    made = [bench.invoke(b"1"), bench.invoke(b"2"), bench.invoke(b"3")]
    report = b'{"errorType": "Runtime.ImportModuleError", "errorMessage": "no module"}'
    for worker in list(bench.workers):
        bench.function.init_failed(worker, report, "Runtime.ImportModuleError")
        bench.function.exited(worker, "exit status 1")
    assert [error_of(future.result(5)) for future in made] == [("Runtime.ImportModuleError", "no module")] * 3
    assert len(bench.workers) == 2, "nobody waits, so nothing is started again"
    again = bench.invoke(b"4")
    bench.workers[2].answer(bench.workers[2].take(), b"mended")
    assert again.result(5).body == b"mended"


def test_a_worker_that_dies_while_loading_is_an_exit_error(bench: Bench) -> None:
    made = bench.invoke(b"1")
    bench.function.exited(bench.workers[0], "signal: killed")
    assert error_of(made.result(5)) == ("Runtime.ExitError", "Runtime exited with error: signal: killed")


def test_loading_that_takes_too_long_is_ended_and_told(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    bench.function.init_expired(worker, 180.0)
    assert worker.killed.is_set()
    bench.function.exited(worker, "signal: killed")
    assert error_of(made.result(5)) == ("Sandbox.Timedout", "Initialisation timed out after 180.00 seconds")


def test_the_time_for_loading_means_nothing_to_a_ready_worker(bench: Bench) -> None:
    bench.invoke(b"1")
    (worker,) = bench.workers
    worker.take()
    bench.function.init_expired(worker, 180.0)
    assert not worker.killed.is_set()


def test_an_answer_beyond_six_megabytes_is_refused(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    assert worker.answer(worker.take(), bytes(PAYLOAD_LIMIT_BYTES + 1))
    name, message = error_of(made.result(5))
    assert (name, str(PAYLOAD_LIMIT_BYTES) in message) == ("Function.ResponseSizeTooLarge", True)


def test_counters_bill_milliseconds_rounded_up(bench: Bench) -> None:
    made = bench.invoke(b"1")
    (worker,) = bench.workers
    invocation = worker.take()
    bench.clock.advance(0.0101)
    worker.answer(invocation, b"{}")
    made.result(5)
    assert bench.counters() == {
        "invocations": 1,
        "billed_ms": 11,
        "init_ms": 0,
        "cold_starts": 1,
        "workers_started": 1,
        "errors": 0,
        "errors_by_name": {},
    }


def test_closing_ends_workers_and_fails_everyone(bench: Bench) -> None:
    running, waiting = bench.invoke(b"1"), bench.invoke(b"2")
    (worker,) = bench.workers
    worker.take()
    bench.function.close()
    assert worker.killed.is_set()
    assert [future.result(5).error for future in (running, waiting)] == ["ResourceNotFoundException"] * 2
    assert bench.function.invoke(b"3").error == "ResourceNotFoundException"
    assert bench.function.next(worker) is None
    bench.function.exited(worker, "signal: killed")
    assert len(bench.workers) == 1


def test_a_function_that_comes_while_the_service_ends_gets_no_workers(tmp_path: Path) -> None:
    functions = Functions(tmp_path, FakeClock())
    functions.close()
    spec = FunctionSpec(name="late", handler="m.h", workers=2, timeout_seconds=60, memory_mb=128)
    late = functions.register(spec)
    assert late.describe()["counters"]["workers_started"] == 0
    assert late.invoke(b"1").error == "ResourceNotFoundException"
