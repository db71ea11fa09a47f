"""AWS, RabbitMQ and Lambda on this machine, started and stopped as one."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from contract.clock import Clock, SystemClock
from contract.errors import LocalStackError
from infra.local import detached, ministack, rabbitmq
from infra.local.detached import Endpoints, State
from infra.local.lambda_client import LambdaService
from infra.local.ministack import REGION, MiniStack
from infra.local.ports import LOOPBACK
from infra.local.processes import Child, Starting, check_platform, wait_until_ready
from infra.local.rabbitmq import Broker

LAMBDA = "Lambda service"
#: Some programs look at the one, some at the other; Python at the second first.
NO_PROXY = ("NO_PROXY", "no_proxy")
_LAMBDA_READY_SECONDS = 60.0
_LAMBDA_GRACE_SECONDS = 10.0
#: MiniStack's limit for one invocation, which counts the wait for a free worker; the Lambda service has the function's.
_LONGEST_INVOCATION_SECONDS = 900
#: MiniStack checks no permissions; a role must merely have the form of one.
_ROLE = "arn:aws:iam::000000000000:role/peerless-local"


class LocalCloud:
    """The servers of one folder. Logs are in `folder/logs`; data are removed with the servers.

    The one who started them stops them, as a context manager or by `stop`; one who attached does not.
    """

    def __init__(self, endpoints: Endpoints, children: Mapping[str, Child]) -> None:
        self._endpoints = endpoints
        self._children = dict(children)
        self._lambda = LambdaService(int(endpoints.lambda_url.rpartition(":")[2]))

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        broker: bool = True,
        broker_url: str | None = None,
        log: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
        cancelled: threading.Event | None = None,
    ) -> LocalCloud:
        """Start all servers side by side; returns when they answer.

        Without `broker` there is none, and `broker_url` is empty; `broker_url` names one to use instead of a private
        one (None: PEERLESS_BROKER_URL, where set). `log` gets a line for the user before anything slow. `cancelled`,
        once set, calls the start off. Raises ConfigError, BrokerUnavailable or LocalStackError; then, and after
        KeyboardInterrupt, nothing is left running.
        """
        check_platform()
        folder = folder.resolve()
        try:
            starting = Starting(clock or SystemClock(), log, cancelled or threading.Event())
            return cls._start(folder, broker, broker_url, starting)
        except OSError as error:
            raise LocalStackError(f"the local servers cannot be started in {folder}: {error}") from error

    @classmethod
    def _start(cls, folder: Path, with_broker: bool, broker_url: str | None, starting: Starting) -> LocalCloud:
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        environ = dict(os.environ)
        if broker_url is not None:
            environ["PEERLESS_BROKER_URL"] = broker_url
        with ThreadPoolExecutor(3, thread_name_prefix="local-cloud") as pool:
            aws = pool.submit(ministack.start, folder / "ministack", logs / "ministack.log", starting)
            broker = (
                pool.submit(rabbitmq.start, folder / "rabbitmq", logs / "rabbitmq.log", starting, environ)
                if with_broker
                else pool.submit(Broker, "", "", "not wanted", None)
            )
            service = pool.submit(_start_lambda_service, folder, starting)
            starts: list[Future[Any]] = [service, aws, broker]
            try:
                wait(starts, return_when=FIRST_EXCEPTION)
                _raise_first(starts)
            except BaseException:
                starting.cancelled.set()
                pool.shutdown(wait=True)
                _stop([child for start in starts if (child := _child_of(start)) is not None])
                raise
        return cls._of(aws.result(), broker.result(), service.result())

    @classmethod
    def _of(cls, aws: MiniStack, broker: Broker, service: tuple[Child, int]) -> LocalCloud:
        endpoints = Endpoints(
            aws_url=aws.endpoint_url,
            broker_url=broker.url,
            broker_address=broker.address,
            broker_origin=broker.origin,
            lambda_url=f"http://{LOOPBACK}:{service[1]}",
        )
        children = {LAMBDA: service[0], ministack.NAME: aws.child}  # the order of stopping
        if broker.child is not None:
            children[rabbitmq.NAME] = broker.child
        return cls(endpoints, children)

    def __enter__(self) -> LocalCloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what this object started; repeating it does nothing."""
        _stop(list(self._children.values()))

    def failures(self) -> list[str]:
        """A sentence for every server of this object's that has ended although nobody stopped it."""
        found = []
        for child in self._children.values():
            try:
                child.check()
            except LocalStackError as error:
                found.append(str(error))
        return found

    def check(self) -> None:
        """Raises LocalStackError when one of this object's servers has ended."""
        for failure in self.failures():
            raise LocalStackError(failure)

    @property
    def children(self) -> Mapping[str, Child]:
        """The processes of this object's servers by name; empty for one who attached."""
        return MappingProxyType(self._children)

    @property
    def region(self) -> str:
        return REGION

    @property
    def endpoint_url(self) -> str:
        """Endpoint of S3, Step Functions, Lambda and the rest of AWS."""
        return self._endpoints.aws_url

    @property
    def broker_url(self) -> str:
        """URL of RabbitMQ, with its password."""
        return self._endpoints.broker_url

    @property
    def lambda_url(self) -> str:
        """Endpoint of the Lambda service itself; `endpoint_url` invokes functions too."""
        return self._endpoints.lambda_url

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for processes that use the servers.

        With `base`, that environment as well, without its AWS settings: the user's profile must not leak in.
        """
        return {**_without_aws(base or {}), **self.aws_environment(base), "PEERLESS_BROKER_URL": self.broker_url}

    def aws_environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """The part of `environment` that concerns AWS: endpoint, region, credentials that mean nothing."""
        spared = [host for name in NO_PROXY for host in (base or {}).get(name, "").split(",") if host]
        direct = ",".join(dict.fromkeys([*spared, LOOPBACK, "localhost"]))
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            **dict.fromkeys(NO_PROXY, direct),
        }

    def start_workers(
        self,
        name: str,
        *,
        handler: str,
        workers: int,
        timeout_seconds: float,
        memory_mb: int,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Processes for a function whose invocations come to the Lambda service; new ones where it has some.

        `handler` is `package.module.function`, run by `workers` processes with AWS's environment and `env` on top; they
        load it while this returns. Raises LocalStackError.
        """
        environment = {**self.aws_environment(os.environ), **(env or {})}
        self._lambda.register(
            name,
            handler=handler,
            workers=workers,
            timeout_seconds=timeout_seconds,
            memory_mb=memory_mb,
            env=environment,
        )

    def stop_workers(self, name: str) -> None:
        """End a function's processes; nothing happens when there are none. Raises LocalStackError."""
        self._lambda.remove(name)

    def register_function(self, name: str, *, handler: str, memory_mb: int, **options: Any) -> str:
        """Add or replace a function that state machines can invoke; gives its ARN.

        Takes what `start_workers` takes, and starts its workers. Raises LocalStackError.
        """
        self.start_workers(name, handler=handler, memory_mb=memory_mb, **options)
        aws = self.client("lambda")
        try:
            with contextlib.suppress(aws.exceptions.ResourceNotFoundException):
                aws.delete_function(FunctionName=name)
            created = aws.create_function(
                FunctionName=name,
                Runtime="python3.12",
                Role=_ROLE,
                Handler=handler,
                Code={"ZipFile": _empty_zip()},
                Timeout=_LONGEST_INVOCATION_SECONDS,
                MemorySize=memory_mb,
                Environment={"Variables": {"MINISTACK_LAMBDA_PROXY_URL": self._lambda.invoke_url(name)}},
            )
        except (BotoCoreError, ClientError) as error:
            raise LocalStackError(f"function {name} cannot be created at {self.endpoint_url}: {error}") from error
        return str(created["FunctionArn"])

    def wait_function(self, name: str, timeout_seconds: float) -> bool:
        """Whether all workers of a function have loaded its handler in time."""
        return self._lambda.wait_ready(name, timeout_seconds)

    def remove_function(self, name: str) -> None:
        """Remove a function and end its workers; nothing happens when there is none. Raises LocalStackError."""
        aws = self.client("lambda")
        try:
            with contextlib.suppress(aws.exceptions.ResourceNotFoundException):
                aws.delete_function(FunctionName=name)
        except (BotoCoreError, ClientError) as error:
            raise LocalStackError(f"function {name} cannot be removed at {self.endpoint_url}: {error}") from error
        self._lambda.remove(name)

    def function_counters(self, name: str) -> dict[str, Any]:
        """What the Lambda service counted for a function: invocations, errors, billed_ms and more."""
        return self._lambda.counters(name)

    def session(self) -> boto3.session.Session:
        """A boto3 session for `endpoint_url`, which looks at none of the user's profiles, files and variables."""
        nothing = (None, None, None, None)
        own = botocore.session.Session({"profile": nothing, "config_file": nothing, "credentials_file": nothing})
        return boto3.session.Session(
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106 - a local AWS has no secrets
            region_name=REGION,
            botocore_session=own,
        )

    def client(self, service: str) -> Any:
        """A boto3 client of one service of the local AWS."""
        options: dict[str, Any] = {"ignore_configured_endpoint_urls": True}  # unknown to the stubs
        config = Config(retries={"mode": "standard", "max_attempts": 3}, proxies={}, **options)
        return self.session().client(service, endpoint_url=self.endpoint_url, config=config)  # type: ignore[call-overload]

    def state(self) -> State:
        """What `state.json` says of these servers."""
        pids = {name: child.pid for name, child in self._children.items()}
        return State(endpoints=self._endpoints, pids=pids)

    @classmethod
    def up(cls, folder: Path, log: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Start servers that stay, under a supervisor of their own; gives `status`. Running ones are left as they are.

        Raises as `start` does, and where one of those does not answer.
        """
        check_platform()
        if not detached.is_running(folder):
            detached.launch_supervisor(folder, os.environ, log)
        status = cls.status(folder)
        if status["state"] == "failed":
            raise LocalStackError(
                f"a server in {folder} does not answer (`peerless local status` says which); "
                "run `peerless local down`, then `peerless local up`"
            )
        return status

    @classmethod
    def down(cls, folder: Path, clock: Clock | None = None) -> dict[str, Any]:
        """Stop the servers that `up` started; gives `status`. Raises LocalStackError."""
        detached.stop_supervisor(folder, clock or SystemClock())
        return cls.status(folder)

    @classmethod
    def attach(cls, folder: Path, *, broker_url: str | None = None) -> LocalCloud:
        """The servers that `up` started; `stop` leaves them running. `broker_url` names a broker to use instead.

        Raises LocalStackError where there are none, ConfigError or BrokerUnavailable for a `broker_url` of no use.
        """
        state = State.read(folder) if detached.is_running(folder) else None
        if state is None:
            raise LocalStackError(f"no local servers run in {folder}; start them with `peerless local up`")
        endpoints = state.endpoints
        if broker_url is not None and broker_url != endpoints.broker_url:
            given = rabbitmq.check_given(broker_url)
            endpoints = replace(
                endpoints, broker_url=given.url, broker_address=given.address, broker_origin=given.origin
            )
        return cls(endpoints, {})

    @classmethod
    def status(cls, folder: Path) -> dict[str, Any]:
        """`state` (stopped, starting, running or failed), and one text per server: where it listens, and whether it
        answers. Passwords are not in it."""
        if not detached.is_running(folder):
            return {"state": "stopped", "folder": str(folder)}
        state = State.read(folder)
        if state is None:
            return {"state": "starting", "folder": str(folder)}
        places = state.endpoints
        broker = Broker(places.broker_url, places.broker_address, places.broker_origin, None)
        answers = {
            "ministack": (places.aws_url, ministack.answers(int(places.aws_url.rpartition(":")[2]))),
            "rabbitmq": (f"{places.broker_address} ({places.broker_origin})", rabbitmq.answers(broker)),
            "lambda": (places.lambda_url, _lambda_answers(places.lambda_url)),
        }
        servers = {
            name: f"{place} {'answers' if well else 'does not answer'}" for name, (place, well) in answers.items()
        }
        all_well = all(well for _, well in answers.values())
        return {"state": "running" if all_well else "failed", "folder": str(folder), **servers}


def _start_lambda_service(folder: Path, starting: Starting) -> tuple[Child, int]:
    """The Lambda service's process and port."""
    port_file = folder / "lambda" / "port.json"
    port_file.parent.mkdir(parents=True, exist_ok=True)
    port_file.unlink(missing_ok=True)
    child = Child.start(
        LAMBDA,
        [sys.executable, "-m", "infra.local.lambda_service", "--port-file", port_file, "--log-dir", folder / "logs"],
        env=detached.with_root(_without_aws(os.environ)),
        log_path=folder / "logs" / "lambda.log",
        grace_seconds=_LAMBDA_GRACE_SECONDS,
        afterwards=["rm", "-rf", str(port_file.parent)],
    )
    try:
        wait_until_ready(child, port_file.exists, starting=starting, timeout_seconds=_LAMBDA_READY_SECONDS)
        return child, int(LambdaService.from_port_file(port_file).url.rpartition(":")[2])
    except BaseException:
        child.kill()
        raise


def _lambda_answers(url: str) -> bool:
    try:
        LambdaService(int(url.rpartition(":")[2]), timeout_seconds=5.0).functions()
    except LocalStackError:
        return False
    return True


def _raise_first(starts: list[Future[Any]]) -> None:
    for start in starts:
        if start.done():
            start.result()


def _child_of(start: Future[Any]) -> Child | None:
    """The process of a start that went well before another one failed."""
    if start.cancelled() or start.exception() is not None:
        return None
    result: MiniStack | Broker | tuple[Child, int] = start.result()
    return result[0] if isinstance(result, tuple) else result.child


def _stop(children: list[Child]) -> None:
    """The first one, which calls the others, before the others; those side by side."""
    for child in children[:1]:
        child.stop()
    for child in children[1:]:
        child.terminate()
    for child in children[1:]:
        child.stop()


def _without_aws(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith("AWS_")}


def _empty_zip() -> bytes:
    """Code for MiniStack to hold; what runs is the Lambda service's."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("README", "The code of this function runs in the local Lambda service.\n")
    return buffer.getvalue()
