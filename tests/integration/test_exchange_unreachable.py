"""What a user reads when there is no broker, or not one that can be trusted."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from contract.clock import SystemClock
from contract.errors import BrokerUnavailable
from peer_agent.exchange import RabbitMqExchange
from peer_agent.exchange.connecting import connection_parameters
from tests.fakes.certificates import self_signed


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BrokerUnavailable) as error:
        open_here(f"amqp://user:secret@127.0.0.1:{port}/")
    assert str(error.value) == f"RabbitMQ at 127.0.0.1:{port} cannot be reached: connection refused"


def test_no_such_host() -> None:
    with pytest.raises(BrokerUnavailable, match=r"RabbitMQ at broker\.invalid:5672 cannot be reached: \w+"):
        open_here("amqp://user:secret@broker.invalid/")


def test_an_impossible_url_is_not_quoted() -> None:
    with pytest.raises(BrokerUnavailable) as error:
        open_here("amqp://user:secret@host:port/")
    assert "secret" not in str(error.value)
    assert "amqps://user:password@host:port" in str(error.value)


def test_tls_is_verified_whatever_the_url_says() -> None:
    parameters = connection_parameters("amqps://user:secret@broker.test/?ssl_options={'verify_mode': 0}")
    assert parameters.port == 5671
    assert parameters.ssl_options.context.verify_mode == ssl.CERT_REQUIRED
    assert parameters.ssl_options.context.check_hostname
    assert parameters.ssl_options.server_hostname == "broker.test"


def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=shake_hands, args=(listener, context), daemon=True)
        server.start()
        with pytest.raises(
            BrokerUnavailable, match=rf"RabbitMQ at 127\.0\.0\.1:{port} .*TLS.*CERTIFICATE_VERIFY_FAILED"
        ):
            open_here(f"amqps://user:secret@127.0.0.1:{port}/")
        server.join(10)


def open_here(url: str) -> None:
    RabbitMqExchange(url, run="run", rank=0, peers=2, clock=SystemClock(), start_patience_seconds=0.5)


def shake_hands(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Answer one client, which goes away when it has seen the certificate."""
    client, _ = listener.accept()
    with client, pytest.raises(ssl.SSLError):
        context.wrap_socket(client, server_side=True)
