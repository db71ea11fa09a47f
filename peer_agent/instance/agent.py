"""One instance, from its start to its end: waits for a run, keeps a peer going, and switches its group off.

The reasons for what happens in which case are in peer_agent/instance/__init__.py. Nothing in here touches the machine:
processes, AWS and time are ports.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from contract.env import InstanceEnv
from contract.errors import ConfigError, PeerlessError, PermanentError, StoreUnavailable
from contract.keys import Places, current_place
from contract.records import Current
from contract.runspec import RunSpec
from peer_agent.instance.participation import Ending, Participation
from peer_agent.instance.ports import InstancePorts

#: Exit statuses; see peer_agent/instance/__init__.py.
OVER, FAILED, AGAIN = 0, 1, 75
#: An instance is started for a run, so that there is one soon; else it ends, in seconds.
WAIT_SECONDS = 900.0
#: So long S3 may refuse everything at first, in seconds: a role's rights take a while to be known everywhere.
REFUSED_SECONDS = 120.0
#: Between looks for a run: the first and the longest wait, in seconds.
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 1.0, 15.0
#: How long an instance whose rank another one holds waits for its group to end it, in seconds.
STAND_BY_SECONDS = 900.0
#: A signal is noticed at the latest after so many seconds of waiting.
TICK_SECONDS = 0.5


class Instance:
    """`environ` is what the peer inherits; `folder` is for its events and output."""

    def __init__(self, env: InstanceEnv, ports: InstancePorts, environ: Mapping[str, str], folder: Path) -> None:
        self._env, self._ports, self._environ, self._folder = env, ports, environ, folder
        self._clock, self._log = ports.clock, ports.log
        self._served: set[str] = set()
        self._part: Participation | None = None
        self._asked = 0

    def ask_to_end(self) -> None:
        """What SIGTERM means; safe to call from a signal handler."""
        self._asked += 1
        if self._part is not None:
            self._part.ask_to_end()

    def run(self) -> int:
        """Serve until nothing is left to be done; the exit status."""
        try:
            status = self._serve()
        except Exception as error:  # whatever it is must not keep the instance alive
            self._log.error(_sentence(error))
            status = FAILED
        if status is None:
            return OVER
        return status if self._release() else AGAIN

    def _serve(self) -> int | None:
        """The exit status, or None where the group is not this instance's to switch off."""
        status = OVER
        run = self._wait_for_run()
        while run is not None:
            ending = self._take_part(run)
            if ending is Ending.ASKED:
                return None
            if ending is Ending.SUPERSEDED:
                self._stand_by()
                return None
            status = OVER if ending is Ending.OVER else FAILED
            run = None if self._asked else self._next_run()
        return None if self._asked and not self._served else status

    # ------------------------------------------------------------------------------------------------ before a run

    def _wait_for_run(self) -> str | None:
        """The run to take part in; None when there is none for a while, or the wait was ended.

        Raises PermanentError when S3 keeps refusing, StoreUnavailable when it stays away.
        """
        begun, wait, said = self._clock.monotonic(), FIRST_LOOK_SECONDS, ""
        self._log.run = None
        while not self._asked:
            waited = self._clock.monotonic() - begun
            try:
                run = self._current_run()
                if run is not None:
                    return run
                say = "waiting for a run"
            except PermanentError as error:
                if waited >= REFUSED_SECONDS:
                    raise
                say = str(error)
            except StoreUnavailable as error:
                if waited >= WAIT_SECONDS:
                    raise
                say = str(error)
            if waited >= WAIT_SECONDS:
                self._log.warning(f"there is no run to take part in, for {WAIT_SECONDS:g} s")
                return None
            if say != said:
                said = say
                self._log.info(say)
            self._pause(min(wait, WAIT_SECONDS - waited))
            wait = min(2 * wait, LONGEST_LOOK_SECONDS)
        return None

    def _next_run(self) -> str | None:
        """The run that was started while this instance served another one, if any."""
        try:
            return self._current_run()
        except PeerlessError as error:
            self._log.warning(f"whether there is another run is not known: {error}")
            return None

    def _current_run(self) -> str | None:
        """The current run, unless this rank is through with it."""
        found = self._ports.store.find(current_place(self._env.run_bucket, self._env.account))
        if found is None:
            return None
        run = Current.from_json(found[0]).run
        if run in self._served or self._ports.store.head(self._places(run).report(self._env.rank)) is not None:
            return None
        return run

    def _places(self, run: str) -> Places:
        """The run's own places; those of peers' buckets are not needed here."""
        env = self._env
        return Places(run=run, run_bucket=env.run_bucket, peer_buckets=(), region=env.region, account=env.account)

    # --------------------------------------------------------------------------------------------------- in a run

    def _take_part(self, run: str) -> Ending:
        """One run, from its configuration to this rank's report."""
        self._served.add(run)
        self._log.run = run
        places = self._places(run)
        part = Participation(self._env, self._ports, places, self._folder / run)
        try:
            spec = self._ports.patiently(lambda: RunSpec.from_json(self._ports.store.get(places.spec())))
            if self._env.rank >= spec.config.peers:
                self._log.info(f"run {run} has {spec.config.peers} peers, so rank {self._env.rank} has no part in it")
                return Ending.OVER
            environment = self._ports.patiently(lambda: self._environment(spec))
            self._part = part
            if self._asked:
                return Ending.ASKED
            return part.play(environment)
        except Exception as error:  # the other peers and the user's side learn of it, whatever it is
            part.give_up(_sentence(error))
            return Ending.FAILED
        finally:
            self._part = None
            part.close()

    def _environment(self, spec: RunSpec) -> dict[str, str]:
        """The peer's environment: this one's, and the broker's address with the password, which nothing else holds."""
        environment = dict(self._environ)
        environment.pop("PEERLESS_BROKER_URL", None)
        if spec.config.exchange.transport == "rabbitmq":
            if not self._env.broker_endpoint:
                raise ConfigError(
                    f'run {spec.run} has exchange.transport = "rabbitmq", but deployment {self._env.deployment} has no '
                    'broker; deploy it with one, or train with exchange.transport = "s3"'
                )
            credentials = self._ports.secrets.credentials(self._env.broker_secret)
            url = credentials.url(self._env.broker_endpoint)
            for secret in (credentials.password, credentials.quoted, url):
                self._log.hide(secret)
            environment["PEERLESS_BROKER_URL"] = url
        return environment

    # --------------------------------------------------------------------------------------------------- the end

    def _release(self) -> bool:
        """Switch the group off; False, and a sentence in the log, when that cannot be."""
        try:
            self._ports.patiently(self._ports.group.release)
        except PeerlessError as error:
            self._log.error(f"{error}; this instance costs money until it is switched off (aws.max_hours does it)")
            return False
        self._log.info(f"auto scaling group {self._env.group} is set to 0 instances" if self._env.group else "done")
        return True

    def _stand_by(self) -> None:
        """Wait to be ended: an exit here could switch off the group of the instance that holds the rank."""
        until = self._clock.monotonic() + STAND_BY_SECONDS
        while not self._asked and self._clock.monotonic() < until:
            self._clock.sleep(TICK_SECONDS)

    def _pause(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        while not self._asked and (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(left, TICK_SECONDS))


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, PeerlessError) else f"internal error, {type(error).__name__}: {error}"
