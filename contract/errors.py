"""The error families of Peerless.

A class name here is also the error name that a Step Functions `Retry` rule can match, because AWS Lambda reports the
class name of an exception as its error. So `statemachines/` imports this module to build its rules, and nothing else.

Every error's message is one sentence for the person who meets it: what happened, where, and what to do.
"""

from __future__ import annotations

#: Exit status of a peer that something befell which is no reason for others to end, such as storage that does not
#: answer: it may be started again. (75 is sysexits.h's EX_TEMPFAIL.) Its event `failed` says `alone`.
EXIT_ALONE = 75
#: Exit status of a peer whose rank another process has taken over: it must not be started again. `alone` as well.
EXIT_SUPERSEDED = 76


class PeerlessError(Exception):
    """Anything that Peerless itself reports; its text is one sentence for the user."""


class UserError(PeerlessError):
    """A mistake that only the user can mend (exit status 2)."""


class ConfigError(UserError):
    """An unknown key or an impossible value in a configuration."""


class DataError(UserError):
    """A data set that is missing, corrupt or too small for what was asked."""


class ModelError(UserError):
    """A model that cannot be imported, built, or fed with the configured data."""


class CodeError(UserError):
    """The user's own code (`[code]`) is missing, or differs between the run and a peer."""


class TransientError(PeerlessError):
    """Something that may work when tried again (exit status 1 once the retries are spent)."""


class StoreUnavailable(TransientError):
    """The object store did not answer, throttled, or failed on its side."""


class BrokerUnavailable(TransientError):
    """RabbitMQ cannot be reached, or did not confirm a message."""


class PermanentError(PeerlessError):
    """Something that fails the same way however often it is tried (exit status 1)."""


class ObjectMissing(PermanentError):
    """An object that must exist does not."""


class CorruptObject(PermanentError):
    """An object or frame whose bytes do not match its digest or its declared sizes."""


class WeightsMismatch(PermanentError):
    """Weights whose hash differs from the one they were asked for by, or that do not fit the model."""


class NonFiniteGradient(PermanentError):
    """A gradient or loss that holds NaN or infinity."""


class GradientFailed(PermanentError):
    """A peer's gradient for a round could not be computed; the text names the batch and the cause."""

    invocations = 0
    """Lambda invocations that it took all the same, retries included."""
    executions = 0
    """State machine executions that it took."""


class Superseded(PermanentError):
    """Another process has taken over this rank; this one must stop."""


class LocalStackError(PeerlessError):
    """A server of the local stack could not be started, or stopped answering (exit status 1)."""


class AccountError(UserError):
    """AWS credentials, a region or a right that the user's side lacks."""


class AwsUnavailable(TransientError):
    """A service of AWS that cannot be reached, throttles, or fails on its side."""


class DeploymentMissing(UserError):
    """No deployment of this name, one that is not whole, or one that is not what the configuration asks for."""


class DeployFailed(PeerlessError):
    """A deployment could not be made, changed or removed (exit status 1)."""


class RunFailed(PeerlessError):
    """A run ended without its quorum; the text names the peer and the cause (exit status 1)."""


#: What a gradient worker raises: names that a `Retry` rule may try again, and names that it must never try again.
TRANSIENT_NAMES = (StoreUnavailable.__name__,)
PERMANENT_NAMES = tuple(
    sorted(
        c.__name__
        for c in (
            ConfigError,
            ModelError,
            CodeError,
            PermanentError,
            ObjectMissing,
            CorruptObject,
            WeightsMismatch,
            NonFiniteGradient,
        )
    )
)
