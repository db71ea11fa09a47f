"""Every way in which a worker can fail, in real processes behind MiniStack: what comes of the round, in numbers.

One function with two warm processes serves all tests but those of the time limit, for which there is one whose limit is
short; the workers reach S3 through a proxy that fails as told.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from contract.clock import SystemClock
from contract.errors import GradientFailed
from contract.keys import Place
from contract.store import S3Store
from infra.local.cloud import LocalCloud
from peer_agent.compute import LocalGradientService, StepFunctionsGradientService
from statemachines import Mode, definition
from tests.chaos.s3_proxy import S3Proxy
from tests.fakes.gradient_run import COUNTS, RANK, GradientRun, prepare
from tests.fakes.throttle import Throttle

FUNCTION, THROTTLED, HASTY = "faulty-worker", "throttled-worker", "hasty-worker"
ROLE = "arn:aws:iam::000000000000:role/peerless-local"
#: A worker has some 250 MB with torch; what hoards takes twice that. A busy machine takes a second for 300 MB.
MEMORY_MB, HOARD_MB = 480, 450
TIMEOUT_SECONDS, HASTY_SECONDS = 40, 3
BROKEN = 1
OTHERS = sum(COUNTS) - COUNTS[BROKEN]


@dataclass
class Stage:
    """The function, and what can be done to it."""

    cloud: LocalCloud
    s3: S3Proxy
    faults: Path
    arns: dict[str, str]
    throttle: Throttle

    def tell(self, kind: str, times: int = 99, **more: Any) -> None:
        """From now on the broken batch has this fault, in so many attempts of each execution."""
        self.faults.write_text(json.dumps({str(BROKEN): {"kind": kind, "times": times, **more}}))

    def heal(self) -> None:
        self.faults.write_text("{}")

    @contextmanager
    def counted(self, function: str = FUNCTION) -> Iterator[dict[str, Any]]:
        """What the Lambda service counted meanwhile: invocations, and errors by name."""
        before, found = self.cloud.function_counters(function), dict[str, Any]()
        yield found
        after = self.cloud.function_counters(function)
        found["invocations"] = after["invocations"] - before["invocations"]
        errors = {name: n - before["errors_by_name"].get(name, 0) for name, n in after["errors_by_name"].items()}
        found["errors"] = {name: n for name, n in errors.items() if n}


@pytest.fixture(scope="module")
def stage(local_cloud: LocalCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    faults = tmp_path_factory.mktemp("faults") / "faults.json"
    faults.write_text("{}")
    with S3Proxy(local_cloud.endpoint_url) as proxy:
        arns = {
            name: local_cloud.register_function(
                name,
                handler="tests.fakes.faulty_worker.handler",
                workers=workers,
                timeout_seconds=seconds,
                memory_mb=MEMORY_MB,
                env={"FAULTS": str(faults), "AWS_ENDPOINT_URL": proxy.endpoint_url},
            )
            for name, workers, seconds in ((FUNCTION, 2, TIMEOUT_SECONDS), (HASTY, 1, HASTY_SECONDS))
        }
        throttle = Throttle(f"{local_cloud.lambda_url}/peerless/proxy/{FUNCTION}")
        lambda_ = local_cloud.client("lambda")
        throttled = lambda_.create_function(
            FunctionName=THROTTLED,
            PackageType="Image",
            Code={"ImageUri": "local/peerless:latest"},
            Role=ROLE,
            Timeout=900,
            Environment={"Variables": {"MINISTACK_LAMBDA_PROXY_URL": f"http://{throttle.server.address}"}},
        )
        serving = threading.Thread(target=throttle.server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        assert all(local_cloud.wait_function(name, 60) for name in arns)
        yield Stage(local_cloud, proxy, faults, {**arns, THROTTLED: throttled["FunctionArn"]}, throttle)
        throttle.server.shutdown()
        serving.join()
        throttle.server.server_close()
        lambda_.delete_function(FunctionName=THROTTLED)
        for name in arns:
            local_cloud.remove_function(name)


@dataclass
class Deployed:
    """A run whose state machine exists, and what computes its gradients."""

    run: GradientRun
    store: S3Store
    service: StepFunctionsGradientService
    bucket: str

    def compute(self) -> Any:
        return self.service.compute(**self.run.arguments())

    def local(self, batches: Any = None) -> Any:
        return LocalGradientService(self.run.spec, RANK, store=self.store).compute(**self.run.arguments(batches))

    def objects(self) -> dict[str, bytes]:
        """All that later rounds go by: everything but gradients and lists of items."""
        keys = [key for key in self.store.list(self.bucket, "") if "/gradients/" not in key and "/items/" not in key]
        return {key: self.store.get(Place(self.bucket, key)) for key in keys}


@pytest.fixture
def deploy(
    stage: Stage, aws: Callable[[str], Any], bucket: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Deployed]]:
    """(tolerated, mode, function) -> a run with its state machine; removed after the test."""
    for name, value in stage.cloud.aws_environment().items():
        monkeypatch.setenv(name, value)
    store = S3Store(region=stage.cloud.region, endpoint_url=stage.cloud.endpoint_url)
    machines: list[str] = []

    def deployed(tolerated: float = 0, mode: str = "inline_map", function: str = FUNCTION) -> Deployed:
        seconds = HASTY_SECONDS if function == HASTY else TIMEOUT_SECONDS
        made = definition(
            Mode(mode),
            function_arn=stage.arns[function],
            batches=len(COUNTS),
            concurrency=0,
            timeout_seconds=seconds,
            tolerated=tolerated,
        )
        machine = aws("stepfunctions").create_state_machine(name=unique, definition=json.dumps(made), roleArn=ROLE)
        machines.append(machine["stateMachineArn"])
        settings = {"memory_mb": MEMORY_MB, "timeout_seconds": seconds, "tolerated_failures": tolerated}
        run = prepare(store, "cnn", machine=machines[-1], buckets=(bucket, bucket), state_machine=mode, **settings)
        service = StepFunctionsGradientService(
            run.spec, RANK, store=store, endpoint_url=stage.cloud.endpoint_url, clock=SystemClock()
        )
        return Deployed(run, store, service, bucket)

    yield deployed
    stage.heal()
    for machine in machines:
        aws("stepfunctions").delete_state_machine(stateMachineArn=machine)
    store.close()


@pytest.mark.parametrize(
    ("kind", "more", "error"),
    [
        ("exit", {}, "Runtime.ExitError"),
        ("hang", {}, "Sandbox.Timedout"),
        ("hoard", {"mb": HOARD_MB}, "Runtime.OutOfMemory"),
    ],
)
def test_what_befalls_a_worker_once_costs_one_more_invocation(
    stage: Stage, deploy: Callable[..., Deployed], kind: str, more: dict[str, Any], error: str
) -> None:
    function = HASTY if kind == "hang" else FUNCTION
    deployed = deploy(function=function)
    stage.tell(kind, times=1, **more)
    with stage.counted(function) as counted:
        found = deployed.compute()
    assert counted == {"invocations": 4, "errors": {error: 1}}
    assert (found.invocations, found.executions, found.samples) == (4, 1, sum(COUNTS))
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


@pytest.mark.parametrize(
    "mode",
    [
        "inline_map",
        pytest.param("distributed_map", marks=pytest.mark.slow),  # tests/functional/test_tolerated_failures.py has both
        pytest.param("parallel", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_raises_fails_the_round_or_is_left_out(
    stage: Stage, deploy: Callable[..., Deployed], mode: str
) -> None:
    deployed = deploy(1, mode)
    stage.tell("raise")
    with stage.counted() as counted:
        found = deployed.compute()
    batches = deployed.run.batches
    alone = deployed.local([batches[0], batches[2]])
    assert (found.samples, found.loss) == (OTHERS, alone.loss)
    assert found.gradient.tobytes() == alone.gradient.tobytes()
    assert found.invocations == counted["invocations"] == 2 + 3, "MiniStack tries even this error twice more"
    (failure,) = found.failures
    told = r"^no gradient for batch 1 of rank 0 in round 3: the model's own mistake \(ModelError\); its log: (/\S+)$"
    log = re.search(told, failure)
    assert log is not None, failure
    assert "the model's own mistake" in Path(log[1]).read_text()


def test_a_failed_round_changes_nothing_and_is_computed_again_only_where_it_failed(
    stage: Stage, deploy: Callable[..., Deployed]
) -> None:
    deployed = deploy()
    before = deployed.objects()
    stage.tell("raise")
    with (
        stage.counted() as counted,
        pytest.raises(GradientFailed, match=r"^no gradient for batch 1 of rank 0 in round 3") as failed,
    ):
        deployed.compute()
    assert failed.value.invocations == counted["invocations"] == 2 + 3
    assert counted["errors"] == {"ModelError": 3}, "MiniStack knows no error by its name, so it tries twice more"
    assert deployed.objects() == before, "no weights, commits or results"
    stage.heal()
    with stage.counted() as counted:
        found = deployed.compute()
    assert counted == {"invocations": 1, "errors": {}}
    assert (found.invocations, found.samples) == (1, sum(COUNTS))
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


@pytest.mark.parametrize("tolerated", [0, 1])
def test_a_corrupt_result(stage: Stage, deploy: Callable[..., Deployed], tolerated: int) -> None:
    deployed = deploy(tolerated)
    before = deployed.objects()
    stage.tell("corrupt")
    if tolerated:
        found = deployed.compute()
        assert (found.samples, len(found.failures)) == (OTHERS, 1)
        assert "batch 1 of rank 0 in round 3: " in found.failures[0]
        assert found.failures[0].endswith("(CorruptObject)")
        return
    with pytest.raises(GradientFailed, match=r"^no gradient for batch 1 .*\(CorruptObject\)$"):
        deployed.compute()
    assert deployed.objects() == before
    stage.heal()
    with stage.counted() as counted:
        assert deployed.compute().samples == sum(COUNTS)
    assert counted == {"invocations": 1, "errors": {}}


def test_throttling(stage: Stage, deploy: Callable[..., Deployed]) -> None:
    deployed = deploy(function=THROTTLED)
    stage.throttle.left = 2
    with stage.counted() as counted:
        found = deployed.compute()
    assert (stage.throttle.left, stage.throttle.refused) == (0, 2)
    assert counted == {"invocations": 3, "errors": {}}, "what was refused reached no worker"
    assert (found.invocations, found.samples, found.failures) == (3 + 2, sum(COUNTS), ())
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


@pytest.mark.slow  # three tries of each of three batches, with waits between them
def test_throttling_that_does_not_end_fails_the_round(stage: Stage, deploy: Callable[..., Deployed]) -> None:
    deployed = deploy(function=THROTTLED)
    before = deployed.objects()
    stage.throttle.left, refused = 99, stage.throttle.refused
    with stage.counted() as counted, pytest.raises(GradientFailed, match=r"Rate Exceeded") as failed:
        deployed.compute()
    stage.throttle.left, refused = 0, stage.throttle.refused - refused
    assert counted == {"invocations": 0, "errors": {}}
    assert failed.value.invocations == refused == 3 * 3, "on AWS, which knows this error by its name, 3 * 11"
    assert deployed.objects() == before
    assert deployed.compute().samples == sum(COUNTS)


def test_a_batch_that_is_not_there(stage: Stage, deploy: Callable[..., Deployed]) -> None:
    deployed = deploy(0.34)
    deployed.store.delete([Place(deployed.bucket, deployed.run.batches[BROKEN].key)])
    found = deployed.compute()
    assert (found.samples, len(found.failures)) == (OTHERS, 1)
    assert re.search(r"^no gradient for batch 1 .* does not exist \(ObjectMissing\); its log: /", found.failures[0])


@pytest.mark.slow  # the test before it has the fault
def test_a_batch_that_is_put_back(stage: Stage, deploy: Callable[..., Deployed]) -> None:
    deployed = deploy()
    place = Place(deployed.bucket, deployed.run.batches[BROKEN].key)
    blob = deployed.store.get(place)
    deployed.store.delete([place])
    before = deployed.objects()
    with pytest.raises(
        GradientFailed, match=r"^no gradient for batch 1 .* does not exist \(ObjectMissing\); its log: /"
    ):
        deployed.compute()
    assert deployed.objects() == before
    deployed.store.put(place, blob)
    with stage.counted() as counted:
        found = deployed.compute()
    assert counted == {"invocations": 1, "errors": {}}
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


@pytest.mark.slow  # a worker asks five times within some eight seconds, and is itself tried again
def test_s3_that_keeps_refusing_fails_the_round(stage: Stage, deploy: Callable[..., Deployed]) -> None:
    deployed = deploy()
    before, key = deployed.objects(), deployed.run.batches[BROKEN].key
    rule = stage.s3.fail(lambda request: request.method == "GET" and key in request.path, "refuse", times=3 * 5)
    told = (
        r"^no gradient for batch 1 of rank 0 in round 3: S3 at .* failed to get .*, 5 attempts .*\(StoreUnavailable\)"
    )
    with stage.counted() as counted, pytest.raises(GradientFailed, match=told) as failed:
        deployed.compute()
    assert rule.met == 3 * 5
    assert counted == {"invocations": 2 + 3, "errors": {"StoreUnavailable": 3}}
    assert failed.value.invocations == 2 + 3
    assert deployed.objects() == before
    with stage.counted() as counted:
        found = deployed.compute()
    assert counted == {"invocations": 1, "errors": {}}
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


def test_s3_that_refuses_for_a_moment(stage: Stage, deploy: Callable[..., Deployed]) -> None:
    deployed = deploy()
    key = deployed.run.batches[BROKEN].key
    rule = stage.s3.fail(lambda request: request.method == "GET" and key in request.path, "refuse", times=2)
    with stage.counted() as counted:
        found = deployed.compute()
    assert rule.met == 2
    assert counted == {"invocations": 3, "errors": {}}, "the worker itself asks again"
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


def test_a_worker_that_is_ten_times_slower_costs_its_time_and_nothing_else(
    stage: Stage, deploy: Callable[..., Deployed]
) -> None:
    deployed, clock = deploy(), SystemClock()
    deployed.compute()
    begun = clock.monotonic()
    deployed.compute()
    usual = clock.monotonic() - begun
    late = min(10 * usual, 3.0)
    stage.tell("slow", seconds=late)
    begun = clock.monotonic()
    with stage.counted() as counted:
        found = deployed.compute()
    assert late <= clock.monotonic() - begun
    assert counted == {"invocations": 3, "errors": {}}
    assert found.gradient.tobytes() == deployed.local().gradient.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more", "error", "told"),
    [
        ("exit", {}, "Runtime.ExitError", r"Runtime exited with error: exit status 7 \(Runtime\.ExitError\)"),
        ("hang", {}, "Sandbox.Timedout", r"was not done within compute\.timeout_seconds = 3; raise it"),
        (
            "hoard",
            {"mb": HOARD_MB},
            "Runtime.OutOfMemory",
            r"ran out of memory: it had compute\.memory_mb = 480 and took \d{3} MB; raise it \(at most 10,240\)",
        ),
    ],
)
@pytest.mark.parametrize("tolerated", [0, 1])
def test_what_always_befalls_a_worker(
    stage: Stage,
    deploy: Callable[..., Deployed],
    kind: str,
    more: dict[str, Any],
    error: str,
    told: str,
    tolerated: int,
) -> None:
    function = HASTY if kind == "hang" else FUNCTION
    deployed = deploy(tolerated, function=function)
    before = deployed.objects()
    stage.tell(kind, **more)
    with stage.counted(function) as counted:
        if tolerated:
            found = deployed.compute()
            assert found.samples == OTHERS
            (text,), billed = found.failures, found.invocations
        else:
            with pytest.raises(GradientFailed) as failed:
                deployed.compute()
            text, billed = str(failed.value), failed.value.invocations
            assert deployed.objects() == before
    assert billed == counted["invocations"]
    assert counted == {"invocations": 2 + 3, "errors": {error: 3}}
    assert text.startswith("no gradient for batch 1 of rank 0 in round 3: ")
    assert re.search(told, text), text
    assert "; its log: /" in text
