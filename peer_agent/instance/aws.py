"""Secrets Manager and Auto Scaling, as far as an instance needs them: its broker user's password, and its own end."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from contract.errors import PeerlessError, PermanentError, TransientError
from peer_agent.instance.ports import Credentials

#: Codes that another try may do away with, beside all answers of status 5xx and 429.
_BUSY = {"Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalServiceError", "InternalFailure",
         "ResourceContention", "ScalingActivityInProgress"}  # fmt: skip


class SecretsManager:
    """Secrets over boto3."""

    def __init__(self, *, region: str, endpoint_url: str | None = None) -> None:
        self._region, self._endpoint_url = region, endpoint_url

    def credentials(self, name: str) -> Credentials:
        what = f"the broker user's secret {name}"
        try:
            text = _client("secretsmanager", self._region, self._endpoint_url).get_secret_value(SecretId=name)
            value = json.loads(text["SecretString"])
            found = Credentials(value["username"], value["password"])
        except (ClientError, BotoCoreError) as error:
            raise judged(f"{what} cannot be read from Secrets Manager in {self._region}", error) from error
        except (KeyError, TypeError, ValueError):
            # Without its cause, whose text may hold a part of the secret.
            raise PermanentError(f'{what} is not of the form {{"username": ..., "password": ...}}') from None
        if not all(isinstance(part, str) and part for part in (found.username, found.password)):
            raise PermanentError(f"{what} lacks a username or a password")
        return found


class AutoScalingGroup:
    """The group over boto3. The instance may set the capacity of this one group and nothing else of it."""

    def __init__(self, name: str, *, region: str, endpoint_url: str | None = None) -> None:
        self._name, self._region, self._endpoint_url = name, region, endpoint_url

    def release(self) -> None:
        try:
            _client("autoscaling", self._region, self._endpoint_url).set_desired_capacity(
                AutoScalingGroupName=self._name, DesiredCapacity=0, HonorCooldown=False
            )
        except (ClientError, BotoCoreError) as error:
            raise judged(f"auto scaling group {self._name} cannot be set to 0 instances", error) from error


class NoGroup:
    """An instance that no group holds: it simply ends."""

    def release(self) -> None:
        """Nothing is to be done."""


def judged(what: str, error: ClientError | BotoCoreError) -> PeerlessError:
    """One of our errors for one of AWS's: whether trying again is worth it."""
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        message = error.response.get("Error", {}).get("Message", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        kind = TransientError if status >= 500 or status == 429 or code in _BUSY else PermanentError
        return kind(f"{what}: {code}: {message}")
    return TransientError(f"{what}: {error}")


def _client(service: str, region: str, endpoint_url: str | None) -> Any:
    local = urlsplit(endpoint_url or "").hostname in ("127.0.0.1", "localhost", "::1")
    config = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"mode": "standard", "max_attempts": 3},
        proxies={} if local else None,
    )
    session: Any = boto3.session.Session()  # its stubs know only the services named by a literal
    return session.client(service, region_name=region, endpoint_url=endpoint_url, config=config)
