"""The three servers of one folder: started side by side, and stopped in order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local import lambda_start, ministack, rabbitmq
from infra.local.detached import Endpoints
from infra.local.mending import Mender, start_again
from infra.local.ministack import MiniStack
from infra.local.ports import LOOPBACK
from infra.local.processes import Child, Starting
from infra.local.rabbitmq import Broker


@dataclass(frozen=True)
class Servers:
    """Servers that answer."""

    endpoints: Endpoints
    children: dict[str, Child]
    """Their processes by name, in the order of stopping."""
    mender: Mender


def start(folder: Path, *, broker: bool, broker_url: str | None, data: Path | None, starting: Starting) -> Servers:
    """Start them; returns when they answer. S3 keeps its objects in `data`; None for memory alone.

    Without `broker` there is none; `broker_url` names one to use instead of a private one (None: PEERLESS_BROKER_URL,
    where set). Raises ConfigError, BrokerUnavailable, LocalStackError or OSError; then nothing is left running.
    """
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environ = dict(os.environ)
    if broker_url is not None:
        environ["PEERLESS_BROKER_URL"] = broker_url
    with ThreadPoolExecutor(3, thread_name_prefix="local-cloud") as pool:
        aws = pool.submit(ministack.start, folder / "ministack", logs / "ministack.log", starting, data)
        node = (
            pool.submit(rabbitmq.start, folder / "rabbitmq", logs / "rabbitmq.log", starting, environ)
            if broker
            else pool.submit(Broker, "", "", "not wanted", None)
        )
        service = pool.submit(lambda_start.start, folder, starting)
        starts: list[Future[Any]] = [service, aws, node]
        try:
            wait(starts, return_when=FIRST_EXCEPTION)
            _raise_first(starts)
        except BaseException:
            starting.cancelled.set()
            pool.shutdown(wait=True)
            stop([child for start in starts if (child := _child_of(start)) is not None])
            raise
    return _answering(aws.result(), node.result(), service.result(), data, starting)


def stop(children: Sequence[Child]) -> None:
    """The first one, which calls the others, before the others; those side by side."""
    for child in children[:1]:
        child.stop()
    for child in children[1:]:
        child.terminate()
    for child in children[1:]:
        child.stop()


def _answering(
    aws: MiniStack, broker: Broker, service: tuple[Child, int], data: Path | None, starting: Starting
) -> Servers:
    endpoints = Endpoints(
        aws_url=aws.endpoint_url,
        broker_url=broker.url,
        broker_address=broker.address,
        broker_origin=broker.origin,
        broker_accounts=broker.accounts,
        lambda_url=f"http://{LOOPBACK}:{service[1]}",
    )
    children = {lambda_start.NAME: service[0], ministack.NAME: aws.child}
    ways = {ministack.NAME: lambda child: aws.again(child, data, starting)}
    if broker.child is not None:
        children[rabbitmq.NAME] = broker.child
        if broker.lasting:
            ways[rabbitmq.NAME] = lambda child: start_again(child, lambda: rabbitmq.answers(broker), starting)
    return Servers(endpoints, children, Mender(children, ways))


def _raise_first(starts: Sequence[Future[Any]]) -> None:
    for start in starts:
        if start.done():
            start.result()


def _child_of(start: Future[Any]) -> Child | None:
    """The process of a start that went well before another one failed."""
    if start.cancelled() or start.exception() is not None:
        return None
    result: MiniStack | Broker | tuple[Child, int] = start.result()
    return result[0] if isinstance(result, tuple) else result.child
