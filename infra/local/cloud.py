"""AWS, RabbitMQ and Lambda on this machine, started and stopped as one."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
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
from infra.local import detached, lambda_start, ministack, rabbitmq, servers, unfinished
from infra.local.broker_accounts import Accounts, accounts
from infra.local.detached import Endpoints, State
from infra.local.lambda_client import LambdaService
from infra.local.mending import Mender, Watcher
from infra.local.ministack import REGION
from infra.local.ports import LOOPBACK
from infra.local.processes import Child, Starting, check_platform
from infra.local.rabbitmq import Broker

#: Some programs look at the one, some at the other; Python at the second first.
NO_PROXY = ("NO_PROXY", "no_proxy")
#: Where S3's objects are, in the folder of the servers.
S3_FOLDER = ".s3"
#: MiniStack's limit for one invocation, which counts the wait for a free worker; the Lambda service has the function's.
_LONGEST_INVOCATION_SECONDS = 900
#: MiniStack checks no permissions; a role must merely have the form of one.
_ROLE = "arn:aws:iam::000000000000:role/peerless-local"


class LocalCloud:
    """The servers of one folder. Logs are in `folder/logs`; data are removed when the servers are stopped.

    What S3 holds is in `folder/.s3`: it stays where the owner was killed, has set `keep_data`, or is named in
    `unfinished`, and the next start in the folder finds it. Whoever started the servers stops them, as a context
    manager or by `stop`; one who attached does not.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        children: dict[str, Child],
        mender: Mender | Watcher,
        data: Path | None,
        stopping: Starting,
    ) -> None:
        self.keep_data = False
        """Whether S3's objects outlive `stop`."""
        self._endpoints = endpoints
        self._children, self._mender, self._data, self._starting = children, mender, data, stopping
        self._lambda = LambdaService(int(endpoints.lambda_url.rpartition(":")[2]))

    @classmethod
    def start(
        cls,
        folder: Path,
        *,
        broker: bool = True,
        broker_url: str | None = None,
        durable: bool = True,
        log: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
        cancelled: threading.Event | None = None,
    ) -> LocalCloud:
        """Start all servers side by side; returns when they answer.

        Without `broker` there is none, and `broker_url` is empty; `broker_url` names one to use instead of a private
        one (None: PEERLESS_BROKER_URL, where set). Unless `durable`, S3 holds its objects in memory alone. `log` gets a
        line for the user before anything slow. `cancelled`, once set, calls the start off. Raises ConfigError,
        BrokerUnavailable or LocalStackError; then, and after KeyboardInterrupt, nothing is left running.
        """
        check_platform()
        folder = folder.resolve()
        try:
            starting = Starting(clock or SystemClock(), log, cancelled or threading.Event())
            data = folder / S3_FOLDER if durable else None
            started = servers.start(folder, broker=broker, broker_url=broker_url, data=data, starting=starting)
        except OSError as error:
            raise LocalStackError(f"the local servers cannot be started in {folder}: {error}") from error
        return cls(started.endpoints, started.children, started.mender, data, starting)

    def __enter__(self) -> LocalCloud:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what this object started; repeating it does nothing."""
        self._starting.cancelled.set()
        self._mender.close()
        servers.stop(list(self._children.values()))
        if not self._children or self.keep_data or self._data is None:
            return
        if not unfinished.keep_only_their_buckets(self._data.parent, self._data):
            shutil.rmtree(self._data, ignore_errors=True)

    def mend(self, note: Callable[[str], None], restored: Callable[[str], None] = lambda _: None) -> list[str]:
        """Start servers again that have died, without waiting: see `Mender.look`. To be called often, by one thread."""
        return self._mender.look(note, restored)

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
        """URL of RabbitMQ, with its password: on a private node the administrator's."""
        return self._endpoints.broker_url

    def broker_accounts(self, run: str, note: Callable[[str], None]) -> Accounts:
        """An account on the broker for each peer of `run`, where that can be; else `note` is told, once."""
        return accounts(self.broker_url, run, note, private=self._endpoints.broker_accounts)

    @property
    def lambda_url(self) -> str:
        """Endpoint of the Lambda service itself; `endpoint_url` invokes functions too."""
        return self._endpoints.lambda_url

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for processes that use the servers.

        With `base`, that environment as well, without its AWS settings: the user's profile must not leak in.
        """
        kept = lambda_start.without_aws(base or {})
        return {**kept, **self.aws_environment(base), "PEERLESS_BROKER_URL": self.broker_url}

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
        return self.create_function(name, handler=handler, memory_mb=memory_mb)

    def create_function(self, name: str, *, handler: str, memory_mb: int) -> str:
        """Make (again) what calls the workers of a function; gives its ARN. Raises LocalStackError."""
        aws = self.client("lambda")
        try:
            with contextlib.suppress(aws.exceptions.ResourceNotFoundException):
                aws.delete_function(FunctionName=name)
            created = aws.create_function(
                FunctionName=name,
                Runtime="python3.12",
                Role=_ROLE,
                Handler=handler,
                Code={"ZipFile": lambda_start.no_code()},
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
                endpoints,
                broker_url=given.url,
                broker_address=given.address,
                broker_origin=given.origin,
                broker_accounts=False,
            )
        return cls(endpoints, {}, Watcher(folder, state), folder / S3_FOLDER, Starting())

    @classmethod
    def of(cls, state: State) -> LocalCloud:
        """Servers that another process of this machine has started, mends and stops."""
        return cls(state.endpoints, {}, Mender({}, {}), Path(os.devnull), Starting())

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
            "lambda": (places.lambda_url, lambda_start.answers(places.lambda_url)),
        }
        texts = {name: f"{place} {'answers' if well else 'does not answer'}" for name, (place, well) in answers.items()}
        all_well = all(well for _, well in answers.values())
        return {"state": "running" if all_well else "failed", "folder": str(folder), **texts}
