"""Gradients from Lambda workers: one execution of the peer's state machine per round, one invocation per batch.

A Standard execution is started and then asked after; an Express one (`aws.express`, inline map) answers its start with
its end, within five minutes.

Nothing large passes through Step Functions: workers read weights and batches from S3 and write their gradients there,
from where they are added up one by one. So memory is bounded by the model, whatever the number of batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import boto3
import numpy as np
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from numpy.typing import NDArray

from contract import wire
from contract.batches import BatchRef
from contract.clock import Clock
from contract.codec import codec
from contract.errors import (
    ConfigError,
    CorruptObject,
    GradientFailed,
    StoreUnavailable,
    TransientError,
    WeightsMismatch,
)
from contract.keys import Place
from contract.local_steps import LocalSteps
from contract.models import build
from contract.runspec import RunSpec
from contract.store import ObjectStore
from contract.tasks import GradientTask, distributed_input, inline_input, items_json
from contract.tensors import Buffers, Layout, unpack_buffers
from peer_agent.compute.batches import BatchMean, failing_as, name_batch, one_ahead, whole
from peer_agent.compute.diagnosis import explain
from peer_agent.compute.moments import WorkerMoments
from peer_agent.compute.pace import Pace
from peer_agent.ports import RoundGradient

#: Forms of the state machine's input; the launcher resolves `auto` before it writes the run's configuration.
MODES = ("inline_map", "distributed_map", "parallel")
#: Step Functions' limit for the name of an execution, in characters.
NAME_LENGTH = 80
#: Shortest time between two questions, in seconds. AWS answers some ten a second to a whole account.
AWS_POLL_SECONDS, LOCAL_POLL_SECONDS = 0.25, 0.02
#: How long an Express execution may take, in seconds, and how much longer its answer is waited for.
EXPRESS_SECONDS, ANSWER_SECONDS = 300, 30
#: How long a local Step Functions may take to know its state machines again, and between two tries, in seconds.
FORGOTTEN_SECONDS, FORGOTTEN_POLL_SECONDS = 60.0, 0.2
#: The same for a state machine that this process has never reached, which probably was never there. A server that has
#: just been started again answers before its state machines are made anew, which takes a second.
UNKNOWN_SECONDS = 5.0
_FORGOTTEN = ("ExecutionDoesNotExist", "StateMachineDoesNotExist")
#: Tries to find a name that no earlier execution has.
ATTEMPTS = 20


class StepFunctionsGradientService:
    """Starts, follows and reads the executions of one peer's state machine."""

    def __init__(
        self,
        spec: RunSpec,
        rank: int,
        *,
        store: ObjectStore,
        endpoint_url: str | None,
        clock: Clock,
        client: Any = None,
    ) -> None:
        """`endpoint_url` names another Step Functions than AWS's; `client` replaces boto3's. Nothing is contacted yet.

        Raises ModelError when the model cannot be built, ConfigError for a run without a state machine or mode.
        """
        self._mode = spec.config.compute.state_machine
        self._machine = spec.state_machines[rank]
        if self._mode not in MODES or not self._machine:
            raise ConfigError(
                f"run {spec.run} names no state machine for rank {rank} (compute.state_machine = {self._mode!r}); "
                "start it again"
            )
        self._spec, self._rank, self._store, self._clock = spec, rank, store, clock
        self._layout = Layout.of(build(spec.model))
        self._moments = WorkerMoments(spec, rank, store)
        #: Whether the machine is an Express one, whose start answers with the end.
        self._express = spec.config.aws.express and self._mode == "inline_map"
        self._endpoint_url = endpoint_url
        self._made = client
        self._pace = Pace(AWS_POLL_SECONDS if endpoint_url is None else LOCAL_POLL_SECONDS)
        self._lock = threading.Lock()
        self._running: str | None = None
        self._reached = False  # the machine, at least once
        self._closed = False

    def compute(
        self,
        *,
        round: int,
        incarnation: int,
        weights_sha256: str,
        flat: NDArray[np.float32],
        buffers: Buffers,
        batches: Sequence[BatchRef],
        seed: int,
        steps: LocalSteps | None = None,
    ) -> RoundGradient:
        """Gradient at the weights `weights_sha256` in the run's bucket; see GradientService.

        Raises GradientFailed, TransientError when Step Functions does not answer, StoreUnavailable.
        """
        if steps is not None:  # one invocation takes all of them
            steps = replace(self._moments.place(steps, round), batches=tuple(batch.index for batch in batches))
            batches = [whole(batches)]
        task = self._task(round, incarnation, weights_sha256, batches[0], seed, steps)
        with failing_as(f"rank {self._rank} in round {round}"):
            text, items = self._input(task, batches)
        retries = self._execute(task, text, batches)
        mean, bytes_in = self._collect(task, batches)
        if steps is not None:
            self._moments.tidy(steps, round)
        garbage = [self._place(task, batch) for batch in batches] + ([items] if items is not None else [])
        with contextlib.suppress(StoreUnavailable):  # what stays costs some storage until the run is removed
            self._store.delete(garbage)
        items_bytes = len(items_json(batches)) if items is not None else 0
        return mean.result(
            buffers,
            invocations=len(self._branches(batches)) + retries,
            executions=1,
            bytes_in=bytes_in,
            bytes_out=len(text.encode()) + items_bytes,
        )

    def close(self) -> None:
        """Stop a running execution; the `compute` that waits for it raises GradientFailed.

        An Express one cannot be stopped and ends by itself, within five minutes.
        """
        with self._lock:
            self._closed = True
            running = self._running
        if running is not None:
            self._stop(running)

    def _stop(self, execution: str) -> None:
        with contextlib.suppress(ClientError, BotoCoreError):  # it has just ended, or will end by its time limit
            self._client.stop_execution(executionArn=execution, error="Stopped", cause="the peer was stopped")

    def _task(
        self, round: int, incarnation: int, weights: str, batch: BatchRef, seed: int, steps: LocalSteps | None
    ) -> GradientTask:
        """The round's task; which batch it names does not matter to what all batches share."""
        config = self._spec.config
        return GradientTask(
            places=self._spec.places,
            rank=self._rank,
            round=round,
            incarnation=incarnation,
            model=self._spec.model,
            weights_sha256=weights,
            loss=config.loss,
            steps=steps,
            precision=config.compute.precision,
            codec=config.compute.gradient_codec,
            seed=seed,
            threads=config.compute.threads,
            batch=batch,
            code_digest=self._spec.code_digest,
        )

    def _input(self, task: GradientTask, batches: Sequence[BatchRef]) -> tuple[str, Place | None]:
        """The execution's input, and where its items went if they are not part of it. Raises PeerlessError."""
        common = task.common_dict()
        if self._mode != "distributed_map":
            return inline_input(common, self._branches(batches)), None
        items = self._spec.places.items(self._rank, task.round, task.incarnation)
        self._store.put(items, items_json(batches))
        return distributed_input(common, items), items

    def _branches(self, batches: Sequence[BatchRef]) -> Sequence[BatchRef]:
        """What the execution computes: in `parallel` as many batches as the definition has branches.

        A round at the end of a pass may have fewer; its last batch is then computed again, to the same bytes.
        """
        if self._mode != "parallel":
            return batches
        per_round = self._spec.config.batches_per_round or self._spec.batches[self._rank]
        branches = min(per_round, self._spec.batches[self._rank])
        return [*batches, *[batches[-1]] * (branches - len(batches))]

    def _execute(self, task: GradientTask, text: str, batches: Sequence[BatchRef]) -> int:
        """Run one execution to its end; how many invocations were retried. Raises GradientFailed, TransientError."""
        try:
            if self._express:
                description = self._start_and_wait(task, text)
            else:
                description = self._run_again_if_forgotten(task, text)
            if description["status"] != "SUCCEEDED":
                # Express executions have no history to be asked for.
                asked = None if self._express else self._client
                raise GradientFailed(explain(asked, description, batches, self._rank, task.round))
        except ClientError as error:
            answer = error.response.get("Error", {})
            raise GradientFailed(
                f"no gradient for rank {self._rank} in round {task.round}: Step Functions said "
                f"{answer.get('Code')}: {answer.get('Message')}"
            ) from error
        except BotoCoreError as error:
            where = self._endpoint_url or f"AWS in {self._spec.places.region}"
            raise TransientError(f"Step Functions at {where} does not answer: {error}") from error
        return _retries(description)

    def _run_again_if_forgotten(self, task: GradientTask, text: str) -> Mapping[str, Any]:
        """Run a Standard execution; its description once it has ended.

        A local Step Functions that is started again has forgotten its executions, and for a moment its state machines:
        then the same execution is started anew, under the same keys.
        """
        begun = self._clock.monotonic()
        while True:
            try:
                return self._follow(self._start(task, text))
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                patience = FORGOTTEN_SECONDS if self._reached else UNKNOWN_SECONDS
                given_up = self._clock.monotonic() - begun > patience
                if code not in _FORGOTTEN or self._endpoint_url is None or given_up:
                    raise
                self._clock.sleep(FORGOTTEN_POLL_SECONDS)
            finally:
                self._running = None

    def _start_and_wait(self, task: GradientTask, text: str) -> Mapping[str, Any]:
        """Run an Express execution; its description once it has ended. Raises GradientFailed at its time limit.

        A request that is repeated after a lost answer computes the same gradients again, under the same keys.
        """
        if self._closed:
            raise GradientFailed(f"no gradient for rank {self._rank} in round {task.round}: the peer was stopped")
        name = execution_name(task.run, task.round, self._rank, task.incarnation, 0)
        description: Mapping[str, Any] = self._client.start_sync_execution(
            stateMachineArn=self._machine, name=name, input=text
        )
        if description["status"] == "TIMED_OUT":
            raise GradientFailed(
                f"no gradient for rank {self._rank} in round {task.round}: its Express execution was ended after "
                f"{EXPRESS_SECONDS // 60} minutes, their limit; set aws.express = false and deploy again, or give a "
                "round less work (batches_per_round, batch_size)"
            )
        return description

    def _start(self, task: GradientTask, text: str) -> str:
        """Start an execution under a name of its own; its ARN. A repeated request finds the one that it started."""
        for attempt in range(ATTEMPTS):
            name = execution_name(task.run, task.round, self._rank, task.incarnation, attempt)
            execution = f"{self._machine.replace(':stateMachine:', ':execution:', 1)}:{name}"
            with self._lock:
                if self._closed:
                    raise GradientFailed(
                        f"no gradient for rank {self._rank} in round {task.round}: the peer was stopped"
                    )
                self._running = execution
            try:
                started = self._client.start_execution(stateMachineArn=self._machine, name=name, input=text)
            except self._client.exceptions.ExecutionAlreadyExists:
                # Ours, if an earlier answer was lost. One that has ended may be of an earlier call, whose gradients
                # are gone by now.
                present = self._client.describe_execution(executionArn=execution)
                if present["status"] == "RUNNING" and json.loads(present["input"]) == json.loads(text):
                    return execution
                continue
            if started["executionArn"] != execution:
                raise GradientFailed(f"Step Functions gave {started['executionArn']} for the execution {execution}")
            self._reached = True
            return execution
        raise GradientFailed(f"round {task.round} of rank {self._rank} has been started {ATTEMPTS} times already")

    def _follow(self, execution: str) -> Mapping[str, Any]:
        """The execution's description once it has ended."""
        begun = self._clock.monotonic()
        for wait in self._pace.waits():
            if self._closed:  # perhaps before there was anything to stop
                self._stop(execution)
            self._clock.sleep(wait)
            description: Mapping[str, Any] = self._client.describe_execution(executionArn=execution)
            if description["status"] != "RUNNING":
                self._pace.ended(min(_seconds(description), self._clock.monotonic() - begun))
                return description
        raise AssertionError("waits() does not end")

    def _collect(self, task: GradientTask, batches: Sequence[BatchRef]) -> tuple[BatchMean, int]:
        """Read the batches' gradients one after another and add them up; the mean and the bytes read."""
        mean = BatchMean(self._layout, batches)
        bytes_in = 0

        def fetch(batch: BatchRef) -> bytes:
            with failing_as(name_batch(batch.index, self._rank, task.round)):
                return self._store.get(self._place(task, batch))

        for batch, blob in one_ahead(fetch, batches):
            bytes_in += len(blob)
            with failing_as(name_batch(batch.index, self._rank, task.round)):
                frame = self._check(task, batch, blob)
                header = frame.header
                added = unpack_buffers(self._layout, frame.buffers)
                mean.add(frame.payload, codec(header.codec), added, header.samples, header.loss or 0.0)
        return mean, bytes_in

    def _check(self, task: GradientTask, batch: BatchRef, blob: bytes) -> wire.Frame:
        """The frame, if it is the gradient that was asked for. Raises CorruptObject, WeightsMismatch."""
        frame = wire.decode(
            blob, expected_elements=self._layout.elements, expected_buffers_bytes=self._layout.buffers_bytes
        )
        header = frame.header
        if header.base_weights != task.weights_sha256:
            raise WeightsMismatch(
                f"the gradient was computed at weights {header.base_weights[:12]}…, not {task.weights_sha256[:12]}…"
            )
        found = header.kind, header.run, header.round, header.rank, header.incarnation, header.codec, header.samples
        asked = (
            wire.Kind.GRADIENT, task.run, task.round, self._rank, task.incarnation, task.codec, batch.samples
        )  # fmt: skip
        if found != asked:
            raise CorruptObject(f"{self._place(task, batch)} holds {found}, asked was for {asked}")
        return frame

    def _place(self, task: GradientTask, batch: BatchRef) -> Place:
        return self._spec.places.gradient(self._rank, task.round, task.incarnation, batch.index)

    @property
    def _client(self) -> Any:
        """boto3's client, made at the first use; a session of its own, because the default one is not thread-safe."""
        with self._lock:
            if self._made is None:
                config = Config(
                    connect_timeout=5,
                    read_timeout=EXPRESS_SECONDS + ANSWER_SECONDS if self._express else 60,
                    tcp_keepalive=True,  # an Express execution's answer comes after minutes of silence
                    retries={"mode": "standard", "max_attempts": 5},
                    # AWS answers StartSyncExecution at sync-states.…; another Step Functions has one address.
                    inject_host_prefix=self._endpoint_url is None,
                )
                self._made = boto3.session.Session().client(
                    "stepfunctions",
                    region_name=self._spec.places.region,
                    endpoint_url=self._endpoint_url,
                    config=config,
                )
            return self._made


def execution_name(run: str, round: int, rank: int, incarnation: int, attempt: int) -> str:
    """At most 80 characters; a run's name that is too long for that is shortened and made unique by its hash."""
    suffix = f"-r{round}-p{rank}-i{incarnation}-a{attempt}"
    if len(run) + len(suffix) > NAME_LENGTH:
        digest = hashlib.sha256(run.encode()).hexdigest()[:12]
        run = f"{run[: NAME_LENGTH - len(suffix) - len(digest) - 1]}-{digest}"
    return run + suffix


def _retries(description: Mapping[str, Any]) -> int:
    """Retried invocations, as the definition's output counts them; 0 where it says nothing."""
    try:
        return sum(int(retries) for retries in json.loads(description["output"])["retries"])
    except (KeyError, TypeError, ValueError):
        return 0


def _seconds(description: Mapping[str, Any]) -> float:
    """How long the execution took by the service's own clock; infinite where it says nothing."""
    started, stopped = description.get("startDate"), description.get("stopDate")
    seconds = float((stopped - started).total_seconds()) if started is not None and stopped is not None else 0.0
    return seconds if seconds > 0 else math.inf
