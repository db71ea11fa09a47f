"""One run on a deployment, step by step: asked for, uploaded, switched on, followed, switched off, fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from contract.clock import Clock
from contract.config import RunConfig
from contract.errors import AccountError, ConfigError, PeerlessError, UserError
from contract.keys import Places
from contract.prices import Prices
from contract.runspec import RunSpec
from infra.settings import Settings
from peerless import cost, data
from peerless.launch import fit, parallel, quotas, result
from peerless.launch.account import Account, told
from peerless.launch.billing import Billing
from peerless.launch.bucket_follow import BucketRun, Detached, Watch
from peerless.launch.current import CurrentRun
from peerless.launch.deployed import Deployment
from peerless.launch.groups import Groups
from peerless.launch.interrupts import Interrupts
from peerless.launch.run_folder import RunFolder
from peerless.launch.upload import provide
from peerless.launch.workload import Workload, invocations_per_round
from peerless.report.progress import Observer
from statemachines import Mode

#: Answers a question before money is spent; raises UserError where nobody can be asked.
Confirm = Callable[[str], bool]


class LetGo(KeyboardInterrupt):
    """The user has let go of a run that goes on; its text says how to get back to it."""


class Adrift(AccountError):
    """AWS does not let this side follow any longer; the run goes on."""


class Session:
    """One run on a deployment."""

    def __init__(
        self, account: Account, deployment: Deployment, peers: int, run: str, observer: Observer, clock: Clock
    ) -> None:
        self._account, self._deployment, self._run = account, deployment, run
        self._peers, self._observer, self._clock = peers, observer, clock
        self._owner = account.identity().account
        self._store = account.store(clock)
        self._groups = Groups(account.client, deployment.groups[:peers])
        self._current = CurrentRun(self._store, deployment.run_bucket, self._owner)
        self._claimed = self._made_machines = False

    def _places(self, run: str, peers: int) -> Places:
        return self._deployment.places(run, peers, self._account.region, self._owner)

    def refuse_second_run(self) -> None:
        """Raise ConfigError while another run works on the deployment."""
        current = self._current.read()
        if not Groups(self._account.client, self._deployment.groups).desired():
            return
        name = self._deployment.settings.name
        if current is None:
            raise ConfigError(f"instances of the deployment {name} are running without a run; run `peerless stop`")
        raise ConfigError(
            f"run {current.run} goes on on the deployment {name}; `peerless attach` follows it, `peerless stop` ends it"
        )

    def look_at_account(self, config: RunConfig, work: Workload) -> None:
        """Tell what will make the run slower; raise ConfigError for what would keep it from running."""
        for difference in fit.differences(config, self._deployment.settings):
            self._observer.note(f"note: {difference}")
        batches = invocations_per_round(config, work.prepared.batches)
        for finding in quotas.before_training(self._account.client, self._deployment.settings, config, batches):
            if finding.state == quotas.FAILED:
                raise ConfigError(finding.sentence())
            if finding.state == quotas.WARNING:
                self._observer.note(f"note: {finding.sentence()}")

    def agree(self, config: RunConfig, confirm: Confirm) -> Prices | None:
        """Ask the user to spend; gives the prices for the peers' meters, None where one is not known.

        Raises UserError, among others where a limit in US dollars could not be kept.
        """
        settings, prices = self._settings, self._tariff(config).prices
        unknown = tuple(cost.unpriced(settings, prices))
        if unknown and config.aws.max_usd:
            raise ConfigError(
                f"aws.max_usd = {config.aws.max_usd} cannot be kept, because the price of {unknown[0]} is not known; "
                "set it to 0 (aws.max_hours still holds), or deploy another instance type"
            )
        hourly = cost.hourly(settings, prices=prices)
        parts = ", ".join(f"{part} {usd:.4f}" for part, usd in hourly.items())
        self._observer.note(f"USD per hour while it trains: {sum(hourly.values()):.4f} ({parts})")
        if unknown:
            self._observer.note(f"not in that sum, because Peerless does not know the price: {', '.join(unknown)}")
        for warning in self._tariff(config).warnings(self._clock.now()):
            self._observer.note(f"note: {warning}")
        self._observer.note("on top comes what the run uses: gradient workers, state transitions, requests, storage")
        limit = f"{min(config.aws.max_hours, settings.max_hours):g} hours"  # instances keep the deployment's own, too
        if config.aws.max_usd:
            limit += f" or {config.aws.max_usd:g} USD"
        if not confirm(f"train with {self._peers} peers now, for at most {limit}?"):
            raise UserError("nothing was started")
        return self._tariff(config).for_peers()

    @property
    def _settings(self) -> Settings:
        """Of the deployment, with as many peers as this run has."""
        return replace(self._deployment.settings, peers=self._peers)

    def _tariff(self, config: RunConfig) -> cost.Tariff:
        """With what the run is billed. Raises ConfigError for prices that cannot be used."""
        return cost.Tariff.deployed(config, self._settings, self._account.region)

    def provide(self, config: RunConfig, work: Workload, digest: str, prices: Prices | None) -> RunSpec:
        """Put the run into the buckets."""
        batches = work.prepared.batches
        self._observer.note(f"uploading {sum(batches)} batches of {self._peers} peers")
        machines: tuple[str, ...] = ("",) * self._peers
        if config.compute.service == "lambda":
            mode = Mode(config.compute.state_machine)
            if mode is Mode.PARALLEL:
                self._made_machines = True
                counts = invocations_per_round(config, batches)
                machines = parallel.create(self._account.client, self._deployment, config, self._run, counts)
            else:
                machines = self._deployment.machines(mode)[: self._peers]
        return provide(
            config,
            work,
            self._store,
            self._places(self._run, self._peers),
            machines=machines,
            code_digest=digest,
            clock=self._clock,
            prices=prices,
        )

    def start(self, max_hours: float) -> None:
        """Switch the peers on, once it is certain that they go off. Raises ConfigError for a second run."""
        self._current.write(self._run, self._clock)  # whoever loses here must not touch the groups
        self._claimed = True
        self._groups.limit(self._clock.now() + max_hours * 3_600)
        self._observer.note("switching the peers on; the first instance takes some two minutes")
        self._groups.start()

    def take_up(self, spec: RunSpec) -> bool:
        """Be responsible for a run that was started before; whether it is the deployment's current one."""
        current = self._current.read()
        self._claimed = current is not None and current.run == self._run
        self._made_machines = self._claimed and spec.config.compute.state_machine == "parallel"
        return self._claimed

    def follow(self, folder: RunFolder, spec: RunSpec, interrupts: Interrupts) -> str | None:
        """Follow the run to its end; returns what failed, or None. Raises LetGo."""
        self._observer.training(self._peers, spec.rounds_limit)
        run = BucketRun(self._store, spec.places, self._peers, folder.events, self._keys_after, self._clock)
        watch = Watch(
            wants_out=lambda: interrupts.wanted,
            trouble=self._groups.failures if self._claimed else list,
            alive=lambda: self._claimed and self._groups.desired() > 0,
        )
        name = self._deployment.settings.name
        named = "" if name == Settings().name else f" --name {name}"
        goes_on = (
            f"run {self._run} goes on without this command; `peerless attach{named}` follows it again and fetches "
            f"its result, `peerless stop{named}` ends it"
        )
        try:
            return run.follow(watch, self._observer)
        except Detached:
            raise LetGo(goes_on) from None
        except AccountError as error:  # credentials last some hours, a run may last longer
            raise Adrift(f"{error}; {goes_on}") from error

    @contextlib.contextmanager
    def switched_off_at_the_end(self) -> Iterator[None]:
        """Whatever happens to the run, its instances do not outlive it; unless the user has let go of it."""
        try:
            yield
        except (LetGo, Adrift):
            raise
        except BaseException:
            with contextlib.suppress(PeerlessError):  # the first error is the one to report; the schedule still holds
                self._switch_off()
            raise
        self._switch_off()

    def _switch_off(self) -> None:
        if self._claimed:
            self._groups.stop()
        if self._made_machines:
            parallel.remove(self._account.client, self._deployment.settings.prefix, self._run)

    def conclude(
        self,
        folder: RunFolder,
        config: RunConfig,
        spec: RunSpec,
        prepared: data.Prepared | None,
        error: str | None,
        seconds: Callable[[], float],
    ) -> dict[str, Any]:
        """Fetch the result into the run's folder."""
        self._observer.note("fetching the result")
        bill: Billing | None = None
        try:
            bill = Billing(
                tariff=self._tariff(config),
                config=spec.config,
                store=self._store,
                requests=self._store.counts,
                places=[spec.places],
                events=folder.events,
                now=self._clock.now(),
            )
        except ConfigError as cause:  # who takes a run up elsewhere need not have the prices that it was started with
            self._observer.note(f"without a bill: {cause}")
        return result.conclude(
            folder,
            self._store,
            spec.places,
            config,
            spec.model,
            None if prepared is None else prepared.test_batches,
            counters=dict,
            bill=bill,
            peak_memory_bytes=None,
            seconds_total=seconds,
            error=error,
            interrupted=False,
        )

    def _keys_after(self, prefix: str, key: str) -> list[str]:
        pages = self._account.client("s3").get_paginator("list_objects_v2")
        with told("look into the run's bucket"):
            found = pages.paginate(
                Bucket=self._deployment.run_bucket, Prefix=prefix, StartAfter=key, ExpectedBucketOwner=self._owner
            )
            return [item["Key"] for page in found for item in page.get("Contents", ())]
