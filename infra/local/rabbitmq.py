"""A RabbitMQ broker for runs on this machine; always a real one.

In this order: the broker at PEERLESS_BROKER_URL, an installed server, a container engine that answers, Debian's
packages unpacked without root. All but the first start a private node: free ports on the loopback interface, its own
data, user and password, and the limits of the broker that a run on AWS would meet (Amazon MQ for RabbitMQ 4.2,
mq.m7g.medium).

The node runs without epmd, Erlang's port mapper, which would stay behind as a daemon of its own: a distribution that
listens on a given port needs none (https://www.erlang.org/doc/apps/kernel/kernel_app.html, `erl_epmd_port`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

from contract.errors import BrokerUnavailable, ConfigError, LocalStackError
from infra.local.broker_accounts import definitions
from infra.local.ports import LOOPBACK, free_ports
from infra.local.processes import Child, Starting, run_command, wait_until_ready
from infra.local.rabbitmq_install import ADVICE, Server, installed_server, unpacked_server

NAME = "RabbitMQ"
USER = "peerless"
IMAGE = "docker.io/library/rabbitmq:4.2"
_DEFINITIONS = "definitions.json"
_READY_SECONDS = 90.0
_CONTAINER_READY_SECONDS = 600.0  # its image may have to be fetched
_ENGINE_SECONDS = 5.0
_GRACE_SECONDS = 10.0
_PROBE_SECONDS = 5.0
_ATTEMPTS = 3
#: More schedulers than that cost memory and gain nothing here.
_MOST_CORES = 4
#: What an AMQP client says first, and the type of the frame with which a broker answers it.
_AMQP_HEADER, _METHOD_FRAME = b"AMQP\x00\x00\x09\x01", 1
#: Amazon MQ's defaults. Message size in bytes, heartbeat in seconds, consumer timeout in milliseconds.
_LIMITS = {
    "max_message_size": "524288",
    "channel_max": "500",
    "heartbeat": "60",
    "consumer_timeout": "1800000",
}
#: A limit that older servers (3.10) do not know, and would refuse to start with.
_LATER_LIMITS = {"consumer_max_per_channel": "10"}


@dataclass(frozen=True)
class Broker:
    """A broker that answers. `child` is None where it is somebody else's."""

    url: str = field(repr=False)
    """amqp:// or amqps://, with its password."""
    address: str
    """`host:port`."""
    origin: str
    """Where it comes from, for the user."""
    child: Child | None
    management_url: str = ""
    """https://host:port of its management API; empty where it was started without."""
    lasting: bool = False
    """Whether the same child, started again, finds its queues, accounts and messages: a node does, a container not."""
    accounts: bool = False
    """Whether every rank has an account of its own from the start on (`broker_accounts.Derived`)."""


def start(folder: Path, log_path: Path, starting: Starting, environ: Mapping[str, str] | None = None) -> Broker:
    """The first broker of the module's list that is to be had. Data go to `folder`, which is its own.

    Raises ConfigError for a malformed PEERLESS_BROKER_URL, BrokerUnavailable where nothing answers at it, and
    LocalStackError, which says what to do, where no server is to be had or a private node does not start.
    """
    environ = os.environ if environ is None else environ
    given = environ.get("PEERLESS_BROKER_URL", "").strip()
    if given:
        return check_given(given)
    server = installed_server(environ)
    if server is None:
        engine = container_engine(environ, log_path, starting)
        if engine is not None:
            return _attempts(lambda: _start_container(engine, environ, folder, log_path, starting))
        server = unpacked_server(environ, log_path, starting)
    if server is None:
        advice = ADVICE.get(sys.platform, ADVICE["linux"])
        raise LocalStackError(f"no RabbitMQ server was found, and none could be fetched ({log_path}); {advice}")
    return _attempts(lambda: _start_node(server, folder, log_path, starting))


def start_managed(
    folder: Path, log_path: Path, starting: Starting, *, certificate: Path, environ: Mapping[str, str] | None = None
) -> Broker:
    """A private node as Amazon MQ's are: AMQP over TLS, and over TLS the management API, which makes accounts.

    `certificate` is a PEM file with its key. From an installed server or Debian's packages. Raises LocalStackError
    where there is none, or it does not start.
    """
    environ = os.environ if environ is None else environ
    server = installed_server(environ) or unpacked_server(environ, log_path, starting)
    if server is None:
        raise LocalStackError(f"no RabbitMQ server was found; {ADVICE.get(sys.platform, ADVICE['linux'])}")
    return _attempts(lambda: _start_node(server, folder, log_path, starting, certificate))


def check_given(url: str) -> Broker:
    """See that a broker answers at `url`. Raises ConfigError and BrokerUnavailable; neither tells the password."""
    try:
        parts = urlsplit(url)
        host, port, tls = parts.hostname, parts.port, parts.scheme == "amqps"
    except ValueError:
        host, port, tls = None, None, False
    if host is None or parts.scheme not in ("amqp", "amqps"):
        raise ConfigError("PEERLESS_BROKER_URL is not a URL of the form amqp://user:password@host:port/vhost")
    port = port or (5671 if tls else 5672)
    try:
        if not speaks_amqp(host, port, tls):
            raise BrokerUnavailable(
                f"what listens at {host}:{port} (PEERLESS_BROKER_URL) does not answer as a RabbitMQ broker does"
            )
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise BrokerUnavailable(
            f"the broker at {host}:{port} (PEERLESS_BROKER_URL) cannot be reached: {reason}"
        ) from error
    return Broker(url, f"{host}:{port}", "PEERLESS_BROKER_URL", None)


def speaks_amqp(host: str, port: int, tls: bool = False) -> bool:
    """Whether AMQP 0-9-1 is spoken there. Raises OSError where nobody listens, or TLS fails."""
    with socket.create_connection((host, port), timeout=_PROBE_SECONDS) as plain:
        plain.settimeout(_PROBE_SECONDS)
        connection = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if tls else plain
        with connection:
            try:
                connection.sendall(_AMQP_HEADER)
                return connection.recv(1) == bytes([_METHOD_FRAME])
            except (TimeoutError, ConnectionError):
                return False


def container_engine(environ: Mapping[str, str], log_path: Path, starting: Starting) -> str | None:
    """`docker` or `podman`, whichever answers within five seconds; None where neither does."""
    for engine in ("docker", "podman"):
        code, _ = run_command(
            engine,
            [engine, "info"],
            log_path=log_path.with_name(f"{engine}.log"),
            starting=starting,
            timeout_seconds=_ENGINE_SECONDS,
            env=environ,
        )
        if code == 0:
            return engine
    return None


def _attempts(start_one: Callable[[], Broker]) -> Broker:
    """Start again on other ports when a port was lost to somebody else between choice and use."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return start_one()
        except LocalStackError as error:
            if not any(text in str(error) for text in ("eaddrinuse", "already in use", "already allocated")):
                raise
    return start_one()


def _start_node(
    server: Server, folder: Path, log_path: Path, starting: Starting, certificate: Path | None = None
) -> Broker:
    """With a certificate, AMQP and the management API over TLS too."""
    port, distribution_port, tls_port, management_port = free_ports(4)
    password = secrets.token_urlsafe(24)
    url = _url("amqp", port, password)
    shutil.rmtree(folder, ignore_errors=True)  # what a node left whose guard was killed
    folder.mkdir(parents=True, mode=0o700)
    for name in (_DEFINITIONS, ".erlang.cookie"):
        (folder / name).touch(mode=0o600)
    (folder / _DEFINITIONS).write_text(definitions(url))
    settings = configuration(port, folder / _DEFINITIONS, _knows_later_limits(server))
    environment = node_environment(server, folder, port, distribution_port)
    if certificate is not None:
        settings += _over_tls(certificate, tls_port, management_port)
        (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        if server.plugin_folders:
            environment["RABBITMQ_PLUGINS_DIR"] = os.pathsep.join(server.plugin_folders)
    (folder / "rabbitmq.conf").write_text(settings)
    (folder / ".erlang.cookie").write_text(secrets.token_hex(20))
    child = Child.start(
        NAME,
        [server.script],
        env=environment,
        log_path=log_path,
        cwd=folder,
        grace_seconds=_GRACE_SECONDS,
        afterwards=["rm", "-rf", str(folder)],  # the password with it, whoever dies first
        successor=True,  # over the same data: queues, accounts and what nobody has acknowledged
    )
    if certificate is None:
        broker = Broker(url, f"{LOOPBACK}:{port}", server.origin, child, lasting=True, accounts=True)
    else:
        url, management = _url("amqps", tls_port, password), f"https://{LOOPBACK}:{management_port}"
        broker = Broker(url, f"{LOOPBACK}:{tls_port}", server.origin, child, management, lasting=True, accounts=True)
    return _ready(broker, starting, _READY_SECONDS)


def _start_container(
    engine: str, environ: Mapping[str, str], folder: Path, log_path: Path, starting: Starting
) -> Broker:
    (port,) = free_ports(1)
    password = secrets.token_urlsafe(24)
    name = f"peerless-rabbitmq-{secrets.token_hex(6)}"
    folder.mkdir(parents=True, exist_ok=True)
    limits = folder / "limits.conf"  # without the password, for the container's own user has to read it
    limits.write_text("".join(f"{key} = {value}\n" for key, value in (_LIMITS | _LATER_LIMITS).items()))
    command = [engine, "run", "--rm", "--name", name, "--publish", f"{LOOPBACK}:{port}:5672"]
    command += ["--volume", f"{limits.resolve()}:/etc/rabbitmq/conf.d/20-peerless.conf:ro"]
    command += ["--env", "RABBITMQ_DEFAULT_USER", "--env", "RABBITMQ_DEFAULT_PASS", IMAGE]
    starting.note(f"starting RabbitMQ with {engine} (image {IMAGE})")
    child = Child.start(
        NAME,
        command,
        env={**environ, "RABBITMQ_DEFAULT_USER": USER, "RABBITMQ_DEFAULT_PASS": password},
        log_path=log_path,
        grace_seconds=_GRACE_SECONDS,
        afterwards=[engine, "rm", "--force", name],
    )
    broker = Broker(_url("amqp", port, password), f"{LOOPBACK}:{port}", f"{engine} image {IMAGE}", child)
    return _ready(broker, starting, _CONTAINER_READY_SECONDS)


def _ready(broker: Broker, starting: Starting, timeout_seconds: float) -> Broker:
    assert broker.child is not None
    try:
        wait_until_ready(broker.child, lambda: answers(broker), starting=starting, timeout_seconds=timeout_seconds)
    except BaseException:
        broker.child.kill()
        raise
    return broker


def answers(broker: Broker) -> bool:
    """Whether the broker takes connections now."""
    host, _, port = broker.address.rpartition(":")
    try:
        return speaks_amqp(host, int(port), urlsplit(broker.url).scheme == "amqps")
    except OSError:
        return False


def _url(scheme: str, port: int, password: str) -> str:
    return f"{scheme}://{USER}:{quote(password, safe='')}@{LOOPBACK}:{port}/%2F"


def configuration(port: int, definitions: Path, later_limits: bool) -> str:
    """`rabbitmq.conf` of a private node; its accounts, and no others, are in `definitions`."""
    settings = {
        "listeners.tcp.1": f"{LOOPBACK}:{port}",
        "load_definitions": str(definitions),
        **_LIMITS,
        **(_LATER_LIMITS if later_limits else {}),
        # Amounts rather than shares of the machine, which several nodes may use at once.
        "vm_memory_high_watermark.absolute": "1GB",
        "disk_free_limit.absolute": "50MB",
        "log.console": "true",
        "log.console.level": "info",
        "log.console.use_colors": "off",
        "log.file": "false",
    }
    return "".join(f"{key} = {value}\n" for key, value in settings.items())


def _over_tls(certificate: Path, amqp_port: int, management_port: int) -> str:
    """More of `rabbitmq.conf`: both interfaces over TLS, as Amazon MQ has them; no certificate is asked of clients."""
    settings = {"listeners.ssl.1": f"{LOOPBACK}:{amqp_port}"}
    settings |= {"management.ssl.ip": LOOPBACK, "management.ssl.port": str(management_port)}
    for prefix in ("ssl_options", "management.ssl"):
        settings |= {f"{prefix}.{part}": str(certificate) for part in ("cacertfile", "certfile", "keyfile")}
    return "".join(f"{key} = {value}\n" for key, value in settings.items())


def node_environment(server: Server, home: Path, port: int, distribution_port: int) -> dict[str, str]:
    """All that a private node gets, so that no RABBITMQ_ or ERL_ setting of the user's reaches it."""
    node = f"peerless-{port}@localhost"
    cores = min(os.cpu_count() or 1, _MOST_CORES)
    path = [*server.path, os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    return {
        "PATH": os.pathsep.join(path),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "RABBITMQ_CONF_ENV_FILE": str(home / "no-such-file"),  # an installation's own would override what follows
        "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution_port),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
            f"-sname {node} -start_epmd false -erl_epmd_port {distribution_port} "
            f"-kernel inet_dist_use_interface {{127,0,0,1}} +S {cores}:{cores}"
        ),
        # The server asks for a port mapper all the same. A port where nobody answers costs nothing; one where somebody
        # else answers, such as the distribution itself, costs ten seconds.
        "ERL_EPMD_PORT": "1",
        "ERL_CRASH_DUMP_BYTES": "0",
        **server.env,
    }


def _knows_later_limits(server: Server) -> bool:
    """Whether the server's configuration schema has the keys of `_LATER_LIMITS`."""
    script = Path(os.path.realpath(server.script))
    wanted = [f'"{key}"' for key in _LATER_LIMITS]
    for schema in script.parents[1].glob("plugins/rabbit-*/priv/schema/rabbit.schema"):
        text = schema.read_text(encoding="utf-8")
        return all(key in text for key in wanted)
    return False
