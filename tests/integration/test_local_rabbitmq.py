"""The private RabbitMQ node, and a broker given by URL."""

from __future__ import annotations

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.exceptions
import psutil
import pytest

from contract.errors import BrokerUnavailable, LocalStackError
from infra.local import rabbitmq
from infra.local.cloud import LocalCloud
from infra.local.ports import free_ports
from infra.local.processes import Child, Starting
from infra.local.rabbitmq_install import unpacked_server
from tests.processes import family


@pytest.fixture
def node(local_cloud: LocalCloud) -> Child:
    """The session's private node."""
    if rabbitmq.NAME not in local_cloud.children:
        pytest.fail("these tests are about a private node: unset PEERLESS_BROKER_URL")
    return local_cloud.children[rabbitmq.NAME]


def test_the_broker_refuses_what_the_one_on_aws_refuses(node: Child, broker_url: str, unique: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(broker_url))
    try:
        channel = connection.channel()
        channel.queue_declare(unique, exclusive=True)
        channel.confirm_delivery()
        channel.basic_publish("", unique, bytes(524_288), mandatory=True)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="524288"):
            channel.basic_publish("", unique, bytes(524_289), mandatory=True)
    finally:
        connection.close()


def test_the_node_listens_on_the_loopback_interface_alone(node: Child) -> None:
    listening = {
        connection.laddr.ip
        for process in family(node.guard_pid)
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_the_node_has_no_port_mapper(node: Child) -> None:
    assert "beam.smp" in {process.name() for process in family(node.guard_pid)}
    assert "epmd" not in {process.name() for process in family(node.guard_pid)}


def test_the_password_is_in_no_argument_and_no_log(node: Child, broker_url: str) -> None:
    password = urlsplit(broker_url).password
    assert password
    assert len(password) >= 32
    assert not any(password in " ".join(process.cmdline()) for process in family(node.guard_pid))
    assert not any(password in path.read_text(errors="replace") for path in node.log_path.parent.glob("*.log"))


def test_what_holds_the_password_is_the_user_s_alone(node: Child) -> None:
    folder = Path(psutil.Process(node.pid).cwd())
    assert (folder / "definitions.json").stat().st_mode & 0o077 == 0
    assert (folder / ".erlang.cookie").stat().st_mode & 0o077 == 0


def test_guest_is_not_let_in(node: Child, broker_url: str) -> None:
    parts = urlsplit(broker_url)
    with pytest.raises(pika.exceptions.ProbableAuthenticationError):
        pika.BlockingConnection(pika.URLParameters(f"amqp://guest:guest@{parts.hostname}:{parts.port}/%2F"))


def test_a_broker_given_by_url_is_used_and_none_is_started(broker_url: str, tmp_path: Path) -> None:
    broker = rabbitmq.start(tmp_path / "data", tmp_path / "log", Starting(), {"PEERLESS_BROKER_URL": broker_url})
    assert (broker.url, broker.child) == (broker_url, None)
    assert not (tmp_path / "data").exists()


def test_an_unreachable_broker_is_one_sentence_with_host_and_port(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    url = f"amqp://me:secret@127.0.0.1:{port}/"
    with pytest.raises(BrokerUnavailable, match=f"127.0.0.1:{port} .* cannot be reached: Connection refused") as caught:
        rabbitmq.start(tmp_path, tmp_path / "log", Starting(), {"PEERLESS_BROKER_URL": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request", b"", None])
def test_a_server_that_is_no_broker_is_told_as_such(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    """It answers something else, hangs up, or says nothing."""
    monkeypatch.setattr(rabbitmq, "_PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        host, port = server.getsockname()
        told = pool.submit(rabbitmq.check_given, f"amqp://me:secret@{host}:{port}/")
        with server.accept()[0] as connection:
            if answer:
                connection.sendall(answer)
            elif answer is not None:
                connection.shutdown(socket.SHUT_WR)
            with pytest.raises(BrokerUnavailable, match=f"{host}:{port} .* does not answer as a RabbitMQ broker does"):
                told.result()


def test_an_installed_server_comes_first(tmp_path: Path, node: Child) -> None:
    """The unpacked one on PATH stands for it; a folder with a space in its name must do for its data."""
    fetched = unpacked_server(os.environ, tmp_path / "log", Starting())
    assert fetched is not None
    path = os.pathsep.join([str(fetched.script.parent), *fetched.path, os.defpath])
    broker = rabbitmq.start(tmp_path / "a folder", tmp_path / "log", Starting(), {"PATH": path})
    assert broker.child is not None
    try:
        assert broker.origin.startswith("the installed server")
        pika.BlockingConnection(pika.URLParameters(broker.url)).close()
    finally:
        broker.child.stop()
    assert not (tmp_path / "a folder").exists()


#: A container engine's client: it answers, runs something that greets as a broker does, and removes it.
ENGINE = """#!{python}
import os, socket, sys, time
from pathlib import Path
with open({calls!r}, "a") as calls:
    print(*sys.argv[1:], file=calls)
if sys.argv[1] == "run":
    assert os.environ["RABBITMQ_DEFAULT_USER"] and os.environ["RABBITMQ_DEFAULT_PASS"]
    mapping = sys.argv[sys.argv.index("--publish") + 1].split(":")
    server = socket.create_server((mapping[0], int(mapping[1])))
    while True:
        connection, _ = server.accept()
        connection.recv(8)
        connection.sendall(b"\\1")
        connection.close()
"""


def test_a_container_comes_before_debian_s_packages_and_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq, "installed_server", lambda environ: None)
    calls = tmp_path / "calls"
    (tmp_path / "docker").write_text(ENGINE.format(python=sys.executable, calls=str(calls)))
    (tmp_path / "docker").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.defpath}"}
    broker = rabbitmq.start(tmp_path / "data", tmp_path / "log", Starting(), environ)
    assert broker.child is not None
    broker.child.stop()
    info, run, remove = calls.read_text().splitlines()
    assert info == "info"
    assert f"--publish {broker.address}:5672" in run
    password = urlsplit(broker.url).password
    assert password
    assert password not in run
    assert remove == f"rm --force {run.split()[run.split().index('--name') + 1]}"


def test_without_any_server_one_sentence_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq, "installed_server", lambda environ: None)
    with pytest.raises(LocalStackError, match=r"no RabbitMQ server was found.*PEERLESS_BROKER_URL"):
        rabbitmq.start(tmp_path / "data", tmp_path / "log", Starting(), {"PATH": str(tmp_path)})


@pytest.mark.parametrize(("answer", "expected"), [("exit 1", None), ("exec sleep 60", None), ("exit 0", "docker")])
def test_a_container_engine_counts_only_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, expected: str | None
) -> None:
    monkeypatch.setattr(rabbitmq, "_ENGINE_SECONDS", 0.3)
    client = tmp_path / "docker"
    client.write_text(f"#!/bin/sh\n{answer}\n")
    client.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.defpath}"}
    assert rabbitmq.container_engine(environ, tmp_path / "rabbitmq.log", Starting()) == expected
