"""Which broker to connect to, and what it means when that fails."""

from __future__ import annotations

import logging
import ssl
from urllib.parse import urlsplit

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorException,
    AMQPConnectorPhaseErrorBase,
    AMQPConnectorStackTimeout,
)

from contract.errors import BrokerUnavailable

#: Amazon MQ's own; the exchange's heartbeats notice a connection that leads nowhere far sooner.
HEARTBEAT_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 5.0
#: TCP, TLS and AMQP together: a broker that has just come back has all its peers at the door.
STACK_TIMEOUT_SECONDS = 15.0

PRECONDITION_FAILED = 406
#: Replies that the same request meets every time: access refused, inequivalent arguments, not allowed.
REFUSALS = frozenset({403, PRECONDITION_FAILED, 530})

#: All that a connection can end with.
FAULTS = (pika.exceptions.AMQPError, AMQPConnectorException, OSError)

# pika logs every lost connection with its traceback; what matters of it is in our own errors.
logging.getLogger("pika").setLevel(logging.CRITICAL)


def connection_parameters(url: str) -> pika.ConnectionParameters:
    """Server, account and virtual host of `url`; everything else is our own choice, whatever its query says.

    Certificates are verified against the system's authorities, or those in the file that SSL_CERT_FILE names. Raises
    BrokerUnavailable for a URL that names no server.
    """
    try:
        parameters = pika.URLParameters(urlsplit(url)._replace(query="", fragment="").geturl())
    except (ValueError, TypeError) as error:
        # pika's own message may quote the URL, and with it the password.
        raise BrokerUnavailable("PEERLESS_BROKER_URL is not of the form amqps://user:password@host:port") from error
    parameters.heartbeat = HEARTBEAT_SECONDS
    parameters.socket_timeout = CONNECT_TIMEOUT_SECONDS
    parameters.stack_timeout = STACK_TIMEOUT_SECONDS
    parameters.connection_attempts = 1
    if parameters.ssl_options is not None:
        parameters.ssl_options = pika.SSLOptions(ssl.create_default_context(), parameters.host)
    return parameters


def is_refusal(error: BaseException) -> bool:
    """Whether trying again cannot help."""
    error = innermost(error)
    if isinstance(error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.ProbableAccessDeniedError):
        return True
    closed = pika.exceptions.ConnectionClosedByBroker, pika.exceptions.ChannelClosedByBroker
    if isinstance(error, closed):
        return error.reply_code in REFUSALS
    return isinstance(error, ssl.SSLCertVerificationError)


def cause(error: BaseException) -> str:
    """One clause for the reader."""
    error = innermost(error)
    if isinstance(error, pika.exceptions.ProbableAuthenticationError):
        return "it refused user name or password"
    if isinstance(error, pika.exceptions.ConnectionClosed | pika.exceptions.ChannelClosed):
        return f"it said {error.reply_code} {error.reply_text}"
    if isinstance(error, AMQPConnectorStackTimeout):
        return f"it did not answer within {STACK_TIMEOUT_SECONDS:g} s"
    if isinstance(error, ssl.SSLError):
        return f"the TLS connection failed ({error.reason or error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def innermost(error: BaseException) -> BaseException:
    """What pika wraps once or twice: the last attempt's failure, and in it the socket's own error."""
    while True:
        inner: object = None
        if isinstance(error, AMQPConnectionWorkflowFailed):
            inner = error.exceptions[-1]
        elif isinstance(error, AMQPConnectorPhaseErrorBase):
            inner = error.exception
        elif isinstance(error, pika.exceptions.AMQPConnectionError | AMQPConnectorException):
            inner = error.args[0] if error.args else None
        if not isinstance(inner, BaseException):
            return error
        error = inner
