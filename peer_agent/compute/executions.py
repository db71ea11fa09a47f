"""Executions of one peer's state machine: started under names of their own, followed to their end, stopped.

A Standard execution is started and then asked after; an Express one (`aws.express`, inline map) answers its start with
its end, within five minutes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from contract.clock import Clock
from contract.errors import GradientFailed, TransientError
from contract.tasks import GradientTask
from peer_agent.compute.pace import Pace

#: Step Functions' limit for the name of an execution, in characters.
NAME_LENGTH = 80
#: Shortest time between two questions, in seconds, and the time between them as a share of an execution's. AWS answers
#: some ten a second to a whole account; a local one answers as often as it is asked, for some 2 ms of processor each.
AWS_POLL_SECONDS, AWS_POLL_SHARE = 0.25, 1 / 20
LOCAL_POLL_SECONDS, LOCAL_POLL_SHARE = 0.02, 1 / 250
#: How long an Express execution may take, in seconds, and how much longer its answer is waited for.
EXPRESS_SECONDS, ANSWER_SECONDS = 300, 30
#: How long a local Step Functions may take to know its state machines again, and between two tries, in seconds.
FORGOTTEN_SECONDS, FORGOTTEN_POLL_SECONDS = 60.0, 0.2
#: The same for a state machine that this process has never reached, which probably was never there. A server that has
#: just been started again answers before its state machines are made anew, which takes a second.
UNKNOWN_SECONDS = 5.0
_GONE = ("ExecutionDoesNotExist", "StateMachineDoesNotExist")
#: The status of an execution that a local Step Functions, started again, knows nothing of any more.
FORGOTTEN = "FORGOTTEN"
#: Tries to find a name that no earlier execution has.
ATTEMPTS = 20


class Executions:
    """Those of one peer. Thread-safe as far as boto3's client is."""

    def __init__(
        self, machine: str, *, express: bool, endpoint_url: str | None, region: str, clock: Clock, client: Any = None
    ) -> None:
        """`machine` is the state machine's ARN, `express` whether its kind is that; `endpoint_url` names another Step
        Functions than AWS's, and `client` replaces boto3's. Nothing is contacted yet."""
        self.machine = machine
        self.express = express
        self._endpoint_url, self._region, self._clock = endpoint_url, region, clock
        self._made = client
        on_aws = endpoint_url is None
        self._pace = Pace(AWS_POLL_SECONDS, AWS_POLL_SHARE) if on_aws else Pace(LOCAL_POLL_SECONDS, LOCAL_POLL_SHARE)
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._reached = False  # the machine, at least once
        self._closed = False

    def run(self, task: GradientTask, text: str) -> Mapping[str, Any]:
        """Run one execution with the input `text` to its end, and give its description.

        Its status is FORGOTTEN where a local Step Functions was started again meanwhile. Raises GradientFailed for a
        refusal and for a peer that was stopped, TransientError when Step Functions does not answer.
        """
        try:
            if self.express:
                return self._start_and_wait(task, text)
            return self._follow(self._start_when_known(task, text))
        except ClientError as error:
            answer = error.response.get("Error", {})
            raise GradientFailed(
                f"no gradient for rank {task.rank} in round {task.round}: Step Functions said "
                f"{answer.get('Code')}: {answer.get('Message')}"
            ) from error
        except BotoCoreError as error:
            where = self._endpoint_url or f"AWS in {self._region}"
            raise TransientError(f"Step Functions at {where} does not answer: {error}") from error

    def close(self) -> None:
        """Stop running executions; `run` then raises GradientFailed, or gives the description of one that was stopped.

        An Express one cannot be stopped and ends by itself, within five minutes.
        """
        with self._lock:
            self._closed = True
            running = tuple(self._running)
        for execution in running:
            self._stop(execution)

    def _stop(self, execution: str) -> None:
        with contextlib.suppress(ClientError, BotoCoreError):  # it has just ended, or will end by its time limit
            self.client.stop_execution(executionArn=execution, error="Stopped", cause="the peer was stopped")

    def _start_when_known(self, task: GradientTask, text: str) -> str:
        """ARN of a started execution. A local Step Functions that is started again does not know its state machines
        for a moment; then the same execution is started anew."""
        begun = self._clock.monotonic()
        while True:
            try:
                return self._start(task, text)
            except ClientError as error:
                patience = FORGOTTEN_SECONDS if self._reached else UNKNOWN_SECONDS
                if not self._is_gone(error) or self._clock.monotonic() - begun > patience:
                    raise
                self._clock.sleep(FORGOTTEN_POLL_SECONDS)

    def _is_gone(self, error: ClientError) -> bool:
        return self._endpoint_url is not None and error.response.get("Error", {}).get("Code") in _GONE

    def _start_and_wait(self, task: GradientTask, text: str) -> Mapping[str, Any]:
        """Run an Express execution.

        A request that is repeated after a lost answer computes the same gradients again, under the same keys.
        """
        if self._closed:
            raise _stopped(task)
        name = execution_name(task.run, task.round, task.rank, task.incarnation, 0)
        description: Mapping[str, Any] = self.client.start_sync_execution(
            stateMachineArn=self.machine, name=name, input=text
        )
        return description

    def _start(self, task: GradientTask, text: str) -> str:
        """Start an execution under a name of its own; its ARN. A repeated request finds the one that it started."""
        for attempt in range(ATTEMPTS):
            name = execution_name(task.run, task.round, task.rank, task.incarnation, attempt)
            execution = f"{self.machine.replace(':stateMachine:', ':execution:', 1)}:{name}"
            with self._lock:
                if self._closed:
                    raise _stopped(task)
                self._running.add(execution)
            try:
                started = self.client.start_execution(stateMachineArn=self.machine, name=name, input=text)
            except self.client.exceptions.ExecutionAlreadyExists:
                # Ours, if an earlier answer was lost. One that has ended may be of an earlier call, whose gradients
                # are gone by now.
                present = self.client.describe_execution(executionArn=execution)
                if present["status"] == "RUNNING" and json.loads(present["input"]) == json.loads(text):
                    return execution
                self._running.discard(execution)
                continue
            except BaseException:
                self._running.discard(execution)
                raise
            if started["executionArn"] != execution:
                raise GradientFailed(f"Step Functions gave {started['executionArn']} for the execution {execution}")
            self._reached = True
            return execution
        raise GradientFailed(f"round {task.round} of rank {task.rank} has been started {ATTEMPTS} times already")

    def _follow(self, execution: str) -> Mapping[str, Any]:
        """The execution's description once it has ended."""
        begun = self._clock.monotonic()
        try:
            for wait in self._pace.waits():
                if self._closed:  # perhaps before there was anything to stop
                    self._stop(execution)
                self._clock.sleep(wait)
                description: Mapping[str, Any] = self.client.describe_execution(executionArn=execution)
                if description["status"] != "RUNNING":
                    self._pace.ended(min(_seconds(description), self._clock.monotonic() - begun))
                    return description
        except ClientError as error:
            if not self._is_gone(error):
                raise
            self._clock.sleep(FORGOTTEN_POLL_SECONDS)
            return {"executionArn": execution, "status": FORGOTTEN}
        finally:
            self._running.discard(execution)
        raise AssertionError("waits() does not end")

    @property
    def client(self) -> Any:
        """boto3's client, made at the first use; a session of its own, because the default one is not thread-safe."""
        with self._lock:
            if self._made is None:
                config = Config(
                    connect_timeout=5,
                    read_timeout=EXPRESS_SECONDS + ANSWER_SECONDS if self.express else 60,
                    tcp_keepalive=True,  # an Express execution's answer comes after minutes of silence
                    retries={"mode": "standard", "max_attempts": 5},
                    # AWS answers StartSyncExecution at sync-states.…; another Step Functions has one address.
                    inject_host_prefix=self._endpoint_url is None,
                )
                self._made = boto3.session.Session().client(
                    "stepfunctions", region_name=self._region, endpoint_url=self._endpoint_url, config=config
                )
            return self._made


def execution_name(run: str, round: int, rank: int, incarnation: int, attempt: int) -> str:
    """At most 80 characters; a run's name that is too long for that is shortened and made unique by its hash."""
    suffix = f"-r{round}-p{rank}-i{incarnation}-a{attempt}"
    if len(run) + len(suffix) > NAME_LENGTH:
        digest = hashlib.sha256(run.encode()).hexdigest()[:12]
        run = f"{run[: NAME_LENGTH - len(suffix) - len(digest) - 1]}-{digest}"
    return run + suffix


def _stopped(task: GradientTask) -> GradientFailed:
    return GradientFailed(f"no gradient for rank {task.rank} in round {task.round}: the peer was stopped")


def _seconds(description: Mapping[str, Any]) -> float:
    """How long the execution took by the service's own clock; infinite where it says nothing."""
    started, stopped = description.get("startDate"), description.get("stopDate")
    seconds = float((stopped - started).total_seconds()) if started is not None and stopped is not None else 0.0
    return seconds if seconds > 0 else math.inf
