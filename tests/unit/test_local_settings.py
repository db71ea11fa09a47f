"""What private servers are told: limits, loopback only, nothing of the user's, no secret where others can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.errors import ConfigError, UserError
from infra.local import rabbitmq
from infra.local.ports import free_ports
from infra.local.processes import check_platform
from infra.local.rabbitmq_install import Server

SERVER = Server(Path("/srv/rabbitmq-server"), "somewhere", path=("/srv/bin",), env={"LD_LIBRARY_PATH": "/srv/lib"})


def settings(text: str) -> dict[str, str]:
    return dict(line.split(" = ") for line in text.splitlines())


def test_a_private_node_has_the_limits_of_the_broker_on_aws() -> None:
    told = settings(rabbitmq.configuration(5000, Path("/run/one/definitions.json"), later_limits=True))
    assert told["listeners.tcp.1"] == "127.0.0.1:5000"
    assert told["max_message_size"] == "524288"
    assert told["consumer_max_per_channel"] == "10"
    assert told["load_definitions"] == "/run/one/definitions.json"
    assert not {name for name in told if name.startswith("default_")}, "accounts are in the definitions alone"


def test_an_old_server_is_not_told_what_it_does_not_know() -> None:
    assert "consumer_max_per_channel" not in settings(rabbitmq.configuration(5000, Path("/d"), later_limits=False))


def test_no_setting_of_the_user_s_reaches_a_private_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RABBITMQ_NODENAME", "production@bank")
    monkeypatch.setenv("ERL_FLAGS", "-detached")
    told = rabbitmq.node_environment(SERVER, Path("/run/one"), 5000, 5001)
    assert told["RABBITMQ_NODENAME"] == "peerless-5000@localhost"
    assert "ERL_FLAGS" not in told
    assert told["HOME"] == "/run/one"
    assert told["PATH"].startswith("/srv/bin:")
    assert told["LD_LIBRARY_PATH"] == "/srv/lib"


def test_a_broker_s_password_is_not_shown() -> None:
    broker = rabbitmq.Broker("amqp://me:secret@host:1/", "host:1", "PEERLESS_BROKER_URL", None)
    assert "secret" not in repr(broker)


@pytest.mark.parametrize("url", ["host:5672", "http://host:5672", "amqp://", "amqp://me:secret@host:port/"])
def test_a_malformed_broker_url_is_a_mistake_told_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="PEERLESS_BROKER_URL is not a URL") as caught:
        rabbitmq.check_given(url)
    assert "secret" not in str(caught.value)


def test_free_ports_differ_and_lie_below_those_of_outgoing_connections() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(1024 < port < 32768 for port in ports)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_linux_and_macos_will_do(platform: str) -> None:
    check_platform(platform)


def test_windows_is_sent_to_wsl() -> None:
    with pytest.raises(UserError, match="WSL2"):
        check_platform("win32")


def test_another_system_gets_one_sentence() -> None:
    with pytest.raises(UserError, match="not on freebsd14"):
        check_platform("freebsd14")
