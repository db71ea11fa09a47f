"""AWS as the user's environment names it: profile, region, endpoint; and what goes wrong with it, in sentences."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)

from contract.clock import Clock
from contract.errors import AccountError, AwsUnavailable, DeployFailed
from contract.store import S3Store

#: Gives a boto3 client by the service's name.
Clients = Callable[[str], Any]

_LOGIN = "run `aws configure` or `aws sso login`, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_BAD_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_DENIED = {"AccessDenied", "AccessDeniedException", "AuthorizationError", "UnauthorizedOperation", "Forbidden", "403"}
_BUSY = {"Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "SlowDown"}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who the credentials belong to."""

    account: str
    """Twelve digits."""
    arn: str


class Account:
    """The AWS account, region and endpoint of the user's environment. Raises AccountError for a profile or region that
    is missing; credentials are first looked at by the first call."""

    def __init__(self) -> None:
        try:
            # boto3 knows AWS_DEFAULT_REGION alone; AWS's command and other libraries read AWS_REGION first.
            self._session = boto3.session.Session(region_name=os.environ.get("AWS_REGION") or None)
            region = self._session.region_name
            scoped = botocore.session.Session().get_scoped_config()
        except ProfileNotFound as error:
            raise AccountError(f"{error}; see `aws configure list-profiles`") from error
        except BotoCoreError as error:
            raise AccountError(f"the AWS configuration cannot be read ({error})") from error
        if not region:
            raise AccountError("no AWS region is chosen; set AWS_REGION, for example AWS_REGION=us-east-1")
        self.region: str = region
        self.profile: str = self._session.profile_name
        self._ignored = os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
        named = os.environ.get("AWS_ENDPOINT_URL") or scoped.get("endpoint_url") or None
        self.endpoint_url: str | None = None if self._ignored else named
        """Another AWS than Amazon's, for all services; None is Amazon's."""
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The boto3 client of a service; the same one at each call."""
        if service not in self._clients:
            config = Config(retries={"mode": "standard"}, connect_timeout=10, read_timeout=60)
            with told(f"use {service}"):
                # `client` has no overload for a name that is a variable
                self._clients[service] = self._session.client(service, config=config)  # type: ignore[call-overload]
        return self._clients[service]

    def identity(self) -> Identity:
        """Raises AccountError for credentials that are missing or not valid, AwsUnavailable without an answer."""
        with told("ask who you are"):
            answer = self.client("sts").get_caller_identity()
        return Identity(account=str(answer["Account"]), arn=str(answer["Arn"]))

    def store(self, clock: Clock) -> S3Store:
        """S3 with these credentials, as peers use it."""
        endpoint = (None if self._ignored else os.environ.get("AWS_ENDPOINT_URL_S3")) or self.endpoint_url
        return S3Store(region=self.region, endpoint_url=endpoint, clock=clock, session=boto3.session.Session())


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Turn what boto3 raises into a sentence; `what` completes "AWS did not let us ...".

    Raises AccountError for credentials and rights, AwsUnavailable for no answer, DeployFailed for all else.
    """
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise AccountError(f"there are no AWS credentials; {_LOGIN}") from error
    except NoRegionError as error:
        raise AccountError("no AWS region is chosen; set AWS_REGION, for example AWS_REGION=us-east-1") from error
    except (ConnectionError, HTTPClientError) as error:
        raise AwsUnavailable(f"AWS cannot be reached to {what}: {_one_line(error)}") from error
    except ClientError as error:
        raise _judged(what, error) from error
    except BotoCoreError as error:  # an expired SSO login, a role that cannot be assumed, a bad endpoint
        named = type(error).__name__
        if any(part in named for part in ("SSO", "Credential", "Token", "Login", "Metadata")):
            raise AccountError(f"the AWS credentials cannot be used ({_one_line(error)}); {_LOGIN}") from error
        raise DeployFailed(f"AWS could not be asked to {what}: {_one_line(error)}") from error


def code(error: ClientError) -> str:
    """AWS's name of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _judged(what: str, error: ClientError) -> AccountError | AwsUnavailable | DeployFailed:
    name = code(error)
    message = _one_line(error.response.get("Error", {}).get("Message", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if name in _BAD_CREDENTIALS:
        return AccountError(f"AWS does not accept the credentials ({name}: {message}); {_LOGIN}")
    if name in _DENIED or status == 403:
        return AccountError(f"AWS did not let us {what} ({name}: {message}); ask for that right, or change AWS_PROFILE")
    if name in _BUSY or status >= 500:
        return AwsUnavailable(f"AWS was too busy to {what} ({name}: {message}); try again")
    return DeployFailed(f"AWS refused to {what} ({name}: {message})")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
