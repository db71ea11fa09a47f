"""Servers for the whole suite: one local cloud per session, started by the first test that asks for one of its parts.

A test takes names of its own (`unique`, `bucket`) instead of servers of its own.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from infra.local.cloud import LocalCloud

# A shell's background job ignores SIGINT, and so would everything that it starts; tests press Ctrl-C all the same.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)


#: Files that take minutes stand first, so that no process is left with one of them when the others are done.
LONGEST = (
    "tests/e2e/test_demo.py",
    "tests/e2e/test_joining.py",
    "tests/e2e/test_breaking.py",
    "tests/e2e/test_resume.py",
    "tests/integration/test_images_built.py",
    "tests/e2e/",
    "tests/infra/",
    "tests/chaos/",
    "tests/integration/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Otherwise the order stays; `--no-loadscope-reorder` keeps it in the processes of `make test`."""
    items.sort(
        key=lambda item: next((n for n, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))
    )


class _ByFile(LoadFileScheduling):
    """Whole files in turn to the processes of `make test`; the templates' together, as they share one synthesis."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/infra" if nodeid.startswith("tests/infra/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)  # `-p no:xdist` is a way to run tests, too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _ByFile(config, log)


@pytest.fixture(scope="session")
def local_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """MiniStack, RabbitMQ and the Lambda service, running; stopped at the end of the session."""
    with LocalCloud.start(tmp_path_factory.mktemp("local-cloud")) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def broker_url(local_cloud: LocalCloud) -> str:
    """URL of a real RabbitMQ with an administrator's rights; PEERLESS_BROKER_URL's where that is set."""
    return local_cloud.broker_url


@pytest.fixture(scope="session")
def ministack(local_cloud: LocalCloud) -> str:
    """Endpoint URL of a real MiniStack."""
    return local_cloud.endpoint_url


@pytest.fixture(scope="session")
def aws(local_cloud: LocalCloud) -> Callable[[str], Any]:
    """boto3 clients of the MiniStack, by service: `aws("s3")`."""

    def client(service: str) -> Any:
        return local_cloud.session().client(service, endpoint_url=local_cloud.endpoint_url)  # type: ignore[call-overload]

    return client


@pytest.fixture
def unique() -> str:
    """A name that no other test uses; fit for a run, a queue, a function and a part of a bucket's name."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def bucket(aws: Callable[[str], Any], unique: str) -> Iterator[str]:
    """An empty bucket on MiniStack, removed with its contents after the test."""
    s3 = aws("s3")
    s3.create_bucket(Bucket=unique)
    yield unique
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=unique):
        for item in page.get("Contents", ()):
            s3.delete_object(Bucket=unique, Key=item["Key"])
    s3.delete_bucket(Bucket=unique)
